package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// site is a world whose readings are counted at both ends: by the ledgers of two simulated
// units, and by the ledger of a broker that writes each PUBLISH before its PUBACK.
type site struct {
	*world
	ferrule []string
	config  string
	state   string
	units   map[string]*hwtest.Unit
	process *agenttest.BrokerProcess
	agent   *process
	stopped time.Time // when the agent was told to end
	damaged int       // entries that a test destroyed on the disk
}

// siteOptions are what differs from test to test.
type siteOptions struct {
	sync   string        // of the outbox
	every  time.Duration // of each of the two units
	points int           // of each unit, beside the counter
	wait   time.Duration // for an answer; 0: as long as the configuration does by default
	state  string        // the state directory, if it is not to be a temporary one
	weak   bool          // a software key, for tests in which openssl uses it too
}

const siteDevice = "gw-1"

func newSite(t *testing.T, o siteOptions) *site {
	t.Helper()
	s := &site{world: newFactory(t), ferrule: build(t, "ferrule", native), units: make(map[string]*hwtest.Unit)}
	s.startBroker(t)
	wire, err := hwtest.NewWire(hwtest.WireConfig{Baud: 115200})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = wire.Close() })
	for n, name := range []string{"meter-a", "meter-b"} {
		unit := hwtest.NewUnit(byte(n + 1))
		unit.Counter(modbus.InputRegisters, 0)
		unit.Set(modbus.InputRegisters, 2, make([]uint16, o.points)...)
		wire.Attach(unit)
		s.units[name] = unit
	}
	if s.state = o.state; s.state == "" {
		s.state = filepath.Join(s.dir, "state")
	}
	s.config = s.file(t, "ferrule.toml", s.configuration(o, wire.Path()))
	mustRun(t, s.token(t, siteDevice), with(s.ferrule, "enroll", "--config", s.config, "--token", "-")...)
	return s
}

func (s *site) configuration(o siteOptions, port string) string {
	tpm, key := s.tpm.Address(), "tpm2:file=device.key"
	if o.weak {
		tpm, key = "none", "file:device.pem"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `state_dir = %q
[identity]
tpm = %q
key = %q
allow_software_key = %t
[enroll]
method = "registrar"
url = %q
roots = %q
[session]
brokers = ["mqtts://%s"]
reconnect_spread = "200ms"
roots = %[6]q
[local]
socket = %[8]q
[outbox]
sync = %[9]q
[[line]]
name = "rs485-1"
port = %[10]q
settings = "115200 8E1"
`, s.state, tpm, key, o.weak, s.registrar, filepath.Join(s.ca, "root.crt"), s.broker,
		filepath.Join(s.dir, "f.sock"), o.sync, port)
	for n, name := range []string{"meter-a", "meter-b"} {
		fmt.Fprintf(&b, "[[line.unit]]\nname = %q\naddress = %d\nevery = %q\n", name, n+1, o.every)
		// The meters' answers count as taken once they are sent, so that a timeout which was learned
		// on a quiet machine would be a loss on a busy one.
		fmt.Fprintf(&b, "timeout = %q\n", cmp.Or(o.wait, 2*time.Second))
		fmt.Fprint(&b, "[[line.unit.point]]\nname = \"counter\"\nat = \"input:0\"\ntype = \"uint32\"\n")
		for i := range o.points {
			fmt.Fprintf(&b, "[[line.unit.point]]\nname = \"p%d\"\nat = \"input:%d\"\n", i, i+2)
		}
	}
	return b.String()
}

func (s *site) ledger() string { return filepath.Join(s.dir, "broker.ledger") }

// startBroker starts the broker, or starts it again on its address.
func (s *site) startBroker(t *testing.T) {
	t.Helper()
	broker, err := agenttest.BrokerFiles{
		Address: s.broker, Certificate: filepath.Join(s.ca, "broker.crt"), Key: filepath.Join(s.ca, "broker.key"),
		ClientCAs: filepath.Join(s.ca, "root.crt"), Ledger: s.ledger(),
	}.Start(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	s.process = broker
	t.Cleanup(broker.Kill)
}

// run starts the agent.
func (s *site) run(t *testing.T) {
	t.Helper()
	s.agent = start(t, "ferrule run", with(s.ferrule, "run", "--config", s.config)...)
}

// message is one PUBLISH with readings, and arrival one entry of it.
type message struct {
	at      time.Time
	size    int // of the payload
	entries []arrival
}

type arrival struct {
	Boot, Seq uint64
	Unit      string
	Readings  struct {
		Counter        uint32
		P0, P1, P2, P3 uint16
	}
	Bad map[string]string
	raw string
}

// messages is what reached the broker, in order of arrival.
func (s *site) messages(t *testing.T) []message {
	t.Helper()
	ledger, err := agenttest.ReadLedger(s.ledger())
	if err != nil {
		t.Fatal(err)
	}
	var all []message
	for _, m := range ledger {
		if !strings.Contains(m.Topic, "/readings/") {
			continue
		}
		payload := m.Payload
		if payload[0] != '[' {
			payload = append(append([]byte{'['}, payload...), ']')
		}
		var raw []json.RawMessage
		if err := json.Unmarshal(payload, &raw); err != nil {
			t.Fatalf("%s: %v", m.Payload, err)
		}
		entries := make([]arrival, len(raw))
		for i := range raw {
			if err := json.Unmarshal(raw[i], &entries[i]); err != nil {
				t.Fatalf("%s: %v", m.Payload, err)
			}
			entries[i].raw = string(raw[i])
		}
		all = append(all, message{at: m.At, size: len(m.Payload), entries: entries})
	}
	return all
}

// arrivals is the same, entry by entry.
func (s *site) arrivals(t *testing.T) []arrival {
	t.Helper()
	var all []arrival
	for _, m := range s.messages(t) {
		all = append(all, m.entries...)
	}
	return all
}

// status asks the agent by the command line.
func (s *site) status(t *testing.T) map[string]any {
	t.Helper()
	out, stderr, code := run(t, "", with(s.ferrule, "status", "--json", "--config", s.config)...)
	var status map[string]any
	if code != 0 {
		return map[string]any{"error": stderr}
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatalf("status: %v", err)
	}
	return status
}

// field digs into the status: field(status, "session", "stage").
func field(status map[string]any, path ...string) any {
	var v any = status
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}

// pause lets the world go on for d.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
