package frame_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"ferrule/hw/frame"
	"ferrule/hw/point"
	"ferrule/internal/hint"
)

// station is a frame with values of every kind in it, without marks of its own.
const station = "41 FF 07  12 34  F5  00 00 48 41  99 12  48 69 20 00  7F C0 00 00  02"

func TestPoints(t *testing.T) {
	units := []frame.Unit{
		{Name: "other", Match: "42 ??"},
		{Name: "station", Match: "byte:0=0x41, byte:-1=0?", Points: []frame.Point{
			{Name: "bit", At: "byte:2", Type: "bit@1"},
			{Name: "bit9", At: "byte:3", Type: "bit@9"},
			{Name: "bits", At: "byte:2", Type: "bits@1..2"},
			{Name: "bits16", At: "byte:3", Type: "bits@4..11"},
			{Name: "mode", At: "byte:2", Values: map[string]string{"7": "auto"}},
			{Name: "flags", At: "byte:2", Flags: map[string]string{"0": "on", "2": "hot"}},
			{Name: "absent", At: "byte:1", NaN: []string{"0xff"}},
			{Name: "status", At: "byte:1"},
			{Name: "odd", At: "byte:3", Type: "uint16"},
			{Name: "little", At: "byte:3", Type: "uint16", Order: "DCBA"},
			{Name: "temperature", At: "byte:5", Type: "int8", Scale: 0.5, Offset: 10, Uom: "°C"},
			{Name: "high", At: "byte:5", Type: "uint8h"},
			{Name: "level", At: "byte:6", Type: "float32", Order: "DCBA"},
			{Name: "count", At: "byte:10", Type: "bcd16"},
			{Name: "count_little", At: "byte:10", Type: "bcd16", Order: "DCBA"},
			{Name: "no_count", At: "byte:5", Type: "bcd16"},
			{Name: "label", At: "byte:12", Type: "string(3)"},
			{Name: "none", At: "byte:-5", Type: "float32"},
			{Name: "last", At: "byte:-1", Type: "bit"},
		}},
	}
	_, decoder, err := frame.New(frame.Config{Kind: "slip"}, units)
	if err != nil {
		t.Fatal(err)
	}
	name, readings, err := decoder.Decode(nil, unhex(t, strings.Join(strings.Fields(station), "")))
	if err != nil || name != "station" {
		t.Fatalf("%q, %v", name, err)
	}
	var got []string
	for _, r := range readings {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s%s", r.Point, r.Value, r.Bad, r.Uom)))
	}
	want := []string{
		"bit true", "bit9 true", "bits 3", "bits16 35", "mode auto", "flags on,bit1,hot", "absent null nan", "status 255", "odd 4660", "little 13330", "temperature 4.5 °C", "high 245", "level 12.5",
		"count 9912", "count_little 1299", "no_count null invalid", "label Hi", "none null nan", "last false",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	units := []frame.Unit{{Name: "a", Match: "41", Points: []frame.Point{{Name: "x", At: "byte:1"}, {Name: "y", At: "byte:3"}}}, {Name: "b", Match: "42"}}
	_, decoder, err := frame.New(frame.Config{Kind: "slip"}, units)
	if err != nil {
		t.Fatal(err)
	}
	old := []point.Reading{{Point: "old"}}
	for wire, want := range map[string]error{
		"41 01 02":    frame.ErrShort,
		"43 01 02 03": frame.ErrNoUnit,
		"C0":          frame.ErrNoUnit,
		"41 DB":       frame.ErrEscape,
	} {
		if name, readings, err := decoder.Decode(old, unhex(t, wire)); !errors.Is(err, want) || len(readings) != 1 {
			t.Errorf("% s gives %q %v %v, want %v", wire, name, readings, err, want)
		}
	}
	if name, readings, err := decoder.Decode(old, unhex(t, "42 01 C0")); name != "b" || len(readings) != 2 || readings[1].Value != point.String("4201") || err != nil {
		t.Errorf("%q %v %v", name, readings, err)
	}
}

func TestParseMatch(t *testing.T) {
	payload := []byte{0x41, 0x07, 0x02}
	for s, want := range map[string]bool{
		"41 ?? 02": true, "4107": true, "0x41 0x07": true, "4? ?7": true, "41 ?? 02 ??": false, "40": false,
		"byte:0=0x41": true, "byte:-1=02,byte:1=07": true, "byte:-1=03": false, "byte:3=??": false, "byte:-3=41 07 02": true, "byte:-4=41": false,
	} {
		m, err := frame.ParseMatch(s)
		if err != nil || m.Of(payload) != want {
			t.Errorf("%q: %v, %v; want %v", s, m.Of(payload), err, want)
		}
	}
	for _, s := range []string{"", "4", "4g", "byte:0", "byte:x=41", "bit:0=41", "byte:-1=4142", "byte:0=", "byte:+1=00", "41:42"} {
		if _, err := frame.ParseMatch(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
	all, none := frame.Match{}, []byte(nil)
	if !all.Of(none) {
		t.Error("the zero Match does not mean all")
	}
}

// TestValidate wants each mistake to name its key, and those easily made to carry a hint.
func TestValidate(t *testing.T) {
	for _, c := range []struct {
		config    frame.Config
		key, hint string
	}{
		{frame.Config{}, "kind", "write one of delimiter"},
		{frame.Config{Kind: "stx"}, "kind", ""},
		{frame.Config{Kind: "delimiter"}, "delimiters", "0D 0A"},
		{frame.Config{Kind: "delimiter", Delimiters: []string{"\r\n"}}, "delimiters", "hexadecimal"},
		{frame.Config{Kind: "delimiter", Delimiters: []string{"0D 0A", "0A"}}, "delimiters", "empty frames"},
		{frame.Config{Kind: "delimiter", Delimiters: []string{""}}, "delimiters", ""},
		{frame.Config{Kind: "fixed"}, "size", ""},
		{frame.Config{Kind: "fixed", Size: 4, Start: "01 02 03", Check: "crc16-modbus"}, "size", ""},
		{frame.Config{Kind: "slip", Size: 4}, "size", "leave it out"},
		{frame.Config{Kind: "slip", Start: "02"}, "start", "leave it out"},
		{frame.Config{Kind: "slip", MaxLength: 1}, "max_length", ""},
		{frame.Config{Kind: "slip", MaxLength: 1 << 20}, "max_length", ""},
		{frame.Config{Kind: "length", MaxLength: 5000, Check: "crc32"}, "max_length", ""},
		{frame.Config{Kind: "fixed", Size: 5000, Check: "crc32"}, "size", ""},
		{frame.Config{Kind: "slip", Check: "crc16"}, "check", ""},
		{frame.Config{Kind: "slip", CheckOrder: "big"}, "check", ""},
		{frame.Config{Kind: "slip", Check: "crc8", CheckOrder: "msb"}, "check_order", ""},
		{frame.Config{Kind: "slip", Check: "crc8", CheckForm: "ascii"}, "check_form", ""},
		{frame.Config{Kind: "slip", Check: "crc8", CheckFrom: number(-1)}, "check_from", ""},
		{frame.Config{Kind: "slip", Check: "crc8", CheckTo: 1}, "check_to", ""},
		{frame.Config{Kind: "slip", Silence: 1}, "silence", ""},
		{frame.Config{Kind: "length", LengthSize: 5}, "length_size", ""},
		{frame.Config{Kind: "length", LengthOrder: "low"}, "length_order", ""},
		{frame.Config{Kind: "length", LengthCounts: "all"}, "length_counts", ""},
		{frame.Config{Kind: "length", LengthAt: number(1024)}, "length_at", ""},
		{frame.Config{Kind: "length", Start: "AA", LengthAt: number(0)}, "length_at", ""},
		{frame.Config{Kind: "length", LengthAdjust: 1 << 20}, "length_adjust", ""},
		{frame.Config{Kind: "stx-etx", Start: "7E", End: "7E"}, "end", "delimiter"},
		{frame.Config{Kind: "stx-etx", Start: "zz"}, "start", "hexadecimal"},
		{frame.Config{Kind: "stx-etx", Escape: "10 10"}, "escape", ""},
	} {
		err := c.config.Validate()
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+c.key+": ") {
			t.Errorf("%+v: %v, want an error of %s", c.config, err, c.key)
			continue
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok && c.hint != "" && !strings.Contains(hint.Of(joined.Unwrap()[0]), c.hint) {
			t.Errorf("%v has the hint %q, want %q in it", err, hint.Of(joined.Unwrap()[0]), c.hint)
		}
		if _, _, err := frame.New(c.config, nil); err == nil {
			t.Errorf("%+v can be used", c.config)
		}
	}
	if err := frame.Default().Validate(); err == nil {
		t.Error("the kind has a default")
	}
}

func TestPointValidate(t *testing.T) {
	for key, p := range map[string]frame.Point{
		"at":    {At: "holding:3"},
		"type":  {At: "byte:0", Type: "bit@16"},
		"nan":   {At: "byte:0", NaN: []string{"none"}},
		"order": {At: "byte:0", Type: "string(3)", Order: "BADC"},
		"scale": {At: "byte:0", Type: "string(3)", Scale: 2},
	} {
		if err := p.Validate(); err == nil || !strings.HasPrefix(err.Error(), key+": ") {
			t.Errorf("%+v: %v, want an error of %s", p, err, key)
		}
		if _, _, err := frame.New(frame.Config{Kind: "slip"}, []frame.Unit{{Name: "u", Points: []frame.Point{p}}}); err == nil {
			t.Errorf("%+v can be used", p)
		}
	}
	for _, p := range []frame.Point{{At: "byte:-1", Type: "uint16"}, {At: "byte:0", Type: "uint24"}, {At: "byte:0", Order: "ABDC"}} {
		if err := p.Validate(); err == nil {
			t.Errorf("%+v is taken", p)
		}
	}
	if _, _, err := frame.New(frame.Config{Kind: "slip"}, []frame.Unit{{Name: "u", Match: "4"}}); err == nil || !strings.Contains(err.Error(), `unit "u": match`) {
		t.Error(err)
	}
	good := frame.Point{At: "byte:0x10", Type: "uint48", Order: "DCBA"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	units := []frame.Unit{{Match: "41", Points: []frame.Point{
		{Name: "a", At: "byte:1", Type: "int8", Scale: 0.1}, {Name: "b", At: "byte:2", Type: "float32"},
		{Name: "c", At: "byte:2", Type: "string(2)"}, {Name: "d", At: "byte:-1", Type: "bit@3"},
	}}}
	c := frame.Config{Kind: "cobs", Check: "crc16-modbus", CheckForm: "hex"}
	cutter, decoder, err := frame.New(c, units)
	if err != nil {
		t.Fatal(err)
	}
	wire := unhex(t, "00 0b 41 01 42 48 43 44 34 37 41 31 00")
	sum, _ := frame.ParseSum("crc16-modbus")
	copy(wire[8:], fmt.Sprintf("%04X", sum.Of(wire[2:8])))
	dst, n := make([]point.Reading, 0, 8), 0
	take := func(f []byte) {
		if _, readings, err := decoder.Decode(dst, f); err == nil && len(readings) == 4 {
			n++
		}
	}
	if got := testing.AllocsPerRun(100, func() { cutter.Feed(wire, take) }); got != 0 || n == 0 {
		t.Errorf("%v allocations, %d frames, %+v", got, n, cutter.Stats())
	}
}
