// Package text turns lines of text into readings: scales, barcode readers, Arduinos, modems. The
// trap is the text that looks like a number: "0012" on a label is not 12, and "1,5" is 1.5 only
// where somebody said so; what is not a number for certain stays text.
package text

import (
	"bytes"
	"errors"
	"regexp"
	"unicode/utf8"

	"ferrule/hw/frame"
	"ferrule/hw/point"
)

// ErrNoMatch says that a line has none of the forms that were configured; Decoder.Refused has it.
var ErrNoMatch = errors.New("the line has none of the configured forms")

// maxRefused is how much of a line is kept that was refused, and maxUnit how long the name of a
// unit may be that a line gives, in bytes.
const (
	maxRefused = 256
	maxUnit    = 64
)

// form says how a line becomes points.
type form uint8

const (
	whole form = iota
	bySeparator
	byColumns
	byPattern
)

// Decoder makes readings of lines. Build it with New; one goroutine may use it.
type Decoder struct {
	form       form
	delimiters [][]byte
	check      *lineCheck
	ignore     *regexp.Regexp
	latin1     bool
	keepSpaces bool
	mark       byte // of decimals
	points     []target
	named      bool   // the points are all the fields there are
	separator  []byte // a space: any number of spaces and tabs
	columns    [][2]int
	patterns   []pattern
	words      point.Strings
	buf        []byte // of a line in UTF-8
	refused    []byte
}

// target is a point: what it is called, what it must be.
type target struct {
	name, uom string
	kind      kind
}

// pattern is a form of a line.
type pattern struct {
	re        *regexp.Regexp
	unit      string
	unitGroup int // 0: none
	groups    []captured
}

// captured is a group of a pattern that is a point.
type captured struct {
	group, uomGroup int // uomGroup 0: none
	point           target
}

// lineCheck is a checksum at the end of a line.
type lineCheck struct {
	frame.Check
	mark []byte
	size int // in characters
}

// split takes the line apart; false where its checksum is wrong.
func (c *lineCheck) split(line []byte) (body []byte, ok bool) {
	at := len(line) - c.size
	body, mark, found := line[:max(0, at-len(c.mark))], c.mark, at >= len(c.mark)
	if !found || !bytes.HasSuffix(line[:at], mark) || !c.Right(body, line[at:]) {
		return line, false
	}
	return body, true
}

// split returns the Split of the lines: they end with a delimiter, and those with a wrong
// checksum are faults, unless they are chatter.
func (d *Decoder) split() frame.Split {
	lines := frame.Delimited(d.delimiters, nil)
	if d.check == nil {
		return lines
	}
	return func(data []byte, lost bool) frame.Cut {
		cut := lines(data, lost)
		if cut.Size == 0 {
			return cut
		}
		line := d.content(data[cut.Skip : cut.Skip+cut.Size])
		if _, ok := d.check.split(line); !ok && len(line) > 0 && (d.ignore == nil || !d.ignore.Match(line)) {
			cut.Fault = frame.Checksum
		}
		return cut
	}
}

// content returns a line without its delimiter and the carriage return before that.
func (d *Decoder) content(line []byte) []byte {
	for _, end := range d.delimiters {
		if cut, ok := bytes.CutSuffix(line, end); ok {
			line = cut
			break
		}
	}
	return bytes.TrimSuffix(line, []byte{'\r'})
}

// Decode appends the readings of one line to dst. name is the unit that the pattern or the line
// itself names, or "". A line that is empty, or to be ignored, has no readings and is no error.
// An error leaves dst as it was. Without patterns nothing is allocated for numbers, and for text
// where it is new; a pattern costs one allocation for each line that it matches.
func (d *Decoder) Decode(dst []point.Reading, line []byte) (name string, readings []point.Reading, err error) {
	line = d.content(line)
	if len(line) == 0 || d.ignore != nil && d.ignore.Match(line) {
		return "", dst, nil
	}
	full := line
	if d.check != nil {
		var ok bool
		if line, ok = d.check.split(line); !ok {
			return "", dst, d.refuse(full, frame.ErrChecksum)
		}
	}
	line = d.utf8(line)
	switch d.form {
	case bySeparator:
		readings = d.fields(dst, line)
	case byColumns:
		readings = d.cut(dst, line)
	case byPattern:
		name, readings = d.match(dst, line)
	default:
		readings = d.append(dst, &d.points[0], line, "")
		if len(readings) == len(dst) { // nothing but spaces
			return "", dst, nil
		}
	}
	if len(readings) <= len(dst) {
		return "", dst, d.refuse(full, ErrNoMatch)
	}
	return name, readings, nil
}

// Refused returns the beginning of the line that was last refused, good until the next Decode.
func (d *Decoder) Refused() []byte { return d.refused }

func (d *Decoder) refuse(line []byte, err error) error {
	d.refused = append(d.refused[:0], line[:min(len(line), maxRefused)]...)
	return err
}

// utf8 returns the line in UTF-8: text goes on into JSON and CBOR, which carry nothing else.
func (d *Decoder) utf8(line []byte) []byte {
	if d.latin1 {
		i := 0
		for i < len(line) && line[i] < utf8.RuneSelf {
			i++
		}
		if i == len(line) {
			return line
		}
		d.buf = d.buf[:0]
		for _, c := range line {
			d.buf = utf8.AppendRune(d.buf, rune(c))
		}
		return d.buf
	}
	if utf8.Valid(line) {
		return line
	}
	d.buf = d.buf[:0]
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		d.buf = utf8.AppendRune(d.buf, r)
		line = line[n:]
	}
	return d.buf
}

// append appends the reading of one value; an empty one is missing and gives none.
func (d *Decoder) append(dst []point.Reading, t *target, s []byte, uom string) []point.Reading {
	if !d.keepSpaces {
		s = trim(s)
	}
	if t.name == "" || len(s) == 0 {
		return dst
	}
	r := point.Reading{Point: t.name, Uom: t.uom}
	if uom != "" {
		r.Uom = uom
	}
	r.Value, r.Bad = d.parse(t.kind, s)
	return append(dst, r)
}

// trim cuts off spaces and control characters, such as the STX of many a scale.
func trim(s []byte) []byte {
	for len(s) > 0 && blank(s[0]) {
		s = s[1:]
	}
	for len(s) > 0 && blank(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

func blank(c byte) bool { return c <= ' ' || c == 0x7f }

// fields appends what stands between the separators; nil where there are too many or too few.
func (d *Decoder) fields(dst []point.Reading, line []byte) []point.Reading {
	spaces := string(d.separator) == " "
	n := 0
	for more := true; more; n++ {
		var field []byte
		if spaces {
			line = bytes.TrimLeft(line, " \t")
			if len(line) == 0 {
				break
			}
			i := bytes.IndexAny(line, " \t")
			if i < 0 {
				i = len(line)
			}
			field, line = line[:i], line[i:]
		} else {
			field, line, more = bytes.Cut(line, d.separator)
		}
		if n == len(d.points) {
			return nil
		}
		dst = d.append(dst, &d.points[n], field, "")
	}
	if d.named && n != len(d.points) {
		return nil
	}
	return dst
}

// cut appends what stands at the columns.
func (d *Decoder) cut(dst []point.Reading, line []byte) []point.Reading {
	for i, c := range d.columns {
		from, to := column(line, c[0]), len(line)
		if c[1] > 0 {
			to = column(line, c[1])
		}
		dst = d.append(dst, &d.points[i], line[from:to], "")
	}
	return dst
}

// column returns where the character n begins, counted from 0, or the end of the line.
func column(line []byte, n int) int {
	i := 0
	for ; n > 0 && i < len(line); n-- {
		_, size := utf8.DecodeRune(line[i:])
		i += size
	}
	return i
}

// match appends the groups of the first pattern that matches; nil where none does.
func (d *Decoder) match(dst []point.Reading, line []byte) (unit string, readings []point.Reading) {
	for i := range d.patterns {
		p := &d.patterns[i]
		found := p.re.FindSubmatchIndex(line)
		if found == nil {
			continue
		}
		group := func(n int) []byte {
			if n == 0 || found[2*n] < 0 {
				return nil
			}
			return line[found[2*n]:found[2*n+1]]
		}
		unit = p.unit
		if name := trim(group(p.unitGroup)); len(name) > maxUnit {
			return "", nil
		} else if len(name) > 0 {
			unit = d.words.Of(name)
		}
		for j := range p.groups {
			g := &p.groups[j]
			uom := ""
			if b := trim(group(g.uomGroup)); len(b) > 0 {
				uom = d.words.Of(b)
			}
			dst = d.append(dst, &g.point, group(g.group), uom)
		}
		return unit, dst
	}
	return "", nil
}
