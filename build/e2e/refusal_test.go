package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/tpm/tpmtest"
)

// What stops run before it begins: each has an exit code of its own, a word on what is wrong
// and a hint.
func TestRunThatCannotBegin(t *testing.T) {
	w := newFactory(t)
	ferrule := build(t, "ferrule", native)
	config := w.configure(t, "gw-1", "/dev/null")
	_, stderr, code := run(t, "", with(ferrule, "run", "--config", config)...)
	if code != 11 || !strings.Contains(stderr, "not enrolled") || !strings.Contains(stderr, "hint: run: ferrule enroll") {
		t.Errorf("without a certificate: exit code %d\n%s", code, stderr)
	}
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	before, after, _ := strings.Cut(string(text), `every = "200ms"`)
	typo := w.file(t, "typo.toml", before+`evry = "200ms"`+after)
	place := fmt.Sprintf("%s:%d:1: unknown key \"evry\"", typo, strings.Count(before, "\n")+1)
	_, stderr, code = run(t, "", with(ferrule, "run", "--config", typo)...)
	if code != 3 || !strings.Contains(stderr, place) || !strings.Contains(stderr, `hint: did you mean "every"?`) {
		t.Errorf("with a typing error: exit code %d, want 3 and %s\n%s", code, place, stderr)
	}
}

// A TPM that is gone while the device is enrolled: its own exit code, at once, and nothing is
// published with another key.
func TestTPMThatIsGone(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: time.Second, points: 4})
	if err := s.tpm.Stop(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{s.tpm.Address(), filepath.Join(s.dir, "tpmrm0")} {
		config := s.file(t, "gone.toml", strings.Replace(string(text), s.tpm.Address(), path, 1))
		_, stderr, code := run(t, "", with(s.ferrule, "run", "--config", config)...)
		if code != 10 || !strings.Contains(stderr, "hint:") {
			t.Errorf("no TPM at %s: exit code %d\n%s", path, code, stderr)
		}
	}
	s.checkSilence(t)
}

// The disk of one device in another one: its own exit code, at once, and no loop.
func TestDiskOfAnotherDevice(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: time.Second, points: 1})
	other := tpmtest.Start(t)
	config, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	moved := s.file(t, "moved.toml", strings.Replace(string(config), s.tpm.Address(), other.Address(), 1))
	_, stderr, code := run(t, "", with(s.ferrule, "run", "--config", moved)...)
	if code != 78 || !strings.Contains(stderr, "not the TPM of this device") || !strings.Contains(stderr, "hint:") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	s.checkSilence(t)
}

// checkSilence makes sure that nothing reached the broker.
func (s *site) checkSilence(t *testing.T) {
	t.Helper()
	if said, err := os.ReadFile(s.ledger()); err != nil || len(said) > 0 {
		t.Errorf("the broker's ledger: %s, %v", said, err)
	}
}

// Two agents on one state directory would tear the outbox.
func TestSecondAgentIsRefused(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: time.Second, points: 1})
	s.run(t)
	waitFor(t, "the session", func() bool { return field(s.status(t), "session", "stage") == "up" })
	_, stderr, code := run(t, "", with(s.ferrule, "run", "--config", s.config)...)
	if code != 14 || !strings.Contains(stderr, "another agent") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// listener is a TLS server with a certificate of the test's that counts the bytes a client
// sends it behind the handshake, and hangs up on the first.
type listener struct {
	attempts, bytes atomic.Int64
	close           func()
}

func listen(t *testing.T, address string, certificate tls.Certificate) *listener {
	t.Helper()
	inner, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{}
	accepting := make(chan struct{})
	l.close = func() { _ = inner.Close(); <-accepting }
	t.Cleanup(l.close)
	go func() { // ends with inner
		defer close(accepting)
		for {
			conn, err := inner.Accept()
			if err != nil {
				return
			}
			l.attempts.Add(1)
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			session := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAnyClientCert})
			n, _ := session.Read(make([]byte, 512)) // a failed handshake reads 0
			l.bytes.Add(int64(n))
			_ = conn.Close()
		}
	}()
	return l
}

// A broker that cannot prove who it is gets no byte of CONNECT, and status names stage and
// cause. The control is a certificate that does prove it.
func TestBrokerThatIsNotTheOne(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: time.Second, points: 4})
	s.process.Kill()
	ca, stranger := newCA(t), newCA(t)
	s.trust(t, ca)
	name, now := []string{"127.0.0.1"}, time.Now()
	for _, test := range []struct {
		cause string
		ca    *agenttest.CA
		leaf  agenttest.Leaf
	}{
		{"broker-name", ca, agenttest.Leaf{CommonName: "b", Names: []string{"other.example"}}},
		{"broker-unknown-ca", stranger, agenttest.Leaf{CommonName: "b", Names: name}},
		{"broker-expired", ca, agenttest.Leaf{CommonName: "b", Names: name, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}},
		{"", ca, agenttest.Leaf{CommonName: "b", Names: name}},
	} {
		issued, err := test.ca.Issue(test.leaf)
		if err != nil {
			t.Fatal(err)
		}
		l := listen(t, s.broker, issued.TLS)
		s.run(t) // whose first attempt is made at once
		if test.cause == "" {
			waitFor(t, "CONNECT for the good one", func() bool { return l.bytes.Load() > 0 })
			return
		}
		waitFor(t, test.cause, func() bool {
			failure := field(s.status(t), "session", "last_failure")
			f, _ := failure.(map[string]any)
			return f["cause"] == test.cause && f["stage"] == "tls" && f["hint"] != ""
		})
		s.stop(t)
		l.close()
		if l.attempts.Load() == 0 || l.bytes.Load() != 0 {
			t.Errorf("%s: %d bytes left in %d attempts", test.cause, l.bytes.Load(), l.attempts.Load())
		}
	}
}

func newCA(t *testing.T) *agenttest.CA {
	t.Helper()
	ca, err := agenttest.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// trust has the agent check brokers against another root than the factory's.
func (s *site) trust(t *testing.T, ca *agenttest.CA) {
	t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	head, session, _ := strings.Cut(string(text), "[session]")
	root := s.file(t, "brokers.crt", string(ca.RootPEM()))
	session = strings.Replace(session, filepath.Join(s.ca, "root.crt"), root, 1)
	s.file(t, filepath.Base(s.config), head+"[session]"+session)
}
