package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/agenttest"
	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
	"ferrule/internal/disk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen; far longer than it takes, even under
// an emulator.
const patience = time.Minute

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// until waits for done.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	limit, tick := time.After(patience), time.NewTicker(2*time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// each runs f for TLS 1.2 and 1.3.
func each(t *testing.T, f func(t *testing.T, version uint16)) {
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) { f(t, version) })
	}
}

// world is a device and the brokers' authority, which issued its certificate too.
type world struct {
	t      testing.TB
	ca     *agenttest.CA
	server *agenttest.Issued
	device *identity.Credential
	log    *testLog
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ca: must[*agenttest.CA](t)(agenttest.NewCA("test")), log: &testLog{}}
	w.server = must[*agenttest.Issued](t)(w.ca.Server("broker.test"))
	device := must[*agenttest.Issued](t)(w.ca.Device("device-1"))
	w.device = credential(t, device.ChainPEM, device.KeyPEM)
	return w
}

// credential is what the agent makes of a certificate and its key.
func credential(t testing.TB, chain, key []byte) *identity.Credential {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "device.crt"), chain)
	writeFile(t, filepath.Join(dir, "device.pem"), key)
	id := must[*identity.Identity](t)(identity.Open(context.Background(),
		identity.Config{TPM: "none", Key: "file:device.pem", Certificate: "device.crt", AllowSoftwareKey: true},
		identity.Options{StateDir: dir, FS: disk.OS(), Clock: identity.TrustedClock(time.Now), Log: slog.New(slog.DiscardHandler)}))
	t.Cleanup(func() { _ = id.Close() })
	return id.Current()
}

func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// file writes data where only this test looks.
func (w *world) file(name string, data []byte) string {
	w.t.Helper()
	return writeFile(w.t, filepath.Join(w.t.TempDir(), name), data)
}

// dialer makes a dialer that trusts the world's authority.
func (w *world) dialer(change ...func(*Options)) *Dialer {
	w.t.Helper()
	pool := w.ca.Pool()
	o := Options{Config: DefaultConfig(), Log: w.log.logger(), Trust: Trust{Roots: func() *x509.CertPool { return pool }}}
	for _, f := range change {
		f(&o)
	}
	return must[*Dialer](w.t)(Open(o))
}

// throughProxy sets the proxy.
func throughProxy(url string) func(*Options) { return func(o *Options) { o.Proxy = url } }

// short makes every stage short.
func short(o *Options) {
	const each = 300 * time.Millisecond
	o.Timeouts = Timeouts{DNS: each, TCP: each, Proxy: each, TLS: each, WebSocket: each}
}

// atMost makes the client speak no later version of TLS.
func atMost(version uint16) func(*Options) {
	return func(o *Options) { o.Observe = &Observer{TLS: func(c *tls.Config) { c.MaxVersion = version }} }
}

// dial connects, and leaves the connection open until the test ends.
func (w *world) dial(d *Dialer, broker string) (*Conn, error) {
	w.t.Helper()
	return w.dialAs(d, broker, w.device)
}

func (w *world) dialAs(d *Dialer, broker string, c *identity.Credential) (*Conn, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := d.Dial(ctx, must[Broker](w.t)(ParseBroker(broker)), c, func(cause.Stage) {})
	if err == nil {
		w.t.Cleanup(func() { _ = conn.Close() })
	}
	return conn, err
}

// connected dials and speaks: the server must echo.
func (w *world) connected(d *Dialer, broker string) *Conn {
	w.t.Helper()
	c, err := w.dial(d, broker)
	if err != nil {
		w.t.Fatal(err)
	}
	echo(w.t, c, "ping")
	return c
}

// echo fails unless what is written to c comes back.
func echo(t testing.TB, c net.Conn, text string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(c, back); err != nil || string(back) != text {
		t.Fatalf("%q came back, %v", back, err)
	}
	_ = c.SetDeadline(time.Time{})
}

// failure dials in vain, and says what is made of that; a refusal that TLS 1.3 tells at the first
// read counts as one.
func (w *world) failure(d *Dialer, broker string) cause.Failure {
	w.t.Helper()
	return w.failureAs(d, broker, w.device)
}

func (w *world) failureAs(d *Dialer, broker string, credential *identity.Credential) cause.Failure {
	w.t.Helper()
	c, err := w.dialAs(d, broker, credential)
	if err == nil {
		if err = c.Prove(context.Background()); err == nil {
			w.t.Fatal("connected")
		}
		return cause.Classify(cause.StageConnack, err)
	}
	staged, ok := errors.AsType[*cause.StageError](err)
	if !ok {
		w.t.Fatalf("%v has no stage", err)
	}
	return cause.Classify(staged.Stage, err)
}

// expect compares what matters of a failure. Text and hint must be there in any case.
func expect(t testing.TB, f cause.Failure, stage cause.Stage, what cause.Cause, side cause.Side, text string) {
	t.Helper()
	if f.Stage != stage || f.Cause != what || f.Side != side || !strings.Contains(f.Text, text) || f.Hint == "" {
		t.Errorf("got %+v,\nwant stage %s, cause %s, side %s, text with %q, and a hint", f, stage, what, side, text)
	}
}

// serve answers every connection to a listener on this machine with handle, in a goroutine, and
// returns the address. The test waits for all of them.
func serve(t testing.TB, handle func(c net.Conn)) string {
	t.Helper()
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	return serveOn(t, l, handle)
}

func serveOn(t testing.TB, l net.Listener, handle func(c net.Conn)) string {
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
}

// tlsEcho is a broker that makes handshakes with config and gives everything back.
func tlsEcho(t testing.TB, config *tls.Config) string {
	return serve(t, func(c net.Conn) {
		s := tls.Server(c, config)
		if s.Handshake() == nil {
			_, _ = io.Copy(s, s)
		}
		_ = s.Close()
	})
}

// echo is tlsEcho with the world's own server.
func (w *world) echo() string { return tlsEcho(w.t, w.server.ServerTLS(w.ca)) }

// testLog keeps what was logged.
type testLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *testLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// program finds a foreign program.
func program(t testing.TB, name string) string {
	t.Helper()
	for _, folder := range []string{"", "/usr/sbin/", "/usr/bin/"} {
		if path, err := exec.LookPath(folder + name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing; run: make deps", name)
	return ""
}

// start runs a foreign program until the test ends. What it says goes to the returned log.
func start(t testing.TB, name string, args ...string) *testLog {
	t.Helper()
	log := &testLog{}
	cmd := exec.Command(program(t, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	stdin := must[io.WriteCloser](t)(cmd.StdinPipe()) // openssl s_server ends with its standard input
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return log
}

// freePort is a port of this machine that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// listens waits until somebody listens.
func listens(t testing.TB, address string) {
	t.Helper()
	until(t, "somebody to listen at "+address, func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}
