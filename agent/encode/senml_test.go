package encode_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"ferrule/agent/encode"
	"ferrule/hw"
	"ferrule/hw/point"
)

// record is one SenML record, in both forms (RFC 8428, 5 and 6).
type record struct {
	Version    *int     `json:"bver,omitempty" cbor:"-1,keyasint,omitempty"`
	BaseName   *string  `json:"bn,omitempty" cbor:"-2,keyasint,omitempty"`
	BaseTime   *float64 `json:"bt,omitempty" cbor:"-3,keyasint,omitempty"`
	Name       string   `json:"n" cbor:"0,keyasint"`
	Unit       string   `json:"u,omitempty" cbor:"1,keyasint,omitempty"`
	Value      *float64 `json:"v,omitempty" cbor:"2,keyasint,omitempty"`
	Text       *string  `json:"vs,omitempty" cbor:"3,keyasint,omitempty"`
	Bool       *bool    `json:"vb,omitempty" cbor:"4,keyasint,omitempty"`
	Additional any      `json:"-" cbor:"-"`
}

// readSenML reads a pack of either form.
func readSenML(t testing.TB, payload []byte) (pack []record) {
	t.Helper()
	if bytes.HasPrefix(payload, []byte("\xd9\xd9\xf7")) {
		var tag cbor.RawTag
		if err := cbor.Unmarshal(payload[3:], &tag); err != nil || tag.Number != 1668546929 {
			t.Fatalf("tag %d, %v", tag.Number, err)
		}
		mode, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField}.DecMode()
		if err != nil {
			t.Fatal(err)
		}
		if err := mode.Unmarshal(tag.Content, &pack); err != nil {
			t.Fatalf("%v: %x", err, payload)
		}
		return pack
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&pack); err != nil || d.More() {
		t.Fatalf("%v: %s", err, payload)
	}
	return pack
}

// resolved is a record by itself (RFC 8428, 4.6).
type resolved struct {
	name, unit string
	time       float64
	value      any
}

var senMLName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9:./_-]*$`)

// resolve carries out the base fields, and checks what RFC 8428 asks of a pack.
func resolve(t testing.TB, pack []record) (all []resolved) {
	t.Helper()
	base, at, version := "", 0.0, 10
	for i, r := range pack {
		if r.Version != nil {
			if i > 0 && *r.Version != version {
				t.Fatalf("two versions in one pack")
			}
			version = *r.Version
		}
		if r.BaseName != nil {
			base = *r.BaseName
		}
		if r.BaseTime != nil {
			at = *r.BaseTime
		}
		one := resolved{name: base + r.Name, unit: r.Unit, time: at}
		values := 0
		if r.Value != nil {
			one.value, values = *r.Value, values+1
		}
		if r.Text != nil {
			one.value, values = *r.Text, values+1
		}
		if r.Bool != nil {
			one.value, values = *r.Bool, values+1
		}
		if values != 1 || !senMLName.MatchString(one.name) {
			t.Fatalf("%d values in record %q", values, one.name)
		}
		if (one.unit == "kWh" || one.unit == "/100") && version != 26 {
			t.Fatalf("secondary unit %q in version %d", one.unit, version)
		}
		all = append(all, one)
	}
	return all
}

// The example of docs/topics.md.
func TestSenMLIsWrittenAsDocumented(t *testing.T) {
	p := hw.Poll{Line: "rs485-1", Unit: "meter-a", Time: at, Readings: []hw.Reading{
		{Point: "voltage_l1", Value: float(230.1), Uom: "V"}, {Point: "relay", Value: point.Bool(true)},
		{Point: "model", Value: point.String("EM24")}, {Point: "energy", Bad: "timeout", Uom: "kWh"},
	}}
	e := encoder(t, encode.SenMLJSON)
	topic, entry := e.Entry(nil, 48213, p, false)
	const want = `[{"bn":"gw-1/rs485-1/meter-a/","bt":1795233600.125,"n":":seq","v":48213},{"n":":boot","v":17},` +
		`{"n":"voltage_l1","u":"V","v":230.1},{"n":"relay","vb":true},{"n":"model","vs":"EM24"},{"n":":bad/energy","vs":"timeout"}]`
	if got := string(joined(t, e, topic, entry)); got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
	documented(t, want)
	p.Readings[3] = hw.Reading{Point: "energy", Value: float(12345.67), Uom: "kWh"}
	_, next := e.Entry(nil, 48214, p, true)
	const both = `[{"bver":26,"bn":"gw-1/rs485-1/meter-a/","bt":1795233600.125,"n":":seq","v":48213},{"n":":boot","v":17},` +
		`{"n":"voltage_l1","u":"V","v":230.1},{"n":"relay","vb":true},{"n":"model","vs":"EM24"},{"n":":bad/energy","vs":"timeout"},` +
		`{"bt":1795233600.125,"n":":seq","v":48214},{"n":":boot","v":17},{"n":":unsynced","vb":true},` +
		`{"n":"voltage_l1","u":"V","v":230.1},{"n":"relay","vb":true},{"n":"model","vs":"EM24"},{"n":"energy","u":"kWh","v":12345.67}]`
	if got := string(joined(t, e, topic, entry, next)); got != both {
		t.Errorf("%s, want\n%s", got, both)
	}
}

func TestSenMLNames(t *testing.T) {
	for name, want := range map[string]string{
		"a": "a", "1-0:1.8.0": "1-0:1.8.0", "aa:bb": "aa:bb", ":a": "::3Aa", "a:": "a::3A", "a::b": "a::3A:b",
		"a b": "a::20b", "a: b": "a::3A::20b", "é": "::C3::A9", "x/y": "x/y", "a::20b": "a::3A:20b", "\xff": "::FF",
	} {
		e := encoder(t, encode.SenMLJSON)
		topic, entry := e.Entry(nil, 1, hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{{Point: name, Value: point.Bool(true)}}}, false)
		pack := readSenML(t, joined(t, e, topic, entry))
		if got := pack[2].Name; got != want {
			t.Errorf("%q is written as %q, want %q", name, got, want)
		}
	}
	e := encoder(t, encode.SenMLCBOR)
	topic, entry := e.Entry(nil, 1, hw.Poll{Line: "a/b", Unit: "", Time: at, Readings: []hw.Reading{{Point: strings.Repeat("é", 100), Value: point.Bool(true)}}}, false)
	all := resolve(t, readSenML(t, joined(t, e, topic, entry)))
	if got := all[2].name; got != "gw-1/a::2Fb//"+strings.Repeat("::C3::A9", 100) {
		t.Errorf("long name %q", got)
	}
}

func TestSenMLUnits(t *testing.T) {
	for uom, want := range map[string]string{"W": "W", "°C": "Cel", "%": "/100", "kvarh": "kvarh", "m³": "m3", "bar": "", "": "", "\u2126": "Ohm", "\u00b5g/m³": "ug/m3"} {
		e := encoder(t, encode.SenMLCBOR)
		topic, entry := e.Entry(nil, 1, hw.Poll{Line: "l", Unit: "u", Time: at, Readings: []hw.Reading{{Point: "p", Value: float(1), Uom: uom}}}, false)
		if got := readSenML(t, joined(t, e, topic, entry))[2].Unit; got != want {
			t.Errorf("%q is written as %q, want %q", uom, got, want)
		}
	}
}

// A time that SenML would take for one relative to now is not written as one.
func TestSenMLOfAClockThatWasNeverSet(t *testing.T) {
	for _, format := range []string{encode.SenMLJSON, encode.SenMLCBOR} {
		e := encoder(t, format)
		topic, entry := e.Entry(nil, 1, hw.Poll{Line: "l", Unit: "u", Time: time.Unix(86400, 5e6), Readings: meter.Readings}, true)
		all := resolve(t, readSenML(t, joined(t, e, topic, entry)))
		if all[0].time != 0 || all[2].name != "gw-1/l/u/:unsynced" || all[2].value != true {
			t.Errorf("%s: %+v", format, all[:3])
		}
	}
}

// Whatever a unit says, both forms resolve to the same records, alone and joined.
func FuzzSenML(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, line, unit, name, text, bad string, number float64, integer, ms int64, n uint8) {
		p := fuzzPoll(line, unit, name, text, bad, number, integer, ms)
		q := p // another unit: a topic may be that of both
		q.Unit += "2"
		var both [2][]resolved
		for form, format := range []string{encode.SenMLJSON, encode.SenMLCBOR} {
			e := encoder(t, format, largest(256<<10))
			var entries [][]byte
			for i := range int(n)%7 + 1 {
				poll := p
				if i%3 == 2 {
					poll = q
				}
				_, entry := e.Entry(nil, uint64(i+1), poll, integer < 0)
				entries = append(entries, entry)
			}
			payload := e.Join(nil, "x", entries)
			for len(payload) == 0 {
				entries = entries[:len(entries)/2]
				payload = e.Join(nil, "x", entries)
			}
			both[form] = resolve(t, readSenML(t, payload))
		}
		per := len(p.Readings) + 2
		if integer < 0 {
			per++
		}
		for i, r := range both[0] {
			if i < len(both[1]) && !reflect.DeepEqual(r, both[1][i]) {
				t.Fatalf("record %d: %+v and %+v", i, r, both[1][i])
			}
			switch i % per {
			case 0:
				if !strings.HasSuffix(r.name, "/:seq") || r.value != float64(i/per+1) {
					t.Fatalf("record %d: %+v", i, r)
				}
			case per - len(p.Readings): // the first reading
				if r.value != each(text) {
					t.Fatalf("record %d: %+v", i, r)
				}
			}
		}
		if len(both[0])%per != 0 || len(both[1])%per != 0 {
			t.Fatalf("%d and %d records, %d of each entry", len(both[0]), len(both[1]), per)
		}
	})
}
