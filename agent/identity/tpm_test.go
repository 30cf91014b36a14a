package identity_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"ferrule/agent/enroll"
	"ferrule/agent/identity"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/tpm"
	"ferrule/tpm/attest"
	"ferrule/tpm/tpmtest"
)

// cutFS is a disk whose power can be cut: from then on nothing reaches it.
type cutFS struct {
	disk.FS
	dead atomic.Bool
}

func (c *cutFS) gone() error {
	if c.dead.Load() {
		return errCut
	}
	return nil
}

func (c *cutFS) OpenFile(name string, flag int, perm fs.FileMode) (disk.File, error) {
	if err := c.gone(); err != nil {
		return nil, err
	}
	return c.FS.OpenFile(name, flag, perm)
}

func (c *cutFS) Rename(from, to string) error {
	if err := c.gone(); err != nil {
		return err
	}
	return c.FS.Rename(from, to)
}

func (c *cutFS) Remove(name string) error {
	if err := c.gone(); err != nil {
		return err
	}
	return c.FS.Remove(name)
}

// attestedDesk is a desk that wants evidence of a TPM of s's manufacturer.
func attestedDesk(t testing.TB, s *tpmtest.Swtpm) *desk {
	t.Helper()
	d := newDesk(t)
	roots := x509.NewCertPool()
	for _, c := range s.Roots() {
		roots.AddCert(c)
	}
	d.verifier = &attest.Verifier{Roots: roots}
	return d
}

// chip is a TPM behind a proxy that cuts the power at the command of the test's choice.
type chip struct {
	*tpmtest.Swtpm
	t      testing.TB
	proxy  *tpmtest.Proxy
	config identity.Config
}

func newChip(t testing.TB) *chip {
	t.Helper()
	return newChipOf(t, tpmtest.Certified(t))
}

func newChipOf(t testing.TB, s *tpmtest.Swtpm) *chip {
	t.Helper()
	proxy, err := tpmtest.StartProxy(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	return &chip{Swtpm: s, t: t, proxy: proxy, config: inTPM(proxy.Address())}
}

// cutAt runs f with the power cut at its command n, before the TPM has it or after. It reports
// whether f came so far. The TPM and the disk are as after the power came back.
func (c *chip) cutAt(n int, after bool, f func(ctx context.Context, fsys disk.FS) error) (cut bool) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	fsys := &cutFS{FS: disk.OS()}
	seen := 0
	c.proxy.Inject(func(uint32) tpmtest.Fault {
		if seen++; seen < n {
			return tpmtest.Fault{}
		}
		cut = true
		fsys.dead.Store(true)
		cancel()
		if after && seen == n {
			return tpmtest.Fault{Truncate: 1}
		}
		return tpmtest.Fault{Drop: true}
	})
	err := f(ctx, fsys)
	c.proxy.Inject(nil)
	if !cut {
		if err != nil {
			c.t.Fatal(err)
		}
		return false
	}
	if err := c.Restart(background); err != nil {
		c.t.Fatal(err)
	}
	return true
}

// settled checks that there is one key, one certificate and one record on disk and chip.
func (c *chip) settled(dir string, extra ...string) {
	c.t.Helper()
	want := append([]string{"device.crt", "device.key", "identity.json"}, extra...)
	slices.Sort(want)
	var names []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".tmp") {
			names = append(names, e.Name())
		}
	}
	if !slices.Equal(names, want) {
		c.t.Errorf("files %v", names)
	}
}

// carryOn is what ferrule enroll and the agent do after the power came back.
func (c *chip) carryOn(d *desk, o identity.Options, token string) *identity.Identity {
	c.t.Helper()
	i, err := identity.Open(background, c.config, o)
	if errors.Is(err, identity.ErrNotEnrolled) {
		deskEnroll(c.t, d, c.config, o, identity.EnrollRequest{Token: token})
		i, err = identity.Open(background, c.config, o)
	}
	if errors.Is(err, identity.ErrCleared) {
		if _, err := identity.Return(background, c.config, o, d.config()); err != nil {
			c.t.Fatalf("returning: %v", err)
		}
		i, err = identity.Open(background, c.config, o)
	}
	if err != nil {
		c.t.Fatalf("opening: %v", err)
	}
	finish(c.t, d, i)
	return i
}

// Acceptance: provisioning killed after every TPM command ends with one key, one certificate and
// one record, and so does a rotation of the key. Every other time the TPM has carried out the
// command, and nobody heard of it.
func TestPowerCutAtEveryTPMCommand(t *testing.T) {
	first := identity.EnrollRequest{Token: "token-0-for-gw-1"}
	t.Run("enrollment", func(t *testing.T) {
		t.Parallel()
		cutEverywhere(t, first, func(*chip, *desk, string) {})
	})
	t.Run("rotation", func(t *testing.T) {
		t.Parallel()
		var state, files string // of an enrolled device, made once
		var memory deskMemory
		var authority *desk
		cutEverywhere(t, identity.EnrollRequest{Rekey: true}, func(c *chip, d *desk, dir string) {
			if state == "" {
				state, files = t.TempDir(), t.TempDir()
				deskEnroll(t, d, c.config, d.on(options(dir)), first)
				_ = c.Restart(background)
				copyFiles(t, c.StateDir(), state)
				copyFiles(t, dir, files)
				memory, authority = d.remember(), d
				return
			}
			_ = c.Kill()
			copyFiles(t, state, c.StateDir())
			copyFiles(t, files, dir)
			d.key, d.root = authority.key, authority.root
			d.recall(memory)
			_ = c.Restart(background)
		})
	})
}

// cutEverywhere carries out what with the power cut at every command of it in turn.
func cutEverywhere(t *testing.T, what identity.EnrollRequest, prepare func(*chip, *desk, string)) {
	for n := 1; ; n += every {
		c := newChip(t)
		d, dir := attestedDesk(t, c.Swtpm), t.TempDir()
		token := d.token("gw-1")
		prepare(c, d, dir)
		cut := c.cutAt(n, n/every%2 == 0, func(ctx context.Context, fsys disk.FS) error {
			_, err := identity.Enroll(ctx, c.config, d.on(optionsOn(fsys, dir)), d.config(), what)
			return err
		})
		i := c.carryOn(d, d.on(options(dir)), token)
		if i.Device() != "gw-1" || i.Status().Weak {
			t.Errorf("cut at command %d: status %+v", n, i.Status())
		}
		_ = i.Close()
		c.settled(dir)
		keys := map[string]bool{}
		for _, issue := range d.issues() {
			keys[issue.public] = true
		}
		want := 1
		if what.Rekey {
			want = 2
		}
		if len(d.memory.eks) != 1 || len(d.memory.refused) != 0 || len(keys) > want {
			t.Errorf("cut at command %d: %d EKs, refused %q, certificates for %d keys", n, len(d.memory.eks), d.memory.refused, len(keys))
		}
		_ = c.Stop()
		if !cut {
			t.Logf("%d commands", n-1)
			return
		}
	}
}

func copyFiles(t testing.TB, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			write(t, to, e.Name(), read(t, from, e.Name()))
		}
	}
}

func (c *chip) clear() {
	c.t.Helper()
	tool(c.t, []string{"TPM2TOOLS_TCTI=swtpm:path=" + c.Socket(), "TSS2_LOG=all+NONE"}, "tpm2_clear")
}

// Acceptance: the TPM was cleared, and the device comes back as the same device without a token,
// by its endorsement key; wherever the power is cut meanwhile.
func TestReturnAfterTheTPMWasCleared(t *testing.T) {
	for n := 1; ; n += 3 * every {
		c := newChip(t)
		d, dir := attestedDesk(t, c.Swtpm), t.TempDir()
		o := d.on(options(dir))
		deskEnroll(t, d, c.config, o, identity.EnrollRequest{Token: d.token("gw-1")})
		_ = c.Restart(background)
		c.clear()
		_ = c.Restart(background)
		if _, err := identity.Open(background, c.config, o); !errors.Is(err, identity.ErrCleared) || !errors.Is(err, tpm.ErrOwnerChanged) || hint.Of(err) == "" {
			t.Fatalf("opening after the clear: %v", err)
		}
		cut := c.cutAt(n, n/3%2 == 0, func(ctx context.Context, fsys disk.FS) error {
			_, err := identity.Return(ctx, c.config, d.on(optionsOn(fsys, dir)), d.config())
			return err
		})
		i := c.carryOn(d, o, "no token")
		if last := d.issues()[len(d.issues())-1]; last.purpose != enroll.Return || last.device != "gw-1" || i.Device() != "gw-1" {
			t.Errorf("cut at command %d: %+v", n, last)
		}
		_ = i.Close()
		c.settled(dir, "device.key.lost")
		if again, err := identity.Open(background, c.config, o); err != nil {
			t.Errorf("cut at command %d: opening again: %v", n, err)
		} else {
			_ = again.Close()
		}
		_ = c.Stop()
		if !cut {
			t.Logf("%d commands", n-1)
			return
		}
	}
}

// The disk of a device in another gateway: refused, and nothing is touched, however it is tried.
func TestReturnInAnotherGateway(t *testing.T) {
	own := tpmtest.Certified(t)
	d, dir := attestedDesk(t, own), t.TempDir()
	o := d.on(options(dir))
	deskEnroll(t, d, inTPM(own.Address()), o, identity.EnrollRequest{Token: d.token("gw-1")})
	foreign := inTPM(tpmtest.Other(t).Address())
	key := read(t, dir, "device.key")
	if _, err := identity.Return(background, foreign, o, d.config()); !errors.Is(err, identity.ErrWrongTPM) {
		t.Errorf("returning: %v", err)
	}
	if read(t, dir, "device.key") != key || len(d.issues()) != 1 {
		t.Error("something was changed")
	}
	// Also without the key, which a thief might leave out.
	if err := os.Rename(filepath.Join(dir, "device.key"), filepath.Join(t.TempDir(), "device.key")); err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() error{
		"open":   func() error { _, err := identity.Open(background, foreign, o); return err },
		"return": func() error { _, err := identity.Return(background, foreign, o, d.config()); return err },
		"enroll": func() error {
			_, err := identity.Enroll(background, foreign, o, d.config(), identity.EnrollRequest{Token: d.token("gw-1"), Force: true})
			return err
		},
	} {
		if err := try(); !errors.Is(err, identity.ErrWrongTPM) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "device.key")); !errors.Is(err, fs.ErrNotExist) || len(d.issues()) != 1 {
		t.Errorf("a key was made for it: %v", err)
	}
	// A clone that claims the id with a clean record is told from the device by its EK.
	clone := t.TempDir()
	write(t, clone, "identity.json", `{"device":"gw-1","enrolled":"2026-01-01T00:00:00Z"}`)
	if _, err := identity.Return(background, foreign, d.on(options(clone)), d.config()); !errors.Is(err, enroll.ErrRefused) {
		t.Errorf("a clone: %v", err)
	}
}

// A key file that the flash lost or damaged is a key that is lost: the endorsement key is still
// there.
func TestKeyFileLostOrDamaged(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"lost":    os.Remove,
		"damaged": func(path string) error { return os.WriteFile(path, []byte("\x00\x00\x00"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			s := tpmtest.Certified(t)
			c, d, dir := inTPM(s.Address()), attestedDesk(t, s), t.TempDir()
			o := d.on(options(dir))
			deskEnroll(t, d, c, o, identity.EnrollRequest{Token: d.token("gw-1")})
			if err := spoil(filepath.Join(dir, "device.key")); err != nil {
				t.Fatal(err)
			}
			if _, err := identity.Open(background, c, o); !errors.Is(err, identity.ErrCleared) {
				t.Fatalf("opening: %v", err)
			}
			result, err := identity.Return(background, c, o, d.config())
			if err != nil || result.Device != "gw-1" {
				t.Fatalf("returning: %+v, %v", result, err)
			}
			if i := mustOpen(t, c, o); i.Device() != "gw-1" {
				t.Errorf("device %q", i.Device())
			}
		})
	}
}
