package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

// underLoad is two units that are read fifty times a second each.
var underLoad = siteOptions{sync: "1s", every: 20 * time.Millisecond, points: 4}

// newStepSite is a site whose device has a factory certificate by an EST server, and its
// operational one by step-ca, which knows the factory by its provisioner of type X5C. The
// authorities of the broker's clients are step-ca's.
func newStepSite(t *testing.T, o siteOptions, life time.Duration, renewAt float64) (*site, *agenttest.StepCA) {
	t.Helper()
	program, err := agenttest.StepCAProgram()
	if err != nil {
		t.Fatal(err)
	}
	factory := newCA(t)
	desk, err := agenttest.StartEST(agenttest.ESTConfig{CA: factory, Users: map[string]string{"line": "secret"}, Life: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(desk.Close)
	step, err := agenttest.StartStepCA(t.Context(), program, t.TempDir(), agenttest.StepOptions{Factory: factory, Life: life})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(step.Kill)
	s := newSite(t, o)
	mustRun(t, "", with(s.ferrule, "reset", "--yes", "--config", s.config)...)
	ours := fmt.Sprintf("method = \"registrar\"\nurl = %q\nroots = %q\n", s.registrar, filepath.Join(s.ca, "root.crt"))
	s.edit(t, ours, fmt.Sprintf(`method = "step"
url = %q
roots = %q
provisioner = %q
device = %q
renew_at = %v
[enroll.factory]
method = "est"
url = %q
roots = %q
`, step.URL(), s.file(t, "step.crt", string(step.RootPEM())), agenttest.StepX5C, siteDevice, renewAt,
		desk.URL(), s.file(t, "factory-root.crt", string(factory.RootPEM()))))
	mustRun(t, "line:secret", with(s.ferrule, "enroll", "--factory", "--token", "-", "--config", s.config)...)
	out := mustRun(t, "", with(s.ferrule, "enroll", "--config", s.config)...)
	if !strings.Contains(out, "enrolled as "+siteDevice) {
		t.Fatalf("enroll said %q", out)
	}
	return s, step
}

// Certificates of two minutes, renewed by the agent itself at a real step-ca under 100 messages
// a second: none is lost, each new certificate is the only one from then on, and a step-ca that
// is killed in the middle of a renewal costs a second attempt.
func TestRenewalUnderLoadByStepCA(t *testing.T) {
	t.Parallel()
	s, step := newStepSite(t, underLoad, 2*time.Minute, 0.45)
	broker := s.watched(t, filepath.Join(s.ca, "broker"), string(step.RootPEM()))
	between := newBetween(t, strings.TrimPrefix(step.URL(), "https://"))
	s.edit(t, step.URL(), "https://"+between.address)
	s.run(t)
	first := waitLeaf(t, broker)
	second := waitLeaf(t, broker, first)

	between.arm(step.Kill)
	waitFor(t, "the renewal that is cut off", func() bool {
		failed, _ := field(s.status(t), "identity", "last_attempt", "error").(string)
		return failed != ""
	})
	if up := field(s.status(t), "session", "stage"); up != "up" {
		t.Errorf("the session is %v after a renewal that was cut off", up)
	}
	if err := step.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	third := waitLeaf(t, broker, first, second)
	s.rotateKey(t, broker, first, second, third)
}

// The same at the registrar, with the TPM's evidence.
func TestRenewalUnderLoadByRegistrar(t *testing.T) {
	t.Parallel()
	s := newSite(t, underLoad)
	s.restartRegistrar(t, "--trust-ek-on-first-use", "--life", "60s") // and five minutes before
	s.edit(t, `method = "registrar"`, "method = \"registrar\"\nrenew_at = 0.9")
	mustRun(t, s.token(t, siteDevice), with(s.ferrule, "enroll", "--force", "--token", "-", "--config", s.config)...)
	broker := s.watched(t, filepath.Join(s.ca, "broker"), readFile(t, filepath.Join(s.ca, "root.crt")))
	s.run(t)
	first := waitLeaf(t, broker)
	second := waitLeaf(t, broker, first)
	s.rotateKey(t, broker, first, second)
	if devices := mustRun(t, "", with(s.factory, "devices", s.ca, siteDevice, "--json")...); strings.Count(devices, `"ek"`) != 1 {
		t.Errorf("the registrar knows more than one TPM of the device:\n%s", devices)
	}
}

// rotateKey gives the running agent a new key, and then judges the whole run: the same device, the
// old certificates gone, nothing lost, and an agent that starts again with what lies on the disk.
func (s *site) rotateKey(t *testing.T, broker *watchedBroker, before ...string) {
	t.Helper()
	old := readFile(t, filepath.Join(s.state, "device.key"))
	out := mustRun(t, "", with(s.ferrule, "enroll", "--rekey", "--config", s.config)...)
	if !strings.Contains(out, "new key and certificate") {
		t.Errorf("enroll --rekey said %q", out)
	}
	waitFor(t, "the new key", func() bool {
		key, err := os.ReadFile(filepath.Join(s.state, "device.key"))
		return err == nil && string(key) != old
	})
	leaf := s.leaf(t)
	waitFor(t, "a connection with the new key", func() bool {
		c := broker.Connections()
		return c[len(c)-1].Leaf == leaf
	})
	// The one of the old key is gone; there may be another one for a while, of the next renewal.
	waitFor(t, "one connection alone", func() bool { return established(t, s.broker) == 1 })
	broker.Cut()
	if err := broker.Mend(); err != nil {
		t.Fatal(err)
	}
	seen := len(broker.Connections())
	waitFor(t, "one more connection", func() bool { return len(broker.Connections()) > seen })
	s.waitDrained(t)
	s.stop(t)
	stopped := s.stopped
	s.settled(t)

	s.run(t)
	s.waitUp(t)
	s.stop(t)
	checkLeaves(t, broker, 1+len(before))
	v := s.judge(t, []time.Time{stopped}, promise{window: cutOff})
	t.Logf("%d readings, %d connections", v.received, len(broker.Connections()))
}

// The agent is killed with -9 at random moments while it rotates its key. Each time it comes back by
// itself with a key and a certificate that belong together; the rotation that is left alone ends
// with one of each, and the registrar knows one TPM.
func TestKilledDuringRotation(t *testing.T) {
	t.Parallel()
	s := newSite(t, underLoad)
	broker := s.watched(t, filepath.Join(s.ca, "broker"), readFile(t, filepath.Join(s.ca, "root.crt")))
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	kills := make([]time.Time, number(t, "E2E_ROTATIONS", 10))
	s.run(t)
	for n := range kills {
		s.waitUp(t)
		asking := exec.Command(s.ferrule[0], "enroll", "--rekey", "--config", s.config)
		if err := asking.Start(); err != nil {
			t.Fatal(err)
		}
		pause(t, time.Duration(random.IntN(900))*time.Millisecond)
		kills[n] = time.Now()
		s.agent.kill()
		_ = asking.Wait() // as it may be: the agent is gone
		s.run(t)
	}
	s.waitUp(t)
	old := s.leaf(t)
	mustRun(t, "", with(s.ferrule, "enroll", "--rekey", "--config", s.config)...)
	waitFor(t, "the last rotation", func() bool { return s.leaf(t) != old && field(s.status(t), "identity", "staged") == nil })
	s.waitDrained(t)
	s.stop(t)
	s.settled(t)
	checkLeaves(t, broker, 3)
	s.judge(t, kills, promise{window: time.Second})
}

// checkLeaves checks that certificates took over in one direction: a second after a CONNACK for a new
// one, none of before is seen again.
func checkLeaves(t *testing.T, broker *watchedBroker, least int) {
	t.Helper()
	began := make(map[string]time.Time)
	var newest string
	for _, c := range broker.Connections() {
		if _, known := began[c.Leaf]; !known {
			began[c.Leaf], newest = c.At, c.Leaf
		}
		if c.Leaf != newest && c.At.After(began[newest].Add(time.Second)) {
			t.Errorf("%s is shown %s after %s had taken over", c.Leaf, c.At.Sub(began[newest]), newest)
		}
		if c.CommonName != siteDevice {
			t.Errorf("the broker saw a certificate of %q", c.CommonName)
		}
	}
	if len(began) < least {
		t.Errorf("%d certificates were seen; want %d at least", len(began), least)
	}
	t.Logf("%d certificates", len(began))
}

// between stands between an agent and a service, to do something in the middle of a connection.
type between struct {
	address string
	mu      sync.Mutex
	act     func()
}

func newBetween(t *testing.T, service string) *between {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &between{address: listener.Addr().String()}
	var all sync.WaitGroup
	t.Cleanup(func() { _ = listener.Close(); all.Wait() })
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", service)
			if err != nil {
				_ = client.Close()
				continue
			}
			all.Go(func() { _, _ = io.Copy(server, client); _ = server.Close() })
			all.Go(func() { _, _ = io.Copy(client, &hooked{server, b}); _ = client.Close() })
		}
	})
	return b
}

// arm has act called once, after the service's next words and before they are passed on.
func (b *between) arm(act func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.act = act
}

type hooked struct {
	net.Conn
	b *between
}

func (h *hooked) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.b.mu.Lock()
	act := h.b.act
	h.b.act = nil
	h.b.mu.Unlock()
	if act != nil {
		act()
	}
	return n, err
}
