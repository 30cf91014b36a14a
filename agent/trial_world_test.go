package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/agenttest"
	"ferrule/agent/config"
	"ferrule/agent/config/trial"
	"ferrule/agent/local"
	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// place is a device with a line, its broker, and the agent in this process.
type place struct {
	t      *testing.T
	dir    string
	ca     *agenttest.CA
	broker *agenttest.Broker
	port   string
	reload chan os.Signal
	stop   context.CancelFunc
	ended  chan error

	mu       sync.Mutex
	messages []agenttest.Message
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir, err := os.MkdirTemp("", "fa") // a unix socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &place{t: t, dir: dir, reload: make(chan os.Signal, 1)}
	if p.ca, err = agenttest.NewCA("test"); err != nil {
		t.Fatal(err)
	}
	device, err := p.ca.Device("gw-1")
	if err != nil {
		t.Fatal(err)
	}
	server, err := p.ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	if p.broker, err = agenttest.StartBroker(agenttest.BrokerConfig{Address: "127.0.0.1:0", TLS: server.ServerTLS(p.ca), Ledger: p.take}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.broker.Cut(); _ = p.broker.Close() })
	p.write("state/device.crt", device.ChainPEM)
	p.write("state/device.pem", device.KeyPEM)
	p.write("roots.pem", p.ca.RootPEM())
	wire, err := hwtest.NewWire(hwtest.WireConfig{Baud: 115200})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = wire.Close() })
	unit := hwtest.NewUnit(1)
	unit.Counter(modbus.InputRegisters, 0)
	wire.Attach(unit)
	p.port = wire.Path()
	p.write("etc/ferrule.toml", []byte(p.text()))
	return p
}

func (p *place) take(m agenttest.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.messages = append(p.messages, m)
	return nil
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

func (p *place) write(name string, data []byte) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.path(name), data, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) file() string {
	p.t.Helper()
	text, err := os.ReadFile(p.path("etc/ferrule.toml"))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// text is the configuration, with some of it replaced.
func (p *place) text(oldnew ...string) string {
	p.t.Helper()
	text := fmt.Sprintf(`state_dir = %q
shutdown_grace = "1s"
[identity]
tpm = "none"
key = "file:device.pem"
allow_software_key = true
[session]
brokers = ["mqtts://%s"]
roots = %q
[local]
socket = %q
[[line]]
name = "rs485-1"
port = %q
settings = "115200 8E1"
[[line.unit]]
name = "meter-a"
address = 1
every = "50ms"
timeout = "2s"
[[line.unit.point]]
name = "counter"
at = "input:0"
type = "uint32"
`, p.path("state"), p.broker.Address(), p.path("roots.pem"), p.path("f.sock"), p.port)
	for n := 0; n < len(oldnew); n += 2 {
		if !strings.Contains(text, oldnew[n]) {
			p.t.Fatalf("the configuration holds no %q", oldnew[n])
		}
		text = strings.Replace(text, oldnew[n], oldnew[n+1], 1)
	}
	return text
}

// run starts the agent; the test stops it, or its end does.
func (p *place) run() {
	p.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	p.stop, p.ended = stop, make(chan error, 1)
	file := p.path("etc/ferrule.toml")
	go func() {
		p.ended <- Run(ctx, Options{
			Load: func() (*config.Config, error) { return config.Load(file) }, File: file,
			Reload: p.reload, Version: "test", Log: slog.New(slog.NewTextHandler(p.t.Output(), nil)), shortestTrial: time.Second,
		})
	}()
	p.t.Cleanup(p.end)
}

// end stops the agent and waits for it.
func (p *place) end() {
	if p.stop == nil {
		return
	}
	p.stop()
	p.stop = nil
	if err := <-p.ended; err != nil && !errors.Is(err, ErrRestart) {
		p.t.Errorf("the agent ended: %v", err)
	}
}

func (p *place) until(what string, done func() bool) {
	p.t.Helper()
	limit, tick := time.After(time.Minute), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case err := <-p.ended:
			p.ended <- err
			p.t.Fatalf("the agent ended (%v), waiting for: %s", err, what)
		case <-limit:
			p.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// on is what came on a topic.
func (p *place) on(topic string) (payloads [][]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.messages {
		if m.Topic == topic {
			payloads = append(payloads, m.Payload)
		}
	}
	return payloads
}

// message is what the tests look at of a status message.
type message struct {
	Online bool
	Config struct {
		trial.Outcome
		Deadline time.Time
	}
}

// news waits until the status message says what became of a configuration.
func (p *place) news(id string, want trial.Result) (o trial.Outcome) {
	p.t.Helper()
	p.until(fmt.Sprintf("%s of %s", want, id), func() bool {
		all := p.on("ferrule/gw-1/status")
		for _, payload := range all {
			var m message
			if err := json.Unmarshal(payload, &m); err != nil {
				p.t.Fatal(err)
			}
			if o = m.Config.Outcome; m.Online && o.ID == id && o.Outcome == want {
				return true
			}
		}
		return false
	})
	return o
}

// answer is the reply to a command.
type answer struct {
	OK     bool
	Code   string
	Error  string
	Hint   string
	Result ConfigResult
}

// command sends one and waits for its reply.
func (p *place) command(id, name string, args any) (a answer) {
	p.t.Helper()
	p.send(id, name, args)
	replies := func() [][]byte { return p.on("ferrule/gw-1/reply/" + id) }
	p.until("the reply to "+id, func() bool { return len(replies()) > 0 })
	if err := json.Unmarshal(replies()[0], &a); err != nil {
		p.t.Fatalf("%s: %v", replies()[0], err)
	}
	return a
}

func (p *place) send(id, name string, args any) {
	p.t.Helper()
	payload, err := json.Marshal(map[string]any{"id": id, "expires": time.Now().Add(time.Hour), "args": args})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.broker.Publish("ferrule/gw-1/command/"+name, payload, false); err != nil {
		p.t.Fatal(err)
	}
}

// try sends a configuration that has to go on trial.
func (p *place) try(id, text string, more ...func(*ConfigArgs)) answer {
	p.t.Helper()
	args := ConfigArgs{TOML: text, ConfirmWithin: "45s"}
	for _, change := range more {
		change(&args)
	}
	a := p.command(id, "config", args)
	if !a.OK || !a.Result.Trying || a.Result.ID != id || a.Result.SHA256 != trial.Digest([]byte(text)) || a.Result.Deadline.IsZero() {
		p.t.Fatalf("%s: %+v", id, a)
	}
	return a
}

func within(limit string) func(*ConfigArgs) { return func(a *ConfigArgs) { a.ConfirmWithin = limit } }

func byCommand(a *ConfigArgs) { a.Confirm = trial.ConfirmCommand }

// up waits for the session and its subscription: a command that is published before is lost.
func (p *place) up() {
	p.t.Helper()
	p.until("a session", func() bool {
		text, err := local.Dial(p.path("f.sock")).Status(p.t.Context())
		var status Status
		return err == nil && json.Unmarshal(text, &status) == nil && status.Session.Subscribed
	})
}

// complete stops the agent and checks that no reading is missing: the numbers of each boot are without
// a gap, and so is what the unit counted.
func (p *place) complete(boots int) {
	p.t.Helper()
	p.until("readings of every boot", func() bool { return len(p.received()) >= boots })
	p.end()
	for boot, seqs := range p.received() {
		for n, seq := range seqs {
			if seq != uint64(n+1) {
				p.t.Errorf("boot %d: number %d came as the %dth", boot, seq, n+1)
				break
			}
		}
	}
}

// received returns the numbers of the entries that came, by boot, each the first time.
func (p *place) received() map[uint64][]uint64 {
	p.t.Helper()
	numbers := map[uint64][]uint64{}
	seen := map[string]bool{}
	for _, payload := range p.on("ferrule/gw-1/readings/rs485-1/meter-a") {
		if payload[0] != '[' {
			payload = slices.Concat([]byte{'['}, payload, []byte{']'})
		}
		var entries []struct{ Boot, Seq uint64 }
		if err := json.Unmarshal(payload, &entries); err != nil {
			p.t.Fatal(err)
		}
		for _, e := range entries {
			if key := fmt.Sprint(e.Boot, "/", e.Seq); !seen[key] {
				seen[key] = true
				numbers[e.Boot] = append(numbers[e.Boot], e.Seq)
			}
		}
	}
	return numbers
}

// leaks checks that no goroutine is left of what began after it was called.
func leaks(t *testing.T) func() {
	t.Helper()
	before := goleak.IgnoreCurrent()
	return func() { goleak.VerifyNone(t, before) }
}
