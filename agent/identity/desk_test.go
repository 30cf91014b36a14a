package identity_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"sync"
	"testing"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/identity"
	"ferrule/tpm/attest"
)

// desk is a registrar without a network: a function, whose whole memory can be copied. It keeps the
// rules of the real one: one token one key, one EK one device, and evidence is checked in earnest.
type desk struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	now  func() time.Time
	life time.Duration
	// ahead is how far in the future certificates begin.
	ahead time.Duration
	// verifier checks evidence; nil: none is asked for.
	verifier *attest.Verifier
	// before and after can fail a request, before anything is done and after all is.
	before, after func(r enroll.Request) error

	mu     sync.Mutex
	memory deskMemory
}

type deskMemory struct {
	serial  int64
	tokens  map[string]string // token: device
	used    map[string]string // token: public key
	eks     map[string]string // EK: device
	given   map[string][]byte // device and public key: chain
	issued  []issue
	refused []string
}

type issue struct {
	device, public string
	purpose        enroll.Purpose
	shown          string // common name of what was shown
	at             time.Time
}

func newDesk(t testing.TB) *desk {
	t.Helper()
	key, _ := softwareKey(t)
	d := &desk{t: t, key: key, now: time.Now, life: 90 * 24 * time.Hour}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "desk CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err == nil {
		d.root, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.memory = deskMemory{serial: 1, tokens: map[string]string{}, used: map[string]string{}, eks: map[string]string{}, given: map[string][]byte{}}
	return d
}

// remember returns what the desk knows now; recall takes it back to that.
func (d *desk) remember() deskMemory {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.memory.clone()
}

func (d *desk) recall(m deskMemory) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.memory = m.clone()
}

func (m deskMemory) clone() deskMemory {
	m.tokens, m.used, m.eks, m.given = maps.Clone(m.tokens), maps.Clone(m.used), maps.Clone(m.eks), maps.Clone(m.given)
	m.issued = append([]issue(nil), m.issued...)
	return m
}

func (d *desk) token(device string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	token := fmt.Sprintf("token-%d-for-%s", len(d.memory.tokens), device)
	d.memory.tokens[token] = device
	return token
}

func (d *desk) issues() []issue {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]issue(nil), d.memory.issued...)
}

// on makes o use this desk.
func (d *desk) on(o identity.Options) identity.Options {
	o.Roots = func() (*x509.CertPool, error) {
		pool := x509.NewCertPool()
		pool.AddCert(d.root)
		return pool, nil
	}
	return o.Stub(d.enroll, func() float64 { return 0 })
}

// config is an [enroll] section for the desk.
func (d *desk) config() enroll.Config {
	c := enroll.Default()
	c.Method = enroll.MethodRegistrar
	return c
}

func (d *desk) enroll(ctx context.Context, _ enroll.Config, r enroll.Request) (enroll.Result, error) {
	d.mu.Lock()
	before, after := d.before, d.after
	d.mu.Unlock()
	if before != nil {
		if err := before(r); err != nil {
			return enroll.Result{}, err
		}
	}
	result, err := d.serve(ctx, r)
	if err == nil && after != nil {
		err = after(r)
	}
	return result, err
}

// set chooses what fails from now on.
func (d *desk) set(before, after func(enroll.Request) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before, d.after = before, after
}

func (d *desk) refuse(format string, args ...any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := fmt.Errorf("%w: "+format, append([]any{enroll.ErrRefused}, args...)...)
	d.memory.refused = append(d.memory.refused, err.Error())
	return err
}

func (d *desk) serve(ctx context.Context, r enroll.Request) (enroll.Result, error) {
	device, err := d.entitled(r)
	if err != nil {
		return enroll.Result{}, err
	}
	csr, err := r.CSR(device)
	if err != nil {
		return enroll.Result{}, err
	}
	parsed, err := x509.ParseCertificateRequest(csr)
	if err != nil || parsed.CheckSignature() != nil || parsed.Subject.CommonName != device {
		return enroll.Result{}, d.refuse("the request is no good")
	}
	public := fmt.Sprintf("%x", parsed.RawSubjectPublicKeyInfo)
	if ek := ""; d.verifier != nil {
		if ek, err = d.attested(ctx, r, device, csr); err != nil {
			return enroll.Result{}, err
		}
		if err := d.bind(ek, device, r); err != nil {
			return enroll.Result{}, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Token != "" {
		if used := d.memory.used[r.Token]; used != "" && used != public {
			return enroll.Result{}, fmt.Errorf("%w: the token was used by another key", enroll.ErrRefused)
		}
		d.memory.used[r.Token] = public
		if chain := d.memory.given[device+public]; chain != nil {
			return enroll.Result{Device: device, Chain: chain}, nil
		}
	}
	chain, err := d.issue(device, parsed)
	if err != nil {
		return enroll.Result{}, err
	}
	shown := ""
	if r.Present != nil {
		shown = r.Present.Leaf.Subject.CommonName
	}
	d.memory.given[device+public] = chain
	d.memory.issued = append(d.memory.issued, issue{device, public, r.Purpose, shown, d.now()})
	return enroll.Result{Device: device, Chain: chain}, nil
}

// entitled says for which device r may have a certificate.
func (d *desk) entitled(r enroll.Request) (string, error) {
	switch {
	case r.Token != "":
		d.mu.Lock()
		device, ok := d.memory.tokens[r.Token]
		d.mu.Unlock()
		if !ok {
			return "", d.refuse("an unknown token")
		}
		return device, nil
	case r.Present != nil:
		leaf := r.Present.Leaf
		if leaf.CheckSignatureFrom(d.root) != nil {
			return "", d.refuse("a certificate of another CA")
		}
		if d.now().After(leaf.NotAfter) {
			return "", d.refuse("an expired certificate")
		}
		if r.Purpose == enroll.Renew {
			return leaf.Subject.CommonName, nil
		}
		return r.Device, nil
	case r.Device != "" && d.verifier != nil:
		return r.Device, nil // bind has the last word
	}
	return "", d.refuse("nothing entitles")
}

// attested takes the evidence as the real registrar does, and returns the EK.
func (d *desk) attested(ctx context.Context, r enroll.Request, device string, csr []byte) (string, error) {
	if r.Attest == nil {
		return "", d.refuse("no evidence")
	}
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce)
	evidence, err := r.Attest.Evidence(ctx, nonce, device, csr)
	if err != nil {
		return "", err
	}
	parsed, err := attest.ParseEvidence(evidence)
	if err != nil {
		return "", d.refuse("%v", err)
	}
	claim := attest.Claim{Nonce: nonce, Device: device, CSR: csr}
	proof, err := d.verifier.Check(parsed, claim)
	if err != nil {
		return "", d.refuse("%v", err)
	}
	challenge, secret, err := proof.Challenge(rand.Reader)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(challenge)
	if err != nil {
		return "", err
	}
	answer, err := r.Attest.Answer(ctx, text)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(answer, claim.Answer(secret, evidence, text)) {
		return "", d.refuse("a wrong answer")
	}
	return proof.EK(), nil
}

// bind keeps one EK for one device.
func (d *desk) bind(ek, device string, r enroll.Request) error {
	d.mu.Lock()
	known := d.memory.eks[ek]
	if known == "" && (r.Token != "" || r.Present != nil) {
		d.memory.eks[ek] = device
		known = device
	}
	d.mu.Unlock()
	if known != device {
		return d.refuse("this TPM is that of %q, not of %q", known, device)
	}
	return nil
}

func (d *desk) issue(device string, csr *x509.CertificateRequest) ([]byte, error) {
	d.memory.serial++
	now := d.now().Add(d.ahead)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(d.memory.serial), Subject: pkix.Name{CommonName: device},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(d.life), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, d.root, csr.PublicKey, d.key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

func parseLeaf(chain []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil, errors.New("no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func deskEnroll(t testing.TB, d *desk, c identity.Config, o identity.Options, r identity.EnrollRequest) identity.Result {
	t.Helper()
	result, err := identity.Enroll(background, c, o, d.config(), r)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

var errCut = errors.New("the power is gone")
