package tpm_test

import (
	"crypto"
	"crypto/ecdsa"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(*ecdsa.PublicKey)
	return ok && k.Equal(b)
}

func TestNextURI(t *testing.T) {
	for uri, want := range map[string]string{
		"tpm2:file=device.key":        "tpm2:file=device.key.next",
		"tpm2:file=/var/lib/f/d.key":  "tpm2:file=/var/lib/f/d.key.next",
		"file:device.pem":             "file:device.pem.next",
		"tpm2:handle=0x81010001":      "",
		"signer:unix=/run/x.sock":     "",
		"tpm2:file=../../etc/shadow":  "",
		"nonsense":                    "",
		"tpm2:handle=0x81000001":      "",
		"signer:unix=/run/x.sock?k=v": "",
	} {
		got, err := tpm.NextURI(uri)
		if got != want || (want == "") != errors.Is(err, tpm.ErrUnsupported) {
			t.Errorf("%s: %q, %v", uri, got, err)
		}
	}
	if _, err := tpm.NextURI("tpm2:handle=0x81010001"); !strings.Contains(hint.Of(err), "tpm2:file=") {
		t.Errorf("hint %q", hint.Of(err))
	}
}

// TestTakeOver: both kinds of key files, the old key in use meanwhile and afterwards.
func TestTakeOver(t *testing.T) {
	s := tpmtest.Start(t)
	for _, uri := range []string{"tpm2:file=keys/device.key", "file:keys/device.pem"} {
		o := keyOptions(t, s.Address(), t.TempDir())
		o.AllowSoftware = true
		old, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{}, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := tpm.TakeOver(uri, o); !errors.Is(err, tpm.ErrNoKey) {
			t.Errorf("%s: taking over nothing: %v", uri, err)
		}
		next, err := tpm.NextURI(uri)
		if err != nil {
			t.Fatal(err)
		}
		successor, err := tpm.CreateKeyAt(background, next, tpm.KeySpec{}, o)
		if err != nil {
			t.Fatal(err)
		}
		o.AllowSoftware = false // looking and moving use no key
		for uri, want := range map[string]tpm.DeviceKey{uri: old, next: successor} {
			if got, err := tpm.PublicOf(uri, o); err != nil || !samePublic(want.Public(), got) {
				t.Errorf("%s: %v, %v", uri, got, err)
			}
		}
		if err := tpm.TakeOver(uri, o); err != nil {
			t.Fatal(err)
		}
		if got, err := tpm.PublicOf(uri, o); err != nil || !samePublic(successor.Public(), got) {
			t.Errorf("%s: %v, %v", uri, got, err)
		}
		if _, err := tpm.PublicOf(next, o); !errors.Is(err, tpm.ErrNoKey) {
			t.Errorf("%s: %v", next, err)
		}
		mustSign(t, old)
		mustSign(t, successor)
		o.AllowSoftware = true
		again, err := tpm.OpenKey(background, uri, o)
		if err != nil || !samePublic(successor.Public(), again.Public()) {
			t.Fatalf("%s: %v", uri, err)
		}
		mustSign(t, again)
		for _, k := range []tpm.DeviceKey{old, successor, again} {
			if err := k.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestPowerCutWhileTakingOver: the old key or the new one has the name at every moment, and
// once TakeOver has returned it is the new one.
func TestPowerCutWhileTakingOver(t *testing.T) {
	s := tpmtest.Start(t)
	const uri, next = "tpm2:file=device.key", "tpm2:file=device.key.next"
	fsys := disktest.New()
	o := keyOptions(t, s.Address(), "/state")
	o.FS = fsys
	if err := fsys.MkdirAll("/state", 0o700); err != nil {
		t.Fatal(err)
	}
	var keys []tpm.DeviceKey
	for _, u := range []string{uri, next} {
		k, err := tpm.CreateKeyAt(background, u, tpm.KeySpec{}, o)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
		fsys.Mark(u)
	}
	if err := tpm.TakeOver(uri, o); err != nil {
		t.Fatal(err)
	}
	fsys.Mark("taken over")
	states, old := 0, 0
	for name, state := range fsys.CrashStates() {
		states++
		o.FS = state
		key, err := tpm.PublicOf(uri, o)
		isOld, isNew := err == nil && samePublic(keys[0].Public(), key), err == nil && samePublic(keys[1].Public(), key)
		switch marks := len(state.Marks()); {
		case marks > 2 && !isNew, marks > 0 && !isOld && !isNew:
			t.Errorf("%s: %v", name, err)
		case isOld && marks > 1:
			old++
			if key, err := tpm.PublicOf(next, o); err != nil || !samePublic(keys[1].Public(), key) {
				t.Errorf("%s: the next key: %v", name, err)
			}
			if err := tpm.TakeOver(uri, o); err != nil {
				t.Errorf("%s: taking over after the cut: %v", name, err)
			}
		}
	}
	if old == 0 || old == states {
		t.Errorf("the old key had the name in %d of %d states", old, states)
	}
}

func TestRemove(t *testing.T) {
	s := tpmtest.Start(t)
	dir := t.TempDir()
	o := keyOptions(t, s.Address(), dir)
	o.AllowSoftware = true
	d, _ := o.Device(background)
	for _, uri := range []string{"tpm2:file=keys/device.key", "file:keys/device.pem", "tpm2:handle=0x81010100"} {
		k, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{}, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		if _, file, ok := strings.Cut(uri, "keys/"); ok {
			for _, end := range []string{".next", ".lost", ".tmp", ".next.tmp"} {
				if err := os.WriteFile(filepath.Join(dir, "keys", file+end), []byte("secret"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		forbidden := o
		forbidden.AllowSoftware = false
		for range 2 { // the second time there is nothing
			if err := tpm.Remove(background, uri, forbidden); err != nil {
				t.Errorf("%s: %v", uri, err)
			}
		}
		if _, err := tpm.OpenKey(background, uri, o); !errors.Is(err, tpm.ErrNoKey) {
			t.Errorf("%s: %v", uri, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(dir, "keys")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := tpm.Remove(background, "tpm2:file=absent/device.key", o); err != nil {
		t.Errorf("no folder: %v", err)
	}
	if _, err := d.EnsureSRK(background, nil); err != nil || d.Stats().Commands["EvictControl"] != 3 {
		t.Errorf("the SRK was touched: %v, %v", err, d.Stats().Commands)
	}
	if left := slotsAndSessions(t, d); left != (occupied{}) {
		t.Errorf("%+v left", left)
	}
	if err := tpm.Remove(background, "signer:unix=/run/x.sock", o); !errors.Is(err, tpm.ErrUnsupported) {
		t.Errorf("a helper's key: %v", err)
	}
}

// TestRemoveTouchesNoStorageKey: a handle in the configuration that somebody else uses.
func TestRemoveTouchesNoStorageKey(t *testing.T) {
	s := tpmtest.Certified(t) // swtpm_setup leaves its endorsement key at 0x81010001
	o := keyOptions(t, s.Address(), t.TempDir())
	if err := tpm.Remove(background, "tpm2:handle=0x81010001", o); !errors.Is(err, tpm.ErrUnsupported) {
		t.Errorf("an endorsement key: %v", err)
	}
}

func TestRemoveSaysWhatCouldNotBeRemoved(t *testing.T) {
	fsys := disktest.New()
	o := tpm.KeyOptions{FS: fsys, StateDir: "/state"}
	if err := fsys.MkdirAll("/state", 0o700); err != nil {
		t.Fatal(err)
	}
	fsys.Fail(func(op disktest.Op) error {
		if op.Kind == disktest.Remove {
			return fs.ErrPermission
		}
		return nil
	})
	if err := tpm.Remove(background, "tpm2:file=device.key", o); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v", err)
	}
}
