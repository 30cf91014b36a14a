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

func TestCensusOfAttestation(t *testing.T) {
	type census = map[string]uint64
	for name, c := range map[string]struct {
		start            func(tpmtest.TB) *tpmtest.Swtpm
		attest, activate census // activate: of each endorsement key, in order, summed
	}{
		"certified": {
			tpmtest.Certified,
			census{"GetCapability": 1, "NV_ReadPublic": 2, "NV_Read": 4, "CreatePrimary": 4, "FlushContext": 4, "Certify": 1},
			census{"CreatePrimary": 6, "FlushContext": 6, "StartAuthSession": 3, "PolicySecret": 3, "PolicyOR": 1, "ActivateCredential": 3},
		},
		"plain": {
			tpmtest.Start,
			census{"GetCapability": 1, "CreatePrimary": 2, "FlushContext": 2, "Certify": 1},
			census{"CreatePrimary": 2, "FlushContext": 2, "StartAuthSession": 1, "PolicySecret": 1, "ActivateCredential": 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, c.start(t).Address(), tpm.Options{})
			k := load(t, d, newKey(t, d, tpm.KeySpec{}))
			var e attest.Evidence
			if diff := cmp.Diff(c.attest, spent(d, func() { e = mustAttest(t, k) })); diff != "" {
				t.Errorf("attesting (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.activate, spent(d, func() { mustActivate(t, k, e) })); diff != "" {
				t.Errorf("activating (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(census{"Sign": 1}, spent(d, func() { mustSign(t, k) })); diff != "" {
				t.Errorf("signing afterwards (-want +got):\n%s", diff)
			}
		})
	}
}

// TestChallengeInAnotherProcess: the batch of a factory collects evidence today and delivers
// tomorrow.
func TestChallengeInAnotherProcess(t *testing.T) {
	s := tpmtest.Certified(t)
	file, e := func() (*tpm.KeyFile, attest.Evidence) {
		d, err := tpm.Open(background, tpm.Options{Path: s.Address()})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		f := newKey(t, d, tpm.KeySpec{})
		return f, mustAttest(t, load(t, d, f))
	}()
	if err := s.Restart(background); err != nil {
		t.Fatal(err)
	}
	d := open(t, s.Address(), tpm.Options{})
	mustActivate(t, load(t, d, file), e)
}

func TestChallengesThatAreNotForThisTPM(t *testing.T) {
	s, other := tpmtest.Certified(t), tpmtest.Other(t)
	d, foreign := open(t, s.Address(), tpm.Options{}), open(t, other.Address(), tpm.Options{})
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	e, theirs := mustAttest(t, k), mustAttest(t, load(t, foreign, newKey(t, foreign, tpm.KeySpec{})))
	if bytes.Equal(e.EKs[0].Public, theirs.EKs[0].Public) {
		t.Fatal("two chips with one endorsement key")
	}
	free := slotsAndSessions(t, d)
	otherAK := e
	otherAK.AK = theirs.AK
	for i := range e.EKs {
		for name, spoil := range map[string]func(*attest.Challenge){
			"for another AK":        func(c *attest.Challenge) { *c, _ = challenge(t, otherAK, i) },
			"of another EK":         func(c *attest.Challenge) { *c, _ = challenge(t, theirs, i) },
			"for the next EK":       func(c *attest.Challenge) { c.EK = (c.EK + 1) % len(e.EKs) },
			"no such EK":            func(c *attest.Challenge) { c.EK = len(e.EKs) },
			"EK -1":                 func(c *attest.Challenge) { c.EK = -1 },
			"no credential":         func(c *attest.Challenge) { c.Credential = nil },
			"half a credential":     func(c *attest.Challenge) { c.Credential = c.Credential[:20] },
			"a bit of it flipped":   func(c *attest.Challenge) { c.Credential[40] ^= 1 },
			"no secret":             func(c *attest.Challenge) { c.Secret = nil },
			"half a secret":         func(c *attest.Challenge) { c.Secret = c.Secret[:len(c.Secret)/2] },
			"a bit of that flipped": func(c *attest.Challenge) { c.Secret[5] ^= 1 },
			"too large":             func(c *attest.Challenge) { c.Secret = make([]byte, 60000) },
		} {
			c, _ := challenge(t, e, i)
			spoil(&c)
			if got, err := k.Activate(background, c); err == nil || got != nil {
				t.Errorf("endorsement key %d, %s: opened", i, name)
			}
		}
	}
	if after := slotsAndSessions(t, d); after != free {
		t.Errorf("slots and sessions at the start %+v, at the end %+v", free, after)
	}
	mustActivate(t, k, e)
}

// occupied counts what lies in a TPM.
type occupied struct{ objects, sessions int }

func slotsAndSessions(t testing.TB, d *tpm.Device) occupied {
	t.Helper()
	return occupied{len(handles(t, d, 0x80000000)), len(handles(t, d, 0x02000000))}
}

// handles lists those of one kind.
func handles(t testing.TB, d *tpm.Device, first uint32) []tpm2.TPMHandle {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(d.TPM(background))
	if err != nil {
		t.Fatal(err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	return list.Handle
}
