package point

import (
	"errors"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// built is the codec of a Spec whose type is written as in a configuration.
func built(t testing.TB, typ string, s Spec) Codec {
	t.Helper()
	parsed, err := ParseType(typ)
	if err != nil {
		t.Fatal(err)
	}
	s.Type = parsed
	c, err := NewCodec(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFields(t *testing.T) {
	for _, test := range []struct {
		typ  string
		o    Order
		raw  []byte
		want uint64
		mask uint16
	}{
		{"bits@0..15", ABCD, words(0xabcd), 0xabcd, 0xffff},
		{"bits@4..7", ABCD, words(0xabcd), 0xc, 0x00f0},
		{"bits@4..7", BADC, words(0xabcd), 0xa, 0xf000},
		{"bits@15..15", ABCD, words(0x8000), 1, 0x8000},
		{"bits@12..19", ABCD, words(0x000a, 0xb000), 0xab, 0xffff},
		{"bits@12..19", CDAB, words(0xb000, 0x000a), 0xab, 0xffff},
		{"bits@16..31", ABCD, words(0x1234, 0), 0x1234, 0xffff},
		{"bits@0..31", DCBA, words(0x7856, 0x3412), 0x12345678, 0xffff},
	} {
		c := built(t, test.typ, Spec{Order: test.o})
		if v, err := c.Decode(test.raw); err != nil || v != Uint(test.want) || c.Mask() != test.mask {
			t.Errorf("%s %s of % x: got %v, %v, mask %04x, want %d, mask %04x", test.typ, test.o, test.raw, v, err, c.Mask(), test.want, test.mask)
		}
	}
	for _, name := range []string{"bits@", "bits@3", "bits@7..4", "bits@0..32", "bits@04..7", "bits@4...7", "bits@-1..3", "bits@1..", "bits@1..2..3"} {
		if typ, err := ParseType(name); err == nil {
			t.Errorf("%q was read as %s", name, typ)
		}
	}
	c := built(t, "bits@4..7", Spec{})
	if w, err := c.Encode(Int(9)); err != nil || !equal(w, []uint16{0x90}) {
		t.Errorf("9 is written as %04x, %v", w, err)
	}
	if _, err := c.Encode(Int(16)); !errors.Is(err, ErrRange) {
		t.Errorf("16 in four bits: %v", err)
	}
	wide := built(t, "bits@12..19", Spec{})
	if _, err := wide.Encode(Int(1)); !errors.Is(err, ErrKind) || !wide.Type().ReadOnly() {
		t.Errorf("a field of two registers is written: %v", err)
	}
}

func TestNoValue(t *testing.T) {
	for _, test := range []struct {
		typ  string
		o    Order
		nan  []string
		raw  []byte
		none bool
	}{
		{"int16", ABCD, []string{"0x8000"}, words(0x8000), true},
		{"int16", ABCD, []string{"0x8000"}, words(0x7fff), false},
		{"int16", ABCD, []string{"-32768", "0x7FFF"}, words(0x8000), true},
		{"int16", BADC, []string{"0x8000"}, words(0x0080), true},
		{"uint32", CDAB, []string{"0xFFFFFFFF", "0xffff0000"}, words(0, 0xffff), true},
		{"uint64", ABCD, []string{"18446744073709551615"}, words(0xffff, 0xffff, 0xffff, 0xffff), true},
		{"uint8h", ABCD, []string{"0xff"}, words(0xff12), true},
		{"int8", ABCD, []string{"-1"}, words(0x12ff), true},
		{"bits@8..11", ABCD, []string{"0xf"}, words(0x1f23), true},
		{"bcd16", ABCD, []string{"0xFFFF"}, words(0xffff), true},
		{"bcd16", ABCD, []string{"9999"}, words(0x9999), true},
		{"bcd16", ABCD, []string{"9999"}, words(0x999a), false},
		{"float32", ABCD, []string{"-9999"}, words(0xc61c, 0x3c00), true},
		{"float32", ABCD, []string{"0x7f7fffff"}, words(0x7f7f, 0xffff), true},
		{"float16", ABCD, []string{"-1"}, words(0xbc00), true},
	} {
		c := built(t, test.typ, Spec{Order: test.o, Scale: 0.1, NaN: test.nan})
		v, err := c.Decode(test.raw)
		if errors.Is(err, ErrNaN) != test.none || test.none && v != (Value{}) {
			t.Errorf("%s %s with nan %q: % x is %v, %v", test.typ, test.o, test.nan, test.raw, v, err)
		}
	}
	c := built(t, "int16", Spec{Scale: 0.1, NaN: []string{"0x8000"}})
	v, _ := Float(-3276.8)
	if w, err := c.Encode(v); !errors.Is(err, ErrRange) {
		t.Errorf("the sentinel was written, as %04x, %v", w, err)
	}
}

func TestValues(t *testing.T) {
	states := map[string]string{"0": "off", "1": "on", "0x10": "fault", "7": "on"}
	c := built(t, "uint16", Spec{Values: states, NaN: []string{"0xFFFF"}})
	for raw, want := range map[uint16]Value{0: String("off"), 1: String("on"), 16: String("fault"), 7: String("on"), 2: Uint(2)} {
		if v, err := c.Decode(words(raw)); err != nil || v != want {
			t.Errorf("%d: got %v, %v, want %v", raw, v, err, want)
		}
	}
	for text, want := range map[string]uint16{"off": 0, "on": 1, "fault": 16, "7": 7, "300": 300} {
		v, err := c.Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if w, err := c.Encode(v); err != nil || !equal(w, []uint16{want}) {
			t.Errorf("%q is written as %04x, %v, want %04x", text, w, err, want)
		}
	}
	if _, err := c.Parse("ajar"); !errors.Is(err, ErrKind) || !strings.Contains(err.Error(), "off, on, on, fault") {
		t.Errorf("an unknown name: %v", err)
	}
	if _, err := c.Encode(String("ajar")); !errors.Is(err, ErrKind) {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestValuesOfOtherTypes(t *testing.T) {
	for _, test := range []struct {
		typ    string
		scale  float64
		values map[string]string
		raw    []byte
		want   string
	}{
		{"bit", 1, map[string]string{"1": "open"}, []byte{1}, `"open"`},
		{"bit", 1, map[string]string{"1": "open"}, []byte{0}, "false"},
		{"bit@3", 1, map[string]string{"0": "closed"}, words(0xfff7), `"closed"`},
		{"int16", 0.1, map[string]string{"-1": "no sensor"}, words(0xffff), `"no sensor"`},
		{"int16", 0.1, map[string]string{"-1": "no sensor"}, words(0xfffe), "-0.2"},
		{"uint64", 1, map[string]string{"18446744073709551615": "full"}, words(0xffff, 0xffff, 0xffff, 0xffff), `"full"`},
		{"int64", 1, map[string]string{"-9223372036854775808": "empty"}, words(0x8000, 0, 0, 0), `"empty"`},
		{"bcd16", 1, map[string]string{"12": "twelve"}, words(0x12), `"twelve"`},
		{"bits@4..5", 1, map[string]string{"2": "eco"}, words(0x0020), `"eco"`},
		{"float32", 1, map[string]string{"3": "bulk"}, words(0x4040, 0), `"bulk"`},
		{"float32", 1, map[string]string{"3": "bulk"}, words(0x4040, 1), "3.0000002"},
	} {
		c := built(t, test.typ, Spec{Scale: test.scale, Values: test.values})
		v, err := c.Decode(test.raw)
		if err != nil || string(v.AppendJSON(nil)) != test.want {
			t.Errorf("%s % x: got %s, %v, want %s", test.typ, test.raw, v.AppendJSON(nil), err, test.want)
			continue
		}
		if _, isName := v.Text(); !isName {
			continue
		}
		w, err := c.Encode(v)
		if err != nil {
			t.Errorf("%s: %s cannot be written: %v", test.typ, v, err)
			continue
		}
		back := words(w...)
		if test.typ == "bit" {
			back = []byte{byte(w[0])}
		}
		if again, err := c.Decode(back); err != nil || again != v {
			t.Errorf("%s: %s is written as %04x, which is %v, %v", test.typ, v, w, again, err)
		}
	}
}

func TestFlags(t *testing.T) {
	c := built(t, "uint16", Spec{Flags: map[string]string{"0": "overheat", "3": "fan", "15": "door open"}})
	for raw, want := range map[uint16]string{0: "", 1: "overheat", 8: "fan", 9: "overheat,fan", 0x28: "fan,bit5", 0x20: "bit5", 0x8001: "overheat,door open"} {
		v, err := c.Decode(words(raw))
		if err != nil || v != String(want) {
			t.Errorf("%04x: got %q, %v, want %q", raw, v, err, want)
		}
		if w, err := c.Encode(v); err != nil || !equal(w, []uint16{raw}) {
			t.Errorf("%q is written as %04x, %v, want %04x", v, w, err, raw)
		}
	}
	for text, want := range map[string]uint16{"fan, overheat": 9, "bit0": 1, "fan,fan": 8, " ": 0, "9": 9} {
		v, err := c.Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if w, err := c.Encode(v); err != nil || !equal(w, []uint16{want}) {
			t.Errorf("%q is written as %04x, %v, want %04x", text, w, err, want)
		}
	}
	for _, text := range []string{"bit16", "Fan", "fan,", "fan;overheat"} {
		if v, err := c.Parse(text); err == nil {
			t.Errorf("%q was read as %v", text, v)
		}
	}
	part := built(t, "bits@8..15", Spec{Order: BADC, Flags: map[string]string{"0": "low", "7": "high"}})
	if v, err := part.Decode(words(0x81ff)[:2]); err != nil || v.String() != "low,bit1,bit2,bit3,bit4,bit5,bit6,high" {
		t.Errorf("got %v, %v", v, err)
	}
	wide := built(t, "uint64", Spec{Flags: map[string]string{"63": "top"}})
	if v, err := wide.Decode(words(0x8000, 0, 0, 0)); err != nil || v.String() != "top" {
		t.Errorf("got %v, %v", v, err)
	}
}

func TestScaleFactor(t *testing.T) {
	for _, test := range []struct {
		typ      string
		spec     Spec
		exponent int16
		raw      []byte
		want     string
	}{
		{"int16", Spec{}, -1, words(2301), "230.1"},
		{"int16", Spec{}, 0, words(2301), "2301.0"},
		{"int16", Spec{}, 3, words(0xffff), "-1000.0"},
		{"uint32", Spec{}, -10, words(0, 1), "0.0000000001"},
		{"uint16", Spec{}, 10, words(65535), "655350000000000.0"},
		{"uint16", Spec{Scale: 0.1, Offset: -40}, -1, words(12345), "83.45"},
		{"uint64", Spec{}, -3, words(0xffff, 0xffff, 0xffff, 0xffff), "18446744073709550.0"},
		{"float32", Spec{}, -2, words(0x4366, 0x199a), "2.301"},
		{"bcd32", Spec{}, -2, words(0x1234, 0x5678), "123456.78"},
		{"bits@0..7", Spec{}, -1, words(0xff17), "2.3"},
		{"int16", Spec{Values: map[string]string{"5": "five"}}, -1, words(5), `"five"`},
	} {
		c := built(t, test.typ, test.spec)
		v, err := c.DecodeScaled(test.raw, test.exponent)
		var json string
		if f, ok := v.Float64(); ok && math.Abs(f) < 1e-6 {
			json = "0.0000000001"
			if f != 1e-10 {
				json = v.String()
			}
		} else {
			json = string(v.AppendJSON(nil))
		}
		if err != nil || json != test.want {
			t.Errorf("%s % x × 10^%d: got %s, %v, want %s", test.typ, test.raw, test.exponent, json, err, test.want)
		}
	}
}

func TestScaleFactorRefuses(t *testing.T) {
	for _, test := range []struct {
		typ      string
		spec     Spec
		exponent int16
		want     error
	}{
		{"int16", Spec{}, math.MinInt16, ErrNaN},
		{"int16", Spec{NaN: []string{"0x0005"}}, 0, ErrNaN},
		{"int16", Spec{}, 11, ErrRange},
		{"int16", Spec{}, -11, ErrRange},
		{"string(2)", Spec{}, 1, ErrKind},
		{"bit@1", Spec{}, 1, ErrKind},
		{"uint16", Spec{Flags: map[string]string{"1": "x"}}, 1, ErrKind},
	} {
		c := built(t, test.typ, test.spec)
		if v, err := c.DecodeScaled(words(5), test.exponent); !errors.Is(err, test.want) || v != (Value{}) {
			t.Errorf("%s × 10^%d: got %v, %v, want %v", test.typ, test.exponent, v, err, test.want)
		}
		if test.want == ErrNaN && test.exponent == 0 {
			continue
		}
		if w, err := c.EncodeScaled(Int(5), test.exponent); !errors.Is(err, test.want) {
			t.Errorf("%s × 10^%d: written as %04x, %v, want %v", test.typ, test.exponent, w, err, test.want)
		}
	}
}

// What DecodeScaled reads, EncodeScaled writes back, bit by bit.
func TestScaleFactorRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		typ, _ := ParseType(rapid.SampledFrom([]string{"int16", "uint16", "int32", "uint32", "bcd32", "int8h", "bits@2..9"}).Draw(t, "type"))
		scale := rapid.SampledFrom([]float64{1, 0.1, 0.001, 2.5}).Draw(t, "scale")
		c, err := NewCodec(Spec{Type: typ, Order: Order(rapid.IntRange(0, 3).Draw(t, "order")), Scale: scale})
		if err != nil {
			t.Fatal(err)
		}
		exponent := int16(rapid.IntRange(-MaxExponent, MaxExponent).Draw(t, "exponent"))
		raw := rapid.SliceOfN(rapid.Byte(), 2*typ.Registers(), 2*typ.Registers()).Draw(t, "raw")
		v, err := c.DecodeScaled(raw, exponent)
		if err != nil {
			return
		}
		w, err := c.EncodeScaled(v, exponent)
		if err != nil {
			t.Fatalf("%s × %v × 10^%d: % x is %v, which cannot be written: %v", typ, scale, exponent, raw, v, err)
		}
		plain, _ := NewCodec(Spec{Type: typ, Order: c.order})
		want, err1 := plain.Decode(raw)
		if got, err2 := plain.Decode(words(w...)); got != want || err1 != nil || err2 != nil {
			t.Fatalf("%s × %v × 10^%d: % x is %v, written as %04x", typ, scale, exponent, raw, v, w)
		}
	})
}

func TestConvert(t *testing.T) {
	float := func(f float64) Value { v, _ := Float(f); return v }
	for _, test := range []struct {
		typ  string
		spec Spec
		in   Value
		want Value
		err  error
	}{
		{"float64", Spec{}, Int(5), Int(5), nil},
		{"float64", Spec{}, Bool(true), Bool(true), nil},
		{"float64", Spec{}, String("A"), String("A"), nil},
		{"float64", Spec{Scale: 0.001}, Int(12345), float(12.345), nil},
		{"float64", Spec{Scale: 0.1}, float(230.1), float(23.01), nil},
		{"float64", Spec{Scale: 0.001, Offset: -1}, Uint(math.MaxUint64), float(math.MaxUint64*0.001 - 1), nil},
		{"float64", Spec{Scale: 0.1}, String("A"), Value{}, ErrKind},
		{"float64", Spec{Offset: 1}, Bool(true), Value{}, ErrKind},
		{"float64", Spec{Values: map[string]string{"3": "bulk"}}, Int(3), String("bulk"), nil},
		{"float64", Spec{Values: map[string]string{"3": "bulk"}}, float(3), String("bulk"), nil},
		{"float64", Spec{Values: map[string]string{"1": "on"}}, Bool(true), String("on"), nil},
		{"float64", Spec{NaN: []string{"-9999"}}, Int(-9999), Value{}, ErrNaN},
		{"float64", Spec{NaN: []string{"-9999"}}, float(-9999), Value{}, ErrNaN},
		{"uint16", Spec{Flags: map[string]string{"1": "low"}}, Int(6), String("low,bit2"), nil},
	} {
		c := built(t, test.typ, test.spec)
		if v, err := c.Convert(test.in); v != test.want || !errors.Is(err, test.err) {
			t.Errorf("%+v of %v: got %v, %v, want %v, %v", test.spec, test.in, v, err, test.want, test.err)
		}
	}
}

func TestSpecRefuses(t *testing.T) {
	for _, test := range []struct {
		typ, key string
		spec     Spec
	}{
		{"int16", "scale", Spec{Scale: math.Inf(1)}},
		{"int16", "offset", Spec{Offset: math.NaN()}},
		{"string(4)", "scale", Spec{Offset: 1}},
		{"uint16", "scale", Spec{Scale: 0.1, Flags: map[string]string{"1": "x"}}},
		{"int16", "nan", Spec{NaN: []string{"0x18000"}}},
		{"int16", "nan", Spec{NaN: []string{"32768"}}},
		{"int16", "nan", Spec{NaN: []string{"0x8000", ""}}},
		{"int16", "nan", Spec{NaN: []string{"1.5"}}},
		{"bcd16", "nan", Spec{NaN: []string{"10000"}}},
		{"float32", "nan", Spec{NaN: []string{"NaN"}}},
		{"float32", "nan", Spec{NaN: []string{"1e39"}}},
		{"string(4)", "nan", Spec{NaN: []string{"0x20"}}},
		{"bit", "nan", Spec{NaN: []string{"1"}}},
		{"uint16", "values", Spec{Values: map[string]string{"-1": "x"}}},
		{"uint16", "values", Spec{Values: map[string]string{"65536": "x"}}},
		{"uint16", "values", Spec{Values: map[string]string{"1": "x", "01": "y"}}},
		{"uint16", "values", Spec{Values: map[string]string{"one": "x"}}},
		{"uint16", "values", Spec{Values: map[string]string{"1": ""}}},
		{"uint16", "values", Spec{Values: map[string]string{"1": " x"}}},
		{"uint16", "values", Spec{Values: map[string]string{"1": "\x00"}}},
		{"bit", "values", Spec{Values: map[string]string{"2": "x"}}},
		{"string(4)", "values", Spec{Values: map[string]string{"1": "x"}}},
		{"float64", "values", Spec{Values: map[string]string{"9007199254740992": "x"}}},
		{"uint16", "flags", Spec{Flags: map[string]string{"16": "x"}}},
		{"bits@4..7", "flags", Spec{Flags: map[string]string{"4": "x"}}},
		{"uint16", "flags", Spec{Flags: map[string]string{"1": "a,b"}}},
		{"uint16", "flags", Spec{Flags: map[string]string{"1": "a", "2": "a"}}},
		{"uint16", "flags", Spec{Flags: map[string]string{"1": "a", "01": "b"}}},
		{"uint16", "flags", Spec{Flags: map[string]string{"1": "bit2"}}},
		{"uint16", "flags", Spec{Flags: map[string]string{"1": "a"}, Values: map[string]string{"1": "a"}}},
		{"float32", "flags", Spec{Flags: map[string]string{"1": "a"}}},
		{"bit@1", "flags", Spec{Flags: map[string]string{"0": "a"}}},
	} {
		test.spec.Type, _ = ParseType(test.typ)
		_, err := NewCodec(test.spec)
		if bad, ok := errors.AsType[*SpecError](err); !ok || bad.Key != test.key {
			t.Errorf("%s %+v: got %v, want a mistake in %s", test.typ, test.spec, err, test.key)
		}
	}
}

func TestNamesCostNoAllocation(t *testing.T) {
	state := built(t, "uint16", Spec{Values: map[string]string{"1": "on"}, NaN: []string{"0xffff"}})
	alarm := built(t, "uint16", Spec{Flags: map[string]string{"0": "overheat"}})
	power := built(t, "int32", Spec{NaN: []string{"0x80000000"}})
	if n := testing.AllocsPerRun(100, func() {
		_, _ = state.Decode(words1)
		_, _ = alarm.Decode(words1)
		_, _ = alarm.Decode(words0)
		_, _ = power.Decode(words1)
		_, _ = power.DecodeScaled(words1, -3)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

var words1, words0 = words(1, 2301), words(0, 0)

// Whatever the Spec and the bytes, what is decoded is written back as the same value.
func FuzzNames(f *testing.F) {
	f.Add("uint16", uint8(0), "0xFFFF", "1", "on", "0", "fan", int16(-1), []byte{0, 1, 2, 3, 4, 5, 6, 7})
	f.Add("bits@4..9", uint8(3), "3", "2", "eco", "5", "bit5", int16(3), []byte{0x12, 0x34, 0, 0, 0, 0, 0, 0})
	f.Add("int64", uint8(1), "0x8000000000000000", "-5", "minus", "63", "sign", int16(10), []byte{0x80, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, typ string, order uint8, nan, value, valueName, flag, flagName string, exponent int16, raw []byte) {
		parsed, err := ParseType(typ)
		if err != nil || len(raw) < 2*parsed.Registers() {
			return
		}
		raw = raw[:2*parsed.Registers()]
		for _, s := range []Spec{
			{NaN: []string{nan}}, {Values: map[string]string{value: valueName}}, {Flags: map[string]string{flag: flagName}},
			{NaN: []string{nan}, Values: map[string]string{value: valueName}},
		} {
			s.Type, s.Order = parsed, Order(order&3)
			c, err := NewCodec(s)
			if err != nil {
				continue
			}
			comesBack(t, &c, raw)
			if v, err := c.DecodeScaled(raw, exponent); err == nil {
				_, _ = c.EncodeScaled(v, exponent)
			}
		}
	})
}

func comesBack(t *testing.T, c *Codec, raw []byte) {
	v, err := c.Decode(raw)
	if err != nil || c.Type().ReadOnly() {
		return
	}
	w, err := c.Encode(v)
	if err != nil {
		t.Fatalf("%s of % x is %s, which cannot be written: %v", c.Type(), raw, v, err)
	}
	back := words(w...)
	if c.Type().Bit() {
		back = []byte{byte(w[0])}
	}
	if again, err := c.Decode(back); err != nil || again != v {
		t.Fatalf("%s of % x is %s, written as % x, which is %v, %v", c.Type(), raw, v, back, again, err)
	}
	if text, ok := v.Text(); ok && c.named() {
		if parsed, err := c.Parse(text); err != nil || parsed != v {
			t.Fatalf("%q was parsed as %v, %v", text, parsed, err)
		}
	}
}
