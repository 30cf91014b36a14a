//go:build cgo

package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/signer"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

const pin, soPIN = "482913", "39481726"

// asProgram in the environment makes this binary ferrule-p11, for tests that kill it.
const asProgram = "FERRULE_P11_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	testscript.Main(leaks{m}, map[string]func(){"ferrule-p11": main})
}

// leaks runs the tests and looks for goroutines that nobody waits for.
type leaks struct{ m *testing.M }

func (l leaks) Run() int {
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// softhsm is a folder of tokens of SoftHSM.
type softhsm struct {
	t   testing.TB
	dir string
}

// newSofthsm makes an empty folder and points this process, and its children, to it.
func newSofthsm(t testing.TB) *softhsm {
	t.Helper()
	h := &softhsm{t: t, dir: shortDir(t)}
	if err := os.Mkdir(h.file("tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.write("softhsm2.conf", "directories.tokendir = "+h.file("tokens")+"\nobjectstore.backend = file\nlog.level = ERROR\n")
	h.write("pin", pin+"\n")
	t.Setenv("SOFTHSM2_CONF", h.file("softhsm2.conf"))
	return h
}

// shortDir is one whose sockets' paths are short enough.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p11")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (h *softhsm) file(name string) string { return filepath.Join(h.dir, name) }

func (h *softhsm) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(h.file(name), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// util runs softhsm2-util.
func (h *softhsm) util(args ...string) {
	h.t.Helper()
	if out, err := exec.CommandContext(h.t.Context(), need(h.t, "softhsm2-util"), args...).CombinedOutput(); err != nil {
		h.t.Fatalf("softhsm2-util %q: %v\n%s", args, err, out)
	}
}

// initToken makes a token, or empties the one with this label.
func (h *softhsm) initToken(label string, again bool) {
	h.t.Helper()
	where := []string{"--free"}
	if again {
		where = []string{"--token", label}
	}
	h.util(append([]string{"--init-token", "--label", label, "--pin", pin, "--so-pin", soPIN}, where...)...)
}

// put imports a key that was made elsewhere.
func (h *softhsm) put(token, label, id string, key crypto.PrivateKey) {
	h.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write("import.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	h.util("--import", h.file("import.pem"), "--token", token, "--label", label, "--id", id, "--pin", pin, "--force")
}

func need(t testing.TB, program string) string {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing; run: make deps", program)
	return ""
}

func softhsmModule(t testing.TB) string {
	t.Helper()
	const path = "/usr/lib/softhsm/libsofthsm2.so"
	if _, err := os.Stat(path); err != nil {
		t.Fatal("softhsm2 is missing; run: make deps")
	}
	return path
}

// faulty builds the module that fails as its plan says.
func (h *softhsm) faulty() (module string) {
	h.t.Helper()
	path := h.file("faulty.so")
	out, err := exec.CommandContext(h.t.Context(), need(h.t, "gcc"), "-Wall", "-shared", "-fPIC", "-o", path, "testdata/faulty.c", "-ldl").CombinedOutput()
	if err != nil {
		h.t.Fatalf("%v\n%s", err, out)
	}
	h.t.Setenv("FAULTY_MODULE", softhsmModule(h.t))
	h.t.Setenv("FAULTY_PLAN", h.file("plan"))
	h.plan("")
	return path
}

func (h *softhsm) plan(word string) { h.write("plan", word) }

// calls are how often the faulty module has noted letter since it was asked last.
func (h *softhsm) calls(letter string) int { return strings.Count(h.noted(), letter) }

// notes are the logins and initialisations since the module was asked last.
func (h *softhsm) notes() (logins, inits int) {
	text := h.noted()
	return strings.Count(text, "l"), strings.Count(text, "i")
}

func (h *softhsm) noted() string {
	h.t.Helper()
	data, err := os.ReadFile(h.file("plan.calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	if err := os.RemoveAll(h.file("plan.calls")); err != nil {
		h.t.Fatal(err)
	}
	return string(data)
}

// config is that of a token in h.
func (h *softhsm) config(label string) tokenConfig {
	return tokenConfig{
		module: softhsmModule(h.t), label: label, create: true,
		pin: pinSource(h.file("pin"), ""), log: slog.New(slog.DiscardHandler),
	}
}

func mustOpenToken(t testing.TB, c tokenConfig) *token {
	t.Helper()
	tok, err := openToken(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tok.close)
	return tok
}

// serveToken serves tok on a socket, and returns its path.
func serveToken(t testing.TB, tok signer.Keys) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	l, err := signer.Listen(path, 0o600, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- signer.Serve(ctx, l, tok, signer.ServeOptions{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

// openKey opens a key as the agent does.
func openKey(t testing.TB, socket, name string) tpm.DeviceKey {
	t.Helper()
	k, err := tpm.OpenKey(t.Context(), uri(socket, name), tpm.KeyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func uri(socket, name string) string {
	if name == "" {
		return "signer:unix=" + socket
	}
	return "signer:unix=" + socket + "?key=" + name
}

func sign(k crypto.Signer) error {
	digest := make([]byte, 32)
	if _, err := rand.Read(digest); err != nil {
		return err
	}
	signature, err := k.Sign(nil, digest, crypto.SHA256)
	if err == nil && !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest, signature) {
		err = errors.New("the signature is wrong")
	}
	return err
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// program is a ferrule-p11 process.
type program struct {
	t     *testing.T
	cmd   *exec.Cmd
	mu    sync.Mutex
	log   strings.Builder
	ready chan struct{} // closed when it serves
	ended chan struct{}
}

// startProgram starts ferrule-p11 and waits until it serves.
func startProgram(t *testing.T, args ...string) *program {
	t.Helper()
	p := launch(t, args...)
	select {
	case <-p.ready:
	case <-p.ended:
		t.Fatalf("ferrule-p11 ended: %s", p.output())
	}
	return p
}

func launch(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(os.Args[0], args...), ready: make(chan struct{}), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	stderr, err := p.cmd.StderrPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go p.read(stderr)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("ferrule-p11:\n%s", p.output())
		}
	})
	return p
}

func (p *program) read(stderr io.Reader) {
	serving := sync.OnceFunc(func() { close(p.ready) })
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		p.mu.Lock()
		fmt.Fprintln(&p.log, lines.Text())
		p.mu.Unlock()
		if strings.Contains(lines.Text(), "serving") {
			serving()
		}
	}
	_ = p.cmd.Wait()
	close(p.ended)
}

func (p *program) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// end sends a signal and returns the exit code.
func (p *program) end(s syscall.Signal) int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
	<-p.ended
	return p.cmd.ProcessState.ExitCode()
}

func digestOf(text string) []byte {
	d := sha256.Sum256([]byte(text))
	return d[:]
}
