package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// stranger is one bad client: it does its worst, and ends when the test says so.
type stranger func(g *attack, conn *net.TCPConn)

// attack is a gateway under attack with its good client.
type attack struct {
	*listening
	wrongCA, expired, good tls.Certificate
	over                   chan struct{}
	slowest                atomic.Int64 // answer to the good client, ns
	answers, failures      atomic.Int64
}

var strangers = map[string]stranger{
	"no certificate": func(_ *attack, c *net.TCPConn) { tried(c, &tls.Config{InsecureSkipVerify: true}) },
	"wrong CA":       func(a *attack, c *net.TCPConn) { tried(c, showing(a.wrongCA)) },
	"expired":        func(a *attack, c *net.TCPConn) { tried(c, showing(a.expired)) },
	"sends an alert": func(a *attack, c *net.TCPConn) {
		tried(c, &tls.Config{ServerName: "else.example"}) // refuses our certificate
	},
	"resets": func(_ *attack, c *net.TCPConn) {
		client := tls.Client(resetting{c}, &tls.Config{InsecureSkipVerify: true})
		_ = client.Handshake()
		_ = c.SetLinger(0)
	},
	"plaintext": func(_ *attack, c *net.TCPConn) {
		fmt.Fprint(c, "\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04gw-1")
		_, _ = c.Read(make([]byte, 1))
	},
	"silence": func(a *attack, c *net.TCPConn) {
		_, _ = c.Write([]byte{0x16}) // one byte, and no more
		<-a.over
	},
}

func tried(c *net.TCPConn, config *tls.Config) {
	client := tls.Client(c, config)
	if client.Handshake() == nil {
		_, _ = client.Read(make([]byte, 1))
	}
}

// showing presents a certificate whether the server lists its CA or not.
func showing(shown tls.Certificate) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &shown, nil
	}}
}

// resetting is a connection that dies when the server has answered.
type resetting struct{ *net.TCPConn }

func (r resetting) Read(b []byte) (int, error) {
	_, _ = r.TCPConn.Read(b)
	return 0, net.ErrClosed
}

func newAttack(t *testing.T, under ...string) *attack {
	t.Helper()
	g := newListening(t, "", under...)
	a := &attack{listening: g, over: make(chan struct{})}
	a.good = g.people.issue(t, "viewers", time.Now().Add(time.Hour))
	a.expired = g.people.issue(t, "viewers", time.Now().Add(-time.Hour))
	a.wrongCA = newPeople(t, "people").issue(t, "admins", time.Now().Add(time.Hour))
	waitFor(t, "the session", func() bool { return field(a.status(t), "session", "stage") == "up" })
	return a
}

// assail lets count strangers of every kind come, half of them from the good client's own
// address, and returns when all but the silent have had enough.
func (a *attack) assail(t *testing.T, count, atOnce int) (ended *sync.WaitGroup) {
	t.Helper()
	ended = &sync.WaitGroup{}
	var loud sync.WaitGroup
	places := make(chan struct{}, atOnce)
	kinds := make([]string, 0, len(strangers))
	for name := range strangers {
		kinds = append(kinds, name)
	}
	slices.Sort(kinds)
	for n := range count {
		kind := kinds[n%len(kinds)]
		from := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}
		if n%2 == 1 {
			from.IP = net.IPv4(127, 0, byte(1+n%100), 1)
		}
		places <- struct{}{}
		if kind != "silence" {
			loud.Add(1)
		}
		ended.Go(func() {
			dialer := net.Dialer{LocalAddr: from, Timeout: 10 * time.Second}
			conn, err := dialer.Dial("tcp", a.address)
			if kind == "silence" {
				<-places
			} else {
				defer loud.Done()
				defer func() { <-places }()
			}
			if err != nil {
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			strangers[kind](a, conn.(*net.TCPConn))
		})
	}
	loud.Wait()
	return ended
}

// ask is the good client, again and again until done is closed; each answer counts from the
// moment that it wanted one.
func (a *attack) ask(done chan struct{}, every time.Duration) {
	client := a.client(a.good)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		began := time.Now()
		for { // a lost connection is tried again, and the time goes on
			code, _, err := a.get(client, "/status")
			if err == nil && code == 200 {
				break
			}
			a.failures.Add(1)
			if time.Since(began) > 10*time.Second {
				break
			}
		}
		a.answers.Add(1)
		if took := int64(time.Since(began)); took > a.slowest.Load() {
			a.slowest.Store(took)
		}
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// baseline waits until goroutines and descriptors are back where they were, within 15 seconds.
func (a *attack) baseline(t *testing.T, goroutines, files int) {
	t.Helper()
	began := time.Now()
	client := a.client(a.good)
	for {
		nowRoutines, nowFiles := a.metric(t, client, "ferrule_goroutines"), len(openFiles(t, a.agent.Process.Pid))
		if nowRoutines <= goroutines+8 && nowFiles <= files+8 {
			t.Logf("back after %v: %d goroutines (%d before), %d descriptors (%d before)", time.Since(began).Round(time.Millisecond), nowRoutines, goroutines, nowFiles, files)
			return
		}
		if time.Since(began) > 15*time.Second {
			t.Fatalf("after 15 s %d goroutines (%d before), %d descriptors (%d before)", nowRoutines, goroutines, nowFiles, files)
		}
		pause(t, 100*time.Millisecond)
	}
}

// verdict fails the test where the good client was kept waiting.
func (a *attack) verdict(t *testing.T, when string) {
	t.Helper()
	slowest := time.Duration(a.slowest.Swap(0))
	t.Logf("%s: %d answers to the good client, %d tries more, the slowest after %v; at most %d KiB in memory",
		when, a.answers.Swap(0), a.failures.Swap(0), slowest.Round(time.Millisecond), memory(t, a.agent.Process.Pid, "VmHWM"))
	if slowest > 3*time.Second {
		t.Errorf("%s: a good client waited %v", when, slowest)
	}
}

// asking runs the good client until the returned function is called.
func (a *attack) asking(every time.Duration) (end func()) {
	done, ended := make(chan struct{}), sync.WaitGroup{}
	ended.Go(func() { a.ask(done, every) })
	return func() {
		close(done)
		ended.Wait()
	}
}

// finish compares memory and log with what is allowed, and the readings with what was promised.
func (a *attack) finish(t *testing.T) {
	t.Helper()
	if peak := memory(t, a.agent.Process.Pid, "VmHWM"); peak > 40<<10 {
		t.Errorf("%d KiB in memory at most, want 40 MiB", peak)
	}
	refused, _ := field(a.status(t), "local", "listener", "refused").(map[string]any)
	t.Logf("%d lines in the log for %v", strings.Count(a.agent.output(), "local client refused"), refused)
	for _, cause := range []string{"no-certificate", "unknown-ca", "expired", "refused-by-client", "plaintext"} {
		if n, _ := refused[cause].(float64); n < 50 {
			t.Errorf("%v refused for %s", n, cause)
		}
	}
	a.stop(t)
	a.judge(t, nil, promise{})
}

// TestListenerUnderAttack is S0a, A4 and A5 of the attack list: a thousand bad clients of seven
// kinds, twice as fast as they can and once over a while, half of them from the address of the
// good one.
func TestListenerUnderAttack(t *testing.T) {
	a := newAttack(t)
	pid := a.agent.Process.Pid
	goroutines, files := a.metric(t, a.client(a.good), "ferrule_goroutines"), len(openFiles(t, pid))
	for _, atOnce := range []int{100, 300, 8} {
		a.over = make(chan struct{})
		end := a.asking(20 * time.Millisecond)
		before, began := cpu(t, pid), time.Now()
		ended := a.assail(t, 1000, atOnce)
		t.Logf("1,000 strangers, %d at once, cost %v in %v", atOnce, cpu(t, pid)-before, time.Since(began).Round(time.Millisecond))
		pause(t, 2*time.Second) // the silent are still there
		end()
		a.verdict(t, "under 1,000 strangers")
		close(a.over)
		ended.Wait()
		a.baseline(t, goroutines, files)
	}
	a.finish(t)
}

// TestListenerWithoutDescriptors is S0b: an agent that may open 64 files has none left, because
// others hold what it serves on the socket. It does not spin, a good client is served all the
// same, also under a thousand bad ones, and afterwards all is as before.
func TestListenerWithoutDescriptors(t *testing.T) {
	a := newAttack(t, need(t, "prlimit"), "--nofile=64:64")
	pid := a.agent.Process.Pid
	goroutines, files := a.metric(t, a.client(a.good), "ferrule_goroutines"), len(openFiles(t, pid))
	var held []net.Conn
	hold := func(network, address, say string) {
		conn, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, say)
		held = append(held, conn)
	}
	for range 40 { // as many as may watch, and some that are not let
		hold("unix", filepath.Join(a.dir, "f.sock"), "GET /readings HTTP/1.1\r\nHost: agent\r\n\r\n")
	}
	for range 60 { // strangers that say nothing
		hold("tcp", a.address, "")
	}
	waitFor(t, "too many open files", func() bool { return strings.Contains(a.agent.output(), "too many open files") })

	end := a.asking(time.Second)
	const length = 10 * time.Second
	before := cpu(t, pid)
	pause(t, length)
	share := 100 * float64(cpu(t, pid)-before) / float64(length)
	t.Logf("without descriptors: %d open, %.1f %% of a processor", len(openFiles(t, pid)), share)
	if share >= 5 {
		t.Errorf("%.1f %% of a processor while nothing can be accepted; want less than 5", share)
	}
	a.verdict(t, "without descriptors")
	end()
	end = a.asking(20 * time.Millisecond)
	ended := a.assail(t, 1000, 20)
	a.verdict(t, "under 1,000 strangers without descriptors")
	end()
	close(a.over)
	ended.Wait()
	for _, conn := range held {
		_ = conn.Close()
	}
	a.baseline(t, goroutines, files)
	a.finish(t)
}

// A refusal is told within half a second (S2b), whatever else goes on.
func TestRefusalsAreTold(t *testing.T) {
	g := newListening(t, "")
	wrong := newPeople(t, "people").issue(t, "admins", time.Now().Add(time.Hour))
	for _, c := range []struct {
		name    string
		config  *tls.Config
		version uint16
		want    string
	}{
		{"no certificate, TLS 1.3", &tls.Config{}, tls.VersionTLS13, "tls: certificate required"},
		{"no certificate, TLS 1.2", &tls.Config{}, tls.VersionTLS12, "tls: handshake failure"},
		{"wrong CA, TLS 1.3", showing(wrong), tls.VersionTLS13, "tls: unknown certificate authority"},
		{"wrong CA, TLS 1.2", showing(wrong), tls.VersionTLS12, "tls: unknown certificate authority"},
	} {
		config := c.config.Clone()
		config.InsecureSkipVerify, config.MinVersion, config.MaxVersion = true, c.version, c.version
		began := time.Now()
		conn, err := tls.Dial("tcp", g.address, config)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		if took := time.Since(began); took > 500*time.Millisecond || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: %v after %v", c.name, err, took)
		}
	}
}

// TestListenerMemory has strangers fill what each may fill before anybody knows them: handshakes
// that never end, headers that never end, and bodies that never come.
func TestListenerMemory(t *testing.T) {
	g := newListening(t, "client_auth = \"optional\"\nanonymous = \"viewer\"")
	pid := g.agent.Process.Pid
	idle := memory(t, pid, "VmRSS")
	var held []net.Conn
	for n := range 400 {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+n%20), 1)}}
		conn, err := dialer.Dial("tcp", g.address)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
		// A ClientHello that says it has 64 KiB, and comes as far as the 24 KiB that are read.
		_, _ = conn.Write(append([]byte("\x16\x03\x01\x40\x00\x01\x00\xff\xff"), make([]byte, 1<<14-4)...))
		_, _ = conn.Write(append([]byte("\x16\x03\x01\x40\x00"), make([]byte, 7<<10)...))
	}
	for n := range 200 {
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+n%20), 2)}, Timeout: 10 * time.Second}
		conn, err := tls.DialWithDialer(dialer, "tcp", g.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			continue // gave way to another
		}
		held = append(held, conn)
		_ = conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
		if n%2 == 0 {
			fmt.Fprintf(conn, "GET /status HTTP/1.1\r\nHost: x\r\nX-Long: %s", strings.Repeat("x", 15<<10))
			continue
		}
		fmt.Fprintf(conn, "POST /command/read HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n%s", strings.Repeat(" ", 59<<10))
	}
	peak := memory(t, pid, "VmHWM")
	t.Logf("%d KiB idle, %d KiB at most", idle, peak)
	if peak > 40<<10 {
		t.Errorf("%d KiB in memory, want 40 MiB at most", peak)
	}
	if code, _, err := g.get(g.client(g.people.issue(t, "viewers", time.Now().Add(time.Hour))), "/status"); code != 200 {
		t.Errorf("a good client sees %d, %v", code, err)
	}
	for _, conn := range held {
		_ = conn.Close()
	}
	g.kill(t)
}
