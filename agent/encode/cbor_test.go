package encode_test

import (
	"bytes"
	"encoding/hex"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"ferrule/agent/encode"
	"ferrule/hw"
	"ferrule/hw/point"
)

// cborEntry is what a consumer makes of an entry.
type cborEntry struct {
	Boot, Seq  uint64
	T          time.Time
	Unsynced   bool
	Line, Unit string
	Readings   map[string]any
	Bad        map[string]string
}

// strictCBOR refuses what RFC 8949 calls invalid: duplicate keys, and text that is not UTF-8.
func strictCBOR(t testing.TB) cbor.DecMode {
	t.Helper()
	mode, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, UTF8: cbor.UTF8RejectInvalid}.DecMode()
	if err != nil {
		t.Fatal(err)
	}
	return mode
}

// readCBOR reads a message that is one entry or an array of them.
func readCBOR(t testing.TB, payload []byte) []cborEntry {
	t.Helper()
	if !bytes.HasPrefix(payload, []byte("\xd9\xd9\xf7")) {
		t.Fatalf("no mark of CBOR: %x", payload)
	}
	var one cborEntry
	if payload[3]>>5 == 5 {
		if err := strictCBOR(t).Unmarshal(payload, &one); err != nil {
			t.Fatalf("%v: %x", err, payload)
		}
		return []cborEntry{one}
	}
	var all []cborEntry
	if err := strictCBOR(t).Unmarshal(payload, &all); err != nil {
		t.Fatalf("%v: %x", err, payload)
	}
	return all
}

func TestCBORIsWhatJSONIs(t *testing.T) {
	e := encoder(t, encode.CBOR)
	topic, entry := e.Entry(nil, 48213, meter, true)
	got := readCBOR(t, joined(t, e, topic, entry))[0]
	want := cborEntry{Boot: 17, Seq: 48213, Unsynced: true, Line: "rs485-1", Unit: "meter-a"}
	if got.Boot != want.Boot || got.Seq != want.Seq || !got.Unsynced || got.Line != want.Line || got.Unit != want.Unit ||
		got.T.UnixMilli() != at.UnixMilli() || got.Readings["voltage_l1"] != 230.1 || got.Readings["power_l1"] != 1834.0 || got.Bad["energy"] != "timeout" {
		t.Errorf("%+v", got)
	}
}

// The example of docs/topics.md, byte for byte.
func TestCBORIsWrittenAsDocumented(t *testing.T) {
	e := encoder(t, encode.CBOR)
	p := hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{{Point: "p", Value: point.Int(-5)}}}
	topic, entry := e.Entry(nil, 1, p, false)
	const want = "d9d9f7" + // 55799
		"a6" + "64626f6f74" + "11" + "63736571" + "01" + "6174" + "c1fb41dac045d0080000" +
		"646c696e65" + "616c" + "64756e6974" + "6175" + "6872656164696e6773" + "a1" + "6170" + "24"
	documented(t, want)
	if got := hex.EncodeToString(joined(t, e, topic, entry)); got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
}

func TestCBORNumbersAreShortest(t *testing.T) {
	values := []point.Value{point.Bool(true), point.Bool(false), point.Int(math.MinInt64), point.Uint(math.MaxUint64), point.Int(-1),
		point.Time(at, point.UTC), point.Time(at, point.Local), point.Time(at, point.Date), point.Time(at, point.TimeOfDay)}
	for _, f := range []float64{0, 1, -1.5, 65504, 65505, 0x1p-24, 0x1p-14, 0x1.8p-15, 0x1p-25, 100000, math.MaxFloat32, math.MaxFloat64, 230.1, 5e-324, 0x1.004p0, 0x1.001p0} {
		values = append(values, float(f))
	}
	for n := uint64(0); n < 64; n++ {
		values = append(values, point.Uint(1<<n), point.Uint(1<<n-1))
	}
	mode, err := cbor.EncOptions{ShortestFloat: cbor.ShortestFloat16}.EncMode()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		e := encoder(t, encode.CBOR)
		_, entry := e.Entry(nil, 1, hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{{Point: "p", Value: v}}}, false)
		var want any
		switch v.Kind() {
		case point.KindBool:
			want, _ = v.Bool()
		case point.KindFloat:
			want, _ = v.Float64()
		case point.KindTime:
			want = v.String()
		case point.KindInt:
			want, _ = v.Int64()
		default:
			want, _ = v.Uint64()
		}
		theirs, err := mode.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if _, ours, _ := bytes.Cut(entry, []byte("\xa1\x61p")); !bytes.Equal(ours, theirs) {
			t.Errorf("%v: %x, and fxamacker/cbor writes %x", v, ours, theirs)
		}
	}
}

// each is s with one replacement for each foreign byte, as everything that is sent has it.
func each(s string) string {
	var b strings.Builder
	for _, r := range s {
		b.WriteRune(r)
	}
	return b.String()
}

// fuzzPoll makes a poll of what a fuzzer brings; names are different ones.
func fuzzPoll(line, unit, name, text, bad string, number float64, integer int64, ms int64) hw.Poll {
	readings := []hw.Reading{
		{Point: name, Value: point.String(text), Uom: text},
		{Point: name + "i", Value: point.Int(integer), Uom: "kWh"},
		{Point: name + "u", Value: point.Uint(uint64(integer)), Uom: "V"},
		{Point: name + "o", Value: point.Bool(integer%2 == 0)},
		{Point: name + "t", Value: point.Time(time.UnixMilli(integer%1e14), point.TimeForm(integer&3))},
		{Point: name + "b", Bad: bad},
	}
	if v, err := point.Float(number); err == nil {
		readings = append(readings, hw.Reading{Point: name + "f", Value: v, Uom: "°C"})
	}
	return hw.Poll{Line: line, Unit: unit, Time: time.UnixMilli(ms % 1e14), Readings: readings}
}

func seeds(f *testing.F) {
	f.Add("rs485-1", "meter-a", "voltage", "text", "timeout", 230.1, int64(-5), int64(1795233600125), uint8(2))
	f.Add("\xff", "a/b", "\"", "\\\n\x00\u2028", "\x1b", math.Inf(1), int64(math.MinInt64), int64(-1), uint8(1))
	f.Add("", "", ":seq", "::", "", math.MaxFloat64, int64(math.MaxInt64), int64(0), uint8(60))
	f.Add("Ferrule/", "é", "Ferrule/Seq", strings.Repeat("x", 300), strings.Repeat("y", 3000), math.Copysign(0, -1), int64(0), int64(999), uint8(3))
}

// Whatever a unit says, what comes out is CBOR that reads back as it, alone, joined and compressed.
func FuzzCBOR(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, line, unit, name, text, bad string, number float64, integer, ms int64, n uint8) {
		p := fuzzPoll(line, unit, name, text, bad, number, integer, ms)
		e := encoder(t, encode.CBOR, compressed, largest(256<<10))
		var topic string
		var entries [][]byte
		for i := range int(n)%60 + 1 {
			var entry []byte
			topic, entry = e.Entry(nil, uint64(i+1), p, integer < 0)
			entries = append(entries, entry)
		}
		payload := e.Join(nil, topic, entries)
		if len(payload) == 0 {
			payload = e.Join(nil, topic, entries[:1])
			entries = entries[:1]
		}
		all := readCBOR(t, unpacked(t, payload))
		if len(all) != len(entries) {
			t.Fatalf("%d of %d entries", len(all), len(entries))
		}
		for i, got := range all {
			if got.Boot != 17 || got.Seq != uint64(i+1) || got.T.Round(time.Millisecond).UnixMilli() != p.Time.UnixMilli() ||
				got.Line != each(line) || got.Unit != each(unit) || got.Unsynced != (integer < 0) {
				t.Fatalf("%+v", got)
			}
			if got.Readings[each(name)] != each(text) || got.Readings[each(name)+"o"] != (integer%2 == 0) || got.Readings[each(name)+"u"] != uint64(integer) {
				t.Fatalf("%+v", got.Readings)
			}
			if bad == "" {
				bad = "invalid"
			}
			if got.Bad[each(name)+"b"] != each(bad) || !utf8.ValidString(got.Unit) {
				t.Fatalf("%+v", got.Bad)
			}
		}
	})
}
