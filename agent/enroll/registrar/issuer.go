package registrar

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
)

// Request is what an Issuer is asked for. Everything in it has been checked.
type Request struct {
	Device  string
	CSR     *x509.CertificateRequest
	Life    time.Duration
	Factory bool
	EK      string // SHA-256 of the endorsement key, hex; "" where there is no TPM
	Purpose Purpose
}

// Purpose is why a certificate is asked for.
type Purpose string

// First is by a token, an order or a factory certificate, Renew by the certificate before, Return
// by the TPM alone.
const (
	First  Purpose = "first"
	Renew  Purpose = "renew"
	Return Purpose = "return"
)

func purposeOf(b records.Basis) Purpose {
	switch {
	case b == records.Return:
		return Return
	case b.Renewal():
		return Renew
	}
	return First
}

// Issuer makes certificates: the CA in a directory, or one behind. It may be asked again for
// what it has issued, where the power was cut in between.
type Issuer interface {
	// Name is for records.
	Name() string
	// Issue returns the chain, the device's certificate first. A *peer.Later says that somebody has
	// to decide first. It is not believed: the registrar checks the chain.
	Issue(ctx context.Context, q Request) (chain []*x509.Certificate, err error)
}

// LocalName is the issuer of certificates of the CA in the registrar's own directory.
const LocalName = "local"

type local struct{ ca *ca.CA }

func (l *local) Name() string { return LocalName }

func (l *local) Issue(_ context.Context, q Request) ([]*x509.Certificate, error) {
	return l.ca.Device(ca.Leaf{Device: q.Device, Key: q.CSR.PublicKey, Life: q.Life, Factory: q.Factory, EK: q.EK})
}

// Bounds of what an issuer may give.
const (
	maxChainBytes = 24 << 10 // in an answer of wire.MaxBody
	maxChain      = 8
	leastValid    = time.Hour // what lives shorter is gone before it is renewed
	clockLeeway   = 5 * time.Minute
)

// obtain asks the issuer and believes nothing that comes back before it was checked.
func (r *Registrar) obtain(ctx context.Context, e entitlement, x *examined) (records.Certificate, error) {
	chain, err := r.Issuer.Issue(ctx, Request{
		Device: e.device, CSR: x.csr, Life: r.Life, Factory: r.Factory, EK: x.ek, Purpose: purposeOf(e.basis),
	})
	if err != nil {
		return records.Certificate{}, err
	}
	if err := r.inspect(chain, e.device, x.csr.PublicKey); err != nil {
		return records.Certificate{}, fmt.Errorf("checking what it issued: %w", err)
	}
	leaf := chain[0]
	return records.Certificate{
		Serial: leaf.SerialNumber.Text(16), Fingerprint: fingerprintOf(chain), PublicKey: x.key,
		Factory: r.Factory, Basis: e.basis, Issuer: r.Issuer.Name(), NotAfter: leaf.NotAfter,
		Sealed: e.sealed, Chain: encode(chain),
	}, nil
}

// inspect checks a chain for a device's key: names, usage, validity and where it leads.
func (r *Registrar) inspect(chain []*x509.Certificate, device string, key crypto.PublicKey) error {
	if len(chain) == 0 || len(chain) > maxChain || len(encode(chain)) > maxChainBytes {
		return fmt.Errorf("a chain of %d certificates, %d bytes", len(chain), len(encode(chain)))
	}
	leaf, now := chain[0], time.Now()
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(key):
		return errors.New("the certificate is for another key")
	case leaf.Subject.CommonName != device:
		return fmt.Errorf("the certificate is for %q", leaf.Subject.CommonName)
	case leaf.IsCA:
		return errors.New("the certificate is an authority's")
	case leaf.NotBefore.After(now.Add(clockLeeway)):
		return fmt.Errorf("the certificate is not valid before %s", leaf.NotBefore.Format(time.RFC3339))
	case leaf.NotAfter.Sub(now) < min(leastValid, r.Life-clockLeeway):
		return fmt.Errorf("the certificate ends on %s, in less than an hour", leaf.NotAfter.Format(time.RFC3339))
	}
	if now.Before(leaf.NotBefore) {
		now = leaf.NotBefore
	}
	for n, c := range chain[1:] {
		if err := chain[n].CheckSignatureFrom(c); err != nil {
			return fmt.Errorf("certificate %d did not sign the one before it: %w", n+2, err)
		}
	}
	if err := r.leadsTo(chain, r.Roots, now); err != nil {
		return fmt.Errorf("the chain does not lead to a trusted root for clients: %w", err)
	}
	return nil
}

func encode(chain []*x509.Certificate) string {
	var text []byte
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return string(text)
}
