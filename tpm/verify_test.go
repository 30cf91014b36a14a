package tpm_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"
)

// TestVerifierBelievesThisTPM: the device's half against the registrar's.
func TestVerifierBelievesThisTPM(t *testing.T) {
	s, plain := tpmtest.Certified(t), tpmtest.Start(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.RootsPEM())
	for name, c := range map[string]struct {
		s        *tpmtest.Swtpm
		spec     tpm.KeySpec
		verifier attest.Verifier
	}{
		"certified":          {s: s, verifier: attest.Verifier{Roots: roots}},
		"certified, P-384":   {s: s, spec: tpm.KeySpec{Curve: elliptic.P384()}, verifier: attest.Verifier{Roots: roots}},
		"certified, derived": {s: s, spec: tpm.KeySpec{Parent: tpm.OwnerHandle}, verifier: attest.Verifier{Roots: roots}},
		"on first use":       {s: plain, verifier: attest.Verifier{TrustOnFirstUse: true}},
	} {
		d, err := tpm.Open(background, tpm.Options{Path: c.s.Address()})
		if err != nil {
			t.Fatal(err)
		}
		k := load(t, d, newKey(t, d, c.spec))
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw-1"}}, k)
		if err != nil {
			t.Fatal(err)
		}
		claim := attest.Claim{Nonce: make([]byte, 32), Device: "gw-1", CSR: csr}
		e, err := k.Attest(background, claim.Qualify())
		if err != nil {
			t.Fatal(err)
		}
		proof, err := c.verifier.Check(e, claim)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			_ = d.Close()
			continue
		}
		challenge, want, err := proof.Challenge(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.Activate(background, challenge); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
