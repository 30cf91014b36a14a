package enroll_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/hint"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "a-token-that-nobody-else-may-see"

// fake is a registrar whose answers a test chooses; it notes what it is sent.
type fake struct {
	mu     sync.Mutex
	answer map[string]func(w http.ResponseWriter) // by path; absent: the right one
	bodies map[string][]string
	server *httptest.Server
	config enroll.Config
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{answer: map[string]func(http.ResponseWriter){}, bodies: map[string][]string{}}
	f.server = httptest.NewUnstartedServer(f)
	f.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	f.server.StartTLS()
	t.Cleanup(f.server.Close)
	f.config = enroll.Config{Method: enroll.MethodRegistrar, URL: f.server.URL, Roots: rootsFile(t, f.server.Certificate().Raw)}
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.bodies[r.URL.Path] = append(f.bodies[r.URL.Path], string(body))
	answer := f.answer[r.URL.Path]
	f.mu.Unlock()
	if answer != nil {
		answer(w)
		return
	}
	switch r.URL.Path {
	case wire.PathBegin:
		send(w, wire.Begun{Version: wire.Version, Session: "s", Device: "gw-1", Require: []string{wire.KindCSR}})
	case wire.PathEvidence:
		send(w, wire.Challenged{Challenges: []wire.Item{}})
	case wire.PathFinish:
		send(w, wire.Issued{Chain: "the chain"})
	}
}

func send(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (f *fake) sent(path string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.bodies[path])
}

func rootsFile(t *testing.T, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// device makes certificate requests and counts them.
type device struct {
	t    *testing.T
	csrs [][]byte
}

func (d *device) request() enroll.Request {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		d.t.Fatal(err)
	}
	return enroll.Request{Token: secret, Now: time.Now, CSR: func(name string) ([]byte, error) {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
		d.csrs = append(d.csrs, der)
		return der, err
	}}
}

func TestEnroll(t *testing.T) {
	f, d := newFake(t), &device{t: t}
	result, err := enroll.Enroll(t.Context(), f.config, d.request())
	if err != nil || result.Device != "gw-1" || string(result.Chain) != "the chain" || len(d.csrs) != 1 {
		t.Fatalf("%+v, %v, %d requests", result, err, len(d.csrs))
	}
	if begin := f.sent(wire.PathBegin); len(begin) != 1 || !strings.Contains(begin[0], secret) {
		t.Errorf("begin: %q", begin)
	}
	for _, path := range []string{wire.PathEvidence, wire.PathFinish} {
		if bodies := f.sent(path); len(bodies) != 1 || strings.Contains(bodies[0], secret) {
			t.Errorf("%s: %q; the token is said once", path, bodies)
		}
	}
	readByOpenSSL(t, d.csrs[0])
}

// readByOpenSSL has openssl check the request's signature and subject.
func readByOpenSSL(t *testing.T, csr []byte) {
	t.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is missing; run: make deps")
	}
	path := filepath.Join(t.TempDir(), "csr.der")
	if err := os.WriteFile(path, csr, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(openssl, "req", "-inform", "DER", "-in", path, "-noout", "-verify", "-subject").CombinedOutput()
	text := strings.ReplaceAll(string(out), " = ", "=")
	if err != nil || !strings.Contains(text, "verify OK") || !strings.Contains(text, "CN=gw-1") {
		t.Errorf("openssl req: %v\n%s", err, out)
	}
}

// Whoever cannot prove to be the registrar hears not one byte of the token.
func TestImpostorHearsNothing(t *testing.T) {
	f := newFake(t)
	other := newFake(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: other.server.Certificate().SerialNumber},
		&x509.Certificate{Subject: pkix.Name{CommonName: "another root"}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(f.server.URL, "https://"))
	wrongName := f.config
	wrongName.URL = "https://localhost:" + port // the certificate is for 127.0.0.1 and example.com
	wrongRoots := f.config
	wrongRoots.Roots = rootsFile(t, der)
	d := &device{t: t}
	late := d.request()
	late.Now = func() time.Time { return f.server.Certificate().NotAfter.Add(time.Hour) }
	for name, test := range map[string]struct {
		config  enroll.Config
		request enroll.Request
	}{
		"other roots": {wrongRoots, d.request()},
		"other name":  {wrongName, d.request()},
		"expired":     {f.config, late},
	} {
		_, err := enroll.Enroll(t.Context(), test.config, test.request)
		if !errors.Is(err, enroll.ErrUntrusted) || errors.Is(err, enroll.ErrUnreachable) || errors.Is(err, enroll.ErrRefused) || hint.Of(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error holds the token", name)
		}
	}
	if sent := f.sent(wire.PathBegin); len(sent) != 0 || len(d.csrs) != 0 {
		t.Errorf("an impostor was sent %q", sent)
	}
}

// What cannot be reached is tried a bounded number of times, at growing distances.
func TestUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := listener.Addr().String()
		_ = listener.Close() // nobody listens there now
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)},
			&x509.Certificate{Subject: pkix.Name{CommonName: "root"}}, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c := enroll.Config{Method: enroll.MethodRegistrar, URL: "https://" + address, Roots: rootsFile(t, der)}
		d, begin := &device{t: t}, time.Now()
		_, err = enroll.Enroll(t.Context(), c, d.request())
		if !errors.Is(err, enroll.ErrUnreachable) || hint.Of(err) == "" || len(d.csrs) != 0 {
			t.Errorf("error %v, %d requests signed", err, len(d.csrs))
		}
		if took := time.Since(begin); took != 7*time.Second {
			t.Errorf("it gave up after %v; want 1 s, 2 s and 4 s of pauses", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin = time.Now()
		if _, err = enroll.Enroll(ctx, c, d.request()); err == nil || time.Since(begin) > 0 {
			t.Errorf("cancelled: %v after %v", err, time.Since(begin))
		}
	})
}

// An answer that is lost, or a gateway with nothing behind it, costs one more attempt and
// no second signature: the registrar sees the same request.
func TestPassingFaults(t *testing.T) {
	for name, fault := range map[string]func(http.ResponseWriter){
		"the answer is lost": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"nobody is behind":   func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, d := newFake(t), &device{t: t}
			var once sync.Once
			f.answer[wire.PathFinish] = func(w http.ResponseWriter) {
				failed := false
				once.Do(func() { failed = true })
				if failed {
					fault(w)
				}
				send(w, wire.Issued{Chain: "the chain"})
			}
			result, err := enroll.Enroll(t.Context(), f.config, d.request())
			if err != nil || string(result.Chain) != "the chain" {
				t.Fatalf("%+v, %v", result, err)
			}
			if evidence := f.sent(wire.PathEvidence); len(d.csrs) != 1 || len(evidence) != 2 || evidence[0] != evidence[1] {
				t.Errorf("%d requests signed; evidence %q", len(d.csrs), evidence)
			}
		})
	}
}

func TestAnswersThatAreNoSuccess(t *testing.T) {
	refuse := func(status int, e any) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.WriteHeader(status); send(w, e) }
	}
	begun := func(b wire.Begun) func(http.ResponseWriter) { return func(w http.ResponseWriter) { send(w, b) } }
	for name, test := range map[string]struct {
		path    string
		answer  func(http.ResponseWriter)
		refused bool
		code    string
		says    string
	}{
		"token used":    {wire.PathFinish, refuse(403, wire.Error{Code: wire.CodeTokenUsed, Text: "used already", Hint: "mend it"}), true, wire.CodeTokenUsed, "token-used"},
		"expired":       {wire.PathBegin, refuse(403, wire.Error{Code: wire.CodeTokenExpired, Text: "too late"}), true, wire.CodeTokenExpired, "too late"},
		"unknown":       {wire.PathBegin, refuse(403, wire.Error{Code: wire.CodeTokenUnknown, Text: "unknown"}), true, wire.CodeTokenUnknown, "unknown"},
		"no reason":     {wire.PathBegin, refuse(404, "what?"), true, "", "404"},
		"version":       {wire.PathBegin, begun(wire.Begun{Version: 9, Device: "gw-1"}), true, "", "version 9"},
		"more evidence": {wire.PathBegin, begun(wire.Begun{Version: 1, Device: "gw-1", Require: []string{wire.KindCSR, "tpm-quote"}}), true, "", "tpm-quote"},
		"challenge":     {wire.PathEvidence, func(w http.ResponseWriter) { send(w, wire.Challenged{Challenges: []wire.Item{{Kind: "credential"}}}) }, true, "", "credential"},
		"no JSON":       {wire.PathBegin, func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>") }, false, "", "reading what the registrar answered"},
		"endless": {wire.PathFinish, func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, `{"chain":"`+strings.Repeat("a", 2*wire.MaxBody)+`"}`)
		}, false, "", "reading what the registrar answered"},
	} {
		t.Run(name, func(t *testing.T) {
			f, d := newFake(t), &device{t: t}
			f.answer[test.path] = test.answer
			_, err := enroll.Enroll(t.Context(), f.config, d.request())
			if err == nil || errors.Is(err, enroll.ErrRefused) != test.refused || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), secret) {
				t.Fatalf("error %v", err)
			}
			if reason, ok := errors.AsType[*wire.Error](err); ok != (test.code != "") || ok && reason.Code != test.code {
				t.Errorf("code of %v", err)
			}
			if n := len(f.sent(test.path)); n != 1 {
				t.Errorf("%d attempts; a no is not asked again", n)
			}
		})
	}
}

func TestKeyThatCannotSign(t *testing.T) {
	f, broken := newFake(t), errors.New("the TPM is locked out")
	_, err := enroll.Enroll(t.Context(), f.config, enroll.Request{Token: secret, Now: time.Now,
		CSR: func(string) ([]byte, error) { return nil, broken }})
	if !errors.Is(err, broken) || len(f.sent(wire.PathEvidence)) != 0 {
		t.Errorf("error %v", err)
	}
}

func TestRegistrarSpeaksOldTLS(t *testing.T) {
	f := &fake{answer: map[string]func(http.ResponseWriter){}, bodies: map[string][]string{}}
	server := httptest.NewUnstartedServer(f)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	server.StartTLS()
	defer server.Close()
	c := enroll.Config{Method: enroll.MethodRegistrar, URL: server.URL, Roots: rootsFile(t, server.Certificate().Raw)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // no use in all attempts
	defer cancel()
	d := &device{t: t}
	if _, err := enroll.Enroll(ctx, c, d.request()); err == nil || len(f.sent(wire.PathBegin)) != 0 {
		t.Errorf("TLS 1.1: %v", err)
	}
}

func TestConfig(t *testing.T) {
	good := enroll.Config{Method: enroll.MethodRegistrar, URL: "https://registrar.example:8443", Roots: "r.pem"}
	for _, c := range []enroll.Config{good, enroll.Default()} {
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for name, change := range map[string]func(*enroll.Config){
		"method": func(c *enroll.Config) { c.Method = "magic" },
		"http":   func(c *enroll.Config) { c.URL = "http://registrar.example" },
		"no url": func(c *enroll.Config) { c.URL = "" },
		"roots":  func(c *enroll.Config) { c.Roots = "" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || hint.Of(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := &device{t: t}
	if _, err := enroll.Enroll(t.Context(), enroll.Default(), d.request()); err == nil || hint.Of(err) == "" {
		t.Errorf("method none: %v", err)
	}
	r := d.request()
	r.Token = ""
	if _, err := enroll.Enroll(t.Context(), good, r); !errors.Is(err, enroll.ErrRefused) || hint.Of(err) == "" {
		t.Errorf("no token: %v", err)
	}
	if _, err := enroll.Enroll(t.Context(), good, d.request()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no roots: %v", err)
	}
	good.Roots = filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(good.Roots, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := enroll.Enroll(t.Context(), good, d.request()); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("empty roots: %v", err)
	}
}
