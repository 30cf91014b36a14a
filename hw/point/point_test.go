package point

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

func codec(t testing.TB, typ, order string, scale, offset float64) Codec {
	t.Helper()
	parsed, err := ParseType(typ)
	if err != nil {
		t.Fatal(err)
	}
	o, err := ParseOrder(order)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCodec(Spec{Type: parsed, Order: o, Scale: scale, Offset: offset})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func words(w ...uint16) []byte {
	var raw []byte
	for _, x := range w {
		raw = binary.BigEndian.AppendUint16(raw, x)
	}
	return raw
}

func TestDecode(t *testing.T) {
	for _, test := range []struct {
		typ, order    string
		scale, offset float64
		raw           []byte
		json          string
	}{
		{"bit", "", 1, 0, []byte{1}, "true"},
		{"bit", "DCBA", 1, 0, []byte{0xfe}, "false"},
		{"bit@0", "", 1, 0, words(0x0001), "true"},
		{"bit@15", "", 1, 0, words(0x8000), "true"},
		{"bit@7", "BADC", 1, 0, words(0x8000), "true"},
		{"int8", "", 1, 0, words(0x01ff), "-1"},
		{"int8h", "", 1, 0, words(0x80ff), "-128"},
		{"uint8l", "", 1, 0, words(0x01ff), "255"},
		{"uint8h", "BADC", 1, 0, words(0x01ff), "255"},
		{"int16", "", 1, 0, words(0xfffe), "-2"},
		{"uint16", "DCBA", 1, 0, words(0x0102), "513"},
		{"int16", "", 0.1, 0, words(2301), "230.1"},
		{"int16", "", 0.1, 0, words(2300), "230.0"},
		{"int16", "", 0.1, -40, words(2301), "190.1"},
		{"int16", "", 0.001, 0, words(0xffff), "-0.001"},
		{"uint16", "", 1.1, 0.3, words(3), "3.6"},
		{"uint16", "", 10, 0, words(2301), "23010.0"},
		{"uint16", "", -0.25, 0, words(3), "-0.75"},
		{"int32", "", 1, 0, words(0xffff, 0xfffe), "-2"},
		{"int32", "CDAB", 1, 0, words(0xfffe, 0xffff), "-2"},
		{"uint32", "BADC", 1, 0, []byte{2, 1, 4, 3}, "16909060"},
		{"uint32", "DCBA", 1, 0, []byte{4, 3, 2, 1}, "16909060"},
		{"uint48", "CDAB", 1, 0, words(3, 2, 1), "4295098371"},
		{"int48", "", 1, 0, words(0xffff, 0xffff, 0xffff), "-1"},
		{"uint64", "", 1, 0, words(0xffff, 0xffff, 0xffff, 0xffff), "18446744073709551615"},
		{"int64", "", 1, 0, words(0x8000, 0, 0, 0), "-9223372036854775808"},
		{"uint64", "DCBA", 1, 0, []byte{8, 7, 6, 5, 4, 3, 2, 1}, "72623859790382856"},
		{"uint64", "", 0.001, 0, words(0, 0, 1, 1), "65.537"},
		{"float16", "", 1, 0, words(0x2e66), "0.1"},
		{"float16", "", 1, 0, words(0xfbff), "-65504.0"},
		{"float32", "", 1, 0, words(0x4366, 0x199a), "230.1"},
		{"float32", "CDAB", 1, 0, words(0x199a, 0x4366), "230.1"},
		{"float32", "", 0.1, 0, words(0x4366, 0x199a), "23.01"},
		{"float32", "", 1000, 0, words(0x4366, 0x199a), "230100.0"},
		{"float32", "", 1, 0, words(0x4ceb, 0x79a3), "123456792.0"},
		{"float32", "", 1, 0, words(0x8000, 0), "0.0"},
		{"float64", "", 1, 0, words(0x406c, 0xc333, 0x3333, 0x3333), "230.1"},
		{"bcd16", "", 1, 0, words(0x1234), "1234"},
		{"bcd32", "CDAB", 0.01, 0, words(0x5678, 0x1234), "123456.78"},
		{"bcd48", "", 1, 0, words(0x1234, 0x5678, 0x9012), "123456789012"},
		{"bcd64", "", 1, 0, words(0x9999, 0x9999, 0x9999, 0x9999), "9999999999999999"},
		{"string(5)", "", 1, 0, []byte("AB\"D\x01x"), `"AB\"D\u0001"`},
		{"string(6)", "BADC", 1, 0, []byte("BADC  "), `"ABCD"`},
		{"string(6)", "CDAB", 1, 0, []byte("AB\x00DEF"), `"AB"`},
		{"string(2)", "", 1, 0, []byte{0xff, 'x'}, "\"\ufffdx\""},
	} {
		c := codec(t, test.typ, test.order, test.scale, test.offset)
		v, err := c.Decode(test.raw)
		if err != nil {
			t.Errorf("%s %s % x: %v", test.typ, test.order, test.raw, err)
			continue
		}
		if got := string(v.AppendJSON(nil)); got != test.json {
			t.Errorf("%s %s × %v + %v, % x: got %s, want %s", test.typ, test.order, test.scale, test.offset, test.raw, got, test.json)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, test := range []struct {
		typ  string
		raw  []byte
		want error
	}{
		{"float32", words(0x7fc0, 0), ErrNaN},
		{"float32", words(0xff80, 0), ErrNaN},
		{"float16", words(0x7c01), ErrNaN},
		{"float64", words(0x7ff0, 0, 0, 0), ErrNaN},
		{"bcd16", words(0x12a4), ErrDigit},
	} {
		c := codec(t, test.typ, "", 1, 0)
		if v, err := c.Decode(test.raw); !errors.Is(err, test.want) || v != (Value{}) {
			t.Errorf("%s % x: got %v, %v, want %v", test.typ, test.raw, v, err, test.want)
		}
	}
	c := codec(t, "uint32", "", 1, 0)
	if _, err := c.Decode(words(1)); err == nil {
		t.Error("two bytes made a uint32")
	}
}

func TestEncode(t *testing.T) {
	for _, test := range []struct {
		typ   string
		scale float64
		value any
		want  []uint16
		err   error
	}{
		{"int16", 0.1, 12.5, []uint16{125}, nil},
		{"int16", 0.1, 12.25, []uint16{123}, nil},
		{"int16", 0.1, -12.25, []uint16{0xff85}, nil},
		{"int16", 0.1, 12.24, []uint16{122}, nil},
		{"int16", 0.1, json.Number("0.3"), []uint16{3}, nil},
		{"int16", 1, 1.5, []uint16{2}, nil},
		{"int16", 1, 32767.4, []uint16{32767}, nil},
		{"int16", 1, 32767.5, nil, ErrRange},
		{"int16", 1, -32769, nil, ErrRange},
		{"uint16", 1, -1, nil, ErrRange},
		{"uint16", 1, -0.4, []uint16{0}, nil},
		{"uint16", 1, 65536, nil, ErrRange},
		{"uint16", 1, 1e300, nil, ErrRange},
		{"uint16", 1, math.NaN(), nil, ErrNaN},
		{"uint16", 1, "7", nil, ErrKind},
		{"uint16", 1, true, nil, ErrKind},
		{"uint8h", 1, 255, []uint16{0xff00}, nil},
		{"int8", 1, -2, []uint16{0x00fe}, nil},
		{"int8", 1, 128, nil, ErrRange},
		{"bcd16", 1, 9999, []uint16{0x9999}, nil},
		{"bcd16", 1, 10000, nil, ErrRange},
		{"bcd16", 1, -1, nil, ErrRange},
		{"bcd48", 1, int64(123456789012), []uint16{0x1234, 0x5678, 0x9012}, nil},
		{"bcd64", 1, json.Number("10000000000000000"), nil, ErrRange},
		{"uint64", 1, json.Number("18446744073709551615"), []uint16{0xffff, 0xffff, 0xffff, 0xffff}, nil},
		{"uint64", 1, json.Number("18446744073709551616"), nil, ErrRange},
		{"int64", 1, int64(math.MinInt64), []uint16{0x8000, 0, 0, 0}, nil},
		{"int64", 1, uint64(math.MaxUint64), nil, ErrRange},
		{"float32", 1, 230.1, []uint16{0x4366, 0x199a}, nil},
		{"float32", 0.1, 23.01, []uint16{0x4366, 0x199a}, nil},
		{"float32", 1, 1e39, nil, ErrRange},
		{"float16", 1, 65519.9, []uint16{0x7bff}, nil},
		{"float16", 1, 65520, nil, ErrRange},
		{"float16", 1, 1e-7, []uint16{2}, nil},
		{"bit", 1, true, []uint16{1}, nil},
		{"bit", 1, 0, []uint16{0}, nil},
		{"bit", 1, 2, nil, ErrKind},
		{"bit@3", 1, true, []uint16{8}, nil},
		{"string(3)", 1, "abc", []uint16{0x6162, 0x6300}, nil},
		{"string(3)", 1, "abcd", nil, ErrRange},
		{"string(3)", 1, 5, nil, ErrKind},
	} {
		c := codec(t, test.typ, "", test.scale, 0)
		v, err := Of(test.value)
		var got []uint16
		if err == nil {
			got, err = c.Encode(v)
		}
		if !errors.Is(err, test.err) || !equal(got, test.want) {
			t.Errorf("%s × %v of %v: got %04x, %v, want %04x, %v", test.typ, test.scale, test.value, got, err, test.want, test.err)
		}
	}
}

func equal(a, b []uint16) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestMask(t *testing.T) {
	for _, test := range []struct {
		typ, order string
		want       uint16
	}{
		{"bit@3", "", 1 << 3}, {"bit@3", "BADC", 1 << 11}, {"uint8", "", 0x00ff}, {"uint8", "DCBA", 0xff00},
		{"int8h", "", 0xff00}, {"int16", "", 0xffff}, {"string(8)", "", 0xffff}, {"bit", "BADC", 0xffff},
	} {
		if c := codec(t, test.typ, test.order, 1, 0); c.Mask() != test.want {
			t.Errorf("%s %s: got %04x, want %04x", test.typ, test.order, c.Mask(), test.want)
		}
	}
}

func TestTypesReadBack(t *testing.T) {
	registers := map[string]int{"bit": 1, "bit@9": 1, "int8": 1, "uint8h": 1, "int16": 1, "int32": 2, "uint48": 3, "int64": 4,
		"float16": 1, "float32": 2, "float64": 4, "bcd16": 1, "bcd32": 2, "bcd48": 3, "bcd64": 4, "bits@3..11": 1, "bits@9..16": 2, "bits@16..31": 2, "string(1)": 1, "string(8)": 4, "string(250)": 125}
	for name, n := range registers {
		typ, err := ParseType(name)
		if err != nil || typ.String() != name || typ.Registers() != n {
			t.Errorf("%s: got %s of %d registers, %v; want %d", name, typ, typ.Registers(), err, n)
		}
	}
	for _, name := range []string{"", "int", "int24", "bit@16", "bit@-1", "bit@03", "string", "string()", "string(0)", "string(251)", "float", "FLOAT32"} {
		if typ, err := ParseType(name); err == nil {
			t.Errorf("%q was read as %s", name, typ)
		}
	}
}

func TestNewCodecRefuses(t *testing.T) {
	for _, test := range []struct {
		typ           string
		scale, offset float64
	}{{"int16", math.Inf(-1), 0}, {"int16", math.NaN(), 0}, {"int16", 1, math.Inf(1)}, {"bit@1", 2, 0}, {"string(4)", 1, 1}} {
		typ, err := ParseType(test.typ)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewCodec(Spec{Type: typ, Scale: test.scale, Offset: test.offset}); err == nil {
			t.Errorf("%s × %v + %v was accepted", test.typ, test.scale, test.offset)
		}
	}
	if _, err := NewCodec(Spec{}); err == nil {
		t.Error("the zero Type was accepted")
	}
}

func TestOrders(t *testing.T) {
	typ, _ := ParseType("float32")
	all := Orders(words(0x199a, 0x4366), typ)
	if len(all) != 4 || all[1].Order != CDAB || all[1].Value.String() != "230.1" || all[1].Err != nil {
		t.Errorf("got %v", all)
	}
	short, _ := ParseType("uint16")
	if n := len(Orders(words(1), short)); n != 2 {
		t.Errorf("a uint16 reads in %d ways, want 2", n)
	}
	coil, _ := ParseType("bit")
	if n := len(Orders([]byte{1}, coil)); n != 1 {
		t.Errorf("a coil reads in %d ways, want 1", n)
	}
	if bad := Orders(words(0x7fc0, 0), typ)[0]; !errors.Is(bad.Err, ErrNaN) {
		t.Error("NaN came without its reason")
	}
}

// anyType draws one of all types.
func anyType(t *rapid.T) Type {
	typ, err := ParseType(rapid.OneOf(
		rapid.SampledFrom([]string{"bit", "int8", "int8h", "uint8", "uint8h", "int16", "uint16", "int32", "uint32", "int48",
			"uint48", "int64", "uint64", "float16", "float32", "float64", "bcd16", "bcd32", "bcd48", "bcd64", "bits@0..0", "bits@3..11", "bits@0..15", "bits@0..31"}),
		rapid.Map(rapid.IntRange(0, 15), func(n int) string { return "bit@" + strconv.Itoa(n) }),
		rapid.Map(rapid.IntRange(1, 30), func(n int) string { return "string(" + strconv.Itoa(n) + ")" }),
	).Draw(t, "type"))
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

// What was decoded is encoded to registers that decode to the same value, whatever the type,
// the order, the scale and the offset; unscaled, in the bits that belong to the point.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		typ := anyType(t)
		order := Order(rapid.IntRange(0, 3).Draw(t, "order"))
		scale, offset := 1.0, 0.0
		if typ.Numeric() && rapid.Bool().Draw(t, "scaled") {
			scale = float64(rapid.IntRange(1, 999).Draw(t, "digits")) / tens[rapid.IntRange(0, 4).Draw(t, "places")]
			offset = float64(rapid.IntRange(-999, 999).Draw(t, "offset")) / 10
		}
		c, err := NewCodec(Spec{Type: typ, Order: order, Scale: scale, Offset: offset})
		if err != nil {
			t.Fatal(err)
		}
		raw := rapid.SliceOfN(rapid.Byte(), 2*typ.Registers(), 2*typ.Registers()).Draw(t, "raw")
		v, err := c.Decode(raw)
		if err != nil {
			return
		}
		// Beyond 15 digits a scaled value cannot tell all raw values apart.
		if f, ok := v.Float64(); ok && (scale != 1 || offset != 0) && math.Abs((f-offset)/scale) > 1e14 || typ.kind == float && (scale != 1 || offset != 0) {
			return
		}
		encoded, err := c.Encode(v)
		if err != nil {
			t.Fatalf("%s %s × %v + %v: % x is %s, which cannot be written: %v", typ, order, scale, offset, raw, v, err)
		}
		back := words(encoded...)
		if typ.Bit() {
			back = []byte{byte(encoded[0])}
		}
		again, err := c.Decode(back)
		if err != nil || again != v {
			t.Fatalf("%s %s × %v + %v: % x is %s, written as % x, which is %s, %v", typ, order, scale, offset, raw, v, back, again, err)
		}
		if typ.kind == text || typ.Bit() || v == (Value{kind: KindFloat}) { // padding differs, and so does negative zero
			return
		}
		for i := range encoded {
			if mask := c.Mask(); encoded[i] != binary.BigEndian.Uint16(raw[2*i:])&mask {
				t.Fatalf("%s %s: % x came back as %04x under mask %04x", typ, order, raw, encoded, mask)
			}
		}
	})
}

// Scaling by a decimal gives the float64 that is nearest to the decimal result.
func TestScalingIsCorrectlyRounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.Int32().Draw(t, "raw")
		places := rapid.IntRange(0, 9).Draw(t, "places")
		typ, _ := ParseType("int32")
		scale, _ := strconv.ParseFloat("1e-"+strconv.Itoa(places), 64)
		c, err := NewCodec(Spec{Type: typ, Scale: scale})
		if err != nil {
			t.Fatal(err)
		}
		v, err := c.Decode(words(uint16(uint32(raw)>>16), uint16(raw)))
		if err != nil {
			t.Fatal(err)
		}
		want, _ := strconv.ParseFloat(strconv.Itoa(int(raw))+"e-"+strconv.Itoa(places), 64)
		if got, _ := v.Float64(); got != want {
			t.Fatalf("%d × 1e-%d: got %v, want %v", raw, places, got, want)
		}
	})
}

func TestFloatsKeepTheirBits(t *testing.T) {
	for h := range 1 << 16 {
		c := codec(t, "float16", "", 1, 0)
		v, err := c.Decode(words(uint16(h)))
		if err != nil || h == 0x8000 {
			continue
		}
		back, err := c.Encode(v)
		if err != nil || back[0] != uint16(h) {
			t.Fatalf("half %04x is %s, written as %04x, %v", h, v, back, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.Float32().Draw(t, "f")
		if float32(shortest(f)) != f && f == f {
			t.Fatalf("%v became %v", f, shortest(f))
		}
	})
}

func TestAppendJSONIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.Float64().Draw(t, "f")
		v, err := Float(f)
		if err != nil {
			return
		}
		var back float64
		if err := json.Unmarshal(v.AppendJSON(nil), &back); err != nil || back != f {
			t.Fatalf("%v was written as %s, read as %v, %v", f, v, back, err)
		}
		var value Value
		if err := json.Unmarshal(v.AppendJSON(nil), &value); err != nil || value != v {
			t.Fatalf("%v came back as %v, %v", v, value, err)
		}
		s := rapid.String().Draw(t, "s")
		var text string
		if err := json.Unmarshal(String(s).AppendJSON(nil), &text); err != nil || text != s {
			t.Fatalf("%q was written as %s, read as %q, %v", s, String(s).AppendJSON(nil), text, err)
		}
	})
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		text, typ, json string
	}{{"on", "bit", "true"}, {"0", "bit@4", "false"}, {"12.5", "int16", "12.5"}, {"12", "string(8)", `"12"`}, {"-7", "int16", "-7"}} {
		typ, err := ParseType(test.typ)
		if err != nil {
			t.Fatal(err)
		}
		v, err := Parse(test.text, typ)
		if err != nil || string(v.AppendJSON(nil)) != test.json {
			t.Errorf("%s for %s: got %s, %v", test.text, typ, v.AppendJSON(nil), err)
		}
	}
	typ, _ := ParseType("int16")
	for _, text := range []string{"", "x", "NaN", "0x10", "1 "} {
		if v, err := Parse(text, typ); err == nil {
			t.Errorf("%q was read as %s", text, v)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("float32", uint8(1), 0.1, 0.0, []byte{0x43, 0x66, 0x19, 0x9a})
	f.Add("string(5)", uint8(2), 1.0, 0.0, []byte("abcdef"))
	f.Add("uint64", uint8(3), 1e-3, -273.15, []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Add("bit@3", uint8(0), 1.0, 0.0, []byte{0, 8})
	f.Fuzz(func(t *testing.T, typ string, order uint8, scale, offset float64, raw []byte) {
		parsed, err := ParseType(typ)
		if err != nil {
			return
		}
		if again, err := ParseType(parsed.String()); err != nil || again != parsed {
			t.Fatalf("%q became %q, %v", typ, parsed, err)
		}
		c, err := NewCodec(Spec{Type: parsed, Order: Order(order & 3), Scale: scale, Offset: offset})
		if err != nil {
			return
		}
		v, err := c.Decode(raw)
		if err != nil {
			return
		}
		if !json.Valid(v.AppendJSON(nil)) {
			t.Fatalf("%s is no JSON", v.AppendJSON(nil))
		}
		if words, err := c.Encode(v); err == nil && len(words) != parsed.Registers() {
			t.Fatalf("%s encoded to %d registers", parsed, len(words))
		}
	})
}

func TestNumbersCostNoAllocation(t *testing.T) {
	raw := words(0x4366, 0x199a, 0x1234, 0x5678)
	dst := make([]byte, 0, 64)
	for _, typ := range []string{"int16", "uint32", "int64", "uint64", "float16", "float32", "float64", "bcd32", "bit@3"} {
		for _, scale := range []float64{1, 0.1, 1.0 / 3} {
			parsed, _ := ParseType(typ)
			c, err := NewCodec(Spec{Type: parsed, Order: CDAB, Scale: scale})
			if err != nil {
				continue
			}
			if n := testing.AllocsPerRun(100, func() {
				v, _ := c.Decode(raw)
				dst = v.AppendJSON(dst[:0])
			}); n != 0 {
				t.Errorf("%s × %v: %v allocations", typ, scale, n)
			}
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	raw := words(0x4366, 0x199a, 0x1234, 0x5678)
	for _, typ := range []string{"int16", "uint64", "float32"} {
		for _, scale := range []float64{1, 0.1} {
			b.Run(typ+"×"+strconv.FormatFloat(scale, 'g', -1, 64), func(b *testing.B) {
				c := codec(b, typ, "", scale, 0)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := c.Decode(raw); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
