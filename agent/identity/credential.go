package identity

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"ferrule/internal/hint"
	"ferrule/tpm"
)

// Credential is one certificate with its key: immutable, with a session cache of its own
// that dies with it.
type Credential struct {
	leaf        *x509.Certificate
	key         tpm.DeviceKey
	text        []byte // the chain, PEM, as it came
	successor   bool   // its key lies at tpm.NextURI, or did before it took over
	inPlace     bool   // it was found in the place of the current one, put there by others
	certificate tls.Certificate
	fingerprint string
	sessions    *patientSessions
	now         func() time.Time
	judge       *judge
	counters    *handshakes
}

// handshakes counts what the key was spent on.
type handshakes struct {
	full, resumed atomic.Uint64
}

func newCredential(key crypto.Signer, chain []*x509.Certificate, now func() time.Time, counters *handshakes) (*Credential, error) {
	leaf := chain[0]
	if !equalKeys(leaf.PublicKey, key.Public()) {
		return nil, hint.With(fmt.Errorf("%w: %s (serial %x)", ErrMismatch, leaf.Subject, leaf.SerialNumber),
			"put back the certificate that belongs to the key, or enroll again: ferrule enroll --force --token T")
	}
	if leaf.Subject.CommonName == "" {
		return nil, errors.New("the certificate has no common name, which is the device's id")
	}
	c := &Credential{
		leaf: leaf, now: now, counters: counters,
		sessions:    newSessions(),
		certificate: tls.Certificate{PrivateKey: key, Leaf: leaf},
	}
	for _, certificate := range chain {
		c.certificate.Certificate = append(c.certificate.Certificate, certificate.Raw)
	}
	digest := sha256.Sum256(leaf.Raw)
	c.fingerprint = hex.EncodeToString(digest[:])
	return c, nil
}

// Leaf returns the device's own certificate.
func (c *Credential) Leaf() *x509.Certificate { return c.leaf }

// Key returns the key that the certificate is for.
func (c *Credential) Key() crypto.Signer { return c.certificate.PrivateKey.(crypto.Signer) }

// Fingerprint returns the SHA-256 of the leaf in hex.
func (c *Credential) Fingerprint() string { return c.fingerprint }

// TLS returns the configuration of a client that presents this credential to serverName and
// trusts roots. TLS 1.2 and 1.3 only; sessions are resumed under this certificate alone.
func (c *Credential) TLS(roots *x509.CertPool, serverName string) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS12,
		RootCAs:              roots,
		ServerName:           serverName,
		Time:                 c.now,
		ClientSessionCache:   c.sessions,
		GetClientCertificate: c.present,
		VerifyConnection:     c.count,
	}
}

// Later says at what time a server may be judged that was refused at the time at (the zero time: the
// clock's) because a certificate of its chain is not valid yet. Where nobody vouches for our
// clock, that is no reason: a server whose certificate was renewed while the device was off would
// keep it away for good.
func (c *Credential) Later(at time.Time, err error) (time.Time, bool) {
	if c.judge == nil {
		return time.Time{}, false
	}
	if at.IsZero() {
		at = c.now()
	}
	return c.judge.begins(at, err)
}

// Forget drops the TLS sessions, so that the next handshake is a full one: a resumed one shows
// no certificate of the server's, and no proof that it is still good.
func (c *Credential) Forget() { c.sessions.forget() }

// present gives the certificate, or an error where the server would not take it. Left to
// itself crypto/tls sends an empty certificate then, and the server's refusal says nothing.
func (c *Credential) present(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if err := info.SupportsCertificate(&c.certificate); err != nil {
		return nil, hint.With(fmt.Errorf("the server does not take certificates issued by %q: %w", c.leaf.Issuer, err),
			"give the server the CA that issued this device's certificate, or enroll with the CA that it trusts")
	}
	return &c.certificate, nil
}

// count runs on every connection, also on a resumed one.
func (c *Credential) count(state tls.ConnectionState) error {
	if state.DidResume {
		c.counters.resumed.Add(1)
	} else {
		c.counters.full.Add(1)
	}
	return nil
}

// parseChain reads PEM certificates, the leaf first, each issued by the next.
func parseChain(text []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %s", block.Type)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, certificate)
	}
	if len(chain) == 0 {
		return nil, errors.New("it holds no certificate")
	}
	for n := 1; n < len(chain); n++ {
		if !bytes.Equal(chain[n-1].RawIssuer, chain[n].RawSubject) {
			return nil, fmt.Errorf("%q is followed by %q, which did not issue it", chain[n-1].Subject, chain[n].Subject)
		}
	}
	return chain, nil
}
