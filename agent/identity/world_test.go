package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/identity"
	"ferrule/internal/disk"
	"ferrule/tpm/attest"

	"go.uber.org/goleak"
)

var background = context.Background()

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// factory is a CA with its registrar, which listens on loopback.
type factory struct {
	dir    string
	ca     *ca.CA
	book   *records.Book
	enroll enroll.Config
	fs     *hookedFS
}

// hookedFS tells a test of every token that is redeemed, at that moment.
type hookedFS struct {
	disk.FS
	onRename func(to string)
}

func (h *hookedFS) Rename(from, to string) error {
	if h.onRename != nil {
		h.onRename(to)
	}
	return h.FS.Rename(from, to)
}

// newFactory starts a factory whose device certificates live for life.
func newFactory(t *testing.T, life time.Duration) *factory {
	t.Helper()
	f := &factory{dir: t.TempDir(), fs: &hookedFS{FS: disk.OS()}}
	var err error
	if f.ca, err = ca.Init(f.fs, f.dir, "test"); err != nil {
		t.Fatal(err)
	}
	if f.book, err = records.Open(f.fs, f.dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"registrar", "broker"} {
		if err := f.ca.Server(name, []string{"localhost", "127.0.0.1"}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(background)
	r := registrar.New(registrar.Config{
		CA: f.ca, Records: f.book, Life: life, TPMs: attest.Verifier{TrustOnFirstUse: true}, AllowSoftwareKeys: true,
	}, slog.New(slog.DiscardHandler))
	listener, err := r.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx, listener) }() // ends with ctx; the cleanup waits
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	f.enroll = enroll.Config{
		Method: enroll.MethodRegistrar, URL: "https://" + listener.Addr().String(), Roots: filepath.Join(f.dir, "root.crt"),
	}
	return f
}

func (f *factory) token(t testing.TB, device string) string {
	t.Helper()
	token, err := f.book.AddToken(device, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// issued is the number of certificates that left the factory.
func (f *factory) issued(t testing.TB) int {
	t.Helper()
	grants, err := f.book.Tokens()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range grants {
		if g.Used() {
			n++
		}
	}
	return n
}

func (f *factory) roots(t testing.TB) *x509.CertPool {
	t.Helper()
	return pool(t, filepath.Join(f.dir, "root.crt"))
}

func pool(t testing.TB, path string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(text) {
		t.Fatalf("%s holds no certificate", path)
	}
	return p
}

func software() identity.Config {
	return identity.Config{TPM: "none", Key: "file:device.pem", Certificate: "device.crt", AllowSoftwareKey: true}
}

func inTPM(address string) identity.Config {
	c := identity.Default()
	c.TPM = address
	return c
}

func options(dir string) identity.Options { return optionsOn(disk.OS(), dir) }

func optionsOn(fsys disk.FS, dir string) identity.Options {
	return identity.Options{StateDir: dir, FS: fsys, Clock: identity.TrustedClock(time.Now), Log: slog.New(slog.DiscardHandler)}
}

func mustEnroll(t testing.TB, f *factory, c identity.Config, o identity.Options, token string) identity.Result {
	t.Helper()
	result, err := identity.Enroll(background, c, o, f.enroll, identity.EnrollRequest{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func mustOpen(t testing.TB, c identity.Config, o identity.Options) *identity.Identity {
	t.Helper()
	i, err := identity.Open(background, c, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	return i
}

func read(t testing.TB, dir, name string) string {
	t.Helper()
	text, err := fs.ReadFile(os.DirFS(dir), name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// server answers every connection with the fingerprint of the certificate it was shown.
func (f *factory) server(t *testing.T, version uint16, clients *x509.CertPool) (address string) {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(filepath.Join(f.dir, "broker.crt"), filepath.Join(f.dir, "broker.key"))
	if err != nil {
		t.Fatal(err)
	}
	return f.serverWith(t, certificate, version, clients)
}

// serverWith is server with a certificate of the test's own.
func (f *factory) serverWith(t *testing.T, certificate tls.Certificate, version uint16, clients *x509.CertPool) (address string) {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{certificate}, MinVersion: version, MaxVersion: version,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends when the listener is closed; the cleanup waits
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			answer(conn.(*tls.Conn))
		}
	}()
	t.Cleanup(func() { _ = listener.Close(); <-ended })
	return listener.Addr().String()
}

func answer(conn *tls.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if conn.Handshake() != nil {
		return
	}
	shown := conn.ConnectionState().PeerCertificates[0]
	_, _ = conn.Write([]byte(shown.Subject.CommonName + " " + shown.SerialNumber.Text(16) + "\n"))
}

// meet connects with c and returns what the server was shown.
func meet(c *identity.Credential, roots *x509.CertPool, address string) (shown string, resumed bool, err error) {
	conn, err := (&tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: c.TLS(roots, "localhost"),
	}).Dial("tcp", address)
	if err != nil {
		return "", false, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	buffer := make([]byte, 256)
	n, err := conn.Read(buffer)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil // the end came with the last bytes
	}
	return strings.TrimSpace(string(buffer[:n])), conn.(*tls.Conn).ConnectionState().DidResume, err
}

func face(c *identity.Credential) string {
	return c.Leaf().Subject.CommonName + " " + c.Leaf().SerialNumber.Text(16)
}
