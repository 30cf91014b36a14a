package sparkplug

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/hw"
	"ferrule/hw/point"
)

// world is a device with its outbox, and the host that it reports to.
type world struct {
	t      testing.TB
	node   *Node
	host   host
	boot   uint64
	seq    uint64
	most   int
	up     bool
	outbox []waiting
}

// waiting is an entry of the outbox.
type waiting struct {
	topic     string
	entry     []byte
	boot, seq uint64
	poll      hw.Poll
	unsynced  bool
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, boot: 16, most: 16 << 10, host: host{group: "g", edge: "gw-1"}}
	w.restart()
	return w
}

// restart starts the agent anew: nothing of the node is left, the outbox is.
func (w *world) restart() {
	w.boot++
	w.seq, w.up = 0, false
	w.node = New(Options{Group: "g", Edge: "gw-1", Boot: w.boot, Kind: 4})
}

func (w *world) poll(device string, readings ...hw.Reading) {
	w.seq++
	p := hw.Poll{Unit: device, Time: time.UnixMilli(1795233600125 + int64(w.seq)*1000), Readings: readings}
	unsynced := w.seq%5 == 0
	topic := w.node.Topic(device)
	entry := w.node.Entry([]byte("kept"), topic, w.seq, p, unsynced)[4:]
	w.outbox = append(w.outbox, waiting{topic, entry, w.boot, w.seq, p, unsynced})
}

func (w *world) connect() {
	w.t.Helper()
	if err := w.host.connect(w.node.Will()); err != nil {
		w.t.Fatal(err)
	}
	w.up = true
	w.publish(w.node.Births(true)...)
}

func (w *world) publish(all ...Message) {
	w.t.Helper()
	for _, m := range all {
		if err := w.host.take(m); err != nil {
			w.t.Fatal(err)
		}
	}
}

// run sends up to n entries as a session does. acknowledged says whether the broker's answer came.
func (w *world) run(n int, acknowledged bool) {
	w.t.Helper()
	w.publish(w.node.Births(false)...)
	run := w.outbox[:min(n, len(w.outbox))]
	var topics []string
	for _, one := range run {
		if !slices.Contains(topics, one.topic) {
			topics = append(topics, one.topic)
		}
	}
	for _, topic := range topics {
		var entries [][]byte
		for _, one := range run {
			if one.topic == topic {
				entries = append(entries, one.entry)
			}
		}
		w.send(topic, entries)
	}
	if acknowledged {
		w.outbox = w.outbox[len(run):]
	}
}

func (w *world) send(topic string, entries [][]byte) {
	w.t.Helper()
	payload := w.node.Join(nil, topic, entries, w.most)
	if len(payload) == 0 {
		w.publish(w.node.Births(false)...)
		payload = w.node.Join(nil, topic, entries, w.most)
	}
	if len(payload) > 0 {
		if len(payload) > w.most && len(entries) > 1 {
			w.t.Fatalf("%d bytes", len(payload))
		}
		w.publish(Message{topic, payload})
		return
	}
	if len(entries) == 1 {
		w.t.Fatal("one entry gives no message")
	}
	w.send(topic, entries[:len(entries)/2])
	w.send(topic, entries[len(entries)/2:])
}

// check says whether the host was told one poll.
func (w *world) check(one waiting) {
	w.t.Helper()
	at := slices.IndexFunc(w.host.seen, func(s told) bool {
		return s.name == ownSeq && s.boot == one.boot && s.seq == one.seq
	})
	if at < 0 {
		w.t.Fatalf("entry %d of boot %d never came", one.seq, one.boot)
	}
	for i := range one.poll.Readings {
		r := &one.poll.Readings[i]
		at++
		if at >= len(w.host.seen) {
			w.t.Fatalf("entry %d: %d readings are missing", one.seq, len(one.poll.Readings)-i)
		}
		s := w.host.seen[at]
		if s.name != cleanName(r.Point) || s.ms != uint64(one.poll.Time.UnixMilli()) || s.boot != one.boot || s.seq != one.seq || s.unsynced != one.unsynced {
			w.t.Fatalf("entry %d, reading %q: %+v", one.seq, r.Point, s)
		}
		if reason := badReason(r); reason != "" {
			if s.value != nil || s.quality != qualityBad || s.reason != clean(reason) {
				w.t.Fatalf("bad reading %+v: %+v", r, s)
			}
		} else if s.quality != qualityGood || !same(r.Value, s.value) {
			w.t.Fatalf("reading %+v: %+v", r, s)
		}
	}
}

// same says whether what a host got is the value, in whatever type the metric has.
func same(v point.Value, got any) bool {
	datatype, n := valueOf(v)
	text, _ := v.Text()
	switch got := got.(type) {
	case bool:
		return datatype == typeBoolean && got == (n == 1)
	case uint64:
		return datatype != typeDouble && got == n
	case float64:
		f, ok := v.Float64()
		return ok && f == got
	case string:
		s := stored{datatype: datatype, n: n, text: []byte(clean(text))}
		if v.Kind() == point.KindTime && datatype == typeString {
			return got == v.String()
		}
		return got == s.words()
	}
	return false
}

func number(f float64) point.Value {
	v, err := point.Float(f)
	if err != nil {
		panic(err) // of a test's own constant
	}
	return v
}

func TestAConnection(t *testing.T) {
	w := newWorld(t)
	w.connect()
	w.poll("m", hw.Reading{Point: "v", Value: number(230.1), Uom: "V"}, hw.Reading{Point: "e", Bad: "timeout"})
	w.poll("m", hw.Reading{Point: "v", Value: number(230.2), Uom: "V"}, hw.Reading{Point: "e", Value: point.Int(-7)})
	all := slices.Clone(w.outbox)
	w.run(10, true)
	for _, one := range all {
		w.check(one)
	}
	births := len(w.node.Births(false))
	w.poll("m", hw.Reading{Point: "v", Bad: "crc"})
	last := w.outbox[0]
	w.run(10, true)
	w.check(last)
	if w.host.seen[len(w.host.seen)-1].historical {
		t.Error("a reading of now is called historical")
	}
	if births != 0 || len(w.node.Births(false)) != 0 {
		t.Error("births without a reason")
	}
}

// Entries of an earlier start name metrics that nobody has read in this one.
func TestEntriesOfAnEarlierStart(t *testing.T) {
	w := newWorld(t)
	for range 5 {
		w.poll("old", hw.Reading{Point: "gone", Value: point.Uint(7), Uom: "kWh"}, hw.Reading{Point: "kept", Value: number(1)})
	}
	all := slices.Clone(w.outbox)
	w.restart()
	w.connect()
	w.poll("old", hw.Reading{Point: "kept", Value: number(2)})
	w.poll("new", hw.Reading{Point: "kept", Value: number(3)})
	all = append(all, w.outbox[5:]...)
	w.run(100, true)
	for _, one := range all {
		w.check(one)
	}
	for _, s := range w.host.seen {
		if s.boot != w.boot && !s.historical {
			t.Errorf("not historical: %+v", s)
		}
	}
	gone := metricNamed(w.host.devices["old"], "gone")
	if gone.value != nil || gone.quality != qualityGood {
		t.Errorf("a metric that is only of an earlier start: %+v", gone)
	}
	if kept := metricNamed(w.host.devices["old"], "kept"); kept.value != 2.0 {
		t.Errorf("the current value comes from the past: %+v", kept)
	}
}

func TestRebirth(t *testing.T) {
	w := newWorld(t)
	w.connect()
	w.poll("a", hw.Reading{Point: "v", Value: number(1)})
	w.poll("b", hw.Reading{Point: "v", Value: number(1)})
	w.run(10, true)
	command := func(name string, value bool) []byte {
		dst, m := open(appendField(nil, payloadTimestamp, 1), payloadMetric)
		return closeAt(appendBool(appendText(dst, metricName, name), metricBoolean, value), m)
	}
	topic := w.node.Filter()
	if topic != "spBv1.0/g/NCMD/gw-1" {
		t.Errorf("filter %q", topic)
	}
	for _, not := range []struct {
		topic   string
		payload []byte
	}{{topic, command("Node Control/Reboot", true)}, {topic, command(rebirth, false)}, {topic, nil}, {topic, []byte("x")}, {topic + "x", command(rebirth, true)}} {
		if w.node.Receive(not.topic, not.payload) || w.node.Births(false) != nil {
			t.Errorf("%q on %q brought births", not.payload, not.topic)
		}
	}
	if !w.node.Receive(topic, command(rebirth, true)) {
		t.Fatal("no rebirth")
	}
	w.host.devices = nil
	w.poll("a", hw.Reading{Point: "v", Value: number(2)})
	w.run(10, true)
	if w.host.rebirths != 2 || len(w.host.devices) != 2 {
		t.Errorf("%d births of the node, %d devices", w.host.rebirths, len(w.host.devices))
	}
}

func TestDeathCertificates(t *testing.T) {
	bdSeq := func(m Message) uint64 {
		p, err := readPayload(m.Payload)
		if err != nil {
			t.Fatal(err)
		}
		return p.metrics[0].value.(uint64)
	}
	node := New(Options{Group: "g", Edge: "e", Boot: 17})
	last := bdSeq(node.Will())
	for range 600 {
		next := bdSeq(node.Will())
		if next != (last+1)%256 {
			t.Fatalf("%d after %d", next, last)
		}
		last = next
	}
	for boot := range uint64(256) {
		first, next := New(Options{Boot: boot}), New(Options{Boot: boot + 1})
		if a, b := bdSeq(first.Will()), bdSeq(next.Will()); (b-a)%256 < 90 {
			t.Fatalf("boot %d begins with %d, the next with %d", boot, a, b)
		}
	}
	if got := node.Join(nil, node.Topic("x"), [][]byte{node.Entry(nil, node.Topic("x"), 1, hw.Poll{}, false)}, 1000); got != nil {
		t.Error("data between CONNECT and birth")
	}
}

// A reading comes as another type than before: the metric takes the wider one, once.
func TestTypesThatChange(t *testing.T) {
	values := []point.Value{point.Bool(true), point.Int(-3), point.Uint(math.MaxUint64), number(1.5), point.String("x"),
		point.Time(time.UnixMilli(1795233600125), point.UTC), point.Time(time.UnixMilli(1795233600125), point.Date)}
	for _, a := range values {
		for _, b := range values {
			w := newWorld(t)
			w.connect()
			var all []waiting
			for _, v := range []point.Value{a, b, a, b} {
				w.poll("m", hw.Reading{Point: "first", Bad: "timeout"}, hw.Reading{Point: "v", Value: v})
				all = append(all, w.outbox...)
				w.run(10, true)
			}
			for _, one := range all {
				w.check(one)
			}
			births := w.host.next - 5
			if births < 1 || births > 2 {
				t.Errorf("%v, %v: %d births", a, b, births)
			}
		}
	}
}

// A stream whose talkers never call themselves the same does not fill the memory, and stays valid.
func TestDevicesAreForgotten(t *testing.T) {
	w := newWorld(t)
	w.connect()
	for i := range 3 * maxDevices {
		w.poll(fmt.Sprint("u", i), hw.Reading{Point: "v", Value: number(1)})
		if len(w.outbox) > 700 {
			w.run(len(w.outbox), true)
		}
	}
	w.run(len(w.outbox), true)
	if len(w.node.devices) > maxDevices || w.node.known > maxMetrics || len(w.host.seen) != 2*3*maxDevices {
		t.Errorf("%d devices, %d metrics; %d readings came", len(w.node.devices), w.node.known, len(w.host.seen))
	}
}

// Nor does a talker that never calls its points the same.
func TestMetricsAreForgotten(t *testing.T) {
	w := newWorld(t)
	w.connect()
	const entries, each = 60, 100
	for i := range entries {
		var readings []hw.Reading
		for j := range each {
			readings = append(readings, hw.Reading{Point: fmt.Sprint("p", i, ".", j), Value: number(1)})
		}
		w.poll("m", readings...)
		w.run(1+i%2, true)
	}
	w.run(len(w.outbox), true)
	if len(w.node.found) == 0 || w.node.known > maxDeviceMetrics+each || len(w.host.seen) != entries*(each+1) {
		t.Errorf("%d metrics; %d readings came", w.node.known, len(w.host.seen))
	}
}

// What was stored by a node that is configured no more still says what it is.
func TestOrphans(t *testing.T) {
	w := newWorld(t)
	w.poll("m", hw.Reading{Point: "v", Value: number(230.1), Uom: "V"}, hw.Reading{Point: "e", Bad: "timeout"})
	other := New(Options{Group: "other", Edge: "gw-1", Boot: 18, Kind: 4})
	payload := other.Join(nil, w.outbox[0].topic, [][]byte{w.outbox[0].entry}, 1000)
	p, err := readPayload(payload)
	if err != nil || p.seq != nil || len(p.metrics) != 4 || p.metrics[2].name != "v" || p.metrics[2].value != 230.1 ||
		p.metrics[2].unit != "V" || !p.metrics[2].historical || p.metrics[3].reason != "timeout" {
		t.Errorf("%v, %+v", err, p)
	}
}

func TestLongFields(t *testing.T) {
	for _, n := range []int{0, 1, 100, 127, 128, 129, 16383, 16384, 70000} {
		text := strings.Repeat("x", n)
		dst, m := open([]byte("kept"), payloadMetric)
		dst = closeAt(appendText(dst, metricString, text), m)
		p, err := readPayload(dst[4:])
		if err != nil || string(dst[:4]) != "kept" || p.metrics[0].value != text {
			t.Errorf("%d: %v", n, err)
		}
	}
}

// Whatever happens in whatever order, the host is told nothing that it was not prepared for, and
// nothing is missing: what it has was acknowledged, or waits.
func FuzzNode(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"), "voltage", "text")
	f.Add([]byte("pCpprRpprcppXprppcrr"), "Ferrule/Seq", "\xff")
	f.Add([]byte("CpqRpqXpqCpqrpqNrpqDr"), "", "\x00")
	f.Fuzz(func(t *testing.T, script []byte, name, text string) {
		w := newWorld(t)
		w.most = 200
		var all []waiting
		for i, b := range script[:min(len(script), 200)] {
			switch b % 8 {
			case 0: // a new connection
				w.connect()
			case 1: // a restart
				w.restart()
			case 2, 3:
				if w.up {
					w.run(int(b/8), b%8 == 2)
				}
			case 4:
				if w.up && w.node.Receive(w.node.Filter(), []byte("\x12\x18\x0a\x14Node Control/Rebirth\x70\x01")) {
					w.publish(w.node.Births(false)...)
				}
			default:
				values := []point.Value{{}, number(float64(i)), point.Int(int64(i) - 50), point.Uint(uint64(i)), point.Bool(b&8 != 0), point.String(text), point.Time(time.UnixMilli(int64(i)*1e9), point.TimeForm(i&3))}
				readings := []hw.Reading{{Point: name, Value: values[int(b/8)%7], Uom: text}}
				for j := range int(b / 64) {
					readings = append(readings, hw.Reading{Point: fmt.Sprint(name, j, b/16), Value: values[j+1]})
				}
				if b&16 != 0 {
					readings = append(readings, hw.Reading{Point: name + "bad", Bad: "x" + text})
				}
				w.poll(fmt.Sprint("unit", b%3), readings...)
				all = append(all, w.outbox[len(w.outbox)-1])
			}
		}
		w.connect()
		for len(w.outbox) > 0 {
			w.run(7, true)
		}
		for _, one := range all {
			w.check(one)
		}
	})
}

// No payload of a host's makes trouble.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x12\x18\x0a\x14Node Control/Rebirth\x70\x01"))
	f.Add([]byte("\x08\x01\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Add(bytes.Repeat([]byte("\x12\x00"), 1000))
	f.Fuzz(func(t *testing.T, payload []byte) {
		node := New(Options{Group: "g", Edge: "e"})
		if node.Receive(node.Filter(), payload) && !bytes.Contains(payload, []byte(rebirth)) {
			t.Error("a rebirth that nobody asked for")
		}
		r := reader{rest: payload}
		r.header()
		for _, ok := r.next(); ok; _, ok = r.next() {
		}
		if p, err := readPayload(Orphan(nil, [][]byte{payload})); err != nil {
			t.Errorf("%v, %+v", err, p)
		}
	})
}
