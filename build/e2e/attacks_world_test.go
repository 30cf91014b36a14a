package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ferrule/agent/agenttest"
)

// mostMemory is what the agent may have in memory under any attack, in KiB.
const mostMemory = 40 << 10

// siege is an agent among enemies: its broker is a rogue, its listener stands open to strangers, and
// its line and its files are what a test makes of them. Memory and goroutines are looked at behind
// each attack.
type siege struct {
	*listening
	rogue      *rogue
	good       tls.Certificate // of a viewer at the listener
	admin      tls.Certificate
	goroutines int
	reloads    int
}

// newSiege starts the agent at a broker that behaves, with its key in a TPM or in a file.
func newSiege(t *testing.T, tpm bool) *siege {
	t.Helper()
	a := &siege{listening: &listening{people: newPeople(t, "people"), site: newSite(t, siteOptions{sync: "1s", every: 250 * time.Millisecond, points: 1, weak: !tpm})}}
	a.address = net.JoinHostPort("127.0.0.1", freePort(t))
	roots := a.file(t, "people.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.people.certificate.Raw})))
	a.edit(t, "[local]\n", fmt.Sprintf("[local]\nlisten = %q\nroots = %q\n", a.address, roots),
		"[session]\n", "[session]\nwrite_timeout = \"1s\"\n", `reconnect_spread = "200ms"`, `reconnect_spread = "10ms"`)
	a.section(t, `
[[local.role]]
role = "viewer"
ou = "viewers"
[[local.role]]
role = "admin"
ou = "admins"`)
	a.file(t, filepath.Base(a.config), readFile(t, a.config)+"# more lines\n")
	a.good = a.people.issue(t, "viewers", time.Now().Add(time.Hour))
	a.admin = a.people.issue(t, "admins", time.Now().Add(time.Hour))
	a.process.Kill()
	ca := newCA(t)
	a.trust(t, ca)
	a.rogue = newRogue(t, a.broker, ca)
	a.run(t)
	a.calm(t, "at the start")
	a.goroutines = a.count(t, "ferrule_goroutines")
	return a
}

// ask is a request on the agent's own socket.
func (a *siege) ask(t *testing.T, path string) []byte {
	t.Helper()
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(a.dir, "f.sock"))
		}}}
	for { // a reload opens the socket anew
		response, err := client.Get("http://agent" + path)
		if err == nil {
			text, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			return text
		}
		select {
		case <-a.agent.ended:
			t.Fatalf("the agent ended:\n%s", tail(a.agent.output()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// now is the status of the session.
func (a *siege) now(t *testing.T) map[string]any {
	t.Helper()
	var status map[string]any
	if err := json.Unmarshal(a.ask(t, "/status"), &status); err != nil {
		return nil // it opens, or closes
	}
	return status
}

// count is one of the agent's metrics.
func (a *siege) count(t *testing.T, name string) int {
	t.Helper()
	for line := range strings.Lines(string(a.ask(t, "/metrics"))) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
	}
	return 0
}

// reload has the agent begin anew with another configuration, in the same process: the pauses that
// enemies have earned are forgotten.
func (a *siege) reload(t *testing.T, oldnew ...string) {
	t.Helper()
	spread := func(n int) string { return fmt.Sprintf("reconnect_spread = \"%dms\"", 10+n) }
	a.edit(t, append([]string{spread(a.reloads), spread(a.reloads + 1)}, oldnew...)...)
	a.reloads++
	before := strings.Count(a.agent.output(), "configuration changed")
	if err := a.agent.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the reload", func() bool { return strings.Count(a.agent.output(), "configuration changed") > before })
}

// calm has the broker behave, and waits until the session stands, and readings are acknowledged.
func (a *siege) calm(t *testing.T, when string) {
	t.Helper()
	a.rogue.play(nil)
	acks := a.rogue.acks.Load()
	waitFor(t, "a session "+when, func() bool {
		return a.rogue.acks.Load() > acks+2 && field(a.now(t), "session", "stage") == "up"
	})
}

// attack lets one enemy do its worst and looks at what is left of the agent.
func (a *siege) attack(t *testing.T, name string, worst func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		began, pid := time.Now(), a.agent.Process.Pid
		// The highest is that of this attack (proc(5), clear_refs).
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o600); err != nil {
			t.Fatal(err)
		}
		spent := cpu(t, pid)
		worst(t)
		a.calm(t, "after it")
		peak := memory(t, pid, "VmHWM")
		if code, _, err := a.get(a.client(a.good), "/status"); code != http.StatusOK {
			t.Errorf("a good client at the listener: %d, %v", code, err)
		}
		left := 0
		for until := time.Now().Add(15 * time.Second); ; pause(t, 100*time.Millisecond) {
			if left = a.count(t, "ferrule_goroutines"); left <= a.goroutines+8 || time.Now().After(until) {
				break
			}
		}
		t.Logf("%5d KiB at most, %d goroutines of %d, %v of processor, %v in all",
			peak, left, a.goroutines, (cpu(t, pid) - spent).Round(10*time.Millisecond), time.Since(began).Round(10*time.Millisecond))
		if peak > mostMemory {
			t.Errorf("%d KiB in memory, want %d at most", peak, mostMemory)
		}
		if left > a.goroutines+8 {
			t.Errorf("%d goroutines are left, there were %d", left, a.goroutines)
		}
		if t.Failed() && left > a.goroutines+8 {
			t.Logf("the log:\n%s", tail(a.agent.output()))
		}
	})
}

// failure waits until the session's last failure is this one.
func (a *siege) failure(t *testing.T, stage, cause string) {
	t.Helper()
	var last map[string]any
	for until := time.Now().Add(60 * time.Second); time.Now().Before(until); pause(t, 20*time.Millisecond) {
		last, _ = field(a.now(t), "session", "last_failure").(map[string]any)
		if last["cause"] == cause && last["stage"] == stage {
			return
		}
	}
	t.Fatalf("no failure %s in stage %s within a minute, the last is %v\n%v", cause, stage, last, field(a.now(t), "session", "history"))
}

// rogue is a broker that behaves until it is told what to do with the next connections instead.
type rogue struct {
	address string
	proper  *tls.Config
	ca      *agenttest.CA
	scene   atomic.Pointer[func(net.Conn)]
	came    atomic.Int64                                       // connections
	acks    atomic.Int64                                       // PUBLISH that were acknowledged
	heard   atomic.Pointer[func(topic string, payload []byte)] // told of every PUBLISH
	mu      sync.Mutex
	open    map[net.Conn]bool
	close   func() // ends it, with all connections
}

func newRogue(t *testing.T, address string, ca *agenttest.CA) *rogue {
	t.Helper()
	issued, err := ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	r := &rogue{address: address, ca: ca, open: make(map[net.Conn]bool)}
	r.proper = &tls.Config{Certificates: []tls.Certificate{issued.TLS}, ClientAuth: tls.RequireAnyClientCert}
	inner, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { // ends with inner
		for {
			conn, err := inner.Accept()
			if err != nil {
				return
			}
			r.came.Add(1)
			scene := r.scene.Load()
			r.mu.Lock()
			r.open[conn] = true
			r.mu.Unlock()
			serving.Go(func() {
				defer func() {
					_ = conn.Close()
					r.mu.Lock()
					delete(r.open, conn)
					r.mu.Unlock()
				}()
				if scene != nil {
					(*scene)(conn)
				} else if m := r.connack(conn, 0); m != nil {
					m.serve(nil)
				}
			})
		}
	})
	r.close = func() { _ = inner.Close(); r.cut(); serving.Wait() }
	t.Cleanup(r.close)
	return r
}

// play says what becomes of the next connections; nil: they are served. Those that stand are cut.
func (r *rogue) play(scene func(net.Conn)) {
	if scene == nil && r.scene.Swap(nil) == nil {
		return // it behaved all the time
	}
	if scene != nil {
		r.scene.Store(&scene)
	}
	r.cut()
}

func (r *rogue) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn := range r.open {
		_ = conn.Close()
	}
}

// mqttConn is a connection whose client has been let in.
type mqttConn struct {
	net.Conn
	r     *bufio.Reader
	rogue *rogue
}

// connack takes a connection up to CONNACK, with these flags; nil: the client did not get so far.
func (r *rogue) connack(conn net.Conn, flags byte) *mqttConn {
	secure := tls.Server(conn, r.proper)
	m := &mqttConn{Conn: secure, r: bufio.NewReader(secure), rogue: r}
	if kind, _, err := m.packet(); err != nil || kind>>4 != 1 {
		return nil
	}
	if _, err := m.Write([]byte{0x20, 2, flags, 0}); err != nil {
		return nil
	}
	return m
}

// suback is connack up to the first SUBACK.
func (r *rogue) suback(conn net.Conn) *mqttConn {
	m := r.connack(conn, 0)
	for m != nil {
		kind, body, err := m.packet()
		if err != nil {
			return nil
		}
		if err := m.answer(kind, body); err != nil {
			return nil
		}
		if kind>>4 == 8 {
			return m
		}
	}
	return nil
}

func (m *mqttConn) packet() (kind byte, body []byte, err error) {
	if kind, err = m.r.ReadByte(); err != nil {
		return 0, nil, err
	}
	body, err = readBody(m.r)
	return kind, body, err
}

// answer is what a broker answers to a packet.
func (m *mqttConn) answer(kind byte, body []byte) (err error) {
	switch kind >> 4 {
	case 3:
		topic := int(body[0])<<8 | int(body[1])
		if heard := m.rogue.heard.Load(); heard != nil {
			(*heard)(string(body[2:2+topic]), body[4+topic:])
		}
		if kind&6 != 0 {
			_, err = m.Write([]byte{0x40, 2, body[2+topic], body[3+topic]})
		}
		m.rogue.acks.Add(1)
	case 8:
		_, err = m.Write([]byte{0x90, 3, body[0], body[1], 1})
	case 12:
		_, err = m.Write([]byte{0xD0, 0})
	}
	return err
}

// serve answers until the connection ends, or replace says that it has dealt with a packet.
func (m *mqttConn) serve(replace func(kind byte, body []byte) bool) {
	for {
		kind, body, err := m.packet()
		if err != nil || kind>>4 == 14 {
			return
		}
		if replace != nil && replace(kind, body) {
			continue
		}
		if m.answer(kind, body) != nil {
			return
		}
	}
}

// lengthOf is a remaining length (MQTT 3.1.1, 2.2.3).
func lengthOf(n int) (b []byte) {
	for ; n > 127; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// publication is a PUBLISH; flags are those of its first byte.
func publication(flags byte, topic string, id uint16, payload []byte) []byte {
	n := 2 + len(topic) + len(payload)
	if flags&6 != 0 {
		n += 2
	}
	b := append([]byte{0x30 | flags}, lengthOf(n)...)
	b = append(append(b, byte(len(topic)>>8), byte(len(topic))), topic...)
	if flags&6 != 0 {
		b = append(b, byte(id>>8), byte(id))
	}
	return append(b, payload...)
}
