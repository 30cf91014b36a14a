package attest

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"testing"
)

// Flipping any one bit of what proves something is refused. Bits of endorsement keys that are
// not the one to be challenged prove nothing: see TestOtherEKsDecideNothing.
func TestAnyFlippedBitIsRefused(t *testing.T) {
	m := newMaker(t)
	s := newSoftTPM(t, m, ekP256)
	e, c := s.evidence(t, nonce, device, nil)
	v := m.verifier()
	for name, part := range map[string]*[]byte{
		"ak": &e.AK, "key": &e.Key, "certify": &e.Certify, "signature": &e.Signature, "csr": &c.CSR, "nonce": &c.Nonce,
	} {
		flip(t, name, part, func() error { _, err := v.Check(e, c); return err })
	}
	for kind, name := range ekNames {
		e, _ := newSoftTPM(t, m, kind).evidence(t, nonce, device, nil)
		check := func() error { _, err := v.endorser(e.EKs); return err }
		if err := check(); err != nil {
			t.Fatal(err)
		}
		flip(t, name+" EK", &e.EKs[0].Public, check)
		flip(t, name+" certificate", &e.EKs[0].Certificate, check)
	}
}

// flip flips each bit of part in turn; check has to refuse it.
func flip(t *testing.T, name string, part *[]byte, check func() error) {
	t.Helper()
	good := *part
	defer func() { *part = good }()
	*part = bytes.Clone(good)
	for i := 0; i < len(good)*8; i += stride() {
		(*part)[i/8] ^= 1 << (i % 8)
		if check() == nil {
			t.Errorf("%s: bit %d of byte %d may be flipped", name, i%8, i/8)
		}
		(*part)[i/8] ^= 1 << (i % 8)
	}
	if err := check(); err != nil {
		t.Errorf("%s is refused as it was: %v", name, err)
	}
}

// stride is 1, and under an emulator, which takes minutes for every bit, a bit or two of each byte.
func stride() int {
	if os.Getenv("FERRULE_EXEC") != "" {
		return 5
	}
	return 1
}

// No two texts are the same evidence: a flipped bit of the item as it goes over the wire is
// refused, or it flips bits of the evidence, and then the test above speaks.
func TestAnyFlippedBitOfTheJSONIsSeen(t *testing.T) {
	m := newMaker(t)
	e, c := newSoftTPM(t, m, ekP256).evidence(t, nonce, device, nil)
	v := m.verifier()
	item, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Check(e, c); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for i := range len(item) * 8 {
		item[i/8] ^= 1 << (i % 8)
		changed, err := ParseEvidence(item)
		switch {
		case err != nil:
		case reflect.DeepEqual(changed, e):
			t.Errorf("bit %d of byte %d changes nothing", i%8, i/8)
		default:
			if tried++; tried%8 == 0 {
				if _, err := v.Check(changed, c); err == nil {
					t.Errorf("bit %d of byte %d may be flipped", i%8, i/8)
				}
			}
		}
		item[i/8] ^= 1 << (i % 8)
	}
}

// What is wrong with an endorsement key that is not challenged neither helps nor harms.
func TestOtherEKsDecideNothing(t *testing.T) {
	m := newMaker(t)
	e, c := newSoftTPM(t, m, ekP256).evidence(t, nonce, device, nil)
	other, _ := newSoftTPM(t, m, ekP384).evidence(t, nonce, device, nil)
	v := m.verifier()
	first, err := v.Check(e, c)
	if err != nil {
		t.Fatal(err)
	}
	e.EKs = slices.Concat(other.EKs, e.EKs)
	for _, part := range []*[]byte{&e.EKs[0].Public, &e.EKs[0].Certificate} {
		for i := 0; i < len(*part)*8; i += 31 {
			(*part)[i/8] ^= 1 << (i % 8)
			p, err := v.Check(e, c)
			if err != nil || p.EK() != first.EK() || p.ek.index != 1 {
				t.Fatalf("byte %d: %v", i/8, err)
			}
			(*part)[i/8] ^= 1 << (i % 8)
		}
	}
}

// Each part cut anywhere, and each part of each length of zeros: no panic, a refusal.
func TestAnyCutIsRefused(t *testing.T) {
	m := newMaker(t)
	e, c := newSoftTPM(t, m, ekRSA).evidence(t, nonce, device, nil)
	v := m.verifier()
	check := func() error { _, err := v.Check(e, c); return err }
	endorse := func() error { _, err := v.endorser(e.EKs); return err }
	for name, part := range map[string]struct {
		bytes *[]byte
		check func() error
	}{
		"ak": {&e.AK, check}, "key": {&e.Key, check}, "certify": {&e.Certify, check}, "signature": {&e.Signature, check},
		"csr": {&c.CSR, check}, "EK": {&e.EKs[0].Public, endorse}, "certificate": {&e.EKs[0].Certificate, endorse},
	} {
		good := *part.bytes
		for n := range len(good) {
			for _, cut := range [][]byte{good[:n], make([]byte, n)} {
				if *part.bytes = cut; part.check() == nil {
					t.Errorf("%s cut to %d bytes is believed", name, n)
				}
			}
		}
		if *part.bytes = good; part.check() != nil {
			t.Errorf("%s is refused as it was", name)
		}
	}
}
