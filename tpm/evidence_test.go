package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
)

// kinds names the endorsement keys of e, with a star for those that have a certificate, and
// checks that each certificate is of the manufacturer and for its key.
func kinds(t testing.TB, e attest.Evidence, roots []*x509.Certificate) []string {
	t.Helper()
	var names []string
	for _, ek := range e.EKs {
		pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek.Public)
		if err != nil {
			t.Fatal(err)
		}
		key, err := tpm2.Pub(*pub)
		if err != nil {
			t.Fatal(err)
		}
		name := "RSA"
		if ec, ok := key.(*ecdsa.PublicKey); ok {
			name = ec.Curve.Params().Name
		}
		if ek.Certificate != nil {
			name += "*"
			cert, err := x509.ParseCertificate(ek.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if err := cert.CheckSignatureFrom(roots[1]); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !key.(interface{ Equal(crypto.PublicKey) bool }).Equal(cert.PublicKey) {
				t.Errorf("%s: the certificate is for another key", name)
			}
		}
		names = append(names, name)
	}
	return names
}

// checkCertify does what a registrar does at least.
func checkCertify(t testing.TB, e attest.Evidence, key crypto.PublicKey, qualifying []byte) (ak *tpm2.TPM2BName) {
	t.Helper()
	akPub, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.AK)
	if err != nil {
		t.Fatal(err)
	}
	if want := (tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true}); akPub.ObjectAttributes != want {
		t.Errorf("attributes of the AK: %+v", akPub.ObjectAttributes)
	}
	akKey, err := tpm2.Pub(*akPub)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](e.Signature)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := sig.Signature.ECDSA()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(e.Certify)
	r, s := new(big.Int).SetBytes(ec.SignatureR.Buffer), new(big.Int).SetBytes(ec.SignatureS.Buffer)
	if !ecdsa.Verify(akKey.(*ecdsa.PublicKey), sum[:], r, s) {
		t.Error("the AK did not sign this")
	}
	said, err := tpm2.Unmarshal[tpm2.TPMSAttest](e.Certify)
	if err != nil {
		t.Fatal(err)
	}
	info, err := said.Attested.Certify()
	if err != nil {
		t.Fatal(err)
	}
	keyPub, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Key)
	if err != nil {
		t.Fatal(err)
	}
	keyName, _ := tpm2.ObjectName(keyPub)
	if !bytes.Equal(info.Name.Buffer, keyName.Buffer) || !bytes.Equal(said.ExtraData.Buffer, qualifying) {
		t.Errorf("certified %x with %x", info.Name.Buffer, said.ExtraData.Buffer)
	}
	if got, err := tpm2.Pub(*keyPub); err != nil || !got.(*ecdsa.PublicKey).Equal(key) {
		t.Errorf("another key than that of the signer: %v", err)
	}
	ak, err = tpm2.ObjectName(akPub)
	if err != nil {
		t.Fatal(err)
	}
	return ak
}

// challenge makes a challenge for the endorsement key at i, and returns the secret in it.
func challenge(t testing.TB, e attest.Evidence, i int) (attest.Challenge, []byte) {
	t.Helper()
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.EKs[i].Public)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.AK)
	if err != nil {
		t.Fatal(err)
	}
	name, _ := tpm2.ObjectName(ak)
	secret := make([]byte, attest.SecretSize)
	_, _ = rand.Read(secret)
	c := attest.Challenge{EK: i}
	if c.Credential, c.Secret, err = tpm2.CreateCredential(rand.Reader, ek, name.Buffer, secret); err != nil {
		t.Fatal(err)
	}
	return c, secret
}

func mustAttest(t testing.TB, k tpm.Attester) attest.Evidence {
	t.Helper()
	e, err := k.Attest(background, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// mustActivate opens a challenge for each endorsement key in turn.
func mustActivate(t testing.TB, k tpm.Attester, e attest.Evidence) {
	t.Helper()
	for i := range e.EKs {
		c, want := challenge(t, e, i)
		if got, err := k.Activate(background, c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("endorsement key %d: %x, %v", i, got, err)
		}
	}
}

func TestAttestAndActivate(t *testing.T) {
	s := tpmtest.Certified(t)
	d := open(t, s.Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	qualifying := sha256.Sum256([]byte("of the registrar"))
	e, err := k.Attest(background, qualifying[:])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"P-384*", "RSA*", "P-256"}, kinds(t, e, s.Roots())); diff != "" {
		t.Errorf("endorsement keys (-want +got):\n%s", diff)
	}
	checkCertify(t, e, k.Public(), qualifying[:])
	mustActivate(t, k, e)
	mustSign(t, k)

	// The same keys, whenever and by whomever they are derived.
	again := mustAttest(t, load(t, d, newKey(t, d, tpm.KeySpec{})))
	if diff := cmp.Diff(e.EKs, again.EKs); diff != "" || !bytes.Equal(e.AK, again.AK) || bytes.Equal(e.Key, again.Key) {
		t.Errorf("second evidence (-first +second):\n%s", diff)
	}
}
