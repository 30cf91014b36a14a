package e2e

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

// plugged is a message of protobuf as protoc prints it.
type plugged struct {
	values map[string][]string
	nodes  map[string][]*plugged
}

// text is the first value of a field, without the quotes of a string.
func (p *plugged) text(field string) string {
	if len(p.values[field]) == 0 {
		return ""
	}
	if text, err := strconv.Unquote(p.values[field][0]); err == nil {
		return text
	}
	return p.values[field][0]
}

func (p *plugged) number(t *testing.T, field string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(p.text(field), 10, 64)
	if err != nil {
		t.Fatalf("%s is %q: %v", field, p.text(field), err)
	}
	return n
}

func (p *plugged) has(field string) bool { return len(p.values[field]) > 0 }

// unknownField is a number in place of a name: what the schema does not know.
var unknownField = regexp.MustCompile(`^\d+$`)

// protoc runs Google's implementation over one payload, by Eclipse's schema: what is "decode", or
// "encode".
func protoc(t *testing.T, what string, in []byte) []byte {
	t.Helper()
	schema, err := filepath.Abs("../../.cache/sparkplug/sparkplug_b.desc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(schema); err != nil {
		mustRun(t, "", "../sparkplugproto.sh")
	}
	command := exec.CommandContext(t.Context(), need(t, "protoc"), "--descriptor_set_in="+schema,
		"--"+what+"=org.eclipse.tahu.protobuf.Payload", "sparkplug_b.proto")
	var problems bytes.Buffer
	command.Stdin, command.Stderr = bytes.NewReader(in), &problems
	out, err := command.Output()
	if err != nil || problems.Len() > 0 {
		t.Fatalf("protoc --%s: %v: %s: %x", what, err, &problems, in)
	}
	return out
}

// unplug reads what protoc prints: a field a line, with a brace where a message begins or ends.
func unplug(t *testing.T, payload []byte) *plugged {
	t.Helper()
	fresh := func() *plugged {
		return &plugged{values: make(map[string][]string), nodes: make(map[string][]*plugged)}
	}
	all := []*plugged{fresh()}
	for line := range strings.Lines(string(protoc(t, "decode", payload))) {
		line, top := strings.TrimSpace(line), all[len(all)-1]
		name, value, scalar := strings.Cut(line, ": ")
		switch {
		case line == "}":
			all = all[:len(all)-1]
		case strings.HasSuffix(line, " {"):
			name, below := strings.TrimSuffix(line, " {"), fresh()
			top.nodes[name] = append(top.nodes[name], below)
			all = append(all, below)
		case scalar && !unknownField.MatchString(name):
			top.values[name] = append(top.values[name], value)
		default:
			t.Fatalf("%q is no field of the schema: %x", line, payload)
		}
	}
	return all[0]
}

// plugHost is a host application of Sparkplug 3.0 that takes nothing it was not told of by a birth.
// It knows one edge node.
type plugHost struct {
	born, died int
	alive      bool
	bdSeq, seq uint64
	rounds     int // that seq went from 255 to 0
	boot       uint64
	devices    map[string]*plugDevice
	entries    []plugEntry
}

// plugDevice is one device by its last birth.
type plugDevice struct {
	names map[uint64]string // by alias
	boot  uint64            // what the host was told last
	at    uint64            // of its birth
}

// plugEntry is one entry as a host finds it in data.
type plugEntry struct {
	entryID
	device     string
	counter    uint32
	historical bool
}

// take takes one message and fails the test where it may not come.
func (h *plugHost) take(t *testing.T, topic string, payload []byte) {
	t.Helper()
	levels := strings.Split(topic, "/")
	if len(levels) < 4 || levels[0] != "spBv1.0" || levels[1] != "ferrule" || levels[3] != siteDevice {
		t.Fatalf("no topic of our edge node: %q", topic)
	}
	kind, p := levels[2], unplug(t, payload)
	if kind == "NCMD" {
		return
	}
	if kind == "NDEATH" {
		h.death(t, p)
		return
	}
	seq := p.number(t, "seq")
	if kind == "NBIRTH" {
		h.birth(t, p, seq)
		return
	}
	if !h.alive || seq != (h.seq+1)%256 || len(levels) != 5 {
		t.Fatalf("%s with seq %d after %d; alive: %t", topic, seq, h.seq, h.alive)
	}
	if h.seq = seq; seq == 0 {
		h.rounds++
	}
	switch kind {
	case "DBIRTH":
		h.deviceBirth(t, levels[4], p)
	case "DDATA":
		h.data(t, levels[4], p)
	default:
		t.Fatalf("%s: nothing of the kind is sent", topic)
	}
}

// metric finds one by its name.
func (p *plugged) metric(name string) *plugged {
	for _, m := range p.nodes["metrics"] {
		if m.text("name") == name {
			return m
		}
	}
	return &plugged{}
}

func (h *plugHost) birth(t *testing.T, p *plugged, seq uint64) {
	t.Helper()
	if seq != 0 || p.metric("Node Control/Rebirth").text("boolean_value") != "false" {
		t.Fatalf("NBIRTH with seq %d, %v", seq, p.metric("Node Control/Rebirth"))
	}
	h.alive, h.seq, h.devices = true, 0, make(map[string]*plugDevice)
	h.bdSeq, h.boot = p.metric("bdSeq").number(t, "long_value"), p.metric("Ferrule/Boot").number(t, "long_value")
	h.born++
}

func (h *plugHost) death(t *testing.T, p *plugged) {
	t.Helper()
	if bdSeq := p.metric("bdSeq").number(t, "long_value"); h.alive && bdSeq != h.bdSeq || p.has("seq") {
		t.Fatalf("NDEATH of bdSeq %d, the birth had %d; seq %q", bdSeq, h.bdSeq, p.text("seq"))
	}
	h.alive = false
	h.died++
}

func (h *plugHost) deviceBirth(t *testing.T, device string, p *plugged) {
	t.Helper()
	d := &plugDevice{names: make(map[uint64]string), at: p.number(t, "timestamp")}
	for _, m := range p.nodes["metrics"] {
		alias := m.number(t, "alias")
		for name, other := range h.devices {
			if _, again := other.names[alias]; again && name != device {
				t.Fatalf("alias %d of %s is one of %s too", alias, device, name)
			}
		}
		if _, again := d.names[alias]; again || m.text("name") == "" || !m.has("datatype") {
			t.Fatalf("DBIRTH of %s: %v", device, m)
		}
		d.names[alias] = m.text("name")
	}
	d.boot = p.metric("Ferrule/Boot").number(t, "long_value")
	h.devices[device] = d
}

// data splits a DDATA into entries: each begins with its own number, before which the number of its
// start may stand.
func (h *plugHost) data(t *testing.T, device string, p *plugged) {
	t.Helper()
	d := h.devices[device]
	if d == nil {
		t.Fatalf("data of %s before its birth", device)
	}
	var e *plugEntry
	for _, m := range p.nodes["metrics"] {
		name, known := d.names[m.number(t, "alias")]
		if !known || m.has("name") || m.has("datatype") {
			t.Fatalf("data of %s names what no birth did: %v", device, m)
		}
		switch {
		case name == "Ferrule/Boot":
			d.boot = m.number(t, "long_value")
		case name == "Ferrule/Seq":
			h.entries = append(h.entries, plugEntry{entryID: entryID{d.boot, m.number(t, "long_value")}, device: device})
			e = &h.entries[len(h.entries)-1]
			e.historical = m.has("is_historical")
			if at := m.number(t, "timestamp"); at < d.at && !e.historical {
				t.Fatalf("%s: %+v was taken before the birth, and is no history", device, e)
			}
		case name == "counter" && !m.has("is_null"):
			e.counter = uint32(m.number(t, "long_value"))
		}
		if e != nil && m.has("is_historical") != e.historical && name != "Ferrule/Boot" {
			t.Fatalf("%s: history and news in one entry: %v", device, m)
		}
	}
}

// whole fails the test where a number of a start is missing, or an entry is not that of its number;
// it returns what came again and how many are history.
func (h *plugHost) whole(t *testing.T) (again, historical int) {
	t.Helper()
	seen, highest := make(map[entryID]plugEntry), make(map[uint64]uint64)
	for _, e := range h.entries {
		before, known := seen[e.entryID]
		if known && (before.device != e.device || before.counter != e.counter) {
			t.Errorf("one number with two contents: %+v and %+v", before, e)
		}
		if known {
			again++
		}
		if e.historical {
			historical++
		}
		seen[e.entryID] = e
		highest[e.boot] = max(highest[e.boot], e.seq)
	}
	for boot, last := range highest {
		for seq := uint64(1); seq <= last; seq++ {
			if _, ok := seen[entryID{boot, seq}]; !ok {
				t.Errorf("boot %d: %d of %d is missing", boot, seq, last)
			}
		}
	}
	return again, historical
}

// newPlugged is a site whose agent speaks Sparkplug.
func newPlugged(t *testing.T, every time.Duration) *site {
	t.Helper()
	s := newSite(t, siteOptions{sync: "1s", every: every, points: 2, weak: true})
	s.edit(t, "[session]\n", "[encode]\nformat = \"sparkplug-b\"\n[session]\n")
	return s
}

// atMosquitto puts mosquitto in the place of the broker with the ledger.
func (s *site) atMosquitto(t *testing.T) {
	t.Helper()
	s.process.Kill()
	s.startMosquitto(t)
}

// Sparkplug B at a broker that is not ours, read by the schema and the program of others: births
// before data, numbers without a gap, a will that is that of its birth, and rebirth on demand.
func TestSparkplugAtMosquitto(t *testing.T) {
	s := newPlugged(t, 20*time.Millisecond)
	s.atMosquitto(t)
	host, port, _ := strings.Cut(s.broker, ":")
	cert, key := s.clientCertificate(t, "host")
	with := []string{"-h", host, "-p", port, "-q", "1", "--cafile", filepath.Join(s.ca, "root.crt"), "--cert", cert, "--key", key}
	listening := start(t, "mosquitto_sub", append([]string{need(t, "stdbuf"), "-oL", need(t, "mosquitto_sub"),
		"-i", "host", "-t", "spBv1.0/#", "-F", "%t %x"}, with...)...)
	waitFor(t, "the host's subscription", func() bool { return strings.Contains(s.mosquitto.output(), "Sending SUBACK to host") })
	h := &plugHost{}
	until := func(what string, done func() bool) {
		t.Helper()
		timeout := time.After(60 * time.Second)
		for !done() {
			select {
			case line := <-listening.lines:
				topic, text, _ := strings.Cut(line, " ")
				payload, err := hex.DecodeString(text)
				if err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				h.take(t, topic, payload)
			case <-timeout:
				t.Fatalf("%s never came; %d births, %d deaths, %d entries", what, h.born, h.died, len(h.entries))
			}
		}
	}
	more := func() func() bool {
		n := len(h.entries) + 10
		return func() bool { return len(h.entries) >= n && len(h.devices) == 2 }
	}
	s.run(t)
	until("more data than there are numbers", func() bool { return h.rounds > 0 && len(h.devices) == 2 })

	first := h.bdSeq
	ask := `metrics { name: "Node Control/Rebirth" timestamp: 1 datatype: 11 boolean_value: true }`
	file := s.file(t, "rebirth", string(protoc(t, "encode", []byte(ask))))
	mustRun(t, "", append([]string{need(t, "mosquitto_pub"), "-t", "spBv1.0/ferrule/NCMD/" + siteDevice, "-f", file}, with...)...)
	until("the births that were asked for", func() bool { return h.born == 2 })
	if h.bdSeq != first || h.died != 0 {
		t.Errorf("a rebirth changed bdSeq from %d to %d, with %d deaths", first, h.bdSeq, h.died)
	}
	until("data after it", more())

	s.agent.kill()
	until("the will", func() bool { return h.died == 1 })
	s.run(t)
	until("data of the next start", more())
	if h.bdSeq == first || h.born != 3 {
		t.Errorf("bdSeq %d in the first start, %d in the second; %d births", first, h.bdSeq, h.born)
	}
	s.stop(t)
	until("the death before DISCONNECT", func() bool { return h.died == 2 })
	again, historical := h.whole(t)
	t.Logf("%d entries, %d of them again, %d historical, %d births", len(h.entries), again, historical, h.born)
}

// The broker is killed and comes back, and the agent is killed while it is away: everything that
// waited comes as history, behind births, and by Ferrule/Boot and Ferrule/Seq nothing is missing.
func TestSparkplugLosesNothing(t *testing.T) {
	s := newPlugged(t, 100*time.Millisecond)
	taken := func(n int) {
		t.Helper()
		from := len(s.answers())
		waitFor(t, "readings", func() bool { return len(s.answers()) >= from+n })
	}
	s.run(t)
	taken(20)
	s.process.Kill()
	taken(30)
	s.startBroker(t)
	s.waitDrained(t)
	taken(20)
	s.process.Kill()
	taken(30)
	killed := time.Now()
	s.agent.kill()
	s.run(t)
	taken(20)
	s.startBroker(t)
	s.waitDrained(t)
	taken(10)
	s.stop(t)

	ledger, err := agenttest.ReadLedger(s.ledger())
	if err != nil {
		t.Fatal(err)
	}
	h := &plugHost{}
	for _, m := range ledger {
		if strings.HasPrefix(m.Topic, "spBv1.0/") {
			h.take(t, m.Topic, m.Payload)
		}
	}
	again, historical := h.whole(t)
	t.Logf("%d messages, %d entries, %d of them again, %d historical, %d births", len(ledger), len(h.entries), again, historical, h.born)
	if historical < 60 || h.born < 3 {
		t.Errorf("%d entries are history, with %d births", historical, h.born)
	}
	received := make(map[string]bool)
	for _, e := range h.entries {
		received[fmt.Sprint(e.device, " ", e.counter)] = true
	}
	for _, a := range s.answers() {
		crashed := a.Time.After(killed.Add(-time.Second)) && a.Time.Before(killed.Add(cutOff))
		if !received[fmt.Sprint("rs485-1.", a.unit, " ", a.Counter)] && !crashed && a.Time.Before(s.stopped.Add(-cutOff)) {
			t.Errorf("%s: reading %d, taken at %s, never arrived", a.unit, a.Counter, a.Time.Format("15:04:05.000"))
		}
	}
}

// The example of a consumer, as a program, at mosquitto: through four formats in a row and the
// restarts between them nothing is missing, by what it says itself and by the meters' own numbers.
func TestConsumerOfEveryFormat(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: 100 * time.Millisecond, points: 2, weak: true})
	s.atMosquitto(t)
	program := filepath.Join(s.dir, "consumer")
	mustRun(t, "", "go", "build", "-o", program, "ferrule/docs/examples/consumer")
	cert, key := s.clientCertificate(t, "consumer")
	consumer := start(t, "consumer", program, "-broker", "ssl://"+s.broker, "-roots", filepath.Join(s.ca, "root.crt"), "-certificate", cert, "-key", key)
	waitFor(t, "the consumer", func() bool { return strings.Contains(consumer.output(), "subscribed") })

	// What waits for a batch when the agent ends goes out with the next start, in the format that it
	// was stored in.
	formats := []string{"format = \"senml-json\"", "format = \"cbor\"",
		"format = \"json\"\ncompress = \"zstd\"\nbatch = { max_age = \"500ms\" }", "format = \"senml-cbor\""}
	s.edit(t, "[session]\n", "[encode]\n"+formats[0]+"\n[session]\n")
	for n, format := range formats {
		if n > 0 {
			s.edit(t, "[encode]\n"+formats[n-1], "[encode]\n"+format)
		}
		s.run(t)
		from := len(s.answers())
		waitFor(t, "readings", func() bool { return len(s.answers()) >= from+20 })
		s.stop(t)
	}
	report := regexp.MustCompile(`gw-1: boot (\d+): (\d+) entries up to (\d+), 0 came again, none is missing\n`)
	if code := consumer.stop(t); code != 0 {
		t.Errorf("the consumer ended with %d", code)
	}
	boots := report.FindAllStringSubmatch(consumer.output(), -1)
	if len(boots) != len(formats) {
		t.Fatalf("the consumer's report:\n%s", tail(consumer.output()))
	}
	total := 0
	for _, b := range boots {
		n, err := strconv.Atoi(b[2])
		if err != nil || b[2] != b[3] || n < 20 {
			t.Errorf("%q", b[0])
		}
		total += n
	}
	s.checkConsumed(t, consumer.output(), total)
}

// checkConsumed compares the consumer's lines with what the meters answered.
func (s *site) checkConsumed(t *testing.T, output string, want int) {
	t.Helper()
	received, lines := make(map[string]bool), 0
	for line := range strings.Lines(output) {
		var e struct {
			Unit     string
			Readings struct{ Counter uint32 }
		}
		if !strings.HasPrefix(line, "{") {
			continue
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lines++
		received[fmt.Sprint(e.Unit, e.Readings.Counter)] = true
	}
	if lines != want {
		t.Errorf("%d lines for %d entries", lines, want)
	}
	missing := 0
	for _, a := range s.answers() {
		if !received[fmt.Sprint(a.unit, a.Counter)] {
			missing++
		}
	}
	// At each clean end a unit may have answered what nobody took any more.
	if missing > 2*4 {
		t.Errorf("%d readings never arrived", missing)
	}
	t.Logf("%d entries; %d answers that an ending agent did not take", lines, missing)
}
