package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"ferrule/internal/hint"
)

// The extension and the purpose that crypto/x509 does not know.
var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEKCertificate  = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
)

const (
	hintIssuer   = "if this maker's chips are to be trusted, add the root that the maker publishes, and the authorities below it, to --tpm-roots"
	hintNone     = "chips without a certificate are taken only with --trust-ek-on-first-use; the record then says so"
	hintValidity = "compare the clock of this machine with the dates of the certificate"
)

// endorser is an endorsement key that may be challenged.
type endorser struct {
	index     int // in Evidence.EKs
	public    []byte
	id        string
	preferred int  // of ekTemplates
	known     bool // is on record
	certified bool
	chip      chip // of the certificate
}

// endorser chooses the key to challenge: one on record before one that is not, one with a
// certificate before one without, then in the order of ekTemplates. The order of the evidence
// does not count, so that a device whose chip has several keeps the one it has.
func (v *Verifier) endorser(eks []Endorsement) (*endorser, error) {
	var good []*endorser
	var refusals []error // those about a certificate first
	spoilt := false
	for i, k := range eks {
		e, err := v.endorse(k)
		switch {
		case err == nil:
			e.index = i
			good = append(good, e)
		case len(k.Certificate) > 0 && !spoilt:
			refusals, spoilt = slices.Insert(refusals, 0, err), true
		default:
			refusals = append(refusals, err)
		}
	}
	// A maker's certificate that is not believed must not turn into a first use, be it of
	// another key of the same chip.
	if spoilt {
		good = slices.DeleteFunc(good, func(e *endorser) bool { return !e.certified })
	}
	if len(good) == 0 {
		return nil, refusals[0]
	}
	return slices.MinFunc(good, func(a, b *endorser) int { return a.rank() - b.rank() }), nil
}

func (e *endorser) rank() int {
	rank := e.preferred
	if !e.certified {
		rank += len(ekTemplates)
	}
	if !e.known {
		rank += 2 * len(ekTemplates)
	}
	return rank
}

// endorse checks one endorsement key.
func (v *Verifier) endorse(k Endorsement) (*endorser, error) {
	p, err := readPublic("ek", k.Public)
	if err != nil {
		return nil, err
	}
	e := &endorser{public: k.Public}
	if e.preferred, err = match("ek", p, ekTemplates[:]); err != nil {
		return nil, err
	}
	key, err := p.key("ek")
	if err != nil {
		return nil, err
	}
	if e.id, err = fingerprint(key); err != nil {
		return nil, err
	}
	e.known = v.Known != nil && v.Known(e.id)
	if len(k.Certificate) == 0 {
		if v.TrustOnFirstUse || e.known {
			return e, nil
		}
		return nil, &Refusal{reasonNoCertificate, hint.With(errors.New("no certificate of its maker vouches for this TPM"), hintNone)}
	}
	if e.chip, err = v.checkCertificate(k.Certificate, key, e.known); err != nil {
		return nil, err
	}
	e.certified = true
	return e, nil
}

// fingerprint is of the key itself and not of how a certificate encodes it.
func fingerprint(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", refuse("ek"+wrongPoint, "encoding the endorsement key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// checkCertificate says whether a maker who is trusted vouches for key. For a key on record the
// day of the certificate's making counts: a chip is no worse when its certificate has run out.
func (v *Verifier) checkCertificate(der []byte, key crypto.PublicKey, known bool) (chip, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return chip{}, refuse(reasonCertificateForm, "reading the EK certificate: %w", err)
	}
	usage := x509.KeyUsageKeyEncipherment
	same := false
	switch key := key.(type) {
	case *rsa.PublicKey:
		same = key.Equal(cert.PublicKey)
	case *ecdsa.PublicKey:
		same = key.Equal(cert.PublicKey)
		usage = x509.KeyUsageKeyAgreement
	}
	const ca = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	switch {
	case !same:
		return chip{}, refuse(reasonCertificateKey, "the EK certificate %s is of another key than the EK", cert.SerialNumber)
	case cert.IsCA:
		return chip{}, refuse(reasonCertificateCA, "the EK certificate %s is an authority's", cert.SerialNumber)
	case cert.KeyUsage&usage == 0 || cert.KeyUsage&ca != 0:
		return chip{}, refuse(reasonUsage, "the EK certificate %s has key usage %#x, which is not an EK's", cert.SerialNumber, int(cert.KeyUsage))
	case !slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate.Equal):
		return chip{}, refuse(reasonPurpose, "the EK certificate %s is not one for EKs (2.23.133.8.1)", cert.SerialNumber)
	}
	c, err := chipIn(cert)
	if err != nil {
		return chip{}, refuse(reasonName, "the EK certificate %s does not name a TPM: %w", cert.SerialNumber, err)
	}
	return c, v.checkChain(cert, known)
}

func chipIn(cert *x509.Certificate) (chip, error) {
	for _, x := range cert.Extensions {
		if x.Id.Equal(oidSubjectAltName) {
			return parseChip(x.Value)
		}
	}
	return chip{}, errors.New("it has no alternative name")
}

// checkChain verifies with crypto/x509, which needs two favours for every EK certificate there
// is: the alternative name, which chipIn has read, counts as handled, and the purpose, which it
// cannot be told, as checked. Nil pools would mean the system's.
func (v *Verifier) checkChain(cert *x509.Certificate, known bool) error {
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	o := x509.VerifyOptions{
		Roots:         v.Roots,
		Intermediates: v.Intermediates,
		CurrentTime:   now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	if known {
		o.CurrentTime = cert.NotBefore
	}
	if o.Roots == nil {
		o.Roots = x509.NewCertPool()
	}
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, oidSubjectAltName.Equal)
	_, err := cert.Verify(o)
	if err == nil {
		return nil
	}
	reason, repair := reasonIssuer, hintIssuer
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		reason, repair = reasonValidity, hintValidity
	}
	if _, ok := errors.AsType[x509.UnhandledCriticalExtension](err); ok {
		reason, repair = reasonCritical, ""
	}
	return &Refusal{reason, hint.With(fmt.Errorf("verifying the EK certificate %s: %w", cert.SerialNumber, err), repair)}
}
