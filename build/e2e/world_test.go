// Package e2e runs the released binaries against foreign peers: mosquitto, swtpm, libmodbus
// and openssl, all started here on loopback and stopped by pid. Where losses are counted, the
// simulated units and the broker of agenttest keep the ledgers: no broker of Debian's
// remembers what it acknowledged when it is killed.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/tpm/tpmtest"
)

// target is one build of the agent and how to run it here.
type target struct {
	name string
	env  []string // for go build
	exec []string // what runs a binary of this architecture
}

var (
	native = target{name: "native"}
	arm64  = target{name: "arm64", env: []string{"GOARCH=arm64"}, exec: []string{"qemu-aarch64-static"}}
	armv6  = target{name: "armv6", env: []string{"GOARCH=arm", "GOARM=6"}, exec: []string{"qemu-arm-static"}}
)

// builds holds what was built for the whole run of the tests.
var builds struct {
	sync.Mutex
	dir  string
	made map[string]string
}

func TestMain(m *testing.M) {
	agenttest.RunBroker() // where this process is to be the broker that a test kills
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	builds.dir, builds.made = dir, make(map[string]string)
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// build builds one command for a target, once, and returns the words that run it.
func build(t *testing.T, program string, on target) []string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	key := program + "-" + on.name
	if _, done := builds.made[key]; !done {
		path := filepath.Join(builds.dir, key)
		command := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", "nethttpomithttp2", "-o", path, "ferrule/cmd/"+program)
		command.Env = append(append(os.Environ(), "CGO_ENABLED=0"), on.env...)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("building %s for %s: %v\n%s", program, on.name, err, out)
		}
		builds.made[key] = path
	}
	return append(append([]string(nil), on.exec...), builds.made[key])
}

// need returns the path of a foreign program, or fails the test.
func need(t *testing.T, program string) string {
	t.Helper()
	for _, name := range []string{program, filepath.Join("/usr/sbin", program)} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing; run: make deps", program)
	return ""
}

// process is a child whose output is kept and that a test stops, or kills.
type process struct {
	*exec.Cmd
	name  string
	ended chan struct{}
	mu    sync.Mutex
	out   bytes.Buffer
	lines chan string // standard output, line by line, for those who wait for one
}

// start starts a child. It is killed at the end of the test if it still runs, and its
// output is shown if the test has failed.
func start(t *testing.T, name string, argv ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(argv[0], argv[1:]...), name: name, ended: make(chan struct{}), lines: make(chan string, 4096)}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stderr = p
	if err := p.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		scanner := bufio.NewScanner(stdout)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			fmt.Fprintln(p, scanner.Text())
			select {
			case p.lines <- scanner.Text():
			default: // nobody waits for this one
			}
		}
		_ = p.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("output of %s:\n%s", name, tail(p.output()))
		}
	})
	return p
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func tail(text string) string {
	const most = 6000
	if len(text) > most {
		return "…" + text[len(text)-most:]
	}
	return text
}

func (p *process) kill() {
	_ = p.Process.Kill()
	<-p.ended
}

// stop ends the child by SIGTERM and returns its exit code.
func (p *process) stop(t *testing.T) int {
	t.Helper()
	_ = p.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(60 * time.Second):
		t.Errorf("%s does not end on SIGTERM", p.name)
		p.kill()
	}
	return p.ProcessState.ExitCode()
}

// waitLine waits for a line of standard output that contains text.
func (p *process) waitLine(t *testing.T, text string) string {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case line := <-p.lines:
			if strings.Contains(line, text) {
				return line
			}
		case <-p.ended:
			t.Fatalf("%s ended before it said %q:\n%s", p.name, text, tail(p.output()))
		case <-deadline:
			t.Fatalf("%s did not say %q:\n%s", p.name, text, tail(p.output()))
		}
	}
}

// run runs a command to its end and returns its output and exit code.
func run(t *testing.T, stdin string, argv ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &out, &errs
	err := command.Run()
	if _, isExit := err.(*exec.ExitError); err != nil && !isExit {
		t.Fatalf("running %v: %v", argv, err)
	}
	return out.String(), errs.String(), command.ProcessState.ExitCode()
}

// mustRun is run for a command that has to succeed.
func mustRun(t *testing.T, stdin string, argv ...string) string {
	t.Helper()
	stdout, stderr, code := run(t, stdin, argv...)
	if code != 0 {
		t.Fatalf("%v: exit code %d\n%s%s", argv, code, stdout, stderr)
	}
	return stdout
}

// world is a factory and a site: CA, registrar, TPM and broker.
type world struct {
	dir       string
	ca        string // directory of ferrule-factory ca
	factory   []string
	registrar string // URL
	issuing   *process
	tpm       *tpmtest.Swtpm
	broker    string // host:port of mosquitto
	mosquitto *process
	unit      *process // the libmodbus unit, where one was started
	operator  struct{ cert, key string }
}

// newWorld starts everything a gateway needs around it, with mosquitto as the broker.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := newFactory(t)
	w.startMosquitto(t)
	return w
}

// newFactory starts CA, registrar and TPM, and keeps a port for the broker.
func newFactory(t *testing.T) *world {
	t.Helper()
	dir := shortDir(t)
	w := &world{dir: dir, ca: filepath.Join(dir, "ca"), factory: build(t, "ferrule-factory", native)}
	mustRun(t, "", append(w.factory, "ca", "init", "--host", "127.0.0.1", w.ca)...)
	w.issuing = start(t, "registrar", append(w.factory, "registrar", "--ca", w.ca, "--listen", "127.0.0.1:0", "--trust-ek-on-first-use", "--allow-software-keys")...)
	line := w.issuing.waitLine(t, "127.0.0.1:")
	_, port, _ := strings.Cut(line, "127.0.0.1:")
	w.registrar = "https://127.0.0.1:" + strings.TrimRight(strings.Fields(port)[0], `",}`)
	w.tpm = tpmtest.Start(t)
	w.broker = net.JoinHostPort("127.0.0.1", freePort(t))
	return w
}

// shortDir makes a directory. A unix socket's path holds 107 bytes at most, so t.TempDir will not do.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// startMosquitto starts the broker as its users run it: TLS, client certificates required.
func (w *world) startMosquitto(t *testing.T) {
	t.Helper()
	w.startMosquittoWith(t, filepath.Join(w.ca, "root.crt"))
}

// startMosquittoWith lets in the clients of another root.
func (w *world) startMosquittoWith(t *testing.T, clientRoot string) {
	t.Helper()
	_, port, _ := net.SplitHostPort(w.broker)
	path := w.file(t, "mosquitto.conf", fmt.Sprintf(`listener %s 127.0.0.1
cafile %s
certfile %s/broker.crt
keyfile %s/broker.key
require_certificate true
use_identity_as_username true
persistence false
max_inflight_messages 0
max_queued_messages 0
user root
`, port, clientRoot, w.ca, w.ca))
	w.mosquitto = start(t, "mosquitto", need(t, "mosquitto"), "-c", path, "-v")
	w.waitPort(t, w.broker)
}

func (w *world) waitPort(t *testing.T, address string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		if conn, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			_ = conn.Close()
			return
		}
	}
	t.Fatalf("nobody listens on %s", address)
}

// file writes one file into the world's directory.
func (w *world) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// token gets a one-time token for a device.
func (w *world) token(t *testing.T, device string) string {
	t.Helper()
	var answer struct {
		Token string `json:"token"`
	}
	out := mustRun(t, "", append(w.factory, "token", "add", "--device", device, "--json", w.ca)...)
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Token == "" {
		t.Fatalf("no token in %q: %v", out, err)
	}
	return answer.Token
}

// subscriber is an independent witness: mosquitto_sub with a certificate of its own.
func (w *world) subscriber(t *testing.T) *process {
	t.Helper()
	cert, key := w.clientCertificate(t, "witness")
	host, port, _ := net.SplitHostPort(w.broker)
	// Without stdbuf a pipe is written 4 KiB at a time.
	p := start(t, "mosquitto_sub", need(t, "stdbuf"), "-oL", need(t, "mosquitto_sub"), "-h", host, "-p", port, "-q", "1", "-t", "ferrule/#",
		"-i", "witness", "-F", "%t %p", "--cafile", filepath.Join(w.ca, "root.crt"), "--cert", cert, "--key", key)
	waitFor(t, "the witness's subscription", func() bool {
		return strings.Contains(w.mosquitto.output(), "Sending SUBACK to witness")
	})
	return p
}

// clientCertificate has openssl issue a certificate below the device CA.
func (w *world) clientCertificate(t *testing.T, name string) (cert, key string) {
	t.Helper()
	openssl := need(t, "openssl")
	key, csr := filepath.Join(w.dir, name+".key"), filepath.Join(w.dir, name+".csr")
	leaf := filepath.Join(w.dir, name+".leaf")
	mustRun(t, "", openssl, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
	mustRun(t, "", openssl, "req", "-new", "-key", key, "-subj", "/CN="+name, "-out", csr)
	mustRun(t, "", openssl, "x509", "-req", "-in", csr, "-days", "1", "-CA", filepath.Join(w.ca, "device-ca.crt"),
		"-CAkey", filepath.Join(w.ca, "device-ca.key"), "-CAcreateserial", "-out", leaf)
	chain, err := os.ReadFile(leaf)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(w.ca, "device-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	return w.file(t, name+".crt", string(chain)+string(ca)), key
}

var _ io.Writer = (*process)(nil)
