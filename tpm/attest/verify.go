package attest

import (
	"crypto"
	"crypto/x509"
	"errors"
	"io"
	"time"
)

// Verifier checks evidence. The zero value believes nobody.
type Verifier struct {
	// Roots and Intermediates are the certificates of the TPMs' manufacturers; nil: none. The
	// roots of the system are never used.
	Roots, Intermediates *x509.CertPool
	// TrustOnFirstUse takes an EK without a certificate. It proves nothing of a TPM then:
	// software can make such evidence too. A certificate that does not verify is refused all
	// the same.
	TrustOnFirstUse bool
	// Known reports whether an EK (see Proof.EK) is on record; nil: none is. It is challenged
	// before any other, needs no certificate, and one that has run out since does no harm.
	Known func(ek string) bool
	// Now is the time at which certificates must be valid; nil: time.Now.
	Now func() time.Time
}

// Proof is evidence that was checked.
type Proof struct {
	ek string
}

// Check checks.
func (v *Verifier) Check(e Evidence, c Claim) (*Proof, error) { return nil, errors.ErrUnsupported }

// EK identifies the endorsement key that is challenged.
func (p *Proof) EK() string { return p.ek }

// FirstUse reports that no certificate vouches for the EK.
func (p *Proof) FirstUse() bool { return false }

// TPM is what the EK's certificate says of the chip.
func (p *Proof) TPM() (manufacturer, model, version string) { return "", "", "" }

// Key is the key that was certified.
func (p *Proof) Key() crypto.PublicKey { return nil }

// Challenge makes a challenge.
func (p *Proof) Challenge(random io.Reader) (c Challenge, secret []byte, err error) {
	return c, nil, errors.ErrUnsupported
}
