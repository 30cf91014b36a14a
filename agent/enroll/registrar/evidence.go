package registrar

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/hint"
	"ferrule/tpm/attest"
)

// maxCSR bounds a certificate request, in bytes: one for a P-384 key has some 300.
const maxCSR = 4 << 10

// proof is what the registrar needs of an *attest.Proof.
type proof interface {
	EK() string
	FirstUse() bool
	TPM() (manufacturer, model, version string)
	Key() crypto.PublicKey
	Challenge(random io.Reader) (attest.Challenge, []byte, error)
}

// verify asks tpm/attest. known says which EK this device was enrolled with.
func (r *Registrar) verify(e attest.Evidence, c attest.Claim, known func(ek string) bool) (proof, error) {
	v := r.TPMs
	v.Known = known
	p, err := v.Check(e, c)
	if err != nil {
		return nil, err // a nil *attest.Proof in a proof would not be nil
	}
	return p, nil
}

// examined is evidence that was believed, as far as it can be before the challenge is answered.
type examined struct {
	csr *x509.CertificateRequest
	key string // SHA-256 of its SubjectPublicKeyInfo, hex

	ek       string // "" where there is no TPM
	firstUse bool
	chip     records.TPM

	proof    proof
	claim    attest.Claim
	evidence []byte // the item as it was sent
}

// challenge makes the challenge of the TPM, as it is sent.
func (x *examined) challenge() (text, secret []byte, err error) {
	c, secret, err := x.proof.Challenge(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a challenge: %w", err)
	}
	text, err = json.Marshal(c)
	return text, secret, err
}

// examine checks the items of a device; online and by files alike. Kinds that were not asked
// for are ignored: a newer device may send more.
func (r *Registrar) examine(items []wire.Item, nonce []byte, d *records.Device, e entitlement) (*examined, *wire.Error) {
	der, several := only(items, wire.KindCSR)
	if der == nil || several {
		return nil, badEvidence("one certificate request is needed", "")
	}
	csr, err := checkCSR(der, e.device)
	if err != nil {
		return nil, badEvidence(err.Error(), hint.Of(err))
	}
	x := &examined{csr: csr, key: hash(csr.RawSubjectPublicKeyInfo), claim: attest.Claim{Nonce: nonce, Device: e.device, CSR: der}}
	x.evidence, several = only(items, wire.KindTPM)
	needed := !r.AllowSoftwareKeys || d.EK != "" || e.hardware != "" || e.basis == records.Return || e.sealed
	switch {
	case several:
		return nil, badEvidence("there is more than one piece of evidence of a TPM", "")
	case x.evidence == nil && needed:
		return nil, badEvidence("the evidence of a TPM is missing", "the key has to be in the TPM (identity.key); a registrar for keys in files is started with --allow-software-keys")
	case x.evidence == nil:
		return x, nil
	}
	err = r.attest(x, d)
	if refusal, ok := errors.AsType[*attest.Refusal](err); ok && !needed && unvouched(refusal.Reason) {
		// It could have said nothing of its TPM and would be let in.
		x.evidence = nil
		return x, nil
	}
	if err != nil {
		return nil, disbelieved(e.device, err)
	}
	return x, nil
}

// attest checks the item of the TPM.
func (r *Registrar) attest(x *examined, d *records.Device) error {
	parsed, err := attest.ParseEvidence(x.evidence)
	if err != nil {
		return err
	}
	p, err := r.check(parsed, x.claim, func(ek string) bool { return ek != "" && ek == d.EK })
	if err != nil {
		return err
	}
	// Check has compared them already; a certificate for another key would be the end of it all.
	if key, ok := p.Key().(*ecdsa.PublicKey); !ok || !key.Equal(x.csr.PublicKey) {
		return errors.New("the key of the request is not the one in the TPM")
	}
	x.proof, x.ek, x.firstUse = p, p.EK(), p.FirstUse()
	x.chip.Manufacturer, x.chip.Model, x.chip.Version = p.TPM()
	return nil
}

// unvouched are the reasons that speak of a TPM whose maker nobody here knows, and of nothing
// forged.
func unvouched(reason string) bool {
	return reason == "ek-certificate-none" || reason == "ek-certificate-issuer"
}

func badEvidence(text, repair string) *wire.Error {
	if repair == "" {
		repair = "the device made it wrong: update it, then begin again"
	}
	return &wire.Error{Code: wire.CodeEvidence, Text: text, Hint: repair}
}

// disbelieved tells the device the reason in a word, and the log everything.
func disbelieved(device string, err error) *wire.Error {
	refused := &wire.Error{Code: wire.CodeAttestation, Text: "the TPM's evidence is not believed", Hint: seeLog,
		Cause: fmt.Errorf("the evidence of %s: %w", device, err)}
	if refusal, ok := errors.AsType[*attest.Refusal](err); ok {
		refused.Text += ": " + refusal.Reason
		refused.Cause = fmt.Errorf("the evidence of %s (%s): %w", device, refusal.Reason, err)
	}
	return refused
}

// checkCSR accepts a request only for the device's id, signed by the P-256 or P-384 key that
// it asks a certificate for (proof of possession, RFC 2986, 4.2).
func checkCSR(der []byte, device string) (*x509.CertificateRequest, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("the certificate request has %d bytes", len(der))
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("checking the certificate request: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || (key.Curve != elliptic.P256() && key.Curve != elliptic.P384()) {
		return nil, hint.With(errors.New("the key is neither P-256 nor P-384"), "make a new key")
	}
	if csr.Subject.CommonName != device || len(csr.Subject.Names) != 1 {
		return nil, fmt.Errorf("the certificate request is for %q, and the enrollment for %q", csr.Subject, device)
	}
	return csr, nil
}
