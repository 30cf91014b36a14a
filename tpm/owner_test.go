package tpm_test

import (
	"bytes"
	"crypto"
	"errors"
	"strings"
	"testing"

	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
)

func TestOwnerChanged(t *testing.T) {
	s, dir := tpmtest.Start(t), t.TempDir()
	const uri = "tpm2:file=device.key"
	o := keyOptions(t, s.Address(), dir)
	d, _ := o.Device(background)
	pin, err := d.EnsureSRK(background, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{}, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(d.TPM(background)); err != nil {
		t.Fatal(err)
	}
	isOwnerChanged := func(doing string, err error) {
		t.Helper()
		if !errors.Is(err, tpm.ErrOwnerChanged) || !strings.Contains(hint.Of(err), "enroll") {
			t.Errorf("%s: %v", doing, err)
		}
	}
	isOwnerChanged("signing with the live key", sign(t, k, crypto.SHA256))
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	_ = d.Close()

	o = keyOptions(t, s.Address(), dir)
	o.PinSRK = pin
	_, err = tpm.OpenKey(background, uri, o)
	isOwnerChanged("opening with a pin", err)
	d, _ = o.Device(background)
	if _, err := (tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(tpm.SRKHandle)}).Execute(d.TPM(background)); !errors.Is(err, tpm2.TPMRCHandle) {
		t.Errorf("an SRK was made persistent in a TPM that is not ours: %v", err)
	}
	o.PinSRK = nil
	_, err = tpm.OpenKey(background, uri, o)
	isOwnerChanged("opening without a pin", err)
	_, err = d.EnsureSRK(background, pin)
	isOwnerChanged("comparing the SRK", err)

	o = keyOptions(t, tpmtest.Start(t).Address(), dir)
	_, err = tpm.OpenKey(background, uri, o)
	isOwnerChanged("another TPM, no pin", err)
	o.PinSRK = pin
	_, err = tpm.OpenKey(background, uri, o)
	isOwnerChanged("another TPM, pin", err)
}

func TestOwnerPassword(t *testing.T) {
	s := tpmtest.Start(t)
	d := open(t, s.Address(), tpm.Options{})
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: owner, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}).Execute(d.TPM(background)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.EnsureSRK(background, nil); !errors.Is(err, tpm.ErrOwnerAuth) || !strings.Contains(hint.Of(err), "tpm2_createprimary") {
		t.Errorf("owner password: %v", err)
	}
}

func TestHandleOfTheSRKHoldsSomethingElse(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	signing := tpm2.ECCSRKTemplate
	signing.ObjectAttributes.Restricted, signing.ObjectAttributes.Decrypt, signing.ObjectAttributes.SignEncrypt = false, false, true
	signing.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256})
	persistPrimary(t, d, signing)
	if _, err := d.EnsureSRK(background, nil); !errors.Is(err, tpm.ErrUnsupported) || !strings.Contains(err.Error(), "no storage key") {
		t.Errorf("error %v", err)
	}
}

func persistPrimary(t *testing.T, d *tpm.Device, template tpm2.TPMTPublic) {
	t.Helper()
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	c := d.TPM(background)
	p, err := tpm2.CreatePrimary{PrimaryHandle: owner, InPublic: tpm2.New2B(template)}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.EvictControl{
		Auth:             owner,
		ObjectHandle:     tpm2.NamedHandle{Handle: p.ObjectHandle, Name: p.Name},
		PersistentHandle: tpm2.TPMHandle(tpm.SRKHandle),
	}).Execute(c); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: p.ObjectHandle}).Execute(c); err != nil {
		t.Fatal(err)
	}
}

func TestSRKOfOthersWithoutNoDA(t *testing.T) {
	d := open(t, tpmtest.Start(t).Address(), tpm.Options{})
	theirs := tpm2.ECCSRKTemplate
	theirs.ObjectAttributes.NoDA = false
	persistPrimary(t, d, theirs)
	k := load(t, d, newKey(t, d, tpm.KeySpec{}))
	if w := k.Warnings(); len(w) != 1 || !strings.Contains(w[0], "SRK lacks noDA") {
		t.Errorf("warnings %q", w)
	}
	mustSign(t, k)
}

func TestSRKRace(t *testing.T) {
	s := tpmtest.Start(t)
	first, err := tpm.Open(background, tpm.Options{Path: s.Address()})
	if err != nil {
		t.Fatal(err)
	}
	name, err := first.EnsureSRK(background, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = first.Close()
	p, err := tpmtest.StartProxy(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	looked := false
	p.Inject(func(code uint32) tpmtest.Fault {
		if code != uint32(tpm2.TPMCCReadPublic) || looked {
			return tpmtest.Fault{}
		}
		looked = true
		return tpmtest.Fault{Answer: tpmtest.Response(uint32(tpm2.TPMRCHandle) | 0x100)}
	})
	d := open(t, p.Address(), tpm.Options{})
	got, err := d.EnsureSRK(background, nil)
	if err != nil || !bytes.Equal(got, name) || d.Stats().Commands["EvictControl"] != 1 {
		t.Errorf("name %x, error %v, counters %+v", got, err, d.Stats())
	}
}
