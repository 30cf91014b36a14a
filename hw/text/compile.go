package text

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"time"

	"ferrule/hw/frame"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

const (
	minLength    = 16
	maxLength    = 1 << 16
	minEvery     = 10 * time.Millisecond
	maxEvery     = 24 * time.Hour
	defaultEvery = time.Second
	maxRequest   = 256
	maxFields    = 256
)

// Default returns the Config of a table that says nothing.
func Default() Config {
	return Config{Delimiter: "\n", MaxLength: 1024, Encoding: "utf-8", Decimal: ".", CheckForm: "hex"}
}

// filled returns c with the defaults of what it leaves out.
func (c Config) filled() Config {
	standard := Default()
	c.MaxLength = cmp.Or(c.MaxLength, standard.MaxLength)
	c.Encoding = cmp.Or(c.Encoding, standard.Encoding)
	c.Decimal = cmp.Or(c.Decimal, standard.Decimal)
	c.CheckForm = cmp.Or(c.CheckForm, standard.CheckForm)
	if len(c.Delimiters) == 0 {
		c.Delimiters = []string{cmp.Or(c.Delimiter, standard.Delimiter)}
		c.Delimiter = ""
	}
	return c
}

// Validate finds all mistakes in c at once; each error names its key, and those that are easily
// made carry a hint.
func (c Config) Validate() error {
	_, _, err := New(c)
	return err
}

// Poll returns what to send so that the device answers with a line, and how often; nil where
// nothing is sent.
func (c Config) Poll() (request []byte, every time.Duration) {
	if c.Request == "" {
		return nil, 0
	}
	return c.wire(c.Request), cmp.Or(c.Every.Std(), defaultEvery)
}

// New returns what cuts and decodes the lines that c describes, or what is wrong with c.
func New(c Config) (*frame.Cutter, *Decoder, error) {
	c = c.filled()
	k := &checker{}
	d := &Decoder{keepSpaces: c.KeepSpaces, latin1: c.Encoding == "latin1", mark: c.Decimal[0]}
	k.oneOf("encoding", c.Encoding, "utf-8", "latin1")
	k.oneOf("decimal", c.Decimal, ".", ",")
	size := k.within("max_length", c.MaxLength, minLength, maxLength)
	d.delimiters = c.compileDelimiters(k)
	d.check = c.compileCheck(k)
	if c.Ignore != "" {
		d.ignore = k.pattern("ignore", c.Ignore)
	}
	c.compileRequest(k)
	c.compileForm(k, d)
	if err := errors.Join(k.problems...); err != nil {
		return nil, nil, err
	}
	return frame.NewCutter(d.split(), size), d, nil
}

// wire returns s in the encoding of the line.
func (c Config) wire(s string) []byte {
	if c.Encoding != "latin1" {
		return []byte(s)
	}
	var b []byte
	for _, r := range s {
		if r > 0xff {
			r = '?'
		}
		b = append(b, byte(r))
	}
	return b
}

func (c Config) compileDelimiters(k *checker) [][]byte {
	if c.Delimiter != "" {
		k.wrong("delimiter", "put it into the list", errors.New("delimiters are given, too"))
	}
	var all [][]byte
	for _, s := range c.Delimiters {
		d := c.wire(s)
		if len(d) == 0 || len(d) > 16 {
			k.wrong("delimiters", `"\n" is a line feed`, fmt.Errorf("%q has none of 1 to 16 bytes", s))
			continue
		}
		for _, other := range all {
			if strings.Contains(string(d), string(other)) || strings.Contains(string(other), string(d)) {
				k.wrong("delimiters", `empty lines are skipped: ["\r", "\n"] takes CR, LF and both`, fmt.Errorf("%q is a part of %q, or the reverse", d, other))
			}
		}
		all = append(all, d)
	}
	return all
}

func (c Config) compileCheck(k *checker) *lineCheck {
	k.oneOf("check_form", c.CheckForm, "hex", "binary")
	if c.Check == "" {
		if c.CheckMark != "" || c.CheckFrom != 0 {
			k.wrong("check", `"xor8" is the checksum of NMEA 0183`, errors.New("there are other keys of the check, and this one is missing"))
		}
		return nil
	}
	sum, err := frame.ParseSum(c.Check)
	if err != nil {
		k.wrong("check", "", err)
		return nil
	}
	check := &lineCheck{mark: c.wire(c.CheckMark), size: sum.Size()}
	hex := c.CheckForm == "hex"
	if hex {
		check.size *= 2
	}
	check.Check = frame.Check{Sum: sum, Hex: hex, Little: !hex && sum.LowFirst(), From: k.within("check_from", c.CheckFrom, 0, maxLength)}
	return check
}

func (c Config) compileRequest(k *checker) {
	switch {
	case c.Request == "" && c.Every != 0:
		k.wrong("every", `request = "P\r\n" is what many scales answer`, errors.New("there is no request that could be sent"))
	case len(c.Request) > maxRequest:
		k.wrong("request", "", fmt.Errorf("%d bytes are too many; %d are allowed", len(c.Request), maxRequest))
	case c.Every != 0 && (c.Every.Std() < minEvery || c.Every.Std() > maxEvery):
		k.wrong("every", "", fmt.Errorf("%s is not between %s and %s", c.Every, minEvery, quantity.Duration(maxEvery)))
	}
}

// compileForm says how a line becomes points.
func (c Config) compileForm(k *checker, d *Decoder) {
	p := &points{checker: k, config: c, known: make(map[string]bool)}
	given := 0
	for _, is := range []bool{c.Pattern != "" || len(c.Patterns) > 0, c.Separator != "", len(c.Columns) > 0} {
		if is {
			given++
		}
	}
	if given > 1 {
		k.wrong("pattern", "", errors.New("a line has patterns, a separator or columns, not several of them"))
	}
	if len(c.Names) > 0 && c.Separator == "" {
		k.wrong("names", `separator = "," or the like`, errors.New("there is no separator that would make fields"))
	}
	switch {
	case c.Pattern != "" || len(c.Patterns) > 0:
		c.compilePatterns(p, d)
	case c.Separator != "":
		d.form, d.separator, d.named = bySeparator, []byte(c.Separator), len(c.Names) > 0
		for i, name := range c.Names {
			d.points = append(d.points, p.add(fmt.Sprintf("names: field %d", i+1), name, true))
		}
		for i := len(c.Names); i < maxFields && !d.named; i++ {
			d.points = append(d.points, p.add("separator", fmt.Sprintf("f%d", i+1), false))
		}
		if len(c.Names) > maxFields {
			k.wrong("names", "", fmt.Errorf("%d fields are too many; %d are allowed", len(c.Names), maxFields))
		}
	case len(c.Columns) > 0:
		d.form = byColumns
		c.compileColumns(p, d)
	default:
		d.points = append(d.points, p.add("", "line", false))
	}
	p.strangers("types", slices.Collect(maps.Keys(c.Types)))
	p.strangers("uom", slices.Collect(maps.Keys(c.Uom)))
	for _, name := range slices.Sorted(maps.Keys(c.Types)) {
		k.oneOf("types: "+name, c.Types[name], "text", "number")
	}
}

func (c Config) compileColumns(p *points, d *Decoder) {
	for _, col := range c.Columns {
		where := fmt.Sprintf("columns: %q", col.Name)
		if col.From < 1 || col.From > maxLength || col.To != 0 && col.To < col.From || col.To > maxLength {
			p.wrong(where, "columns are counted from 1, and both are included", fmt.Errorf("there are no columns %d to %d", col.From, col.To))
		}
		if col.Name == "" {
			p.wrong(where, "", errors.New("the name is missing"))
		}
		d.points = append(d.points, p.add(where, col.Name, true))
		d.columns = append(d.columns, [2]int{col.From - 1, col.To})
	}
}

func (c Config) compilePatterns(p *points, d *Decoder) {
	d.form = byPattern
	all := c.Patterns
	if c.Pattern != "" {
		all = append([]Pattern{{Match: c.Pattern}}, all...)
	}
	for i, one := range all {
		key := "pattern"
		if c.Pattern == "" || i > 0 {
			key = "patterns: match"
		}
		re := p.pattern(key, one.Match)
		if re == nil {
			continue
		}
		compiled := pattern{re: re, unit: one.Unit}
		names := re.SubexpNames()
		for group, name := range names {
			base, isUom := strings.CutSuffix(name, "_uom")
			switch {
			case name == "unit":
				compiled.unitGroup = group
			case name != "" && !(isUom && slices.Contains(names, base)):
				point := p.add(key, name, false)
				compiled.groups = append(compiled.groups, captured{
					group: group, uomGroup: max(0, slices.Index(names, name+"_uom")), point: point,
				})
			}
		}
		if len(compiled.groups) == 0 {
			p.wrong(key, "a group with a name is a point: (?P<weight>[-+0-9.]+)", fmt.Errorf("%q names no point", one.Match))
		}
		d.patterns = append(d.patterns, compiled)
	}
}

// points collects what the points of a Config are called.
type points struct {
	*checker
	config Config
	known  map[string]bool
}

// add makes a point; "" is one that is left out.
func (p *points) add(where, name string, once bool) target {
	if name == "" {
		return target{}
	}
	if once && p.known[name] {
		p.wrong(where, "", fmt.Errorf("another point is called %q, too", name))
	}
	p.known[name] = true
	t := target{name: name, uom: p.config.Uom[name]}
	switch p.config.Types[name] {
	case "text":
		t.kind = asText
	case "number":
		t.kind = number
	}
	return t
}

// strangers refuses names that no point has.
func (p *points) strangers(key string, names []string) {
	slices.Sort(names)
	for _, name := range names {
		if !p.known[name] {
			p.wrong(key, "", fmt.Errorf("there is no point %q", name))
		}
	}
}

// checker collects mistakes.
type checker struct{ problems []error }

func (k *checker) wrong(key, repair string, err error) {
	err = fmt.Errorf("%s: %w", key, err)
	if repair != "" {
		err = hint.With(err, repair)
	}
	k.problems = append(k.problems, err)
}

// within checks a number, and returns it or the nearest that is allowed.
func (k *checker) within(key string, n, low, high int) int {
	if n < low || n > high {
		k.wrong(key, "", fmt.Errorf("%d is none of %d to %d", n, low, high))
	}
	return max(low, min(n, high))
}

// oneOf checks a word.
func (k *checker) oneOf(key, s string, words ...string) {
	if !slices.Contains(words, s) {
		k.wrong(key, "", fmt.Errorf("%q is none of %s", s, strings.Join(words, ", ")))
	}
}

// pattern compiles a regular expression, or says what is wrong with it, and where.
func (k *checker) pattern(key, s string) *regexp.Regexp {
	re, err := regexp.Compile(s)
	if err == nil {
		return re
	}
	const repair = `write it between single quotes, where \ stands for itself; the syntax is RE2, which has no (?=…) and no \1`
	wrong, ok := errors.AsType[*syntax.Error](err)
	if !ok {
		k.wrong(key, repair, err)
		return nil
	}
	position := 1 + max(0, strings.Index(s, wrong.Expr))
	k.wrong(key, repair, fmt.Errorf("%q, at character %d: %s: %q", s, position, wrong.Code, wrong.Expr))
	return nil
}
