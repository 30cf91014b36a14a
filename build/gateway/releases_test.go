package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// releases is what the release engineer has: a repository made by ferrule-release, the images in
// it, and the server that hands it out, to devices of the factory's CA alone.
type releases struct {
	dir    string // of the repository
	keys   string
	root   string // root.json, as devices pin it
	port   string
	images map[string]string // version → slot image

	mu     sync.Mutex
	served int64 // bytes of objects
	gate   func(served int64)
	ends   int // objects whose last byte was handed out
}

// newReleases publishes the flashed image as 1.0.0.
func newReleases(t *testing.T, w *world) *releases {
	t.Helper()
	base := filepath.Join(w.dir, "releases")
	r := &releases{dir: filepath.Join(base, "repository"), keys: filepath.Join(base, "keys"), images: map[string]string{}}
	mustRun(t, made.release, "keys", "init", r.dir, "--keys", r.keys, "--root", filepath.Join(base, "root"))
	root, err := os.ReadFile(filepath.Join(r.dir, "metadata", "1.root.json"))
	if err != nil {
		t.Fatal(err)
	}
	r.root = string(root)
	r.serve(t, w)
	return r
}

// kind is one release that is built for these tests: what is different with it.
type kind struct {
	version string
	agent   string // source of a program in the agent's place
	broken  string // as image's flag
}

// build makes the slot image of a release, once for all tests.
func build(t *testing.T, k kind) string {
	t.Helper()
	tools(t)
	made.mu.Lock()
	defer made.mu.Unlock()
	if made.slots == nil {
		made.slots = map[kind]string{{version: "1.0.0"}: filepath.Join(made.dir, "A", "ferrule-qemu-arm64.rootfs.ext4")}
	}
	if image, ok := made.slots[k]; ok {
		return image
	}
	dir := filepath.Join(made.dir, fmt.Sprintf("slot%d", len(made.slots)))
	words := []string{made.image, "-o", dir, "-version", k.version, "-broken", k.broken}
	if k.agent != "" {
		words = append(words, "-agent", compile(t, dir, k.agent))
	}
	if err := inRoot(t, append(words, "slot")...); err != nil {
		t.Fatal(err)
	}
	made.slots[k] = filepath.Join(dir, "ferrule-qemu-arm64.rootfs.ext4")
	return made.slots[k]
}

// compile makes a program for the gateway.
func compile(t *testing.T, dir, source string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "main.go")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := inRoot(t, "env", "GOARCH=arm64", "go", "build", "-o", filepath.Join(dir, "agent"), file); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "agent")
}

// publish makes a release of an image and hands it out.
func (r *releases) publish(t *testing.T, k kind, flags ...string) {
	t.Helper()
	image := build(t, k)
	words := append([]string{made.release, "bundle", r.dir, "--product", "gw", "--version", k.version}, flags...)
	t.Logf("%s", strings.TrimSpace(mustRun(t, append(words, "rootfs="+image)...)))
	words = []string{made.release, "publish", r.dir, "--keys", r.keys}
	for n, flag := range flags {
		if flag == "--allow" {
			words = append(words, flag, flags[n+1])
		}
	}
	mustRun(t, words...)
	r.images[k.version] = image
}

// serve is any static web server, but that it wants the device's certificate and can hold a download.
func (r *releases) serve(t *testing.T, w *world) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(w.ca, "broker.crt"), filepath.Join(w.ca, "broker.key"))
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(w.ca, "root.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	files := http.FileServer(http.Dir(r.dir))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		if strings.HasPrefix(q.URL.Path, "/targets/") {
			c := &counted{rw, r, false}
			files.ServeHTTP(c, q)
			if c.whole {
				r.mu.Lock()
				r.ends++
				r.mu.Unlock()
			}
			return
		}
		files.ServeHTTP(rw, q)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	_, r.port, _ = net.SplitHostPort(server.Listener.Addr().String())
}

// counted counts what is handed out, and asks the gate before every piece.
type counted struct {
	http.ResponseWriter
	r     *releases
	whole bool // nothing went wrong while something was written
}

func (c *counted) Write(p []byte) (int, error) {
	const piece = 64 << 10
	total := 0
	for len(p) > 0 {
		c.r.mu.Lock()
		gate, served := c.r.gate, c.r.served
		c.r.mu.Unlock()
		if gate != nil {
			gate(served)
		}
		n, err := c.ResponseWriter.Write(p[:min(piece, len(p))])
		total += n
		c.r.mu.Lock()
		c.r.served += int64(n)
		c.r.mu.Unlock()
		if c.whole = err == nil; err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

// hold calls gate before each piece of an object is handed out, with the bytes handed out since
// hold; nil: nothing is held.
func (r *releases) hold(gate func(served int64)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate, r.served, r.ends = gate, 0, 0
}

// finished says that some object was handed out to its end since hold.
func (r *releases) finished() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ends > 0
}

// table is the configuration that follows these releases.
func (r *releases) table(tries int) string {
	return fmt.Sprintf(`[update]
repository = "https://%s:%s"
root = "/etc/ferrule/root.json"
product = "gw"
check_every = "0s"
boot = "uboot"
environment = "/etc/fw_env.config format=script"
tries = %d
floor = "tpm"

[update.slots]
a = { rootfs = "/dev/disk/by-partlabel/slot-a" }
b = { rootfs = "/dev/disk/by-partlabel/slot-b" }
`, host, r.port, tries)
}
