package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/enroll/wire"
	"ferrule/agent/identity"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

const commandSign = 0x15D // TPM_CC_Sign, TPM 2.0 Part 2, 6.5.2

func TestEnrollInTPM(t *testing.T) {
	f := newFactory(t, time.Hour)
	proxy, err := tpmtest.StartProxy(tpmtest.Start(t).Address())
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	signs := 0
	proxy.Inject(func(code uint32) tpmtest.Fault {
		if code == commandSign {
			signs++
		}
		return tpmtest.Fault{}
	})
	c, o := inTPM(proxy.Address()), options(t.TempDir())
	token := f.token(t, "gw-1")

	result := mustEnroll(t, f, c, o, token)
	if result.Device != "gw-1" || result.Weak || result.Already || result.Key != c.Key || result.Issuer != "test device CA" {
		t.Errorf("result %+v", result)
	}
	if signs != 2 {
		t.Errorf("%d signatures for an enrollment; want one that tries the new key and one below the request", signs)
	}
	again := mustEnroll(t, f, c, o, token)
	if !again.Already || again.Device != "gw-1" || !again.NotAfter.Equal(result.NotAfter) {
		t.Errorf("second time: %+v", again)
	}
	if signs != 2 || f.issued(t) != 1 {
		t.Errorf("%d signatures, %d certificates after the second time", signs, f.issued(t))
	}
	status := mustOpen(t, c, o).Status()
	if status.TPM == nil || status.Weak || status.Device != "gw-1" || status.DaysLeft != 0 || status.TPM.Commands["Sign"] != 0 {
		t.Errorf("status %+v", status)
	}
	if text := read(t, o.StateDir, "device.key"); !strings.Contains(text, "TSS2 PRIVATE KEY") {
		t.Errorf("the key file is\n%s", text)
	}
	opensslVerifies(t, f, o.StateDir)
}

// opensslVerifies has openssl build the chain from the leaf to the factory's root.
func opensslVerifies(t *testing.T, f *factory, dir string) {
	t.Helper()
	crt := filepath.Join(dir, "device.crt")
	out := tool(t, nil, "openssl", "verify", "-purpose", "sslclient", "-x509_strict",
		"-CAfile", filepath.Join(f.dir, "root.crt"), "-untrusted", crt, crt)
	if !strings.Contains(out, "OK") {
		t.Errorf("openssl says %s", out)
	}
	text := tool(t, nil, "openssl", "x509", "-in", crt, "-noout", "-text")
	for _, want := range []string{"CN=gw-1", "URI:urn:ferrule:device:gw-1", "TLS Web Client Authentication", "NIST CURVE: P-256"} {
		if !strings.Contains(strings.ReplaceAll(text, "CN = ", "CN="), want) {
			t.Errorf("openssl finds no %q in\n%s", want, text)
		}
	}
}

func tool(t testing.TB, env []string, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing; run: make deps", name)
	}
	command := exec.Command(path, args...)
	command.Env = append(os.Environ(), env...)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestEnrollWithSoftwareKey(t *testing.T) {
	f := newFactory(t, 40*24*time.Hour)
	c, o := software(), options(t.TempDir())
	token := f.token(t, "gw-1")
	if result := mustEnroll(t, f, c, o, token); !result.Weak || result.Already {
		t.Errorf("result %+v", result)
	}
	if again := mustEnroll(t, f, c, o, token); !again.Already || !again.Weak {
		t.Errorf("second time: %+v", again)
	}
	if status := mustOpen(t, c, o).Status(); !status.Weak || status.TPM != nil || status.DaysLeft != 39 {
		t.Errorf("status %+v", status)
	}
	opensslVerifies(t, f, o.StateDir)

	refused := c
	refused.AllowSoftwareKey = false
	if _, err := identity.Open(background, refused, o); !errors.Is(err, tpm.ErrSoftwareKey) {
		t.Errorf("a software key that was not allowed: %v", err)
	}
}

func TestSameTokenSameKeySameCertificate(t *testing.T) {
	f := newFactory(t, time.Hour)
	c, o := software(), options(t.TempDir())
	token := f.token(t, "gw-1")
	mustEnroll(t, f, c, o, token)
	first := read(t, o.StateDir, "device.crt")
	if err := os.Remove(filepath.Join(o.StateDir, "device.crt")); err != nil {
		t.Fatal(err)
	}
	mustEnroll(t, f, c, o, token)
	if read(t, o.StateDir, "device.crt") != first || f.issued(t) != 1 {
		t.Error("the same token and key gave another certificate")
	}

	other := options(t.TempDir())
	_, err := identity.Enroll(background, c, other, f.enroll, identity.EnrollRequest{Token: token})
	if reason, ok := errors.AsType[*wire.Error](err); !errors.Is(err, enroll.ErrRefused) || !ok || reason.Code != wire.CodeTokenUsed || hint.Of(err) == "" {
		t.Errorf("the same token with another key: %v", err)
	}
	if _, err := os.Stat(filepath.Join(other.StateDir, "device.crt")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused device has a certificate: %v", err)
	}
}

// Every disk that a power cut may leave while a device enrolls, and what a second Enroll
// with the same token makes of it.
func TestEnrollAfterPowerCut(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, d *disktest.Disk){
		"bare": func(*testing.T, *disktest.Disk) {},
		"killed before the key's name was synced": func(t *testing.T, d *disktest.Disk) {
			_, text := softwareKey(t)
			leaveUnsynced(t, d, "/state/device.pem", text)
		},
	} {
		t.Run(name, func(t *testing.T) { replayEnroll(t, prepare) })
	}
}

const redeemed = "redeemed"

func replayEnroll(t *testing.T, prepare func(*testing.T, *disktest.Disk)) {
	f := newFactory(t, time.Hour)
	c, token := software(), f.token(t, "gw-1")
	var key, certificate []byte
	late := 0
	states := disktest.Replay(t, func(d *disktest.Disk) {
		prepare(t, d)
		f.fs.onRename = func(string) { d.Mark(redeemed) } // before the answer can be written
		defer func() { f.fs.onRename = nil }()
		mustEnroll(t, f, c, optionsOn(d, "/state"), token)
		key, _ = d.Content("/state/device.pem")
		certificate, _ = d.Content("/state/device.crt")
	}, func(t testing.TB, state *disktest.Disk) {
		o, fresh, device := optionsOn(state, "/state"), token, "gw-1"
		wasRedeemed := len(state.Marks()) > 0
		if !wasRedeemed {
			// To the registrar of that moment the token was unused: give it one that is, for a
			// device that it does not know from another of these states.
			device = fmt.Sprintf("gw-%d", f.issued(t)+100)
			fresh = f.token(t, device)
		}
		before := f.issued(t)
		first, err := identity.Enroll(background, c, o, f.enroll, identity.EnrollRequest{Token: fresh})
		if err != nil {
			t.Fatalf("enrolling again: %v", err)
		}
		again, err := identity.Enroll(background, c, o, f.enroll, identity.EnrollRequest{Token: fresh})
		if err != nil || !again.Already || !again.NotAfter.Equal(first.NotAfter) {
			t.Fatalf("and once more: %+v, %v", again, err)
		}
		checkConverged(t, state, c, o, device)
		after := state.PowerCut() // what was reported as done survives a second cut
		checkConverged(t, after, c, optionsOn(after, "/state"), device)
		gotKey, _ := state.Content("/state/device.pem")
		gotCertificate, _ := state.Content("/state/device.crt")
		switch n := f.issued(t) - before; {
		case wasRedeemed && (n != 0 || string(gotKey) != string(key) || string(gotCertificate) != string(certificate)):
			t.Errorf("a redeemed token gave %d more certificates; key the same: %t, certificate the same: %t",
				n, string(gotKey) == string(key), string(gotCertificate) == string(certificate))
		case !wasRedeemed && n != 1:
			t.Errorf("an unused token gave %d certificates", n)
		}
		if wasRedeemed {
			late++
		}
	})
	if late == 0 || late == states {
		t.Fatalf("%d of %d states are after the token was redeemed", late, states)
	}
	t.Logf("%d disk states, %d of them after the token was redeemed", states, late)
}

// checkConverged looks for one key, one certificate, one record and nothing else.
func checkConverged(t testing.TB, state *disktest.Disk, c identity.Config, o identity.Options, device string) {
	t.Helper()
	i, err := identity.Open(background, c, o)
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	defer i.Close()
	if i.Device() != device {
		t.Errorf("device %q", i.Device())
	}
	for _, name := range state.Names() {
		base := filepath.Base(name)
		if base != "device.pem" && base != "device.crt" && base != "identity.json" && !strings.HasSuffix(base, ".tmp") {
			t.Errorf("there is also %s", name)
		}
	}
}

// leaveUnsynced writes a file as a process does that is killed after the rename.
func leaveUnsynced(t testing.TB, d disk.FS, path string, text []byte) {
	t.Helper()
	if err := d.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := d.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Sync(), file.Close(), d.Rename(path+".tmp", path)); err != nil {
		t.Fatal(err)
	}
}

func softwareKey(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// The key's own files are durable before the registrar is told of the key.
func TestKeyIsDurableBeforeTheRequestLeaves(t *testing.T) {
	f := newFactory(t, time.Hour)
	d := disktest.New()
	f.fs.onRename = func(string) {
		if _, ok := d.PowerCut().Content("/state/device.pem"); !ok {
			t.Error("the token is redeemed and a power cut would take the key")
		}
	}
	token := ""
	func() {
		hook := f.fs.onRename
		f.fs.onRename = nil
		token = f.token(t, "gw-1")
		f.fs.onRename = hook
	}()
	mustEnroll(t, f, software(), optionsOn(d, "/state"), token)
}

// A disk that fails at any operation leaves an error, and the next attempt succeeds.
func TestEnrollOnAFailingDisk(t *testing.T) {
	f := newFactory(t, time.Hour)
	broken := errors.New("input/output error")
	for n := 0; ; n++ {
		d, token, seen := disktest.New(), f.token(t, "gw-1"), 0
		d.Fail(func(op disktest.Op) error {
			if !op.Kind.Changes() {
				return nil
			}
			if seen++; seen == n+1 {
				return broken
			}
			return nil
		})
		_, err := identity.Enroll(background, software(), optionsOn(d, "/state"), f.enroll, identity.EnrollRequest{Token: token})
		if seen <= n {
			if err != nil || n < 6 {
				t.Fatalf("after %d operations: %v", n, err)
			}
			return
		}
		d.Fail(nil)
		if err != nil && !errors.Is(err, broken) {
			t.Errorf("operation %d: %v", n, err)
		}
		mustEnroll(t, f, software(), optionsOn(d, "/state"), token)
		checkConverged(t, d, software(), optionsOn(d, "/state"), "gw-1")
	}
}

func TestExpiredCertificate(t *testing.T) {
	f := newFactory(t, 10*24*time.Hour)
	c, o := software(), options(t.TempDir())
	mustEnroll(t, f, c, o, f.token(t, "gw-1"))
	key := read(t, o.StateDir, "device.pem")

	o.Clock = identity.TrustedClock(func() time.Time { return time.Now().Add(12 * 24 * time.Hour) })
	if days := mustOpen(t, c, o).Status().DaysLeft; days != -3 && days != -2 {
		t.Errorf("%d days left", days)
	}
	other := newFactory(t, 40*24*time.Hour)
	if result := mustEnroll(t, other, c, o, other.token(t, "gw-1")); result.Already || other.issued(t) != 1 {
		t.Errorf("an expired device enrolls: %+v", result)
	}
	if read(t, o.StateDir, "device.pem") != key {
		t.Error("the key was changed with the certificate")
	}
}

func TestNotEnrolled(t *testing.T) {
	c := inTPM("unix:" + filepath.Join(t.TempDir(), "nothing-here"))
	_, err := identity.Open(background, c, options(t.TempDir()))
	if !errors.Is(err, identity.ErrNotEnrolled) || hint.Of(err) == "" {
		t.Errorf("error %v; it should come before the TPM is asked", err)
	}
}

func TestDamagedRecordIsNotIgnored(t *testing.T) {
	f := newFactory(t, time.Hour)
	c, o := software(), options(t.TempDir())
	mustEnroll(t, f, c, o, f.token(t, "gw-1"))
	if err := os.WriteFile(filepath.Join(o.StateDir, "identity.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Open(background, c, o); err == nil || !strings.Contains(err.Error(), "enrollment record") {
		t.Errorf("error %v", err)
	}
}

func TestWrongTPM(t *testing.T) {
	f := newFactory(t, time.Hour)
	o := options(t.TempDir())
	mustEnroll(t, f, inTPM(tpmtest.Start(t).Address()), o, f.token(t, "gw-1"))
	foreign := inTPM(tpmtest.Start(t).Address())
	if _, err := identity.Open(background, foreign, o); !errors.Is(err, identity.ErrWrongTPM) || hint.Of(err) == "" {
		t.Errorf("opening a copied disk: %v", err)
	}
	key := read(t, o.StateDir, "device.key")
	_, err := identity.Enroll(background, foreign, o, f.enroll, identity.EnrollRequest{Token: f.token(t, "gw-1"), Force: true})
	if !errors.Is(err, identity.ErrWrongTPM) || read(t, o.StateDir, "device.key") != key || f.issued(t) != 1 {
		t.Errorf("enrolling a copied disk by force: %v", err)
	}
}

func TestClearedTPM(t *testing.T) {
	f := newFactory(t, time.Hour)
	s := tpmtest.Start(t)
	c, o := inTPM(s.Address()), options(t.TempDir())
	mustEnroll(t, f, c, o, f.token(t, "gw-1"))
	tool(t, []string{"TPM2TOOLS_TCTI=swtpm:path=" + s.Socket(), "TSS2_LOG=all+NONE"}, "tpm2_clear")

	_, err := identity.Open(background, c, o)
	if !errors.Is(err, tpm.ErrOwnerChanged) || errors.Is(err, identity.ErrWrongTPM) || !strings.Contains(hint.Of(err), "--force") {
		t.Fatalf("opening after the TPM was cleared: %v (%s)", err, hint.Of(err))
	}
	token := f.token(t, "gw-1")
	if _, err := identity.Enroll(background, c, o, f.enroll, identity.EnrollRequest{Token: token}); !errors.Is(err, tpm.ErrOwnerChanged) {
		t.Errorf("enrolling without force: %v", err)
	}

	// The power goes between the registrar's answer and the record: the key of that attempt
	// is the one the token belongs to.
	cut := errors.New("cut")
	broken := o
	broken.FS = &failingFS{FS: disk.OS(), name: "identity.json.tmp", after: 1, err: cut}
	if _, err := identity.Enroll(background, c, broken, f.enroll, identity.EnrollRequest{Token: token, Force: true}); !errors.Is(err, cut) {
		t.Fatalf("a cut before the record: %v", err)
	}
	if f.issued(t) != 2 {
		t.Fatalf("%d certificates at the cut", f.issued(t))
	}
	key := read(t, o.StateDir, "device.key")
	result, err := identity.Enroll(background, c, o, f.enroll, identity.EnrollRequest{Token: token, Force: true})
	if err != nil || result.Already || read(t, o.StateDir, "device.key") != key || f.issued(t) != 2 {
		t.Fatalf("the same token again: %+v, %v", result, err)
	}
	if i := mustOpen(t, c, o); i.Device() != "gw-1" {
		t.Errorf("device %q", i.Device())
	}
	if !strings.Contains(read(t, o.StateDir, "device.key.lost"), "TSS2") {
		t.Error("the lost key was not kept")
	}
}

// failingFS fails to open one file once it was opened so often.
type failingFS struct {
	disk.FS
	name  string
	after int
	err   error
}

func (f *failingFS) OpenFile(name string, flag int, perm fs.FileMode) (disk.File, error) {
	if filepath.Base(name) == f.name {
		if f.after--; f.after < 0 {
			return nil, f.err
		}
	}
	return f.FS.OpenFile(name, flag, perm)
}
