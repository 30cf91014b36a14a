package encode_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"ferrule/agent/encode"
	"ferrule/hw"
	"ferrule/hw/point"
)

const template = "ferrule/{device}/readings/{line}/{unit}"

var at = time.Date(2026, 11, 21, 5, 0, 0, 125_999_999, time.FixedZone("", 3600))

func newEncoder(t testing.TB) *encode.Encoder {
	t.Helper()
	e, err := encode.New(encode.Default(), template, "gw-1", 17)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func float(f float64) point.Value {
	v, err := point.Float(f)
	if err != nil {
		panic(err) // of a test's own constant
	}
	return v
}

var meter = hw.Poll{Line: "rs485-1", Unit: "meter-a", Time: at, Readings: []hw.Reading{
	{Point: "voltage_l1", Value: float(230.1)},
	{Point: "energy", Bad: "timeout"},
	{Point: "power_l1", Value: float(1834)},
}}

// The bytes of docs/topics.md.
func TestEntryIsWrittenAsDocumented(t *testing.T) {
	for name, test := range map[string]struct {
		poll     hw.Poll
		unsynced bool
		want     string
	}{
		"documented": {meter, false,
			`{"boot":17,"seq":48213,"t":"2026-11-21T04:00:00.125Z","line":"rs485-1","unit":"meter-a","readings":{"voltage_l1":230.1,"power_l1":1834.0},"bad":{"energy":"timeout"}}`},
		"unsynced": {hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{{Point: "p", Value: point.Bool(true)}}}, true,
			`{"boot":17,"seq":48213,"t":"2026-11-21T04:00:00.125Z","unsynced":true,"line":"l","unit":"u","readings":{"p":true}}`},
		"all bad": {hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{{Point: "p", Bad: "crc"}, {Point: "q", Bad: "exception-2"}}}, false,
			`{"boot":17,"seq":48213,"t":"2026-11-21T04:00:00.125Z","line":"l","unit":"u","readings":{},"bad":{"p":"crc","q":"exception-2"}}`},
		"nothing": {hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{{Point: "p"}}}, false,
			`{"boot":17,"seq":48213,"t":"2026-11-21T04:00:00.125Z","line":"l","unit":"u","readings":{},"bad":{"p":"invalid"}}`},
		"kinds": {hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{
			{Point: "i", Value: point.Int(math.MinInt64)}, {Point: "u", Value: point.Uint(math.MaxUint64)}, {Point: "s", Value: point.String("a\"\\\n\xff€")},
		}}, false,
			`{"boot":17,"seq":48213,"t":"2026-11-21T04:00:00.125Z","line":"l","unit":"u","readings":{"i":-9223372036854775808,"u":18446744073709551615,"s":"a\"\\\u000a` + "\ufffd" + `€"}}`},
	} {
		if name == "documented" {
			documented(t, test.want)
		}
		_, payload := newEncoder(t).Entry([]byte("kept"), 48213, test.poll, test.unsynced)
		if string(payload) != "kept"+test.want {
			t.Errorf("%s:\n%s, want\n%s", name, payload, test.want)
		}
	}
}

func TestTopicsCannotBeLeft(t *testing.T) {
	e := newEncoder(t)
	for unit, want := range map[string]string{
		"meter-a": "meter-a", "a/b": "a%2Fb", "+": "%2B", "#": "%23", "a%2Fb": "a%252Fb", "": "%", "%": "%25",
		"\x00": "%00", "\xff": "%FF", "\u0085": "%C2%85", "Zähler": "Zähler", "a b": "a b",
	} {
		topic, _ := e.Entry(nil, 1, hw.Poll{Line: "l", Unit: unit, Time: at}, false)
		if topic != "ferrule/gw-1/readings/l/"+want {
			t.Errorf("%q: %q", unit, topic)
		}
	}
	for _, device := range []string{"", "a/b", "+", "a#", "a\x00", "\xff"} {
		if _, err := encode.New(encode.Default(), template, device, 1); err == nil {
			t.Errorf("device %q was accepted", device)
		}
	}
	if _, err := encode.New(encode.Config{Format: "xml", Compress: "none"}, template, "d", 1); err == nil {
		t.Error("format xml was accepted")
	}
}

func TestTemplates(t *testing.T) {
	for _, bad := range []string{"", "a/{b}", "a/{line", "a/line}", "a/}{", "a/+", "#", "$SYS/{line}", "a\x00", "\xff", strings.Repeat("x", 2000)} {
		topics := encode.DefaultTopics()
		topics.Readings = bad
		if err := topics.Validate(); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if err := (encode.Topics{Readings: "r"}).Validate(); err != nil {
		t.Errorf("without commands and status: %v", err)
	}
	vars := map[string]string{"device": "d"}
	if f := encode.Filter("a/{device}/c/{name}", vars); f != "a/d/c/+" {
		t.Errorf("filter %q", f)
	}
	if name, ok := encode.Extract("a/{device}/c/{name}", "a/d/c/read", "name"); !ok || name != "read" {
		t.Errorf("extracted %q, %t", name, ok)
	}
	if _, ok := encode.Extract("a/{device}/c/{name}", "a/d", "name"); ok {
		t.Error("extracted from a topic that is too short")
	}
	if topic, err := encode.ExpandTopic("r/{id}", map[string]string{"id": "a/b"}); err != nil || topic != "r/a%2Fb" {
		t.Errorf("%q, %v", topic, err)
	}
	if _, err := encode.ExpandTopic("r/{id}", map[string]string{"id": strings.Repeat("x", 70000)}); err == nil {
		t.Error("a topic that MQTT cannot carry was accepted")
	}
}

func TestJoin(t *testing.T) {
	e := newEncoder(t)
	_, one := e.Entry(nil, 1, meter, false)
	_, two := e.Entry(nil, 2, meter, false)
	if got := e.Join([]byte("x"), "", [][]byte{one}); string(got) != "x"+string(one) {
		t.Errorf("one: %s", got)
	}
	var all []struct{ Seq uint64 }
	if err := json.Unmarshal(e.Join(nil, "", [][]byte{one, two, one}), &all); err != nil || len(all) != 3 || all[1].Seq != 2 {
		t.Errorf("three: %v, %v", all, err)
	}
}

func TestUnitsOfAStreamDoNotFillTheMemory(t *testing.T) {
	e := newEncoder(t)
	var last string
	for i := range 5000 {
		last, _ = e.Entry(nil, 1, hw.Poll{Line: "l", Unit: strings.Repeat("x", i%3000), Time: at}, false)
	}
	if !strings.HasSuffix(last, strings.Repeat("x", 1999)) {
		t.Errorf("topic %q", last)
	}
}

// Whatever a unit says, what comes out is JSON that reads back as it.
func FuzzEntry(f *testing.F) {
	f.Add("rs485-1", "meter-a", "voltage", "text", "timeout", 230.1, int64(-5))
	f.Add("\xff", "a/b", "\"", "\\\n\x00\u2028", "\x1b", math.Inf(1), int64(math.MinInt64))
	f.Fuzz(func(t *testing.T, line, unit, name, text, bad string, number float64, integer int64) {
		readings := []hw.Reading{{Point: name, Value: point.String(text)}, {Point: name + "i", Value: point.Int(integer)}, {Point: name + "b", Bad: bad}}
		if v, err := point.Float(number); err == nil {
			readings = append(readings, hw.Reading{Point: name + "f", Value: v})
		}
		topic, payload := newEncoder(t).Entry(nil, 7, hw.Poll{Line: line, Unit: unit, Time: at, Readings: readings}, false)
		if strings.Count(topic, "/") != strings.Count(template, "/") || strings.ContainsAny(topic, "+#\x00") || !utf8.ValidString(topic) {
			t.Errorf("topic %q", topic)
		}
		var got struct {
			Line, Unit string
			Readings   map[string]any
			Bad        map[string]string
		}
		if err := json.Unmarshal(payload, &got); err != nil || !utf8.Valid(payload) {
			t.Fatalf("%v: %s", err, payload)
		}
		each := func(s string) string { // one replacement for each foreign byte
			var b strings.Builder
			for _, r := range s {
				b.WriteRune(r)
			}
			return b.String()
		}
		if got.Line != each(line) || got.Unit != each(unit) || got.Readings[each(name)] != each(text) {
			t.Errorf("%+v of %s", got, payload)
		}
		if bad != "" && got.Bad[each(name+"b")] != each(bad) {
			t.Errorf("bad %q of %s", got.Bad, payload)
		}
	})
}

// However many entries of whatever are joined and compressed, they split again.
func FuzzJoin(f *testing.F) {
	f.Add("meter-a", "text", uint16(60), true)
	f.Add("\xff", "],[\"{}", uint16(3), false)
	f.Fuzz(func(t *testing.T, unit, text string, n uint16, compress bool) {
		changes := []func(*encode.Config){largest(256 << 10)}
		if compress {
			changes = append(changes, compressed)
		}
		e := encoder(t, encode.JSON, changes...)
		var topic string
		var entries [][]byte
		for i := range int(n)%300 + 1 {
			var entry []byte
			topic, entry = e.Entry(nil, uint64(i+1), hw.Poll{Line: "l", Unit: unit, Time: at, Readings: []hw.Reading{{Point: text, Value: point.String(text)}}}, false)
			entries = append(entries, entry)
		}
		payload := e.Join([]byte("kept"), topic, entries)
		for len(payload) == 4 {
			entries = entries[:len(entries)/2]
			payload = e.Join([]byte("kept"), topic, entries)
		}
		plain := unpacked(t, payload[4:])
		if len(entries) == 1 {
			plain = append(append([]byte("["), plain...), ']')
		}
		var all []json.RawMessage
		if err := json.Unmarshal(plain, &all); err != nil || len(all) != len(entries) {
			t.Fatalf("%d of %d: %v", len(all), len(entries), err)
		}
		for i := range all {
			if string(all[i]) != string(entries[i]) {
				t.Fatalf("%s, want %s", all[i], entries[i])
			}
		}
	})
}
