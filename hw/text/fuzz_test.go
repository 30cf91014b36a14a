package text_test

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"ferrule/hw/frame/frametest"
	"ferrule/hw/point"
	"ferrule/hw/text"
)

// forms are Configs of every form, each with a good line.
var forms = []struct {
	config text.Config
	good   string
}{
	{text.Config{}, "23.5\r\n"},
	{text.Config{Delimiters: []string{"\r", "\n"}, Encoding: "latin1", Types: map[string]string{"line": "number"}}, "1\r\n"},
	{nmea, "$A,1*5C\r\n"},
	{text.Config{Separator: " ", Names: []string{"a", "b"}}, "1 2\n"},
	{text.Config{Columns: []text.Column{{Name: "a", From: 2, To: 5}, {Name: "b", From: 5}}}, "12345678\n"},
	{text.Config{Pattern: `^(?P<unit>\w+) (?P<a>[-+0-9. ]+)(?P<a_uom>\w*)`, Ignore: "^#"}, "s 1 g\n"},
	{text.Config{Check: "crc16-arc", CheckForm: "binary", Delimiter: "END"}, "0\x00\x14END"},
}

// FuzzText feeds any bytes to lines of every form.
func FuzzText(f *testing.F) {
	for i, c := range forms {
		f.Add(uint8(i), []byte(c.good+"#\n"+c.good))
	}
	f.Fuzz(func(t *testing.T, i uint8, data []byte) {
		if len(data) > 1024 {
			return
		}
		c := forms[int(i)%len(forms)]
		c.config.MaxLength = 32
		split, err := text.Split(c.config)
		if err != nil {
			t.Fatal(err)
		}
		frametest.Check(t, split, 32, data, []byte(c.good))
		cutter, d, err := text.New(c.config)
		if err != nil {
			t.Fatal(err)
		}
		decode := func(line []byte) {
			_, readings, err := d.Decode(nil, line)
			if err != nil && (len(readings) > 0 || len(d.Refused()) > 256) {
				t.Errorf("%q: %v, %v, %q", line, readings, err, d.Refused())
			}
			for _, r := range readings {
				if s, _ := r.Value.Text(); !utf8.ValidString(s) || (r.Value.Kind() == point.None) != (r.Bad != "") {
					t.Errorf("%q: %+v", line, r)
				}
			}
		}
		cutter.Feed(data, decode)
		decode(data)
	})
}

// FuzzNumber wants a number to be the number that strconv reads, and nothing else to be one.
func FuzzNumber(f *testing.F) {
	for _, s := range []string{"1", "-1.5e3", "007", "12345678901234567890", ".5", "0x1p4", "1_0", "Inf", "0.30000000000000004"} {
		f.Add(s)
	}
	_, d, err := text.New(text.Config{})
	if err != nil {
		f.Fatal(err)
	}
	numeric := regexp.MustCompile(`^[-+]?[0-9]+(\.[0-9]+([eE][-+]?[0-9]+)?)?$`)
	f.Fuzz(func(t *testing.T, s string) {
		_, readings, err := d.Decode(nil, []byte(s))
		if err != nil {
			t.Fatal(err)
		}
		s = strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r")
		s = strings.TrimFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f })
		if len(readings) == 0 {
			return
		}
		v := readings[0].Value
		got, isNumber := v.Float64()
		if !isNumber {
			return
		}
		want, err := strconv.ParseFloat(s, 64)
		if !numeric.MatchString(s) || err != nil || got != want || math.Signbit(got) && got == 0 {
			t.Errorf("%q is the number %v; strconv says %v, %v", s, got, want, err)
		}
		if i, ok := v.Int64(); ok && strconv.FormatInt(i, 10) != strings.TrimPrefix(strings.TrimPrefix(s, "+"), "-0") && s != "-0" && !strings.HasPrefix(s, "+") && !strings.HasPrefix(s, "-0") {
			t.Errorf("%q is the integer %d", s, i)
		}
	})
}
