package encode_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"ferrule/agent/encode"
	"ferrule/hw"
	"ferrule/hw/point"
	"ferrule/internal/quantity"
)

var formats = []string{encode.JSON, encode.CBOR, encode.SenMLJSON, encode.SenMLCBOR, encode.SparkplugB}

// encoder returns an encoder of a format, after changes to its configuration.
func encoder(t testing.TB, format string, changes ...func(*encode.Config)) *encode.Encoder {
	t.Helper()
	c := encode.Default()
	c.Format = format
	for _, change := range changes {
		change(&c)
	}
	e, err := encode.New(c, template, "gw-1", 17)
	if err != nil {
		t.Fatal(err)
	}
	e.Will()
	e.Births(true)
	return e
}

func compressed(c *encode.Config) { c.Compress = "zstd" }

func largest(n int) func(*encode.Config) {
	return func(c *encode.Config) { c.Batch.MaxBytes = quantity.Size(n) }
}

// documented fails unless docs/topics.md shows example, whatever its white space.
func documented(t testing.TB, example string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/topics.md")
	if err != nil {
		t.Fatal(err)
	}
	solid := func(s string) string { return strings.Join(strings.Fields(s), "") }
	if !strings.Contains(solid(string(text)), solid(example)) {
		t.Errorf("docs/topics.md has no %s", example)
	}
}

// joined is what a session does with entries of one topic that are one message: births first where
// they are due.
func joined(t testing.TB, e *encode.Encoder, topic string, entries ...[]byte) []byte {
	t.Helper()
	payload := e.Join(nil, topic, entries)
	if len(payload) == 0 {
		e.Births(false)
		payload = e.Join(nil, topic, entries)
	}
	if len(payload) == 0 {
		t.Fatalf("%d entries of %q cannot be joined", len(entries), topic)
	}
	return payload
}

// unpacked undoes compression.
func unpacked(t testing.TB, payload []byte) []byte {
	t.Helper()
	if !bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")) {
		return payload
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	plain, err := d.DecodeAll(payload, nil)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// meterPolls are polls of a ten-register meter at 1 Hz: voltages and powers that wander, energies that
// rise, with the digits that such meters have.
func meterPolls(n int) []hw.Poll {
	polls := make([]hw.Poll, n)
	noise := uint32(1)
	wander := func(middle, width float64, digits float64) point.Value {
		noise = noise*1664525 + 1013904223
		v := middle + width*(float64(noise>>8)/(1<<24)-0.5)
		return float(float64(int64(v*digits+0.5)) / digits)
	}
	for i := range polls {
		p := hw.Poll{Line: "rs485-1", Unit: "meter-a", Time: at.Add(time.Duration(i) * time.Second)}
		for phase := 1; phase <= 3; phase++ {
			name := fmt.Sprintf("_l%d", phase)
			p.Readings = append(p.Readings,
				hw.Reading{Point: "voltage" + name, Value: wander(230, 2, 10), Uom: "V"},
				hw.Reading{Point: "current" + name, Value: wander(4, 0.4, 1000), Uom: "A"},
				hw.Reading{Point: "power" + name, Value: wander(900, 90, 10), Uom: "W"})
		}
		p.Readings = append(p.Readings, hw.Reading{Point: "energy_import", Value: float(float64(1234567+i*3/4) / 100), Uom: "kWh"})
		polls[i] = p
	}
	return polls
}
