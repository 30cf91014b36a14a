package text_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/hw/frame"
	"ferrule/hw/frame/frametest"
	"ferrule/hw/point"
	"ferrule/hw/text"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

// say writes readings as "point=value uom !bad", and the unit in front.
func say(name string, readings []point.Reading) string {
	var all []string
	if name != "" {
		all = append(all, name+":")
	}
	for _, r := range readings {
		s := fmt.Sprintf("%s=%s(%s)", r.Point, r.Value, r.Value.Kind())
		if r.Bad != "" {
			s = r.Point + "!" + r.Bad
		}
		if r.Uom != "" {
			s += " " + r.Uom
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

var nmea = text.Config{Check: "xor8", CheckMark: "*", CheckFrom: 1, Separator: ","}

func TestDecode(t *testing.T) {
	weight := `(?P<weight>[-+]?[ 0-9.]+) *(?P<weight_uom>kg|g)`
	for _, c := range []struct {
		name        string
		config      text.Config
		line, wants string
	}{
		{"a number", text.Config{}, "23.5\r\n", "line=23.5(float)"},
		{"spaces around", text.Config{}, "  23\t\r\n", "line=23(int)"},
		{"spaces kept", text.Config{KeepSpaces: true}, " 23\r\n", "line= 23(string)"},
		{"nothing", text.Config{}, "\r\n", ""},
		{"nothing but spaces", text.Config{}, "  \n", ""},
		{"a label", text.Config{Types: map[string]string{"line": "text"}}, "4006381333931\r\n", "line=4006381333931(string)"},
		{"a label in STX and ETX", text.Config{Delimiter: "\x03"}, "\x02X-17\x03", "line=X-17(string)"},
		{"latin1", text.Config{Encoding: "latin1"}, "23 \xb0C\n", "line=23 °C(string)"},
		{"not UTF-8", text.Config{}, "23 \xb0C\n", "line=23 \uFFFDC(string)"},
		{"UTF-8", text.Config{}, "23 °C\n", "line=23 °C(string)"},
		{"ignored", text.Config{Ignore: "^#"}, "# boot\n", ""},
		{"uom", text.Config{Uom: map[string]string{"line": "°C"}}, "1\n", "line=1(int) °C"},

		{"pattern", text.Config{Pattern: weight}, "ST,GS,+  12.50 kg\r\n", "weight=+  12.50(string) kg"},
		{"pattern, number", text.Config{Pattern: weight, Types: map[string]string{"weight": "number"}}, "ST,GS,-  12.50 kg\r\n", "weight=-12.5(float) kg"},
		{"pattern, no group", text.Config{Pattern: `(?P<a>\d+)( (?P<b>\d+))?`}, "17\n", "a=17(int)"},
		{"pattern, unit", text.Config{Pattern: `^(?P<unit>\w+)=(?P<value>.*)`}, "t1=4.0\n", "t1: value=4.0(float)"},
		{"the second pattern", text.Config{Pattern: "x(?P<x>.)", Patterns: []text.Pattern{{Match: "y(?P<y>.)", Unit: "yard"}}}, "y7\n", "yard: y=7(int)"},
		{"a point x_uom without x", text.Config{Pattern: "(?P<x_uom>.)"}, "k\n", "x_uom=k(string)"},

		{"separator", text.Config{Separator: ","}, "1, 2.0 ,,x\n", "f1=1(int) f2=2.0(float) f4=x(string)"},
		{"spaces", text.Config{Separator: " "}, "  1 \t 2\n", "f1=1(int) f2=2(int)"},
		{"names", text.Config{Separator: ";", Names: []string{"t", "", "h"}, Uom: map[string]string{"t": "°C"}}, "21.5;x;40\r\n", "t=21.5(float) °C h=40(int)"},
		{"decimal comma", text.Config{Separator: ";", Decimal: ","}, "21,5;1.5\n", "f1=21.5(float) f2=1.5(string)"},
		{"columns", text.Config{Columns: []text.Column{{Name: "a", From: 1, To: 2}, {Name: "b", From: 4}}}, "°1x 23\n", "a=°1(string) b=23(int)"},
		{"columns, a short line", text.Config{Columns: []text.Column{{Name: "a", From: 1, To: 4}, {Name: "b", From: 6, To: 9}}}, "17\n", "a=17(int)"},
		{"checksum", nmea, "$A,1*5C\r\n", "f1=$A(string) f2=1(int)"},
	} {
		_, d, err := text.New(c.config)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		name, readings, err := d.Decode(nil, []byte(c.line))
		if got := say(name, readings); got != c.wants || err != nil {
			t.Errorf("%s: %q gives %s, %v; want %s", c.name, c.line, got, err, c.wants)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		config text.Config
		line   string
		want   error
	}{
		"no pattern":      {text.Config{Pattern: "^(?P<x>x)$"}, "y\r\n", text.ErrNoMatch},
		"empty groups":    {text.Config{Pattern: "(?P<x>x?)"}, "y\n", text.ErrNoMatch},
		"a unit too long": {text.Config{Pattern: "(?P<unit>.*)=(?P<x>.)"}, strings.Repeat("u", 65) + "=1\n", text.ErrNoMatch},
		"too few fields":  {text.Config{Separator: ",", Names: []string{"a", "b"}}, "1\n", text.ErrNoMatch},
		"too many fields": {text.Config{Separator: ",", Names: []string{"a", "b"}}, "1,2,3\n", text.ErrNoMatch},
		"300 fields":      {text.Config{Separator: ","}, strings.Repeat("1,", 300) + "\n", text.ErrNoMatch},
		"no such columns": {text.Config{Columns: []text.Column{{Name: "a", From: 9}}}, "1\n", text.ErrNoMatch},
		"no checksum":     {nmea, "$A,1\n", frame.ErrChecksum},
		"checksum":        {nmea, "$A,2*5C\n", frame.ErrChecksum},
		"no digits":       {nmea, "$A,1*5X\n", frame.ErrChecksum},
		"a short line":    {nmea, "*\n", frame.ErrChecksum},
	} {
		_, d, err := text.New(c.config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		old := []point.Reading{{Point: "old"}}
		unit, readings, err := d.Decode(old, []byte(c.line))
		if !errors.Is(err, c.want) || len(readings) != 1 || unit != "" {
			t.Errorf("%s: %q gives %q %v, %v; want %v", name, c.line, unit, readings, err, c.want)
		}
		if got := strings.TrimRight(c.line, "\r\n"); string(d.Refused()) != got[:min(256, len(got))] {
			t.Errorf("%s: kept is %q", name, d.Refused())
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct{ s, auto, number string }{
		{"0", "0(int)", ""},
		{"-0", "0(int)", ""},
		{"+17", "17(int)", ""},
		{"-17.250", "-17.25(float)", ""},
		{"0.1", "0.1(float)", ""},
		{"230.10", "230.1(float)", ""},
		{"+00012.34", "12.34(float)", ""},
		{"-0.0", "0.0(float)", ""},
		{"007", "007(string)", "7(int)"},
		{".5", ".5(string)", "0.5(float)"},
		{"5.", "5.(string)", "5.0(float)"},
		{"1e5", "1e5(string)", "100000.0(float)"},
		{"1.5e-3", "0.0015(float)", ""},
		{"1.50E+03", "1500.0(float)", ""},
		{"- 12", "- 12(string)", "-12(int)"},
		{"9223372036854775807", "9223372036854775807(int)", ""},
		{"18446744073709551615", "18446744073709551615(string)", "18446744073709551615(uint)"},
		{"18446744073709551616", "18446744073709551616(string)", "18446744073709552000.0(float)"},
		{"-9223372036854775807", "-9223372036854775807(int)", ""},
		{"-9223372036854775809", "-9223372036854775809(string)", "-9223372036854776000.0(float)"},
		{"0.12345678901234567890123456789", "0.12345678901234568(float)", ""},
		{"1.5e999", "1.5e999(string)", "!invalid"},
		{"0x10", "0x10(string)", "!invalid"},
		{"1_000", "1_000(string)", "!invalid"},
		{"1,5", "1,5(string)", "!invalid"},
		{"1.2.3", "1.2.3(string)", "!invalid"},
		{"12 kg", "12 kg(string)", "!invalid"},
		{"--1", "--1(string)", "!invalid"},
		{"-", "-(string)", "!invalid"},
		{".", ".(string)", "!invalid"},
		{"1.5e", "1.5e(string)", "!invalid"},
		{"OL", "OL(string)", "!invalid"},
		{"nan", "!nan", "!nan"},
		{"-NaN", "!nan", "!nan"},
		{"inf", "inf(string)", "!nan"},
		{"ovf", "ovf(string)", "!nan"},
		{strings.Repeat("1", 65), strings.Repeat("1", 65) + "(string)", "!invalid"},
	} {
		if c.number == "" {
			c.number = c.auto
		}
		for types, want := range map[string]string{"": c.auto, "number": c.number, "text": c.s + "(string)"} {
			config := text.Config{}
			if types != "" {
				config.Types = map[string]string{"line": types}
			}
			_, d, err := text.New(config)
			if err != nil {
				t.Fatal(err)
			}
			_, readings, err := d.Decode(nil, []byte(c.s+"\n"))
			got := strings.TrimPrefix(strings.TrimPrefix(say("", readings), "line"), "=")
			if got != want || err != nil {
				t.Errorf("%q as %q: %s, %v; want %s", c.s, types, got, err, want)
			}
		}
	}
}

func TestConforms(t *testing.T) {
	for _, c := range []struct {
		config text.Config
		good   []string
	}{
		{text.Config{}, []string{"12.5\r\n", "\n6\n"}},
		{text.Config{Delimiters: []string{"\r", "\n"}}, []string{"12.5\r\n", "6\r", "7\n"}},
		{text.Config{Delimiter: "END"}, []string{"12.5END", "ENEND"}},
		{nmea, []string{"$A,1*5C\r\n", "$A,2*5F\n"}},
	} {
		c.config.MaxLength = 32
		split, err := text.Split(c.config)
		if err != nil {
			t.Fatal(err)
		}
		frametest.Conforms(t, split, 32, wires(c.good)...)
	}
}

func wires(lines []string) (all [][]byte) {
	for _, s := range lines {
		all = append(all, []byte(s))
	}
	return all
}

// TestChecksum counts a wrong one, and leaves chatter alone.
func TestChecksum(t *testing.T) {
	c := nmea
	c.Ignore = "^boot"
	cutter, d, err := text.New(c)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	cutter.Feed([]byte("\nboot 1.0\r\n$A,1*5C\r\n$A,1*5D\r\n\r\n$A,2*5f\r\n"), func(line []byte) {
		name, readings, err := d.Decode(nil, line)
		got = append(got, fmt.Sprint(say(name, readings), err))
	})
	want := []string{"<nil>", "f1=$A(string) f2=1(int)<nil>", "<nil>", "f1=$A(string) f2=2(int)<nil>"}
	if !slices.Equal(got, want) || cutter.Stats().Checksum != 1 {
		t.Errorf("got %q, want %q; %+v", got, want, cutter.Stats())
	}
}

func TestPoll(t *testing.T) {
	for _, c := range []struct {
		config  text.Config
		request string
		every   time.Duration
	}{
		{text.Config{}, "", 0},
		{text.Config{Request: "P\r\n"}, "P\r\n", time.Second},
		{text.Config{Request: "é", Encoding: "latin1", Every: quantity.Duration(time.Minute)}, "\xe9", time.Minute},
	} {
		if request, every := c.config.Poll(); string(request) != c.request || every != c.every {
			t.Errorf("%+v: %q %v", c.config, request, every)
		}
	}
}

// TestValidate wants each mistake to name its key, and those easily made to carry a hint.
func TestValidate(t *testing.T) {
	for _, c := range []struct {
		config          text.Config
		key, says, hint string
	}{
		{text.Config{MaxLength: 3}, "max_length", "", ""},
		{text.Config{Encoding: "ascii"}, "encoding", "utf-8", ""},
		{text.Config{Decimal: "dot"}, "decimal", "", ""},
		{text.Config{Delimiter: "\n", Delimiters: []string{"\r"}}, "delimiter", "", "list"},
		{text.Config{Delimiters: []string{"\r\n", "\n"}}, "delimiters", "", "empty lines"},
		{text.Config{Delimiters: []string{""}}, "delimiters", "", ""},
		{text.Config{Ignore: "("}, "ignore", "missing closing )", "single quotes"},
		{text.Config{Pattern: "a(?=b)"}, "pattern", `at character 2: invalid or unsupported Perl syntax: "(?="`, "RE2"},
		{text.Config{Pattern: "ab*c"}, "pattern", "names no point", "(?P<weight>"},
		{text.Config{Patterns: []text.Pattern{{Match: `\1`}}}, "patterns: match", "invalid escape sequence", ""},
		{text.Config{Pattern: "(?P<a>.)", Separator: ","}, "pattern", "not several", ""},
		{text.Config{Names: []string{"a"}}, "names", "no separator", "separator"},
		{text.Config{Separator: ",", Names: []string{"a", "a"}}, "names: field 2", "another point", ""},
		{text.Config{Columns: []text.Column{{Name: "a"}}}, `columns: "a"`, "", "from 1"},
		{text.Config{Columns: []text.Column{{From: 1}}}, `columns: ""`, "missing", ""},
		{text.Config{Columns: []text.Column{{Name: "a", From: 3, To: 2}}}, `columns: "a"`, "", ""},
		{text.Config{Types: map[string]string{"x": "text"}}, "types", `no point "x"`, ""},
		{text.Config{Types: map[string]string{"line": "int"}}, "types: line", "", ""},
		{text.Config{Uom: map[string]string{"x": "kg"}}, "uom", `no point "x"`, ""},
		{text.Config{Check: "nmea"}, "check", "xor8", ""},
		{text.Config{CheckMark: "*"}, "check", "missing", "NMEA"},
		{text.Config{Check: "xor8", CheckForm: "dec"}, "check_form", "", ""},
		{text.Config{Check: "xor8", CheckFrom: -1}, "check_from", "", ""},
		{text.Config{Every: 1}, "every", "no request", "scales"},
		{text.Config{Request: "P", Every: 1}, "every", "", ""},
		{text.Config{Request: strings.Repeat("P", 300)}, "request", "", ""},
	} {
		err := c.config.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), c.key+": ") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v; want an error of %s with %q", c.config, err, c.key, c.says)
			continue
		}
		if joined, ok := err.(interface{ Unwrap() []error }); c.hint != "" && (!ok || !strings.Contains(hint.Of(joined.Unwrap()[0]), c.hint)) {
			t.Errorf("%v lacks the hint %q", err, c.hint)
		}
	}
	if err := text.Default().Validate(); err != nil {
		t.Error(err)
	}
}

// TestDecodeAllocatesNothing is about all forms but patterns: regexp allocates the indexes of a
// match, and keeps its machines in pools that empty at times; the benchmark shows that figure.
func TestDecodeAllocatesNothing(t *testing.T) {
	const line = "21.5,-17,0.125,ok,1.5e3\r\n"
	for name, config := range map[string]text.Config{
		"line":      {},
		"separator": {Separator: ","},
		"names":     {Separator: ",", Names: []string{"a", "", "c", "d", "e"}, Types: map[string]string{"e": "number"}},
		"spaces":    {Separator: " "},
		"columns":   {Columns: []text.Column{{Name: "a", From: 1, To: 4}, {Name: "b", From: 6, To: 8}}},
		"latin1":    {Encoding: "latin1"},
	} {
		_, d, err := text.New(config)
		if err != nil {
			t.Fatal(err)
		}
		dst, wire := make([]point.Reading, 0, 16), []byte(line)
		if got := testing.AllocsPerRun(100, func() { _, _, _ = d.Decode(dst, wire) }); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}
