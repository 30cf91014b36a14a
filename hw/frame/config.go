package frame

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

// Config is the table [line.frame] of a line whose protocol is frame: how its frames are marked,
// and how they are checked. Bytes are written in hexadecimal: "02", "0D 0A".
type Config struct {
	// What marks a frame: delimiter (ends at certain bytes), fixed (has always the same size),
	// length (says how long it is), stx-etx (stands between start and end), slip (RFC 1055),
	// cobs or cobs-r (ends at a zero, consistent overhead byte stuffing), or silence (stands
	// between two silences of the line). Required.
	Kind string `toml:"kind"`
	// Bytes that a frame may have, its marks and its check included; 2 to 65536, and to 2048 for
	// fixed, length and stx-etx with a check, since each byte of garbage may cost them a check of
	// so many. What is longer is counted and dropped. Not for fixed, which has size.
	MaxLength int `toml:"max_length"`
	// How long the line is silent between two frames, where nothing else marks them; for all
	// others how long a frame may stall. Default "50ms" where nothing else marks them, else
	// "500ms"; 20ms to 1m.
	Silence quantity.Duration `toml:"silence"`
	// delimiter: the bytes that end a frame, ["0D 0A"]; any of several.
	Delimiters []string `toml:"delimiters"`
	// fixed: how many bytes a frame has, its marks and its check included.
	Size int `toml:"size"`
	// fixed, length and stx-etx: the bytes that a frame begins with. Default for stx-etx "02".
	Start string `toml:"start"`
	// fixed, length and stx-etx: the bytes that a frame ends with; those of fixed and length
	// stand behind the check. Default for stx-etx "03".
	End string `toml:"end"`
	// length: where the length stands, in bytes from the first of the frame. Default: behind start.
	LengthAt *int `toml:"length_at"`
	// length: how many bytes the length has, 1, 2, 3 or 4.
	LengthSize int `toml:"length_size"`
	// length: the byte order of the length, big or little.
	LengthOrder string `toml:"length_order"`
	// length: which bytes the length counts: frame (all of the frame), rest (those behind the
	// length), or payload (those behind it but for the check and the end).
	LengthCounts string `toml:"length_counts"`
	// length: how many bytes more there are than the length says; negative where fewer.
	LengthAdjust int `toml:"length_adjust"`
	// stx-etx: the byte that makes the next one data, "10" for DLE. Where end begins with it
	// (DLE ETX), it is doubled in the data; else it stands before each start, end or itself in
	// the data. Default: none, the data has neither start nor end in it.
	Escape string `toml:"escape"`
	// How the frame is checked: crc16-modbus, crc16-arc, crc16-x25, crc16-ccitt-false,
	// crc16-xmodem, crc16-kermit, crc8, crc8-maxim, crc32, sum8, sum16, lrc8 (the sum's two's
	// complement), xor8. Default: not at all.
	Check string `toml:"check"`
	// The byte order of the check, big or little. Default: as its protocols have it, little
	// for crc16-modbus, -arc, -x25, -kermit and crc32, else big.
	CheckOrder string `toml:"check_order"`
	// How the check is written: binary, or hex (two characters for each byte).
	CheckForm string `toml:"check_form"`
	// The first byte of the frame that the check covers, counted from 0. Default: the first of
	// all; of stx-etx the first behind start.
	CheckFrom *int `toml:"check_from"`
	// Where the check's cover ends: 0 right before the check, -1 one byte earlier. Default 0.
	CheckTo int `toml:"check_to"`
	// stx-etx: the check stands before end, not behind it.
	CheckInside bool `toml:"check_inside"`
}

const (
	minLength = 2
	maxLength = 1 << 16
	// maxRetried bounds checked frames that are looked for again one byte further when the check
	// is wrong: a flood at 921,600 baud must not cost more than 20 % of a core.
	maxRetried = 2048
	minSilence = 20 * time.Millisecond // operating system and adapters let bytes gather
	maxSilence = time.Minute
	between    = 50 * time.Millisecond
	stall      = 500 * time.Millisecond
)

// Default returns the Config of a table that says no more than its kind.
func Default() Config {
	return Config{MaxLength: 1024, LengthSize: 1, LengthOrder: "big", LengthCounts: "rest", CheckForm: "binary"}
}

// filled returns c with the defaults of what it leaves out.
func (c Config) filled() Config {
	standard := Default()
	if c.Kind == "stx-etx" {
		standard.Start, standard.End = "02", "03"
	}
	if c.Kind == "fixed" {
		c.MaxLength = max(c.Size, minLength)
	}
	for _, s := range []struct{ key, standard *string }{
		{&c.Start, &standard.Start}, {&c.End, &standard.End}, {&c.LengthOrder, &standard.LengthOrder},
		{&c.LengthCounts, &standard.LengthCounts}, {&c.CheckForm, &standard.CheckForm},
	} {
		if *s.key == "" {
			*s.key = *s.standard
		}
	}
	if c.MaxLength == 0 {
		c.MaxLength = standard.MaxLength
	}
	if c.LengthSize == 0 {
		c.LengthSize = standard.LengthSize
	}
	return c
}

// Validate finds all mistakes in c at once; each error names its key, and those that are easily
// made carry a hint.
func (c Config) Validate() error {
	_, err := c.compile()
	return err
}

// Pause returns how long the line is silent when a frame will not go on, or is over.
func (c Config) Pause() time.Duration {
	f, err := c.compile()
	switch {
	case c.Silence != 0:
		return c.Silence.Std()
	case err == nil && (f.gap || c.Kind == "silence"):
		return between
	}
	return stall
}

// Raw returns the Config of the protocol raw: what comes between two silences is a frame.
func Raw() Config { return Config{Kind: "silence"} }

// form is a Config that was checked.
type form struct {
	kind       string
	max        int
	split      Split
	gap        bool // only silences set frames apart
	delimiters [][]byte
	marks      Marks
	enclosure  Enclosure
	check      *Check
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
	for _, w := range words {
		if s == w {
			return
		}
	}
	if s == "" {
		k.wrong(key, "write one of "+strings.Join(words, ", "), errors.New("the key is missing"))
		return
	}
	k.wrong(key, "", fmt.Errorf("%q is none of %s", s, strings.Join(words, ", ")))
}

// bytes reads bytes written in hexadecimal, up to 16 of them.
func (k *checker) bytes(key, s string) []byte {
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "0x", "").Replace(s))
	if err != nil || len(b) > 16 {
		k.wrong(key, `write each byte as two hexadecimal digits: "0D 0A"`, fmt.Errorf("%q is none of up to 16 bytes", s))
		return nil
	}
	return b
}

var kinds = [...]string{"delimiter", "fixed", "length", "stx-etx", "slip", "cobs", "cobs-r", "silence"}

// compile checks c and makes its Split.
func (c Config) compile() (*form, error) {
	c = c.filled()
	k := &checker{}
	k.oneOf("kind", c.Kind, kinds[:]...)
	if c.Silence != 0 && (c.Silence.Std() < minSilence || c.Silence.Std() > maxSilence) {
		k.wrong("silence", "", fmt.Errorf("%s is not between %s and %s", c.Silence, minSilence, quantity.Duration(maxSilence)))
	}
	c.foreignKeys(k)
	f := &form{kind: c.Kind, max: k.within("max_length", c.MaxLength, minLength, maxLength)}
	f.marks = Marks{Start: k.bytes("start", c.Start), End: k.bytes("end", c.End)}
	f.check = c.compileCheck(k, f)
	if key := map[string]string{"fixed": "size", "length": "max_length", "stx-etx": "max_length"}[c.Kind]; key != "" && f.check != nil && c.MaxLength > maxRetried {
		k.wrong(key, "", fmt.Errorf("%d bytes are too many with a check; %d are allowed", c.MaxLength, maxRetried))
	}
	switch c.Kind {
	case "delimiter":
		f.delimiters = c.compileDelimiters(k)
		f.split = Delimited(f.delimiters, f.check)
	case "fixed":
		least := max(1, len(f.marks.Start)+f.check.size()+len(f.marks.End))
		f.max = k.within("size", c.Size, least, maxLength)
		f.gap = !f.marks.synchronise(f.check)
		f.split = Fixed(f.max, f.marks, f.check)
	case "length":
		f.gap = !f.marks.synchronise(f.check)
		f.split = Length(c.lengthField(k, f), f.max, f.marks, f.check)
	case "stx-etx":
		f.enclosure = c.compileEnclosure(k, f)
		f.split = Enclosed(f.enclosure, f.max)
	case "slip":
		f.split = SLIP(f.max, f.check)
	case "cobs":
		f.split = COBS(f.max, f.check)
	case "cobs-r":
		f.split = COBSR(f.max, f.check)
	case "silence":
		f.split = Silent(f.max)
	}
	return f, errors.Join(k.problems...)
}

// foreignKeys refuses keys that mean nothing for the kind: they are there by mistake.
func (c Config) foreignKeys(k *checker) {
	for _, key := range []struct {
		name  string
		given bool
		kinds string
	}{
		{"delimiters", len(c.Delimiters) > 0, "delimiter"},
		{"size", c.Size != 0, "fixed"},
		{"start", c.Start != "", "fixed length stx-etx"},
		{"end", c.End != "", "fixed length stx-etx"},
		{"length_at", c.LengthAt != nil, "length"},
		{"length_adjust", c.LengthAdjust != 0, "length"},
		{"escape", c.Escape != "", "stx-etx"},
		{"check_inside", c.CheckInside, "stx-etx"},
	} {
		if key.given && !strings.Contains(" "+key.kinds+" ", " "+c.Kind+" ") {
			k.wrong(key.name, "leave it out, or see kind", fmt.Errorf("it has no meaning for the kind %q", c.Kind))
		}
	}
}

func (c Config) compileDelimiters(k *checker) [][]byte {
	var all [][]byte
	for _, s := range c.Delimiters {
		d := k.bytes("delimiters", s)
		if len(d) == 0 {
			k.wrong("delimiters", "", errors.New("one of them is empty"))
			continue
		}
		for _, other := range all {
			if bytes.Contains(d, other) || bytes.Contains(other, d) {
				k.wrong("delimiters", `empty frames are skipped: ["0D", "0A"] takes CR, LF and both`, fmt.Errorf("% X is a part of % X, or the reverse", d, other))
			}
		}
		all = append(all, d)
	}
	if len(all) == 0 {
		k.wrong("delimiters", `name the bytes that end a frame: ["0D 0A"]`, errors.New("the key is missing"))
	}
	return all
}

func (c Config) compileCheck(k *checker, f *form) *Check {
	k.oneOf("check_form", c.CheckForm, "binary", "hex")
	if c.CheckOrder != "" {
		k.oneOf("check_order", c.CheckOrder, "big", "little")
	}
	if c.Check == "" {
		if c.CheckOrder != "" || c.CheckFrom != nil || c.CheckTo != 0 || c.CheckInside {
			k.wrong("check", "", errors.New("there are other keys of the check, and this one is missing"))
		}
		return nil
	}
	sum, err := ParseSum(c.Check)
	if err != nil {
		k.wrong("check", "", err)
		return nil
	}
	check := &Check{Sum: sum, Little: sum.little && c.CheckForm == "binary", Hex: c.CheckForm == "hex"}
	if c.CheckOrder != "" {
		check.Little = c.CheckOrder == "little"
	}
	if c.Kind == "stx-etx" {
		check.From = len(f.marks.Start)
	}
	if c.CheckFrom != nil {
		check.From = k.within("check_from", *c.CheckFrom, 0, maxLength)
	}
	check.To = k.within("check_to", c.CheckTo, -maxLength, 0)
	return check
}

// lengthField turns what the length counts into what it lacks.
func (c Config) lengthField(k *checker, f *form) LengthField {
	k.oneOf("length_order", c.LengthOrder, "big", "little")
	k.oneOf("length_counts", c.LengthCounts, "frame", "rest", "payload")
	l := LengthField{At: len(f.marks.Start), Size: k.within("length_size", c.LengthSize, 1, 4), Little: c.LengthOrder == "little"}
	if c.LengthAt != nil {
		l.At = k.within("length_at", *c.LengthAt, len(f.marks.Start), f.max)
	}
	if l.At+l.Size > f.max {
		k.wrong("length_at", "", fmt.Errorf("the length ends beyond max_length, %d", f.max))
		l.At = 0
	}
	l.Add = k.within("length_adjust", c.LengthAdjust, -maxLength, maxLength)
	switch c.LengthCounts {
	case "rest":
		l.Add += l.At + l.Size
	case "payload":
		l.Add += l.At + l.Size + f.check.size() + len(f.marks.End)
	}
	return l
}

func (c Config) compileEnclosure(k *checker, f *form) Enclosure {
	e := Enclosure{Start: f.marks.Start, End: f.marks.End, Check: f.check, Inside: c.CheckInside}
	if len(e.Start) == 0 || len(e.End) == 0 {
		e.Start, e.End = []byte{2}, []byte{3} // what is wrong was said by bytes
	}
	if begins(e.Start, e.End) {
		k.wrong("end", `where one byte stands before and behind each frame, use kind = "delimiter"; empty frames are skipped`,
			fmt.Errorf("% X and start, % X, are alike", e.End, e.Start))
	}
	if b := k.bytes("escape", c.Escape); len(b) > 1 {
		k.wrong("escape", "", errors.New("it is one byte"))
	} else if len(b) == 1 {
		e.Escape, e.Escaped = b[0], true
	}
	return e
}
