package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/encode"
	"ferrule/hw"
	"ferrule/hw/point"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

var at = time.Date(2026, 11, 21, 4, 0, 0, 125e6, time.UTC)

// gateway writes entries as an agent does.
type gateway struct {
	t       testing.TB
	name    string
	encoder *encode.Encoder
	boot    uint64
}

func newDevice(t testing.TB, name, format, compress string, boot uint64) *gateway {
	t.Helper()
	c := encode.Default()
	c.Format, c.Compress = format, compress
	e, err := encode.New(c, encode.DefaultTopics().Readings, name, boot)
	if err != nil {
		t.Fatal(err)
	}
	return &gateway{t, name, e, boot}
}

// message is one message of a unit with the entries of these numbers.
func (d *gateway) message(unit string, seqs ...uint64) (topic string, payload []byte) {
	d.t.Helper()
	var entries [][]byte
	for _, seq := range seqs {
		value, err := point.Float(230 + float64(seq)/10)
		if err != nil {
			d.t.Fatal(err)
		}
		var entry []byte
		topic, entry = d.encoder.Entry(nil, seq, hw.Poll{Line: "rs485-1", Unit: unit, Time: at.Add(time.Duration(seq) * time.Second), Readings: []hw.Reading{
			{Point: "voltage_l1", Value: value, Uom: "V"}, {Point: "relay", Value: point.Bool(seq%2 == 0)},
			{Point: "model", Value: point.String("EM24")}, {Point: "energy", Bad: "timeout"},
		}}, seq == 1)
		entries = append(entries, entry)
	}
	return topic, d.encoder.Join(nil, topic, entries)
}

var encodings = []struct{ format, compress string }{
	{encode.JSON, "none"}, {encode.JSON, "zstd"}, {encode.CBOR, "none"}, {encode.CBOR, "zstd"},
	{encode.SenMLJSON, "none"}, {encode.SenMLJSON, "zstd"}, {encode.SenMLCBOR, "none"}, {encode.SenMLCBOR, "zstd"},
}

// lines splits what is written into lines, for a test that waits for them.
type lines struct {
	rest []byte
	c    chan string
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.c <- string(line)
		l.rest = rest
	}
}

func (l *lines) next(t *testing.T) string {
	t.Helper()
	select {
	case line := <-l.c:
		return line
	case <-time.After(patience):
		t.Fatal("no line came")
		return ""
	}
}

// start runs the program against a broker that requires client certificates.
func start(t *testing.T) (broker *agenttest.Broker, out, events *lines, stop func()) {
	t.Helper()
	ca, err := agenttest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	if broker, err = agenttest.StartBroker(agenttest.BrokerConfig{Address: "127.0.0.1:0", TLS: server.ServerTLS(ca)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	me, err := ca.Device("consumer")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string][]byte{"ca.pem": ca.RootPEM(), "me.crt": me.ChainPEM, "me.key": me.KeyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, events = &lines{c: make(chan string, 10000)}, &lines{c: make(chan string, 10000)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-broker", "ssl://" + broker.Address(), "-roots", filepath.Join(dir, "ca.pem"),
			"-certificate", filepath.Join(dir, "me.crt"), "-key", filepath.Join(dir, "me.key")}, out, events)
	}()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		close(events.c)
	}
	if line := events.next(t); line != "subscribed to ferrule/+/readings/#" {
		t.Fatalf("%q", line)
	}
	return broker, out, events, stop
}

// The promise of docs/topics.md, as a consumer sees it: by boot and seq nothing is missing, what comes
// again is told, and a gap shows, in every format and compression.
func TestConsumerProvesThatNothingIsMissing(t *testing.T) {
	broker, out, events, stop := start(t)
	var want []string
	total := 0
	for i, encoding := range encodings {
		name := fmt.Sprintf("gw-%d", i)
		d := newDevice(t, name, encoding.format, encoding.compress, 17)
		publish := func(topic string, payload []byte) {
			t.Helper()
			if err := broker.Publish(topic, payload, false); err != nil {
				t.Fatal(err)
			}
		}
		batch := make([]uint64, 40) // 1, 3, 5, … of one unit, 2, 4, 6, … of the other, which comes first
		for j := range batch {
			batch[j] = uint64(2*j + 1)
		}
		publish(d.message("meter-b", 2, 4, 6, 8))
		publish(d.message("meter-a", batch...))
		publish(d.message("meter-b", 8))
		for seq := uint64(10); seq <= 80; seq += 2 {
			publish(d.message("meter-b", seq))
		}
		again := newDevice(t, name, encoding.format, encoding.compress, 18)
		publish(again.message("meter-a", 1, 2, 3, 6, 9))
		want = append(want,
			name+": boot 17: 80 entries up to 80, 1 came again, none is missing",
			name+": boot 18: 5 entries up to 9, 0 came again; missing: 4-5, 7-8")
		total += 85
	}
	if err := broker.Publish("ferrule/gw-0/readings/x/y", []byte("\x28\xb5\x2f\xfdgarbage"), false); err != nil {
		t.Fatal(err)
	}
	for range total {
		var e struct {
			Device string
			entry
		}
		line := out.next(t)
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if !e.T.Equal(at.Add(time.Duration(e.Seq)*time.Second)) || e.Readings["voltage_l1"] != 230+float64(e.Seq)/10 || e.Readings["relay"] != (e.Seq%2 == 0) ||
			e.Readings["model"] != "EM24" || e.Bad["energy"] != "timeout" || e.Line != "rs485-1" || e.Unsynced != (e.Seq == 1) {
			t.Fatalf("%s", line)
		}
	}
	for line := ""; !strings.Contains(line, "decompressing"); line = events.next(t) {
	}
	stop()
	var report []string
	for line := range events.c {
		if strings.Contains(line, "entries up to") {
			report = append(report, line)
		}
	}
	if !reflect.DeepEqual(report, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(report, "\n"), strings.Join(want, "\n"))
	}
}

func TestLedger(t *testing.T) {
	b := &boot{}
	for _, seq := range []uint64{5, 3, 4, 9, 1, 7, 8, 2} {
		if !b.add(seq) {
			t.Errorf("%d is new", seq)
		}
	}
	for _, seq := range []uint64{1, 2, 3, 4, 5, 7, 8, 9} {
		if b.add(seq) {
			t.Errorf("%d is not new", seq)
		}
	}
	if want := []span{{6, 6}}; !slices.Equal(b.missing(), want) || len(b.seen) != 2 {
		t.Errorf("missing %v of %v", b.missing(), b.seen)
	}
}

// A message comes from a network: whatever it is, it brings entries or an error.
func FuzzDecode(f *testing.F) {
	for _, encoding := range encodings {
		_, payload := newDevice(f, "gw-1", encoding.format, encoding.compress, 17).message("meter-a", 1, 2, 3)
		f.Add(payload)
	}
	f.Add([]byte(`[{"bn":"a/b/c/","bt":1e300,"n":":seq","v":1e300}]`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		d, err := newDecoder()
		if err != nil {
			t.Fatal(err)
		}
		defer d.zstd.Close()
		c := consumer{options: options{level: 1}, decoder: d, out: json.NewEncoder(io.Discard), events: io.Discard}
		if err := c.take("ferrule/gw-1/readings/l/u", payload); err != nil && !strings.Contains(err.Error(), "json") {
			t.Error(err)
		}
	})
}
