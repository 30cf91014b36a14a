package tpm_test

import (
	"bytes"
	"crypto"
	"errors"
	"sync"
	"testing"

	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
)

// TestThreeKeysOnThreeSlots: the operational key, the factory's and a new one, on a TPM that
// holds three objects, of which loading and attesting need two.
func TestThreeKeysOnThreeSlots(t *testing.T) {
	s := tpmtest.Certified(t)
	d := open(t, s.Address(), tpm.Options{})
	var keys []*tpm.Key
	for _, spec := range []tpm.KeySpec{{}, {Parent: tpm.OwnerHandle}, {}} {
		keys = append(keys, load(t, d, newKey(t, d, spec)))
	}
	for range 2 {
		for _, k := range keys {
			mustSign(t, k)
		}
		for _, k := range keys {
			e := mustAttest(t, k)
			checkCertify(t, e, k.Public(), make([]byte, 32))
			mustActivate(t, k, e)
		}
	}
	// One that is used alone stays.
	mustSign(t, keys[0])
	if cost := spent(d, func() { mustSign(t, keys[0]); mustSign(t, keys[0]) }); cost["Sign"] != 2 || len(cost) != 1 {
		t.Errorf("signing twice cost %v", cost)
	}
	for _, k := range keys {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		if _, err := k.Attest(background, nil); err == nil {
			t.Error("a closed key was attested")
		}
	}
	if left := slotsAndSessions(t, d); left != (occupied{}) {
		t.Errorf("%+v left", left)
	}
}

// TestPersistentKeyIsAttested: it needs a slot of its own for the command.
func TestPersistentKeyIsAttested(t *testing.T) {
	s, dir := tpmtest.Certified(t), t.TempDir()
	o := keyOptions(t, s.Address(), dir)
	d, _ := o.Device(background)
	k, err := tpm.CreateKeyAt(background, "tpm2:handle=0x81010100", tpm.KeySpec{}, o)
	if err != nil {
		t.Fatal(err)
	}
	others := []*tpm.Key{load(t, d, newKey(t, d, tpm.KeySpec{})), load(t, d, newKey(t, d, tpm.KeySpec{}))}
	a := k.(tpm.Attester)
	e := mustAttest(t, a)
	checkCertify(t, e, k.Public(), make([]byte, 32))
	mustActivate(t, a, e)
	for _, k := range others {
		mustSign(t, k)
	}
	mustSign(t, k)
}

// TestHundredGoroutinesSignWhileAnotherAttests, with three keys that push each other out:
// each signature is of the key that was asked for.
func TestHundredGoroutinesSignWhileAnotherAttests(t *testing.T) {
	s := tpmtest.Certified(t)
	d := open(t, s.Address(), tpm.Options{})
	var keys []*tpm.Key
	for range 3 {
		keys = append(keys, load(t, d, newKey(t, d, tpm.KeySpec{})))
	}
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range 100 {
		all.Go(func() {
			<-start
			for range 2 {
				if err := sign(t, keys[i%len(keys)], crypto.SHA256); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		<-start
		for _, k := range keys {
			e, err := k.Attest(background, make([]byte, 32))
			if err != nil {
				t.Error(err)
				return
			}
			c, want := challenge(t, e, 0)
			if got, err := k.Activate(background, c); err != nil || !bytes.Equal(got, want) {
				t.Error(err)
			}
		}
	})
	close(start)
	all.Wait()
	for _, k := range keys {
		_ = k.Close()
	}
	if left := slotsAndSessions(t, d); left != (occupied{}) {
		t.Errorf("%+v left", left)
	}
}

// TestRemnantsOfKilledProcesses: on a device without resource manager they stay until the
// next reset, or until somebody who needs the room knows them for his own.
func TestRemnantsOfKilledProcesses(t *testing.T) {
	s := tpmtest.Certified(t)
	d := open(t, s.Address(), tpm.Options{})
	f := newKey(t, d, tpm.KeySpec{})
	c := d.TPM(background)
	endorse := tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}
	fill := func(templates ...tpm2.TPMTPublic) {
		for _, template := range templates {
			if _, err := (tpm2.CreatePrimary{PrimaryHandle: endorse, InPublic: tpm2.New2B(template)}).Execute(c); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			if _, _, err := tpm2.PolicySession(c, tpm2.TPMAlgSHA256, 16); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(tpm.AKTemplate(), tpm2.ECCEKTemplate, tpm2.RSAEKTemplate)
	k := load(t, d, f)
	mustActivate(t, k, mustAttest(t, k))
	_ = k.Close()
	if left := slotsAndSessions(t, d); left != (occupied{}) {
		t.Errorf("%+v left", left)
	}

	// What others have loaded is theirs.
	theirs := tpm2.ECCSRKTemplate
	theirs.ObjectAttributes.NoDA = false
	fill(theirs, theirs, theirs)
	if _, err := d.LoadKey(background, f); !errors.Is(err, tpm.ErrBusy) {
		t.Errorf("a TPM full of other people's objects: %v", err)
	}
	if left := slotsAndSessions(t, d); left.objects != 3 {
		t.Errorf("%+v left, of three objects of others", left)
	}
}

// TestSilentReset: the TPM loses its memory while the connection stays, as in suspend. No
// key may sign with what has come to lie at its handle since.
func TestSilentReset(t *testing.T) {
	s := tpmtest.Start(t)
	d := open(t, s.Address(), tpm.Options{})
	keys := []*tpm.Key{load(t, d, newKey(t, d, tpm.KeySpec{})), load(t, d, newKey(t, d, tpm.KeySpec{}))}
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		for _, h := range handles(t, d, 0x80000000) {
			if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(d.TPM(background)); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range order {
			mustSign(t, keys[i])
		}
		for _, i := range order {
			mustSign(t, keys[i])
		}
	}
}
