package attest

import (
	"bytes"
	"crypto/elliptic"
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"errors"
	"testing"
)

var nonce = []byte("0123456789abcdef0123456789abcdef")

const device = "gw-0001"

// The way of an honest TPM: evidence, challenge, activation, answer, seal.
func TestHonestTPMIsBelieved(t *testing.T) {
	m := newMaker(t)
	for kind, which := range ekNames {
		for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384()} {
			t.Run(which+" EK, "+curve.Params().Name+" key", func(t *testing.T) {
				s := newSoftTPM(t, m, kind)
				s.key = newKey(t, curve)
				e, c := s.evidence(t, nonce, device, nil)
				p, err := m.verifier().Check(e, c)
				if err != nil {
					t.Fatal(err)
				}
				if p.FirstUse() || len(p.EK()) != 64 || !s.key.PublicKey.Equal(p.Key()) {
					t.Errorf("first use %v, EK %q, key %v", p.FirstUse(), p.EK(), p.Key())
				}
				if maker, model, version := p.TPM(); maker != "IFX" || model != "SLB9670" || version != "id:0D0B" {
					t.Errorf("TPM is %q %q %q", maker, model, version)
				}
				answers(t, s, p, e, c)
			})
		}
	}
}

// answers plays the rest of an enrollment, with both items as they go over the wire.
func answers(t *testing.T, s *softTPM, p *Proof, e Evidence, c Claim) {
	t.Helper()
	evidence, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	challenge, secret, err := p.Challenge(nil)
	if err != nil {
		t.Fatal(err)
	}
	item, err := json.Marshal(challenge)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := c.Seal(secret, evidence, item, []byte("certificate"))
	if err != nil {
		t.Fatal(err)
	}
	received, err := ParseChallenge(item)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := s.activate(received, e.AK)
	if err != nil {
		t.Fatal(err)
	}
	if !hmac.Equal(c.Answer(secret, evidence, item), c.Answer(opened, evidence, item)) {
		t.Error("the answers differ")
	}
	plain, err := c.Unseal(opened, evidence, item, sealed)
	if err != nil || string(plain) != "certificate" {
		t.Errorf("unsealed %q, %v", plain, err)
	}
}

func TestChallengeIsForOneEKAndOneAK(t *testing.T) {
	m := newMaker(t)
	for kind, which := range ekNames {
		t.Run(which, func(t *testing.T) {
			s, other := newSoftTPM(t, m, kind), newSoftTPM(t, m, (kind+1)%2)
			e, c := s.evidence(t, nonce, device, nil)
			p, err := m.verifier().Check(e, c)
			if err != nil {
				t.Fatal(err)
			}
			challenge, _, err := p.Challenge(nil)
			if err != nil {
				t.Fatal(err)
			}
			foreign, _ := other.evidence(t, nonce, device, nil)
			if _, err := s.activate(challenge, foreign.AK); err == nil {
				t.Error("the challenge opens for another AK")
			}
			if _, err := other.activate(challenge, e.AK); err == nil {
				t.Error("the challenge opens with another EK")
			}
			again, secret, err := p.Challenge(nil)
			if err != nil || bytes.Equal(again.Credential, challenge.Credential) || len(secret) != SecretSize {
				t.Errorf("a second challenge is the first: %v", err)
			}
			if _, _, err := p.Challenge(bytes.NewReader(nil)); err == nil {
				t.Error("a challenge without randomness")
			}
		})
	}
}

// An EK is chosen by what is known of it, not by its place in the evidence.
func TestWhichEKIsChallenged(t *testing.T) {
	m := newMaker(t)
	v := m.verifier()
	s := newSoftTPM(t, m, ekP256)
	e, c := s.evidence(t, nonce, device, nil)
	ids := make([]string, 3)
	eks := make([]Endorsement, 3)
	for kind := range ekNames {
		one, _ := newSoftTPM(t, m, kind).evidence(t, nonce, device, nil)
		eks[kind] = one.EKs[0]
		proved, err := v.endorser(eks[kind : kind+1])
		if err != nil {
			t.Fatal(err)
		}
		ids[kind] = proved.id
	}
	bare := func(k Endorsement) Endorsement { return Endorsement{Public: k.Public} }
	for name, test := range map[string]struct {
		eks      []Endorsement
		firstUse bool
		known    int // +1
		want     int
	}{
		"certified, P-256 first":               {eks: []Endorsement{eks[ekRSA], eks[ekP384], eks[ekP256]}, want: ekP256},
		"certified, in another order":          {eks: []Endorsement{eks[ekP256], eks[ekRSA], eks[ekP384]}, want: ekP256},
		"certified before bare":                {eks: []Endorsement{bare(eks[ekP256]), eks[ekRSA], bare(eks[ekP384])}, want: ekRSA},
		"certified before bare, first use":     {eks: []Endorsement{bare(eks[ekP256]), eks[ekRSA]}, firstUse: true, want: ekRSA},
		"bare, first use":                      {eks: []Endorsement{bare(eks[ekRSA]), bare(eks[ekP384])}, firstUse: true, want: ekP384},
		"on record before certified":           {eks: []Endorsement{eks[ekP256], eks[ekRSA]}, known: ekRSA + 1, want: ekRSA},
		"on record and bare before certified":  {eks: []Endorsement{eks[ekP256], bare(eks[ekRSA])}, known: ekRSA + 1, want: ekRSA},
		"on record and bare, first use not on": {eks: []Endorsement{bare(eks[ekP384]), bare(eks[ekRSA])}, known: ekRSA + 1, want: ekRSA},
		"listed twice, the certified one":      {eks: []Endorsement{bare(eks[ekP256]), eks[ekP256]}, firstUse: true, want: ekP256},
	} {
		t.Run(name, func(t *testing.T) {
			v := m.verifier()
			v.TrustOnFirstUse = test.firstUse
			v.Known = func(ek string) bool { return test.known > 0 && ek == ids[test.known-1] }
			e.EKs = test.eks
			p, err := v.Check(e, c)
			if err != nil {
				t.Fatal(err)
			}
			if p.EK() != ids[test.want] {
				t.Errorf("EK %d of the evidence is challenged", p.ek.index)
			}
			if bareOne := len(e.EKs[p.ek.index].Certificate) == 0; p.FirstUse() != bareOne {
				t.Errorf("first use: %v", p.FirstUse())
			}
			challenge, _, err := p.Challenge(nil)
			if err != nil || challenge.EK != p.ek.index {
				t.Errorf("the challenge names EK %d: %v", challenge.EK, err)
			}
		})
	}
}

// Devices and other implementations depend on these bytes, which were computed
// in Python from what docs/enrollment.md says.
func TestClaimHasFixedBytes(t *testing.T) {
	c := Claim{Nonce: bytes.Repeat([]byte{7}, 32), Device: "gw-0001", CSR: []byte("request")}
	secret := bytes.Repeat([]byte{9}, SecretSize)
	if got := hex.EncodeToString(c.Qualify()); got != "e2f2a12777420301576ef802c746d77fc52b95f3ac506d68463e70a8b556318f" {
		t.Errorf("Qualify is %s", got)
	}
	if got := hex.EncodeToString(c.Answer(secret, []byte("evidence"), []byte("challenge"))); got != "3c9b68c21a661cbbfc2543d4f08979e2dbbe36a981eaf866b0495cd3d5d6b250" {
		t.Errorf("Answer is %s", got)
	}
	sealed, err := hex.DecodeString("000102030405060708090a0be1f5e13db927929188a31ebceb9a0d5705a41c0bb3")
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := c.Unseal(secret, []byte("evidence"), []byte("challenge"), sealed); err != nil || string(plain) != "plain" {
		t.Errorf("Unseal is %q, %v", plain, err)
	}
}

// No byte moves from one field to the next, and no field is left out.
func TestEveryFieldOfAClaimCounts(t *testing.T) {
	c := Claim{Nonce: []byte("nonce"), Device: "device", CSR: []byte("csr")}
	secret := bytes.Repeat([]byte{9}, SecretSize)
	e, ch := []byte("evidence"), []byte("challenge")
	sealed, err := c.Seal(secret, e, ch, []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]struct {
		c         Claim
		secret    []byte
		evidence  []byte
		challenge []byte
	}{
		"nonce":     {Claim{[]byte("noncf"), "device", []byte("csr")}, secret, e, ch},
		"device":    {Claim{[]byte("nonce"), "devicf", []byte("csr")}, secret, e, ch},
		"csr":       {Claim{[]byte("nonce"), "device", []byte("csq")}, secret, e, ch},
		"moved":     {Claim{[]byte("nonced"), "evice", []byte("csr")}, secret, e, ch},
		"moved on":  {Claim{[]byte("nonce"), "devicec", []byte("sr")}, secret, e, ch},
		"secret":    {c, bytes.Repeat([]byte{8}, SecretSize), e, ch},
		"evidence":  {c, secret, []byte("evidencf"), ch},
		"challenge": {c, secret, e, []byte("challengf")},
		"swapped":   {c, secret, ch, e},
		"joined":    {c, secret, []byte("evidencec"), []byte("hallenge")},
	} {
		t.Run(name, func(t *testing.T) {
			if bytes.Equal(c.Answer(secret, e, ch), other.c.Answer(other.secret, other.evidence, other.challenge)) {
				t.Error("one answer for two claims")
			}
			if _, err := other.c.Unseal(other.secret, other.evidence, other.challenge, sealed); !errors.Is(err, ErrUnseal) {
				t.Errorf("the seal of another claim opens: %v", err)
			}
		})
	}
	if bytes.Equal(c.Qualify(), Claim{Nonce: []byte("nonced"), Device: "evice", CSR: []byte("csr")}.Qualify()) {
		t.Error("a byte moved from device to nonce unseen")
	}
}

func TestSealIsBounded(t *testing.T) {
	c := Claim{Nonce: nonce, Device: device}
	secret := make([]byte, SecretSize)
	if _, err := c.Seal(secret, nil, nil, make([]byte, MaxSealed)); err == nil {
		t.Error("too much was sealed")
	}
	sealed, err := c.Seal(secret, nil, nil, make([]byte, MaxSealed-sealOverhead))
	if err != nil || len(sealed) != MaxSealed {
		t.Errorf("%d bytes, %v", len(sealed), err)
	}
	if _, err := c.Unseal(secret, nil, nil, sealed); err != nil {
		t.Error(err)
	}
	if _, err := c.Unseal(secret, nil, nil, append(sealed, 0)); err == nil || errors.Is(err, ErrUnseal) {
		t.Errorf("too much was unsealed: %v", err)
	}
	for _, short := range [][]byte{nil, secret[1:]} {
		if _, err := c.Seal(short, nil, nil, nil); err == nil {
			t.Error("sealed under a short secret")
		}
		if _, err := c.Unseal(short, nil, nil, sealed); err == nil {
			t.Error("unsealed with a short secret")
		}
	}
	for _, damaged := range [][]byte{nil, sealed[:27], sealed[:len(sealed)-1]} {
		if _, err := c.Unseal(secret, nil, nil, damaged); !errors.Is(err, ErrUnseal) {
			t.Errorf("unsealing %d bytes: %v", len(damaged), err)
		}
	}
	again, err := c.Seal(secret, nil, nil, []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	if third, err := c.Seal(secret, nil, nil, []byte("plain")); err != nil || bytes.Equal(again, third) {
		t.Errorf("the nonce comes twice: %v", err)
	}
}
