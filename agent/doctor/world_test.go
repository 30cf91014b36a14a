package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
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
	"ferrule/agent/session/dial"
	"ferrule/internal/disk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen, also under an emulator.
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

// world is a device and the authority that it and its broker are of.
type world struct {
	t      testing.TB
	ca     *agenttest.CA
	server *agenttest.Issued
	device *agenttest.Issued
	clock  identity.Clock
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ca := must[*agenttest.CA](t)(agenttest.NewCA("test"))
	return &world{t: t, ca: ca, server: must[*agenttest.Issued](t)(ca.Server()),
		device: must[*agenttest.Issued](t)(ca.Device("device-1")), clock: identity.TrustedClock(time.Now)}
}

// credential is the device's, as the agent has it.
func (w *world) credential() *identity.Credential {
	w.t.Helper()
	dir := w.t.TempDir()
	for name, data := range map[string][]byte{"device.crt": w.device.ChainPEM, "device.pem": w.device.KeyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	id := must[*identity.Identity](w.t)(identity.Open(context.Background(),
		identity.Config{TPM: "none", Key: "file:device.pem", Certificate: "device.crt", AllowSoftwareKey: true},
		identity.Options{StateDir: dir, FS: disk.OS(), Clock: w.clock, Log: slog.New(slog.DiscardHandler)}))
	w.t.Cleanup(func() { _ = id.Close() })
	return id.Current()
}

// options are those of a run at the broker of a URL.
func (w *world) options(broker string) Options {
	w.t.Helper()
	o := Options{
		Version: "test", Device: "device-1", By: ByCommand, Clock: w.clock,
		Brokers: []dial.Broker{must[dial.Broker](w.t)(dial.ParseBroker(broker))}, Dial: dial.DefaultConfig(),
		Roots:    func() *x509.CertPool { return w.ca.Pool() },
		ClientID: "device-1", Filter: "ferrule/device-1/command/+", Probe: "ferrule/device-1/reply/doctor",
		Timeouts: Timeouts{All: patience},
	}
	if w.device != nil {
		c := w.credential()
		o.Credential = func() *identity.Credential { return c }
	}
	return o
}

func (w *world) run(broker string, change ...func(*Options)) Report {
	w.t.Helper()
	o := w.options(broker)
	for _, f := range change {
		f(&o)
	}
	return Run(w.t.Context(), o)
}

// quick makes stages that are to time out do so soon.
func quick(o *Options) {
	o.Timeouts.TLS = 3 * time.Second
}

// find returns what was seen of a layer.
func find(t testing.TB, r Report, layer Layer) Result {
	t.Helper()
	for _, c := range r.Checks {
		if c.Layer == layer {
			return c
		}
	}
	t.Fatalf("no layer %s in %+v", layer, r.Checks)
	return Result{}
}

func show(t testing.TB, r Report) {
	t.Helper()
	var b strings.Builder
	_ = r.Print(&b, Style{})
	_ = r.Explain(&b)
	t.Log("\n" + b.String())
}

// serve answers connections with handle, one goroutine each, until the test ends.
func serve(t testing.TB, handle func(net.Conn)) (url string) {
	t.Helper()
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			all.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return "mqtts://" + listener.Addr().String()
}

// secure is serve behind TLS; handle is called once the handshake is over, as the server sees it.
func secure(t testing.TB, config *tls.Config, handle func(net.Conn)) (url string) {
	t.Helper()
	return serve(t, func(raw net.Conn) {
		conn := tls.Server(raw, config)
		if conn.Handshake() == nil {
			handle(conn)
		}
	})
}

// speaks answers every packet that doctor sends as a broker does, as long as answer lets it: it is
// given the packet's type and returns what to send, or false to hang up.
func speaks(answer func(kind byte) (reply []byte, more bool)) func(net.Conn) {
	return func(c net.Conn) {
		buffer := make([]byte, 4096)
		for {
			n, err := c.Read(buffer)
			if err != nil || n == 0 {
				return
			}
			reply, more := answer(buffer[0] >> 4)
			if _, err := c.Write(reply); err != nil || !more {
				return
			}
		}
	}
}

// good is the answer of a broker that has nothing against anything.
func good(kind byte) ([]byte, bool) {
	switch kind {
	case packetConnect:
		return []byte{packetConnack << 4, 2, 0, 0}, true
	case packetSubscribe:
		return []byte{packetSuback << 4, 3, 0, subscribeID, 1}, true
	case packetPublish:
		return []byte{packetPuback << 4, 2, 0, publishID}, true
	}
	return nil, kind != packetDisconnect
}

// program returns the path of a foreign program.
func program(t testing.TB, name string) string {
	t.Helper()
	for _, path := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	t.Fatal(name + " is missing; run: make deps")
	return ""
}

func freePort(t testing.TB) string {
	t.Helper()
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// child is a foreign server.
type child struct {
	mu  sync.Mutex
	out strings.Builder
}

func (c *child) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *child) said(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(c.out.String(), text)
}

// start starts a foreign server and waits until it listens on port.
func start(t testing.TB, port string, argv ...string) *child {
	t.Helper()
	c := &child{}
	cmd := exec.Command(program(t, argv[0]), argv[1:]...)
	cmd.Stdout, cmd.Stderr = c, c
	stdin := must[interface {
		Write([]byte) (int, error)
		Close() error
	}](t)(cmd.StdinPipe()) // openssl s_server ends with its standard input
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = stdin.Close()
		if t.Failed() {
			t.Logf("%s said:\n%s", argv[0], c.out.String())
		}
	})
	until(t, argv[0]+" to listen", func() bool {
		select {
		case <-ended:
			t.Fatal(argv[0] + " ended")
		default:
		}
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return c
}

// files writes the server's certificate and the authorities of its clients.
func (w *world) files(server *agenttest.Issued, clients *agenttest.CA) (dir string) {
	w.t.Helper()
	dir = w.t.TempDir()
	for name, data := range map[string][]byte{"server.crt": server.ChainPEM, "server.key": server.KeyPEM, "ca.crt": clients.RootPEM()} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	return dir
}

// openssl starts openssl s_server, which asks for a client certificate as flags say.
func (w *world) openssl(server *agenttest.Issued, clients *agenttest.CA, flags ...string) (url string) {
	w.t.Helper()
	dir, port := w.files(server, clients), freePort(w.t)
	start(w.t, port, append([]string{"openssl", "s_server", "-accept", "127.0.0.1:" + port,
		"-cert", dir + "/server.crt", "-cert_chain", dir + "/server.crt", "-key", dir + "/server.key"},
		strings.Fields(strings.ReplaceAll(strings.Join(flags, " "), "{ca}", dir+"/ca.crt"))...)...)
	return "mqtts://127.0.0.1:" + port
}

// mosquitto starts mosquitto, which requires client certificates.
func (w *world) mosquitto(server *agenttest.Issued, clients *agenttest.CA, extra ...string) (url string, log *child) {
	w.t.Helper()
	dir, port := w.files(server, clients), freePort(w.t)
	config := fmt.Sprintf("listener %s 127.0.0.1\ncafile %s/ca.crt\ncertfile %s/server.crt\nkeyfile %s/server.key\nrequire_certificate true\n"+
		"allow_anonymous true\npersistence false\nlog_dest stderr\nlog_type all\nuser root\n%s\n", port, dir, dir, dir, strings.Join(extra, "\n"))
	if err := os.WriteFile(filepath.Join(dir, "mosquitto.conf"), []byte(config), 0o600); err != nil {
		w.t.Fatal(err)
	}
	log = start(w.t, port, "mosquitto", "-c", filepath.Join(dir, "mosquitto.conf"))
	return "mqtts://127.0.0.1:" + port, log
}
