package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/identity"
	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

func onBothVersions(t *testing.T, test func(t *testing.T, version uint16)) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { test(t, version) })
	}
}

// Two identities in one process, one server name: none is ever shown for the other, though
// sessions are resumed.
func TestIdentitiesAreNeverMixed(t *testing.T) {
	onBothVersions(t, func(t *testing.T, version uint16) {
		f := newFactory(t, time.Hour)
		address := f.server(t, version, f.roots(t))
		var identities []*identity.Identity
		for n, device := range []string{"gw-a", "gw-b"} {
			c := software()
			if n == 0 {
				c = inTPM(tpmtest.Start(t).Address())
			}
			o := options(t.TempDir())
			mustEnroll(t, f, c, o, f.token(t, device))
			identities = append(identities, mustOpen(t, c, o))
		}
		const rounds = 20
		for range rounds {
			for _, i := range identities {
				shown, _, err := meet(i.Current(), f.roots(t), address)
				if err != nil || shown != face(i.Current()) {
					t.Fatalf("%s was seen as %q, %v", i.Device(), shown, err)
				}
			}
		}
		for _, i := range identities {
			s := i.Status()
			if s.FullHandshakes != 1 || s.Resumed != rounds-1 {
				t.Errorf("%s: %d full handshakes, %d resumed", s.Device, s.FullHandshakes, s.Resumed)
			}
			if s.TPM != nil && s.TPM.Commands["Sign"] != 1 {
				t.Errorf("%d signatures in the TPM for %d connections; want 1", s.TPM.Commands["Sign"], rounds)
			}
		}
	})
}

// After a rotation every new connection shows the new certificate, and none the old one by
// a session that was kept.
func TestRotation(t *testing.T) {
	onBothVersions(t, func(t *testing.T, version uint16) {
		f := newFactory(t, time.Hour)
		address := f.server(t, version, f.roots(t))
		c, o := software(), options(t.TempDir())
		mustEnroll(t, f, c, o, f.token(t, "gw-1"))
		i := mustOpen(t, c, o)
		old := i.Current()
		for range 3 {
			if shown, _, err := meet(old, f.roots(t), address); err != nil || shown != face(old) {
				t.Fatalf("before: %q, %v", shown, err)
			}
		}
		if changed, err := i.Reload(background); changed || err != nil {
			t.Errorf("reloading the same certificate: %t, %v", changed, err)
		}

		if _, err := identity.Enroll(background, c, o, f.enroll, identity.EnrollRequest{Token: f.token(t, "gw-1"), Force: true}); err != nil {
			t.Fatal(err)
		}
		if changed, err := i.Reload(background); !changed || err != nil {
			t.Fatalf("reloading: %t, %v", changed, err)
		}
		staged := i.Staged()
		if i.Current() != old || staged == nil || staged.Fingerprint() == old.Fingerprint() || !i.Status().Staged {
			t.Fatal("the new certificate is not staged beside the old one")
		}
		if shown, resumed, err := meet(staged, f.roots(t), address); err != nil || resumed || shown != face(staged) {
			t.Fatalf("proving the new one: %q, resumed %t, %v", shown, resumed, err)
		}
		i.Promote(staged)
		for n := range 10 {
			shown, resumed, err := meet(i.Current(), f.roots(t), address)
			if err != nil || shown != face(staged) || !resumed {
				t.Errorf("connection %d after the rotation: %q, resumed %t, %v", n, shown, resumed, err)
			}
		}
		if i.Staged() != nil || i.Status().Staged {
			t.Error("still staged after it was promoted")
		}
	})
}

// A server that names the CAs it takes and leaves ours out gets an error of ours, and no
// empty certificate.
func TestServerThatDoesNotTakeOurCA(t *testing.T) {
	onBothVersions(t, func(t *testing.T, version uint16) {
		f := newFactory(t, time.Hour)
		key, _ := softwareKey(t)
		foreign := x509.NewCertPool()
		if !foreign.AppendCertsFromPEM(certify(t, key.Public(), "elsewhere", time.Now().Add(time.Hour))) {
			t.Fatal("no certificate")
		}
		address := f.server(t, version, foreign)
		c, o := software(), options(t.TempDir())
		mustEnroll(t, f, c, o, f.token(t, "gw-1"))
		_, _, err := meet(mustOpen(t, c, o).Current(), f.roots(t), address)
		if err == nil || !strings.Contains(err.Error(), "does not take certificates") || !strings.Contains(err.Error(), "test device CA") || hint.Of(err) == "" {
			t.Errorf("error %v", err)
		}
	})
}

// What Reload does not take changes nothing.
func TestReloadRefuses(t *testing.T) {
	f := newFactory(t, time.Hour)
	c, o := software(), options(t.TempDir())
	mustEnroll(t, f, c, o, f.token(t, "gw-1"))
	i := mustOpen(t, c, o)
	old := i.Current()
	good := read(t, o.StateDir, "device.crt")
	public := old.Leaf().PublicKey
	other, _ := softwareKey(t)
	future, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	for name, test := range map[string]struct {
		text []byte
		is   error
		says string
	}{
		"for another key":    {certify(t, other.Public(), "gw-1", future), identity.ErrMismatch, ""},
		"for another device": {certify(t, public, "gw-2", future), nil, `"gw-2"`},
		"expired":            {certify(t, public, "gw-1", past), nil, "expired"},
		"rubbish":            {[]byte("rubbish"), nil, "no certificate"},
		"absent":             {nil, identity.ErrNotEnrolled, ""},
	} {
		path := filepath.Join(o.StateDir, "device.crt")
		err := os.Remove(path)
		if test.text != nil {
			err = os.WriteFile(path, test.text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		changed, err := i.Reload(background)
		if changed || err == nil || (test.is != nil && !errors.Is(err, test.is)) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: changed %t, %v", name, changed, err)
		}
		if i.Current() != old || i.Staged() != nil {
			t.Errorf("%s: it was taken", name)
		}
		if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A certificate that was staged and then taken back is not staged any more.
func TestReloadTakesBack(t *testing.T) {
	f := newFactory(t, time.Hour)
	c, o := software(), options(t.TempDir())
	mustEnroll(t, f, c, o, f.token(t, "gw-1"))
	i := mustOpen(t, c, o)
	good := read(t, o.StateDir, "device.crt")
	path := filepath.Join(o.StateDir, "device.crt")
	if err := os.WriteFile(path, certify(t, i.Current().Leaf().PublicKey, "gw-1", time.Now().Add(time.Hour)), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := i.Reload(background); !changed || err != nil || i.Staged() == nil {
		t.Fatalf("staging: %t, %v", changed, err)
	}
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := i.Reload(background); changed || err != nil || i.Staged() != nil {
		t.Errorf("taking back: %t, %v, staged %v", changed, err, i.Staged())
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []identity.Config{identity.Default(), software(), {Key: "tpm2:handle=0x81010001", Certificate: "c"}} {
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, c := range []identity.Config{
		{Key: "file:k.pem", Certificate: "c"},
		{Key: "tpm2:file=k", TPM: "none", Certificate: "c"},
		{Key: "tpm2:file=k"},
		{Key: "k.pem", Certificate: "c"},
		{Certificate: "c"},
	} {
		if err := c.Validate(); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// Files of two devices in one directory are told at the start, not by a handshake that fails.
func TestKeyAndCertificateOfDifferentDevices(t *testing.T) {
	f := newFactory(t, time.Hour)
	a, b := options(t.TempDir()), options(t.TempDir())
	mustEnroll(t, f, software(), a, f.token(t, "gw-a"))
	mustEnroll(t, f, software(), b, f.token(t, "gw-b"))
	if err := os.Rename(filepath.Join(b.StateDir, "device.crt"), filepath.Join(a.StateDir, "device.crt")); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Open(background, software(), a); !errors.Is(err, identity.ErrMismatch) || hint.Of(err) == "" {
		t.Errorf("error %v", err)
	}
	if err := os.Remove(filepath.Join(a.StateDir, "device.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Open(background, software(), a); !errors.Is(err, tpm.ErrNoKey) {
		t.Errorf("without a key: %v", err)
	}
}
