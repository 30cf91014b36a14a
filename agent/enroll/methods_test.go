package enroll_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/enroll"
	"ferrule/agent/enroll/peer"
	"ferrule/agent/enroll/stepca"
	"ferrule/internal/hint"
)

// site is one service that issues certificates, and the gateway gw-1 with its factory
// certificate.
type site struct {
	config  enroll.Config
	factory *agenttest.Issued
	// token is one that entitles gw-1; it may be used up by a call.
	token func(t *testing.T) string
	// roots says whether the service tells its roots.
	roots bool
	// returns says whether it takes a device back that shows nothing.
	returns bool
}

func newCA(t testing.TB, name string) *agenttest.CA {
	t.Helper()
	ca, err := agenttest.NewCA(name)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func deviceOf(t testing.TB, ca *agenttest.CA, id string) *agenttest.Issued {
	t.Helper()
	issued, err := ca.Device(id)
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

func file(t testing.TB, name string, text []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func startEST(t testing.TB, c agenttest.ESTConfig) (*agenttest.EST, enroll.Config) {
	t.Helper()
	server, err := agenttest.StartEST(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server, enroll.Config{Method: enroll.MethodEST, URL: server.URL(), Roots: file(t, "roots.pem", c.CA.RootPEM(), 0o600)}
}

func estSite(t testing.TB) *site {
	factory := newCA(t, "factory")
	_, c := startEST(t, agenttest.ESTConfig{
		CA: newCA(t, "site"), Factory: factory, Users: map[string]string{"line": "pass:word"}, Label: "gateways",
	})
	return &site{config: c, factory: deviceOf(t, factory, "gw-1"), roots: true,
		token: func(*testing.T) string { return "line:pass:word" }}
}

func startStep(t testing.TB, o agenttest.StepOptions) (*agenttest.StepCA, enroll.Config) {
	t.Helper()
	program, err := agenttest.StepCAProgram()
	if err != nil {
		t.Fatal(err)
	}
	server, err := agenttest.StartStepCA(t.Context(), program, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	return server, enroll.Config{
		Method: enroll.MethodStep, URL: server.URL(), Provisioner: agenttest.StepX5C,
		Roots: file(t, "roots.pem", server.RootPEM(), 0o600),
	}
}

// stepToken is what step ca token prints for gw-1.
func stepToken(t testing.TB, server *agenttest.StepCA) string {
	t.Helper()
	client, err := stepca.New(server.URL(), peer.Options{Roots: server.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	token, err := client.JWKToken(agenttest.StepJWK, agenttest.StepKeyID, server.Key(), "gw-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func stepSite(t testing.TB) *site {
	factory := newCA(t, "factory")
	server, c := startStep(t, agenttest.StepOptions{Factory: factory})
	return &site{config: c, factory: deviceOf(t, factory, "gw-1"), roots: true,
		token: func(t *testing.T) string { return stepToken(t, server) }}
}

// execSite is a CA of openssl behind a shell script.
func execSite(t testing.TB) *site {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing; run: make deps")
	}
	ca := t.TempDir()
	script := file(t, "sign", []byte(`set -eu
cd "$1"
case $FERRULE_PURPOSE in first | renew | return) ;; *) exit 1 ;; esac
openssl x509 -req -CA ca.crt -CAkey ca.key -days 1 -extfile ext 2>openssl.log
cat ca.crt
`), 0o600)
	setup := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-subj", "/CN=hook", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt")
	setup.Dir = ca
	if out, err := setup.CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(ca, "ext"), []byte("keyUsage=digitalSignature\nextendedKeyUsage=clientAuth\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &site{
		config: enroll.Config{
			Method: enroll.MethodExec, Command: []string{"/bin/sh", script, ca}, Roots: filepath.Join(ca, "ca.crt"),
		},
		factory: deviceOf(t, newCA(t, "factory"), "gw-1"), roots: true, returns: true,
		token: func(*testing.T) string { return "secret" },
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// asking makes the request of a device with this key.
func asking(key crypto.Signer) enroll.Request {
	return enroll.Request{
		Now: time.Now,
		CSR: func(device string) ([]byte, error) {
			return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, key)
		},
		CSRLike: func(template *x509.CertificateRequest) ([]byte, error) {
			return x509.CreateCertificateRequest(rand.Reader, template, key)
		},
	}
}

// good checks what came back as the device would, and as openssl does.
func (s *site) good(t *testing.T, result enroll.Result, err error, key crypto.Signer) *tls.Certificate {
	t.Helper()
	if err != nil {
		t.Fatalf("%v\nhint: %s", err, hint.Of(err))
	}
	chain, err := peer.ParsePEM(result.Chain)
	if err != nil {
		t.Fatal(err)
	}
	if got := chain[0].Subject.CommonName; result.Device != "gw-1" || got != "gw-1" {
		t.Errorf("for %q, device %q", got, result.Device)
	}
	if !chain[0].PublicKey.(*ecdsa.PublicKey).Equal(key.Public()) {
		t.Error("for another key")
	}
	if err := s.config.Verify(chain, time.Now()); err != nil {
		t.Error(err)
	}
	if s.roots != (len(result.Roots) > 0) {
		t.Errorf("the roots are %q", result.Roots)
	}
	path := file(t, "chain.pem", result.Chain, 0o600)
	out, err := exec.Command("openssl", "verify", "-purpose", "sslclient", "-CAfile", s.config.Roots, "-untrusted", path, path).CombinedOutput()
	if err != nil {
		t.Errorf("openssl verify: %v\n%s", err, out)
	}
	certificate := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		certificate.Certificate = append(certificate.Certificate, c.Raw)
	}
	return certificate
}

// Every method, against the real peer: first certificate by token and by factory certificate,
// renewal with the same key and a new one, and the way back.
func TestMethods(t *testing.T) {
	for name, open := range map[string]func(testing.TB) *site{"est": estSite, "step": stepSite, "exec": execSite} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			if err := s.config.Validate(); err != nil {
				t.Fatal(err)
			}
			s.config.Device = "gw-1" // where neither token nor certificate says so
			s.lifeOf(t)
			s.wayBack(t)
		})
	}
}

func (s *site) lifeOf(t *testing.T) {
	key := newKey(t)
	r := asking(key)
	r.Token = s.token(t)
	result, err := enroll.Enroll(t.Context(), s.config, r)
	present := s.good(t, result, err, key)

	r = asking(key)
	r.Purpose, r.Present, r.SameKey = enroll.Renew, present, true
	result, err = enroll.Enroll(t.Context(), s.config, r)
	renewed := s.good(t, result, err, key)
	if renewed.Leaf.SerialNumber.Cmp(present.Leaf.SerialNumber) == 0 {
		t.Error("renewed to the same certificate")
	}

	next := newKey(t)
	r = asking(next)
	r.Purpose, r.Present = enroll.Renew, renewed
	result, err = enroll.Enroll(t.Context(), s.config, r)
	s.good(t, result, err, next)
}

func (s *site) wayBack(t *testing.T) {
	for _, purpose := range []enroll.Purpose{enroll.First, enroll.Return} {
		key, c := newKey(t), s.config
		c.Device = "" // the factory certificate says it
		r := asking(key)
		r.Purpose, r.Present = purpose, &s.factory.TLS
		result, err := enroll.Enroll(t.Context(), c, r)
		s.good(t, result, err, key)
	}
	key := newKey(t)
	r := asking(key)
	r.Purpose, r.Device = enroll.Return, "gw-1"
	result, err := enroll.Enroll(t.Context(), s.config, r)
	if s.returns {
		s.good(t, result, err, key)
	} else if !errors.Is(err, enroll.ErrRefused) || hint.Of(err) == "" {
		t.Errorf("returning without anything: %v", err)
	}
}

// A clock that is an hour ahead: the token is dated by step-ca's own clock, which would not
// believe one from the future.
func TestStepWithAWrongClock(t *testing.T) {
	factory := newCA(t, "factory")
	_, c := startStep(t, agenttest.StepOptions{Factory: factory})
	key := newKey(t)
	r := asking(key)
	r.Now = func() time.Time { return time.Now().Add(time.Hour) }
	r.Present = &deviceOf(t, factory, "gw-1").TLS
	result, err := enroll.Enroll(t.Context(), c, r)
	(&site{config: c, roots: true}).good(t, result, err, key)
}

// step-ca is killed before a renewal, and in the middle of another, as by a power cut, and comes
// back: what it knew it still knows, and the device gets its certificate without anybody's help.
func TestStepComesBack(t *testing.T) {
	server, c := startStep(t, agenttest.StepOptions{Factory: newCA(t, "factory")})
	s := &site{config: c, roots: true}
	key, next := newKey(t), newKey(t)
	r := asking(key)
	r.Token = stepToken(t, server)
	result, err := enroll.Enroll(t.Context(), c, r)
	present := s.good(t, result, err, key)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	started := make(chan error, 2)
	cut := func() {
		server.Kill()
		go func() { started <- server.Start(ctx) }()
	}
	cut()
	r = asking(key)
	r.Purpose, r.Present, r.SameKey = enroll.Renew, present, true
	result, err = enroll.Enroll(ctx, c, r)
	present = s.good(t, result, err, key)
	if err := <-started; err != nil {
		t.Fatal(err)
	}

	r = asking(next)
	r.Purpose, r.Present = enroll.Renew, present
	inner := r.CSR
	r.CSR = func(device string) ([]byte, error) { cut(); return inner(device) } // between two of its answers
	result, err = enroll.Enroll(ctx, c, r)
	s.good(t, result, err, next)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
}

// What step-ca refuses is told as a refusal, with what to do.
func TestStepRefuses(t *testing.T) {
	factory := newCA(t, "factory")
	server, c := startStep(t, agenttest.StepOptions{Factory: factory, Life: 2 * time.Second})
	used := stepToken(t, server)
	r := asking(newKey(t))
	r.Token = used
	if _, err := enroll.Enroll(t.Context(), c, r); err != nil {
		t.Fatal(err)
	}
	stranger := deviceOf(t, newCA(t, "stranger"), "gw-1")
	expired, err := factory.Issue(agenttest.Leaf{CommonName: "gw-1", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*enroll.Request, *enroll.Config){
		"token twice":       func(r *enroll.Request, _ *enroll.Config) { r.Token = used },
		"token for another": func(r *enroll.Request, _ *enroll.Config) { r.Token, r.Device = stepToken(t, server), "gw-2" },
		"no token":          func(r *enroll.Request, _ *enroll.Config) { r.Token = "rubbish" },
		"factory unknown":   func(r *enroll.Request, _ *enroll.Config) { r.Present = &stranger.TLS },
		"factory expired":   func(r *enroll.Request, _ *enroll.Config) { r.Present = &expired.TLS },
		"provisioner unknown": func(r *enroll.Request, c *enroll.Config) {
			r.Present, c.Provisioner = &deviceOf(t, factory, "gw-1").TLS, "nobody"
		},
		"renewing a stranger": func(r *enroll.Request, _ *enroll.Config) { r.Purpose, r.Present = enroll.Renew, &stranger.TLS },
		"renewing too late":   func(r *enroll.Request, _ *enroll.Config) { r.Purpose, r.Present = enroll.Renew, &expired.TLS },
	} {
		r, c := asking(newKey(t)), c
		change(&r, &c)
		_, err := enroll.Enroll(t.Context(), c, r)
		if !errors.Is(err, enroll.ErrRefused) || hint.Of(err) == "" {
			t.Errorf("%s: %v (hint %q)", name, err, hint.Of(err))
		} else if testing.Verbose() {
			t.Logf("%s: %v\n\t(%s)", name, err, hint.Of(err))
		}
		if used != "" && err != nil && strings.Contains(err.Error(), used) {
			t.Errorf("%s: the token is in the error", name)
		}
	}
}
