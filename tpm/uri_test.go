package tpm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"

	"github.com/google/go-tpm/tpm2"
)

// keyOptions reach the TPM at address and keep keys in dir.
func keyOptions(t testing.TB, address, dir string) tpm.KeyOptions {
	t.Helper()
	var d *tpm.Device
	return tpm.KeyOptions{StateDir: dir, Device: func(context.Context) (*tpm.Device, error) {
		if d == nil {
			d = open(t, address, tpm.Options{})
		}
		return d, nil
	}}
}

func TestKeyFileIsCreatedOnceAndOpened(t *testing.T) {
	s, dir := tpmtest.Start(t), t.TempDir()
	const uri = "tpm2:file=keys/device.key"
	o := keyOptions(t, s.Address(), dir)
	if _, err := tpm.OpenKey(background, uri, o); !errors.Is(err, tpm.ErrNoKey) || !strings.Contains(hint.Of(err), "enroll") {
		t.Fatalf("opening what is not there: %v", err)
	}
	k, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{}, o)
	if err != nil {
		t.Fatal(err)
	}
	if k.Ref() != uri || k.Weak() {
		t.Errorf("ref %q, weak %t", k.Ref(), k.Weak())
	}
	mustSign(t, k)
	path := filepath.Join(dir, "keys/device.key")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	before, _ := os.ReadFile(path)
	if _, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{}, o); !errors.Is(err, tpm.ErrKeyExists) || hint.Of(err) == "" {
		t.Errorf("creating it again: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the key file changed")
	}
	again, err := tpm.OpenKey(background, uri, o)
	if err != nil || !k.Public().(*ecdsa.PublicKey).Equal(again.Public()) {
		t.Errorf("opening it: %v", err)
	}
	if err := errors.Join(k.Close(), again.Close()); err != nil {
		t.Error(err)
	}
}

func TestKeyAtAHandle(t *testing.T) {
	s := tpmtest.Start(t)
	const uri = "tpm2:handle=0x81010001"
	o := keyOptions(t, s.Address(), "")
	if _, err := tpm.OpenKey(background, uri, o); !errors.Is(err, tpm.ErrNoKey) {
		t.Fatalf("opening what is not there: %v", err)
	}
	k, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{Curve: elliptic.P384()}, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{}, o); !errors.Is(err, tpm.ErrKeyExists) {
		t.Errorf("creating it again: %v", err)
	}
	mustSign(t, k)
	if err := s.Restart(background); err != nil {
		t.Fatal(err)
	}
	mustSign(t, k)
	d, _ := o.Device(background)
	if n := d.Stats().Commands["Load"]; n != 1 {
		t.Errorf("a persistent key was loaded %d times", n)
	}
	if h, err := d.Health(background); err != nil || h.TransientFree != 3 {
		t.Errorf("slots in use: %+v, %v", h, err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

func TestSoftwareKeysAreWeakAndNeedPermission(t *testing.T) {
	dir := t.TempDir()
	o := tpm.KeyOptions{StateDir: dir}
	for name, f := range map[string]func() error{
		"open":   func() error { _, err := tpm.OpenKey(background, "file:soft.pem", o); return err },
		"create": func() error { _, err := tpm.CreateKeyAt(background, "file:soft.pem", tpm.KeySpec{}, o); return err },
	} {
		if err := f(); !errors.Is(err, tpm.ErrSoftwareKey) || !strings.Contains(hint.Of(err), "allow_software_key") {
			t.Errorf("%s without permission: %v", name, err)
		}
	}
	var log bytes.Buffer
	o.AllowSoftware, o.Log = true, slog.New(slog.NewTextHandler(&log, nil))
	if _, err := tpm.OpenKey(background, "file:soft.pem", o); !errors.Is(err, tpm.ErrNoKey) {
		t.Errorf("opening what is not there: %v", err)
	}
	k, err := tpm.CreateKeyAt(background, "file:soft.pem", tpm.KeySpec{}, o)
	if err != nil || !k.Weak() || !strings.Contains(log.String(), "weak") {
		t.Fatalf("creating: %v; log %q", err, log.String())
	}
	if info, err := os.Stat(filepath.Join(dir, "soft.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	again, err := tpm.OpenKey(background, "file:soft.pem", o)
	if err != nil || !again.Weak() || !k.Public().(*ecdsa.PublicKey).Equal(again.Public()) {
		t.Fatalf("opening: %v", err)
	}
	mustSign(t, again)
	if _, err := tpm.OpenKey(background, "tpm2:file=soft.pem", o); !errors.Is(err, tpm.ErrUnsupported) {
		t.Errorf("a software key in the place of a TPM key: %v", err)
	}
}

func TestSoftwareKeyFilesOfOtherKinds(t *testing.T) {
	dir := t.TempDir()
	o := tpm.KeyOptions{StateDir: dir, AllowSoftware: true}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(rsaKey)
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"RSA":      {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), tpm.ErrUnsupported},
		"SEC 1":    {pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: pkcs8}), tpm.ErrUnsupported},
		"garbage":  {[]byte("garbage"), tpm.ErrKeyCorrupt},
		"bad DER":  {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1, 2}}), tpm.ErrKeyCorrupt},
		"too long": {bytes.Repeat([]byte{'x'}, 1<<17), tpm.ErrKeyCorrupt},
	} {
		if err := os.WriteFile(filepath.Join(dir, "k.pem"), c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := tpm.OpenKey(background, "file:k.pem", o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeyURIsThatAreRefused(t *testing.T) {
	for uri, want := range map[string]error{
		"signer:":                  tpm.ErrUnsupported,
		"signer:unix=":             tpm.ErrUnsupported,
		"signer:tcp=127.0.0.1:1":   tpm.ErrUnsupported,
		"signer:unix=../x.sock":    tpm.ErrUnsupported,
		"signer:unix=/x?key=":      tpm.ErrUnsupported,
		"signer:unix=/x?token=a":   tpm.ErrUnsupported,
		"signer:unix=/x?key=%0a":   tpm.ErrUnsupported,
		"signer:unix=/x?key=%zz":   tpm.ErrUnsupported,
		"pkcs11:token=x":           tpm.ErrUnsupported,
		"":                         tpm.ErrUnsupported,
		"tpm2:file=":               tpm.ErrUnsupported,
		"tpm2:file=../device.key":  tpm.ErrUnsupported,
		"tpm2:handle=0x81000001":   tpm.ErrUnsupported,
		"tpm2:handle=0x40000001":   tpm.ErrUnsupported,
		"tpm2:handle=0x181010001":  tpm.ErrUnsupported,
		"tpm2:handle=seven":        tpm.ErrUnsupported,
		"file:":                    tpm.ErrUnsupported,
		"file:k.pem":               tpm.ErrSoftwareKey,
		"tpm2:handle=0x81010001":   tpm.ErrNoDevice,
		"tpm2:file=/no/such/thing": tpm.ErrNoKey,
	} {
		if _, err := tpm.OpenKey(background, uri, tpm.KeyOptions{StateDir: t.TempDir()}); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", uri, err, want)
		}
	}
}

func TestCorruptKeyFile(t *testing.T) {
	s, dir := tpmtest.Start(t), t.TempDir()
	const uri = "tpm2:file=device.key"
	o := keyOptions(t, s.Address(), dir)
	d, _ := o.Device(background)
	pin, err := d.EnsureSRK(background, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := newKey(t, d, tpm.KeySpec{})
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	short := func(b []byte) []byte { return b[:20] }
	for name, c := range map[string]struct {
		data []byte
		pin  []byte
		want error
	}{
		"a cut private area":         {f.CorruptPrivate(short).MarshalPEM(), nil, tpm.ErrKeyCorrupt},
		"cut, pinned":                {f.CorruptPrivate(short).MarshalPEM(), pin, tpm.ErrKeyCorrupt},
		"a bit of it":                {f.CorruptPrivate(flip).MarshalPEM(), nil, tpm.ErrOwnerChanged},
		"a bit of it, pinned":        {f.CorruptPrivate(flip).MarshalPEM(), pin, tpm.ErrKeyCorrupt},
		"half a file":                {f.MarshalPEM()[:150], pin, tpm.ErrKeyCorrupt},
		"nothing":                    {nil, pin, tpm.ErrKeyCorrupt},
		"a file that does not end":   {bytes.Repeat([]byte("x"), 1<<20), pin, tpm.ErrKeyCorrupt},
		"undamaged, as a last check": {f.MarshalPEM(), pin, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "device.key"), c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			o := o
			o.PinSRK = c.pin
			k, err := tpm.OpenKey(background, uri, o)
			if !errors.Is(err, c.want) || err != nil && hint.Of(err) == "" {
				t.Fatalf("error %v, hint %q", err, hint.Of(err))
			}
			if err == nil {
				_ = k.Close()
			}
		})
	}
}

// persistPrimary puts a primary key of the given template where the SRK belongs.
// TestSRKRace: somebody makes the SRK persistent between our look and our doing so.
func TestClaimedPasswords(t *testing.T) {
	for name, noDA := range map[string]bool{"with noDA": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			s := tpmtest.Start(t)
			f := rawKey(t, s, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = noDA })
			d := open(t, s.Address(), tpm.Options{})
			k := load(t, d, f.WithoutFlag()) // as tpm2_encodeobject 5.4 writes it
			mustSign(t, k)
			_ = k.Close()

			locked := lockedKey(t, d, noDA)
			for _, f := range []*tpm.KeyFile{locked.WithoutFlag(), locked.WithoutFlag(), locked.WithoutFlag(), locked.WithoutFlag()} {
				if _, err := d.LoadKey(background, f); !errors.Is(err, tpm.ErrUnsupported) || !strings.Contains(err.Error(), "password") {
					t.Errorf("a key with a password: %v", err)
				}
			}
			h, err := d.Health(background)
			if err != nil || h.InLockout || h.LockoutCounter > 1 {
				t.Errorf("after four starts: %+v, %v", h, err)
			}
			if noDA { // the flag lies the other way: found out by the first signature, and remembered
				k := load(t, d, locked)
				for range 5 {
					if err := sign(t, k, crypto.SHA256); !errors.Is(err, tpm.ErrUnsupported) {
						t.Errorf("signing without the password: %v", err)
					}
				}
				if n := d.Stats().Commands["Sign"]; n != 2+4+1 {
					t.Errorf("%d signatures were tried", n)
				}
			}
		})
	}
}

// lockedKey makes a key with a password.
func lockedKey(t *testing.T, d *tpm.Device, noDA bool) *tpm.KeyFile {
	t.Helper()
	name, err := d.EnsureSRK(background, nil)
	if err != nil {
		t.Fatal(err)
	}
	rsp, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(tpm.SRKHandle), Name: tpm2.TPM2BName{Buffer: name}, Auth: tpm2.PasswordAuth(nil)},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")},
		}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: noDA, SignEncrypt: true},
			Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		}),
	}.Execute(d.TPM(background))
	if err != nil {
		t.Fatal(err)
	}
	f, err := tpm.NewKeyFile(tpm.SRKHandle, rsp.OutPublic, rsp.OutPrivate)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestPowerCutWhileCreating: whatever the cut leaves, the next start either finds the whole
// key or none and makes one.
func TestPowerCutWhileCreating(t *testing.T) {
	s := tpmtest.Start(t)
	const dir, uri = "/state", "tpm2:file=device.key"
	fsys := disktest.New()
	o := keyOptions(t, s.Address(), dir)
	o.FS = fsys
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	k, err := tpm.CreateKeyAt(background, uri, tpm.KeySpec{}, o)
	if err != nil {
		t.Fatal(err)
	}
	fsys.Mark("created")
	_ = k.Close()
	states, found := 0, 0
	for name, state := range fsys.CrashStates() {
		states++
		o.FS = state
		after, err := tpm.OpenKey(background, uri, o)
		whole := err == nil && k.Public().(*ecdsa.PublicKey).Equal(after.Public())
		switch {
		case whole:
			found++
		case len(state.Marks()) > 0:
			t.Errorf("%s: the key is gone after it was said to be durable: %v", name, err)
		case !errors.Is(err, tpm.ErrNoKey):
			t.Errorf("%s: %v", name, err)
		default:
			if after, err = tpm.CreateKeyAt(background, uri, tpm.KeySpec{}, o); err != nil {
				t.Errorf("%s: creating after the cut: %v", name, err)
			}
		}
		if after != nil {
			_ = after.Close()
		}
	}
	t.Logf("%d states, the key found in %d", states, found)
	if found == 0 || found == states {
		t.Errorf("the key was found in %d of %d states", found, states)
	}
}

func TestDiskThatCannotTakeTheKey(t *testing.T) {
	s := tpmtest.Start(t)
	for name, cause := range map[string]error{"full": syscall.ENOSPC, "read-only": syscall.EROFS} {
		t.Run(name, func(t *testing.T) {
			fsys := disktest.New()
			o := keyOptions(t, s.Address(), "/state")
			o.FS = fsys
			if err := fsys.MkdirAll("/state", 0o700); err != nil {
				t.Fatal(err)
			}
			fsys.Fail(func(op disktest.Op) error {
				if op.Kind == disktest.Write || op.Kind == disktest.Create {
					return cause
				}
				return nil
			})
			_, err := tpm.CreateKeyAt(background, "tpm2:file=device.key", tpm.KeySpec{}, o)
			if !errors.Is(err, cause) {
				t.Errorf("error %v", err)
			}
			d, _ := o.Device(background)
			if h, err := d.Health(background); err != nil || h.TransientFree != 3 {
				t.Errorf("slots in use: %+v, %v", h, err)
			}
			_ = d.Close()
		})
	}
}
