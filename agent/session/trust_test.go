package session

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
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"ferrule/agent/agenttest"
	"ferrule/agent/identity"
	"ferrule/agent/trust"
	"ferrule/internal/disk"

	"ferrule/agent/session/cause"
)

// shown is a broker's certificate that can be changed while the broker runs, as brokers reload
// theirs. Its ticket keys stay.
type shown struct {
	atomic.Pointer[tls.Certificate]
}

func show(c tls.Certificate) *shown {
	s := &shown{}
	s.Store(&c)
	return s
}

// on makes a broker show it.
func (s *shown) on(version uint16) func(*agenttest.BrokerConfig) {
	return func(c *agenttest.BrokerConfig) {
		c.TLS.MaxVersion, c.TLS.Certificates = version, nil
		c.TLS.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Load(), nil }
	}
}

// wallClock is a clock that a test may set ahead.
type wallClock struct{ ahead atomic.Int64 }

func (c *wallClock) Now() time.Time   { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *wallClock) Floor() time.Time { return time.Now().Add(-time.Hour) }
func (c *wallClock) Trusted() bool    { return true }

func (w *world) trust(clock trust.Clock) trust.Options {
	return trust.Options{FS: disk.OS(), StateDir: w.dir, Clock: clock, Log: w.log.logger()}
}

// reconnect breaks the connection and waits for the next one.
func reconnect(t *testing.T, b *agenttest.Broker, s *Session) agenttest.Connection {
	t.Helper()
	before := s.Status().Connects
	b.Cut()
	until(t, "the loss of the link", func() bool { return s.Status().Stage != cause.StageUp })
	if err := b.Mend(); err != nil {
		t.Fatal(err)
	}
	until(t, "the next connection", func() bool { st := s.Status(); return st.Connects > before && st.Stage == cause.StageUp })
	all := b.Connections()
	return all[len(all)-1]
}

// The broker moves to a certificate of another authority while the agent lives.
func TestRootsMoveEndToEnd(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		fresh := must[*agenttest.CA](t)(agenttest.NewCA("new"))
		moved := must[*agenttest.Issued](t)(fresh.Server()).TLS
		certificate := show(w.server.TLS)
		b, got := w.broker(certificate.on(version))
		var s *Session
		o := w.trust(&wallClock{})
		o.Changed = func() { s.Recheck() }
		roots := must[*trust.Roots](t)(trust.OpenRoots(trust.RootsConfig{Name: "broker", File: filepath.Join(w.dir, "roots.pem")}, o))
		s = w.session(b.Address(), func(o *Options) { o.Roots, o.Verified = roots.Pool, roots.Verified })
		w.run(s)
		w.fill(100, 50)
		until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
		if err := roots.Stage(fresh.RootPEM()); err != nil {
			t.Fatal(err)
		}
		if err := roots.Confirm(); !errors.Is(err, trust.ErrNotSeen) {
			t.Fatal(err)
		}
		if c := reconnect(t, b, s); c.Resumed {
			t.Error("resumed with the session of before")
		}
		certificate.Store(&moved)
		if c := reconnect(t, b, s); c.Resumed {
			t.Error("resumed, so that the broker's new certificate was not seen")
		}
		until(t, "the staged roots to be seen", func() bool { return roots.Status().Staged.Confirmable })
		if c := reconnect(t, b, s); !c.Resumed {
			t.Error("not resumed, though nothing changed")
		}
		connects := s.Status().Connects
		if err := roots.Confirm(); err != nil {
			t.Fatal(err)
		}
		w.fill(100, 50)
		until(t, "the outbox to drain", w.drained)
		if n := s.Status().Connects; n != connects {
			t.Errorf("the link was ended %d times, though the new roots vouch for it", n-connects)
		}
		checkSeqs(t, seqs(t, got.of("readings/")), 200)
		// The old authority counts for nothing any more.
		certificate.Store(&w.server.TLS)
		b.Cut()
		until(t, "the loss of the link", func() bool { return s.Status().Stage != cause.StageUp })
		_ = b.Mend()
		failure(t, s, cause.BrokerUnknownCA)
	})
}

// A link whose broker is vouched for by roots that are no more ends, though nobody broke it.
func TestRecheckEndsALinkOfFormerRoots(t *testing.T) {
	w := newWorld(t)
	b, _ := w.broker()
	var pool atomic.Pointer[x509.CertPool]
	pool.Store(w.ca.Pool())
	s := w.session(b.Address(), func(o *Options) { o.Roots = pool.Load })
	w.run(s)
	until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
	s.Recheck()
	pool.Store(must[*agenttest.CA](t)(agenttest.NewCA("other")).Pool())
	s.Recheck()
	failure(t, s, cause.BrokerUnknownCA)
	if n := len(b.Connections()); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// authority signs what agenttest's does not: lists and staples.
type authority struct {
	t          testing.TB
	root, leaf *x509.Certificate
	key        *ecdsa.PrivateKey
	server     tls.Certificate
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, key: must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	a.root = a.sign(template, template, a.key.Public())
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	a.leaf = a.sign(&x509.Certificate{SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "broker"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 6, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, a.root, key.Public())
	a.server = tls.Certificate{Certificate: [][]byte{a.leaf.Raw}, PrivateKey: key}
	return a
}

func (a *authority) sign(template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	return must[*x509.Certificate](a.t)(x509.ParseCertificate(must[[]byte](a.t)(x509.CreateCertificate(rand.Reader, template, parent, public, a.key))))
}

// stapled is the server's certificate with a response that holds for a day from then.
func (a *authority) stapled(status int, then time.Time) tls.Certificate {
	c := a.server
	c.OCSPStaple = must[[]byte](a.t)(ocsp.CreateResponse(a.root, a.root, ocsp.Response{Status: status, SerialNumber: a.leaf.SerialNumber,
		ThisUpdate: then.Add(-time.Minute), NextUpdate: then.Add(24 * time.Hour), RevokedAt: then}, a.key))
	return c
}

// list is a CRL with the server in it, or not.
func (a *authority) list(number int64, revoked bool) []byte {
	l := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	if revoked {
		l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: a.leaf.SerialNumber, RevocationTime: time.Now()}}
	}
	return must[[]byte](a.t)(x509.CreateRevocationList(rand.Reader, l, a.root, a.key))
}

// withAuthority makes w's device know the brokers of a.
func (w *world) withAuthority(a *authority) {
	w.write("roots.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.root.Raw}))
}

func localhost(address string) string {
	_, port, _ := bytes.Cut([]byte(address), []byte(":"))
	return "localhost:" + string(port)
}

// A staple is judged in both versions of TLS, and one that ran out in a resumed session brings
// about a full handshake instead of a refusal without end.
func TestStaples(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w, a, clock := newWorld(t), newAuthority(t), &wallClock{}
		w.withAuthority(a)
		certificate := show(a.stapled(ocsp.Good, time.Now()))
		b, _ := w.broker(certificate.on(version))
		c := trust.DefaultRevocation()
		c.Policy = trust.PolicyHard
		v := must[*trust.Revocation](t)(trust.NewRevocation(c, w.trust(clock), nil))
		s := w.session(localhost(b.Address()), func(o *Options) { o.Verify = v.Check })
		w.run(s)
		until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
		if c := reconnect(t, b, s); !c.Resumed {
			t.Error("not resumed")
		}
		clock.ahead.Store(int64(36 * time.Hour))
		later := a.stapled(ocsp.Good, clock.Now())
		certificate.Store(&later)
		if c := reconnect(t, b, s); c.Resumed {
			t.Error("resumed with a proof that ran out")
		}
		if c := reconnect(t, b, s); !c.Resumed {
			t.Error("not resumed")
		}
		revoked := a.stapled(ocsp.Revoked, clock.Now())
		certificate.Store(&revoked)
		clock.ahead.Store(int64(72 * time.Hour)) // the session's proof runs out again
		b.Cut()
		until(t, "the loss of the link", func() bool { return s.Status().Stage != cause.StageUp })
		_ = b.Mend()
		if f := failure(t, s, cause.BrokerRevoked); f.Stage != cause.StageTLS || f.Side != cause.SideBroker || f.Hint == "" {
			t.Errorf("%+v", f)
		}
		certificate.Store(&a.server)
		if f := failure(t, s, cause.BrokerRevocationUnknown); f.Stage != cause.StageTLS || f.Hint == "" {
			t.Errorf("%+v", f)
		}
	})
}

// No byte of CONNECT leaves for a broker that was taken back.
func TestCauseBrokerRevoked(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w, a := newWorld(t), newAuthority(t)
		w.withAuthority(a)
		for status, what := range map[int]cause.Cause{ocsp.Revoked: cause.BrokerRevoked, ocsp.Unknown: cause.BrokerRevocationUnknown} {
			config := w.server.ServerTLS(w.ca)
			config.Certificates, config.MaxVersion = []tls.Certificate{a.stapled(status, time.Now())}, version
			address, received := listen(t, config)
			c := trust.DefaultRevocation()
			c.Policy = trust.PolicyHard
			v := must[*trust.Revocation](t)(trust.NewRevocation(c, w.trust(&wallClock{}), nil))
			s := w.session(localhost(address), func(o *Options) { o.Verify = v.Check })
			expect(t, attempt(t, s), cause.StageTLS, what, cause.SideBroker, `certificate "CN=broker"`)
			if received.Load() != 0 {
				t.Error("a byte of CONNECT left")
			}
		}
	})
}

// A link that stands ends when a new list names its broker.
func TestRevokedWhileConnected(t *testing.T) {
	w, a := newWorld(t), newAuthority(t)
	w.withAuthority(a)
	b, _ := w.broker(show(a.server).on(0))
	var s *Session
	var list atomic.Pointer[[]byte]
	set := func(number int64, revoked bool) { text := a.list(number, revoked); list.Store(&text) }
	set(1, false)
	rechecked := make(chan struct{}, 10)
	o := w.trust(&wallClock{})
	o.Changed = func() { s.Recheck(); rechecked <- struct{}{} }
	c := trust.DefaultRevocation()
	c.CRL = []string{"http://ca.example/list"}
	fetch := func(context.Context, string, string) ([]byte, string, error) { return *list.Load(), "", nil }
	start := func() (*trust.Revocation, func()) {
		v := must[*trust.Revocation](t)(trust.NewRevocation(c, o, fetch))
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { _ = v.Run(ctx) })
		return v, func() { cancel(); running.Wait() }
	}
	v, stop := start()
	var judge atomic.Pointer[trust.Revocation]
	judge.Store(v)
	s = w.session(localhost(b.Address()), func(o *Options) {
		o.Verify = func(state tls.ConnectionState) error { return judge.Load().Check(state) }
	})
	w.run(s)
	until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
	<-rechecked // the first list is believed
	stop()
	set(2, true)
	if err := os.RemoveAll(filepath.Join(w.dir, "revocation")); err != nil {
		t.Fatal(err) // so that the next one fetches at once
	}
	v, stop = start()
	defer stop()
	judge.Store(v)
	s.Recheck() // shows the issuer, and what comes is believed
	failure(t, s, cause.BrokerRevoked)
	if n := len(b.Connections()); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// refusals collects what a session says of its certificates.
type refusals struct {
	mu  sync.Mutex
	all map[string][]cause.Cause
}

func (r *refusals) hook(fingerprint string, f cause.Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = make(map[string][]cause.Cause)
	}
	r.all[fingerprint] = append(r.all[fingerprint], f.Cause)
}

func (r *refusals) of(fingerprint string) []cause.Cause {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[fingerprint]
}

func TestRefusedIsTold(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		ca := must[*agenttest.CA](t)(agenttest.NewCA("test"))
		w := newWorldOf(t, ca, must[*agenttest.Issued](t)(ca.Issue(agenttest.Leaf{CommonName: "device-1",
			NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})))
		b, _ := w.broker(func(c *agenttest.BrokerConfig) { c.TLS.MaxVersion = version })
		r := &refusals{}
		w.run(w.session(b.Address(), func(o *Options) { o.Refused = r.hook }))
		until(t, "the refusal", func() bool { return len(r.of(w.identity.Current().Fingerprint())) > 1 })
		if got := r.of(w.identity.Current().Fingerprint()); got[0] != cause.CertificateExpired {
			t.Error(got)
		}
	})
}

func TestRefusedProofIsTold(t *testing.T) {
	each(t, func(t *testing.T, version uint16) {
		w := newWorld(t)
		b, _ := w.broker(func(c *agenttest.BrokerConfig) { c.TLS.MaxVersion = version })
		r := &refusals{}
		s := w.session(b.Address(), func(o *Options) { o.Refused = r.hook })
		w.run(s)
		until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
		fresh := w.renew(must[*agenttest.CA](t)(agenttest.NewCA("other")), agenttest.Leaf{})
		s.Rotate()
		until(t, "the refusal", func() bool { return len(r.of(fresh.Fingerprint())) == 1 })
		if got := r.of(fresh.Fingerprint()); got[0] != cause.CertificateNotAcceptable {
			t.Error(got)
		}
		if got := r.of(w.identity.Current().Fingerprint()); got != nil {
			t.Error("the one in use was blamed:", got)
		}
	})
}

// What says nothing of our certificate is not told; TLS 1.2's handshake failure only where our
// clock explains it.
func TestRefusedIsNotToldOfOtherThings(t *testing.T) {
	w := newWorld(t)
	c := w.identity.Current()
	var now time.Time
	r := &refusals{}
	s := w.session("127.0.0.1:1", func(o *Options) { o.Refused, o.Now = r.hook, func() time.Time { return now } })
	for _, what := range []cause.Cause{cause.BrokerUnknownCA, cause.NotAuthorized, cause.Stalled, cause.Closed, cause.TLS, cause.Key, cause.CertificateRequired} {
		s.tellRefused(c, cause.Failure{Cause: what})
	}
	now = c.Leaf().NotAfter.Add(-time.Second)
	s.tellRefused(c, cause.Failure{Cause: cause.Handshake})
	if got := r.of(c.Fingerprint()); got != nil {
		t.Error(got)
	}
	now = c.Leaf().NotAfter.Add(time.Second)
	s.tellRefused(c, cause.Failure{Cause: cause.Handshake})
	for _, what := range []cause.Cause{cause.CertificateExpired, cause.CertificateRevoked, cause.CertificateUnknownCA, cause.CertificateRefused, cause.CertificateNotAcceptable} {
		s.tellRefused(c, cause.Failure{Cause: what})
	}
	if got := r.of(c.Fingerprint()); len(got) != 6 {
		t.Error(got)
	}
}

// heldFS holds every rename while it is shut.
type heldFS struct {
	disk.FS
	mu sync.RWMutex
}

func (f *heldFS) Rename(from, to string) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.FS.Rename(from, to)
}

// renewKey stages a certificate for a key of its own.
func (w *world) renewKey() *agenttest.Issued {
	w.t.Helper()
	issued := must[*agenttest.Issued](w.t)(w.ca.Device("device-1"))
	w.write("device.pem.next", issued.KeyPEM)
	w.write("device.crt.next", issued.ChainPEM)
	if changed, err := w.identity.Reload(context.Background()); err != nil || !changed {
		w.t.Fatal(changed, err)
	}
	return issued
}

// Promote writes, and readings do not wait for it.
func TestPromoteHoldsNothingUp(t *testing.T) {
	w := newWorld(t)
	fs := &heldFS{FS: disk.OS()}
	w.identity = must[*identity.Identity](t)(identity.Open(context.Background(),
		identity.Config{TPM: "none", Key: "file:device.pem", Certificate: "device.crt", AllowSoftwareKey: true},
		identity.Options{StateDir: w.dir, FS: fs, Clock: identity.TrustedClock(time.Now), Log: w.log.logger()}))
	t.Cleanup(func() { _ = w.identity.Close() })
	b, _ := w.broker()
	s := w.session(b.Address())
	w.run(s)
	until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
	fresh := w.renewKey()
	fs.mu.Lock()
	s.Rotate()
	until(t, "the new certificate", func() bool { st := s.Status(); return st.Leaf == fresh.Fingerprint() && st.Stage == cause.StageUp })
	w.fill(100, 50)
	until(t, "the outbox to drain", w.drained)
	if n := s.Status().Rotations; n != 0 {
		t.Errorf("%d rotations before the disk has it", n)
	}
	fs.mu.Unlock()
	until(t, "the rotation", func() bool { return s.Status().Rotations == 1 })
}

// Renewal under 100 messages a second, with the same key and with another one: nothing is lost,
// and from the first moment that the new certificate is seen, the old one never is.
func TestRenewalUnderLoad(t *testing.T) {
	for name, renew := range map[string]func(w *world) *agenttest.Issued{
		"same key": func(w *world) *agenttest.Issued { return w.renew(w.ca, agenttest.Leaf{}) },
		"new key":  (*world).renewKey,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, version uint16) {
				t.Parallel()
				w := newWorld(t)
				b, got := w.broker(func(c *agenttest.BrokerConfig) { c.TLS.MaxVersion = version })
				s := w.session(b.Address())
				w.run(s)
				tick, total := time.NewTicker(10*time.Millisecond), 0
				defer tick.Stop()
				load := func(what string, done func() bool) {
					t.Helper()
					limit := time.After(patience)
					for !done() {
						select {
						case <-tick.C:
							w.fill(1, 50)
							total++
						case <-limit:
							t.Fatalf("waited in vain: %s", what)
						}
					}
				}
				load("readings to flow", func() bool { return len(got.of("readings/")) > 20 })
				fresh := renew(w)
				s.Rotate()
				load("the rotation", func() bool { return s.Status().Rotations == 1 })
				took, more := time.Now(), total
				load("a second", func() bool { return time.Since(took) > time.Second })
				for range 3 { // reconnects that begin later than a second after it
					load("more readings", func() bool { return total > more+20 })
					more = total
					connects := s.Status().Connects
					b.Cut()
					load("the loss", func() bool { return s.Status().Stage != cause.StageUp })
					_ = b.Mend()
					load("the next connection", func() bool { return s.Status().Connects > connects })
				}
				until(t, "the outbox to drain", w.drained)
				checkSeqs(t, seqs(t, got.of("readings/")), total)
				connections := b.Connections()
				if connections[0].Leaf != w.device.Fingerprint() || len(connections) < 5 {
					t.Errorf("connections: %+v", connections)
				}
				for _, c := range connections[1:] {
					if c.Leaf != fresh.Fingerprint() {
						t.Errorf("the old certificate was seen %v after the new one", c.At.Sub(connections[1].At))
					}
				}
				if w.identity.Staged() != nil || w.identity.Current().Fingerprint() != fresh.Fingerprint() {
					t.Error("not promoted")
				}
			})
		})
	}
}
