package attest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"
)

const device = "gw-0001"

// realTPM is a swtpm with a device key in it.
type realTPM struct {
	*tpm.Key
	verifier *attest.Verifier
}

func newRealTPM(t testing.TB, s *tpmtest.Swtpm) *realTPM {
	t.Helper()
	d, err := tpm.Open(t.Context(), tpm.Options{Path: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	file, err := d.CreateKey(t.Context(), tpm.KeySpec{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := d.LoadKey(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	v := &attest.Verifier{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool()}
	if roots := s.Roots(); len(roots) > 0 {
		v.Roots.AddCert(roots[0])
		for _, c := range roots[1:] {
			v.Intermediates.AddCert(c)
		}
	}
	return &realTPM{k, v}
}

// evidence is the item for that nonce, and the claim that it is for.
func (r *realTPM) evidence(t testing.TB, nonce []byte) ([]byte, attest.Claim) {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, r.Key)
	if err != nil {
		t.Fatal(err)
	}
	claim := attest.Claim{Nonce: nonce, Device: device, CSR: csr}
	e, err := r.Attest(t.Context(), claim.Qualify())
	if err != nil {
		t.Fatal(err)
	}
	item, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return item, claim
}

func parsed(t testing.TB, item []byte) attest.Evidence {
	t.Helper()
	e, err := attest.ParseEvidence(item)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// challenged checks and challenges.
func challenged(t testing.TB, v *attest.Verifier, item []byte, c attest.Claim) (p *attest.Proof, challenge, secret []byte) {
	t.Helper()
	p, err := v.Check(parsed(t, item), c)
	if err != nil {
		t.Fatal(err)
	}
	made, secret, err := p.Challenge(nil)
	if err != nil {
		t.Fatal(err)
	}
	if challenge, err = json.Marshal(made); err != nil {
		t.Fatal(err)
	}
	return p, challenge, secret
}

func (r *realTPM) activate(t testing.TB, challenge []byte) ([]byte, error) {
	t.Helper()
	c, err := attest.ParseChallenge(challenge)
	if err != nil {
		t.Fatal(err)
	}
	return r.Activate(t.Context(), c)
}

func fresh(t testing.TB) []byte {
	nonce := make([]byte, 32)
	if _, err := rand.Read(nonce); err != nil {
		t.Fatal(err)
	}
	return nonce
}

func TestRealTPMProvesItsKey(t *testing.T) {
	r := newRealTPM(t, tpmtest.Certified(t))
	all := map[string]bool{}
	item, c := r.evidence(t, fresh(t))
	// Every certified EK alone, then all that the TPM has.
	e := parsed(t, item)
	for i := range e.EKs {
		if e.EKs[i].Certificate == nil {
			continue
		}
		one := e
		one.EKs = e.EKs[i : i+1]
		text, err := json.Marshal(one)
		if err != nil {
			t.Fatal(err)
		}
		p, err := r.verifier.Check(parsed(t, text), c)
		if err != nil {
			t.Fatal(err)
		}
		all[p.EK()] = true
		made, secret, err := p.Challenge(nil)
		if err != nil {
			t.Fatal(err)
		}
		made.EK = i // of the evidence that the TPM gave
		if opened, err := r.Activate(t.Context(), made); err != nil || !bytes.Equal(opened, secret) {
			t.Errorf("EK %d: %x, %v", i, opened, err)
		}
	}
	if len(all) < 2 {
		t.Errorf("%d certified EKs, 2 are expected", len(all))
	}
	p, challenge, secret := challenged(t, r.verifier, item, c)
	if maker, model, _ := p.TPM(); p.FirstUse() || !all[p.EK()] || model != "swtpm" || maker == "" {
		t.Errorf("first use %v, EK %s, TPM %q %q", p.FirstUse(), p.EK(), maker, model)
	}
	opened, err := r.activate(t, challenge)
	if err != nil {
		t.Fatal(err)
	}
	answer := c.Answer(opened, item, challenge)
	if !bytes.Equal(answer, c.Answer(secret, item, challenge)) {
		t.Error("the answers differ")
	}
	later := c
	later.Nonce = fresh(t)
	if bytes.Equal(answer, later.Answer(secret, item, challenge)) {
		t.Error("the answer serves for another nonce too")
	}
	sealed, err := c.Seal(secret, item, challenge, []byte("chain"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := c.Unseal(opened, item, challenge, sealed); err != nil || string(plain) != "chain" {
		t.Errorf("unsealed %q, %v", plain, err)
	}
}

// A TPM opens no challenge that was made for another AK or another EK, whoever signs for it.
func TestRealTPMRefusesTheChallengeOfAnother(t *testing.T) {
	r, other := newRealTPM(t, tpmtest.Certified(t)), newRealTPM(t, tpmtest.Other(t))
	item, c := r.evidence(t, fresh(t))
	theirs, their := other.evidence(t, c.Nonce)

	// The forger's own AK and key, and the certified EK of an honest chip: this passes Check,
	// for nothing in it is wrong; the honest chip has to refuse the challenge.
	e := parsed(t, theirs)
	e.EKs = parsed(t, item).EKs
	spliced, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	_, challenge, _ := challenged(t, r.verifier, spliced, their)
	if secret, err := r.activate(t, challenge); err == nil || secret != nil {
		t.Error("the TPM opened a challenge for an AK that is not its own")
	}
	if secret, err := other.activate(t, challenge); err == nil || secret != nil {
		t.Error("the forger's TPM opened a challenge for an EK that is not its own")
	}

	// An honest challenge, damaged or taken to another chip.
	_, challenge, _ = challenged(t, r.verifier, item, c)
	if secret, err := other.activate(t, challenge); err == nil || secret != nil {
		t.Error("another TPM opened the challenge")
	}
	if _, err := r.activate(t, challenge); err != nil {
		t.Errorf("the TPM itself: %v", err)
	}
}

// Evidence is for one nonce, one device and one request.
func TestRealEvidenceIsNotReplayed(t *testing.T) {
	r := newRealTPM(t, tpmtest.Certified(t))
	item, c := r.evidence(t, fresh(t))
	_, again := r.evidence(t, c.Nonce)
	for name, replayed := range map[string]attest.Claim{
		"nonce":   {Nonce: fresh(t), Device: c.Device, CSR: c.CSR},
		"request": {Nonce: c.Nonce, Device: c.Device, CSR: again.CSR},
	} {
		_, err := r.verifier.Check(parsed(t, item), replayed)
		if refusal, ok := errors.AsType[*attest.Refusal](err); !ok || refusal.Reason != "certify-claim" {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

// A chip without certificates is believed at first use only, and known again afterwards.
func TestRealTPMWithoutCertificate(t *testing.T) {
	r := newRealTPM(t, tpmtest.Start(t))
	item, c := r.evidence(t, fresh(t))
	_, err := r.verifier.Check(parsed(t, item), c)
	if refusal, ok := errors.AsType[*attest.Refusal](err); !ok || refusal.Reason != "ek-certificate-none" {
		t.Errorf("without first use: %v", err)
	}
	r.verifier.TrustOnFirstUse = true
	p, challenge, secret := challenged(t, r.verifier, item, c)
	if opened, err := r.activate(t, challenge); err != nil || !bytes.Equal(opened, secret) || !p.FirstUse() {
		t.Errorf("first use %v: %v", p.FirstUse(), err)
	}
	recorded := p.EK()
	r.verifier.TrustOnFirstUse = false
	r.verifier.Known = func(ek string) bool { return ek == recorded }
	item, c = r.evidence(t, fresh(t))
	if p, _, _ := challenged(t, r.verifier, item, c); p.EK() != recorded {
		t.Error("another EK the second time")
	}
}

func BenchmarkCheckReal(b *testing.B) {
	r := newRealTPM(b, tpmtest.Certified(b))
	item, c := r.evidence(b, fresh(b))
	b.ReportAllocs()
	for b.Loop() {
		e, err := attest.ParseEvidence(item)
		if err != nil {
			b.Fatal(err)
		}
		p, err := r.verifier.Check(e, c)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := p.Challenge(nil); err != nil {
			b.Fatal(err)
		}
	}
}
