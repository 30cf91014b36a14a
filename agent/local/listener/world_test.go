package listener_test

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
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/local/listener"
	"ferrule/agent/local/role"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for machines that emulate another.
const patience = 60 * time.Second

// authority is a CA of these tests.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// issued is a certificate with its key and the chain to show.
type issued struct {
	leaf  *x509.Certificate
	key   crypto.Signer
	chain [][]byte
}

func (i *issued) TLS() tls.Certificate {
	return tls.Certificate{Certificate: i.chain, PrivateKey: i.key, Leaf: i.leaf}
}

// pem writes the chain and the key as files take them.
func (i *issued) pem(t testing.TB, folder, name string) (certificate, key string) {
	t.Helper()
	var chain bytes.Buffer
	for _, der := range i.chain {
		_ = pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	private, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key")
	write(t, certificate, chain.Bytes())
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	return certificate, key
}

func write(t testing.TB, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
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

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newAuthority(t testing.TB, name string, above *authority, change ...func(*x509.Certificate)) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	for _, c := range change {
		c(template)
	}
	a := &authority{key: newKey(t)}
	parent, key := template, a.key
	if above != nil {
		parent, key = above.certificate, above.key
	}
	a.certificate = sign(t, template, parent, a.key.Public(), key)
	return a
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issue makes a client's certificate with OU Operators; change makes it another. The chain shown
// is the leaf and the intermediates given.
func (a *authority) issue(t testing.TB, key crypto.Signer, change func(*x509.Certificate), between ...*authority) *issued {
	t.Helper()
	if key == nil {
		key = newKey(t)
	}
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "anna", OrganizationalUnit: []string{"Operators"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	i := &issued{leaf: sign(t, template, a.certificate, key.Public(), a.key), key: key}
	i.chain = [][]byte{i.leaf.Raw}
	for _, c := range between {
		i.chain = append(i.chain, c.certificate.Raw)
	}
	return i
}

// world is a listener with its log, and the CAs around it.
type world struct {
	*listener.Listener
	site, other *authority
	log         *record
	folder      string
	mu          sync.Mutex
	in          []*listener.Conn // who came in
}

// record is a log.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// newWorld starts a listener. Who comes in is greeted with "hello" and dropped when it hangs up.
func newWorld(t testing.TB, change func(*listener.Options)) *world {
	t.Helper()
	w := &world{
		site: newAuthority(t, "site", nil), other: newAuthority(t, "other", nil),
		log: &record{}, folder: t.TempDir(),
	}
	o := listener.Options{
		Address: "127.0.0.1:0", Source: listener.Source{Folder: w.folder},
		Log:    slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Policy: w.rules([]role.Rule{{Role: role.Operator, OU: "Operators"}, {Role: role.Viewer, OU: "Vendor", Roots: "other"}}),
	}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l, err := listener.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	w.Listener = l
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { w.greet(conn) })
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return w
}

func (w *world) rules(rules []role.Rule) func() (*role.Policy, error) {
	return func() (*role.Policy, error) {
		return role.New(rules, "site", func(file string) ([]*x509.Certificate, error) {
			return []*x509.Certificate{map[string]*authority{"site": w.site, "other": w.other}[file].certificate}, nil
		})
	}
}

func (w *world) greet(conn net.Conn) {
	defer conn.Close()
	w.mu.Lock()
	w.in = append(w.in, listener.Of(conn))
	w.mu.Unlock()
	fmt.Fprint(conn, "hello")
	_, _ = conn.Read(make([]byte, 1))
}

// last is the latest who came in.
func (w *world) last() *listener.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.in) == 0 {
		return nil
	}
	return w.in[len(w.in)-1]
}

// dial connects as a client with this certificate, nil for none, and returns what it sees: "" is
// to be let in.
func (w *world) dial(t testing.TB, certificate *issued, change func(*tls.Config)) string {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true} // whom the client believes is another test
	if certificate != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c := certificate.TLS()
			return &c, nil
		}
	}
	if change != nil {
		change(config)
	}
	tcp, err := net.Dial("tcp", w.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = tcp.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(tcp, config)
	defer conn.Close()
	greeting := make([]byte, 5)
	if err = conn.Handshake(); err == nil {
		_, err = conn.Read(greeting) // where TLS 1.3 tells a refusal
	}
	if err == nil && string(greeting) == "hello" {
		return ""
	}
	return strings.TrimPrefix(fmt.Sprint(err), "remote error: ")
}
