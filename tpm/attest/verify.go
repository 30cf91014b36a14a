package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Verifier checks evidence; any number of goroutines may use one. The zero value believes nobody.
type Verifier struct {
	// Roots and Intermediates are the certificates of the TPMs' makers; nil means none. The
	// roots of the system are never used.
	Roots, Intermediates *x509.CertPool
	// TrustOnFirstUse takes an EK without a certificate. Nothing is proved of a TPM then, for
	// software can make such evidence too; but the same EK answers the next time. A certificate
	// that is there and does not verify is refused all the same.
	TrustOnFirstUse bool
	// Known reports whether an EK (see Proof.EK) is on record; nil means that none is. One that
	// is gets the challenge before any other, needs no certificate again, and may show one that
	// has run out since.
	Known func(ek string) bool
	// Now is the time at which certificates have to be valid; nil means time.Now.
	Now func() time.Time
}

// Proof is evidence in which everything fits together. It becomes true when the secret of its
// Challenge comes back, and not before: the AK need not lie in the TPM of the EK.
type Proof struct {
	ek  *endorser
	ak  []byte // Name
	key crypto.PublicKey
}

// Check says whether e proves, but for the challenge, that the key of c.CSR lies in a TPM. The
// error is a *Refusal, or another where c itself is not usable.
func (v *Verifier) Check(e Evidence, c Claim) (*Proof, error) {
	if len(c.Nonce) < minNonce || len(c.Nonce) > maxNonce || c.Device == "" {
		return nil, fmt.Errorf("checking evidence: a claim with a nonce of %d bytes for device %q", len(c.Nonce), c.Device)
	}
	if err := e.bounded(); err != nil {
		return nil, err
	}
	key, err := checkPublic("key", e.Key, keyTemplates[:])
	if err != nil {
		return nil, err
	}
	ak, err := checkPublic("ak", e.AK, []template{akTemplate})
	if err != nil {
		return nil, err
	}
	if err := checkCSR(c, key); err != nil {
		return nil, err
	}
	if err := checkCertify(e.Certify, c.Qualify(), name(e.Key)); err != nil {
		return nil, err
	}
	if err := checkSignature(e.Signature, e.Certify, ak); err != nil {
		return nil, err
	}
	ek, err := v.endorser(e.EKs)
	if err != nil {
		return nil, err
	}
	return &Proof{ek: ek, ak: name(e.AK), key: key}, nil
}

const (
	minNonce = 16
	maxNonce = 64
)

// checkPublic checks the public area of an ECDSA key.
func checkPublic(which string, b []byte, templates []template) (*ecdsa.PublicKey, error) {
	p, err := readPublic(which, b)
	if err != nil {
		return nil, err
	}
	if _, err := match(which, p, templates); err != nil {
		return nil, err
	}
	key, err := p.key(which)
	if err != nil {
		return nil, err
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok { // no template of an AK or a key says RSA
		return nil, refuse(which+wrongType, "the %s is no elliptic key", which)
	}
	return public, nil
}

// EK identifies the endorsement key that is challenged: SHA-256 of its SubjectPublicKeyInfo, in
// hex.
func (p *Proof) EK() string { return p.ek.id }

// FirstUse reports that no certificate vouches for the EK.
func (p *Proof) FirstUse() bool { return !p.ek.certified }

// TPM is what the maker's certificate says of the chip, printable ASCII of at most 64 bytes each;
// empty at first use. The manufacturer is the registered abbreviation, such as IFX, or id: and
// eight hex digits.
func (p *Proof) TPM() (manufacturer, model, version string) {
	return p.ek.chip.manufacturer, p.ek.chip.model, p.ek.chip.version
}

// Key is the key that was certified.
func (p *Proof) Key() crypto.PublicKey { return p.key }

// Challenge is TPM2_MakeCredential without a TPM (Part 1, 24): a new secret of SecretSize bytes
// that comes out only where the private halves of the EK and the AK are both. nil means
// crypto/rand.
func (p *Proof) Challenge(random io.Reader) (c Challenge, secret []byte, err error) {
	if random == nil {
		random = rand.Reader
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](p.ek.public)
	if err != nil {
		return c, nil, fmt.Errorf("making a challenge: %w", err)
	}
	ek, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return c, nil, fmt.Errorf("making a challenge: %w", err)
	}
	secret = make([]byte, SecretSize)
	if _, err := io.ReadFull(random, secret); err != nil {
		return c, nil, fmt.Errorf("making a challenge: %w", err)
	}
	c.EK = p.ek.index
	c.Credential, c.Secret, err = tpm2.CreateCredential(random, ek, p.ak, secret)
	if err != nil {
		return Challenge{}, nil, fmt.Errorf("making a challenge: %w", err)
	}
	return c, secret, nil
}
