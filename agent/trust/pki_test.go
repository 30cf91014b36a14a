package trust

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ocsp"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// party is a certificate with its key.
type party struct {
	*x509.Certificate
	key crypto.Signer
}

var serials = struct {
	sync.Mutex
	n int64
}{n: 1 << 40}

// issue issues a certificate; nil: it signs itself.
func (p *party) issue(t testing.TB, name string, change ...func(*x509.Certificate)) *party {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return p.issueTo(t, name, key, change...)
}

func (p *party) issueTo(t testing.TB, name string, key crypto.Signer, change ...func(*x509.Certificate)) *party {
	t.Helper()
	serials.Lock()
	serials.n++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serials.n), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	serials.Unlock()
	for _, f := range change {
		f(template)
	}
	if p == nil {
		p = &party{template, key}
	}
	c := must[*x509.Certificate](t)(x509.ParseCertificate(must[[]byte](t)(
		x509.CreateCertificate(rand.Reader, template, p.Certificate, key.Public(), p.key))))
	return &party{c, key}
}

func authority(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid = true, true
	c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
}

func server(c *x509.Certificate) {
	c.DNSNames = []string{"broker.example"}
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
}

func responder(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning} }

// mustStaples asks for a staple (RFC 7633).
func mustStaples(c *x509.Certificate) {
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oidFeature, Value: []byte{0x30, 3, 2, 1, 5}})
}

func validFor(from, to time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
}

// pki is the usual one.
type pki struct{ root, issuing, broker *party }

func newPKI(t testing.TB, change ...func(*x509.Certificate)) *pki {
	p := &pki{}
	p.root = (*party)(nil).issue(t, "root", authority)
	p.issuing = p.root.issue(t, "issuing", authority)
	p.broker = p.issuing.issue(t, "broker.example", append([]func(*x509.Certificate){server}, change...)...)
	return p
}

// state is what crypto/tls tells after a handshake.
func (p *pki) state(staple []byte) tls.ConnectionState {
	chain := []*x509.Certificate{p.broker.Certificate, p.issuing.Certificate, p.root.Certificate}
	return tls.ConnectionState{PeerCertificates: chain[:2], VerifiedChains: [][]*x509.Certificate{chain}, OCSPResponse: staple}
}

// revoke makes the list of an authority. Its number is the time.
func (p *party) revoke(t testing.TB, change func(*x509.RevocationList), serials ...*big.Int) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(7 * 24 * time.Hour)}
	for _, s := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now().Add(-2 * time.Minute)})
	}
	if change != nil {
		change(l)
	}
	return must[[]byte](t)(x509.CreateRevocationList(rand.Reader, l, p.Certificate, p.key))
}

// staple makes a response of signer, on behalf of issuer.
func (p *party) staple(t testing.TB, issuer *party, of *big.Int, change ...func(*ocsp.Response)) []byte {
	t.Helper()
	r := ocsp.Response{Status: ocsp.Good, SerialNumber: of, ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(24 * time.Hour)}
	if p != issuer {
		r.Certificate = p.Certificate
	}
	for _, f := range change {
		f(&r)
	}
	return must[[]byte](t)(ocsp.CreateResponse(issuer.Certificate, p.Certificate, r, p.key))
}

func status(s int) func(*ocsp.Response) {
	return func(r *ocsp.Response) {
		if r.Status = s; s == ocsp.Revoked {
			r.RevokedAt = time.Now().Add(-time.Hour)
		}
	}
}

func between(this, next time.Duration) func(*ocsp.Response) {
	return func(r *ocsp.Response) {
		r.ThisUpdate, r.NextUpdate = time.Now().Add(this), time.Now().Add(next)
		if next == 0 {
			r.NextUpdate = time.Time{}
		}
	}
}

// testClock is a clock that a test sets.
type testClock struct {
	sync.Mutex
	now, floor time.Time // zero now: the machine's
	untrusted  bool
}

func (c *testClock) Now() time.Time {
	c.Lock()
	defer c.Unlock()
	now := c.now
	if now.IsZero() {
		now = time.Now()
	}
	if now.Before(c.floor) {
		return c.floor
	}
	return now
}

func (c *testClock) Floor() time.Time { c.Lock(); defer c.Unlock(); return c.floor }
func (c *testClock) Trusted() bool    { c.Lock(); defer c.Unlock(); return !c.untrusted }
func (c *testClock) set(now time.Time, trusted bool) {
	c.Lock()
	defer c.Unlock()
	c.now, c.untrusted = now, !trusted
}

// testLog keeps what was logged.
type testLog struct {
	sync.Mutex
	bytes.Buffer
}

func (l *testLog) Write(p []byte) (int, error) { l.Lock(); defer l.Unlock(); return l.Buffer.Write(p) }
func (l *testLog) String() string              { l.Lock(); defer l.Unlock(); return l.Buffer.String() }

// world is what the parts under test stand on.
type world struct {
	Options
	disk    *disktest.Disk
	clock   *testClock
	log     *testLog
	changes chan struct{}
}

func newWorld() *world {
	w := &world{disk: disktest.New(), clock: &testClock{}, log: &testLog{}, changes: make(chan struct{}, 100)}
	w.Options = Options{FS: w.disk, StateDir: "state", Clock: w.clock, Log: slog.New(slog.NewTextHandler(w.log, nil)),
		Changed: func() {
			select {
			case w.changes <- struct{}{}:
			default:
			}
		}}
	_ = w.disk.MkdirAll("state", 0o700)
	_ = w.disk.SyncDir(".")
	return w
}

// put writes a file, as an operator does.
func put(d *disktest.Disk, name string, text []byte) {
	if err := errors.Join(disk.MakeFolder(d, filepath.Dir(name)), atomicfile.Write(d, name, text, 0o600)); err != nil {
		panic(err)
	}
}

func (w *world) on(d *disktest.Disk) Options {
	o := w.Options
	o.FS = d
	return o
}

func pemOf(parties ...*party) []byte {
	var text []byte
	for _, p := range parties {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Raw})...)
	}
	return text
}

// files writes files into a folder of the machine, for programs.
func files(t testing.TB, content map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func keyPEM(t testing.TB, p *party) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must[[]byte](t)(x509.MarshalPKCS8PrivateKey(p.key))})
}

// noFetch is a network that is not there.
func noFetch(context.Context, string, string) ([]byte, string, error) {
	return nil, "", os.ErrDeadlineExceeded
}
