package identity_test

import (
	"errors"
	"testing"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/identity"
	"ferrule/tpm/tpmtest"
)

// The whole life at the real registrar, over TLS, with evidence of a real TPM each time.
func TestLifeAtTheRegistrar(t *testing.T) {
	f := newFactory(t, time.Hour)
	c := newChipOf(t, tpmtest.Start(t))
	o := options(t.TempDir())
	mustEnroll(t, f, c.config, o, f.token(t, "gw-1"))
	seen := map[string]bool{}
	for _, rekey := range []bool{false, true, false} {
		i, err := identity.Open(background, c.config, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := i.RenewNow(background, f.enroll, rekey); err != nil {
			t.Fatalf("renewing, with a new key %t: %v", rekey, err)
		}
		same := equal(i.Staged().Leaf().PublicKey, i.Current().Leaf().PublicKey)
		if i.Promote(i.Staged()); same == rekey || seen[i.Current().Fingerprint()] || i.Device() != "gw-1" {
			t.Errorf("with a new key %t: the same key %t, device %s", rekey, same, i.Device())
		}
		seen[i.Current().Fingerprint()] = true
		if err := i.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c.clear()
	if _, err := identity.Open(background, c.config, o); !errors.Is(err, identity.ErrCleared) {
		t.Fatalf("opening after the clear: %v", err)
	}
	// What ferrule enroll does then, without a token.
	if result, err := identity.Enroll(background, c.config, o, f.enroll, identity.EnrollRequest{}); err != nil || result.Device != "gw-1" {
		t.Fatalf("returning: %+v, %v", result, err)
	}
	c.settled(o.StateDir, "device.key.lost")
	opensslVerifies(t, f, o.StateDir)

	// Another chip that claims to be the device is told from it.
	other := options(t.TempDir())
	write(t, other.StateDir, "identity.json", `{"device":"gw-1","enrolled":"2026-01-01T00:00:00Z"}`)
	if _, err := identity.Return(background, inTPM(tpmtest.Start(t).Address()), other, f.enroll); !errors.Is(err, enroll.ErrRefused) {
		t.Errorf("a clone: %v", err)
	}
}

// Without a token the factory certificate entitles to the first one, and is the way back later.
func TestFactoryCertificateAtTheRegistrar(t *testing.T) {
	f := newFactory(t, time.Hour)
	c := newChipOf(t, tpmtest.Start(t))
	c.config.Factory = identity.Default().Factory
	o := options(t.TempDir())
	first, err := identity.Enroll(background, c.config, o, f.enroll, identity.EnrollRequest{Token: f.token(t, "serial-7"), Factory: true})
	if err != nil || first.Key != c.config.Factory.Key {
		t.Fatalf("%+v, %v", first, err)
	}
	if _, err := identity.Open(background, c.config, o); !errors.Is(err, identity.ErrNotEnrolled) {
		t.Errorf("a factory certificate alone is no operational one: %v", err)
	}
	second, err := identity.Enroll(background, c.config, o, f.enroll, identity.EnrollRequest{})
	if err != nil || second.Device != "serial-7" || second.Key != c.config.Key {
		t.Fatalf("%+v, %v", second, err)
	}
	i := mustOpen(t, c.config, o)
	if s := i.Status(); s.Factory == nil || s.Factory.Device != "serial-7" || s.TPM.Commands["Load"] != 1 || s.TPM.Commands["ReadPublic"] != 1 {
		t.Errorf("at a warm start: %+v, commands %v", s.Factory, s.TPM.Commands)
	}
}
