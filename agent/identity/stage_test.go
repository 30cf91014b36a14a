package identity_test

import (
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/identity"
	"ferrule/internal/disk/disktest"
)

// life is a device's life so far as this test takes it: enrolled, renewed, renewed with a new
// key, renewed again. The desk's memory is marked whenever it changed.
func lifeOf(t testing.TB, desk *desk, d *disktest.Disk, token string) {
	o, c := desk.on(optionsOn(d, "/state")), software()
	desk.after = func(enroll.Request) error { d.Mark(desk.remember()); return nil }
	defer func() { desk.after = nil }()
	deskEnroll(t, desk, c, o, identity.EnrollRequest{Token: token})
	d.Mark("enrolled")
	for _, rekey := range []bool{false, true, false} {
		i, err := identity.Open(background, c, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := i.RenewNow(background, desk.config(), rekey); err != nil {
			t.Fatal(err)
		}
		i.Promote(i.Staged())
		if s := i.Status(); s.Problem != "" || s.Staged {
			t.Fatalf("after promotion: %+v", s)
		}
		if err := i.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Every disk that a power cut may leave in a device's life: it opens, without the registrar, and
// what was begun ends with one key, one certificate and one record.
func TestPowerCutInAnyRenewal(t *testing.T) {
	desk := newDesk(t)
	token := desk.token("gw-1")
	start := desk.remember()
	kinds := map[string]int{}
	states := disktest.Replay(t, func(d *disktest.Disk) {
		desk.recall(start)
		lifeOf(t, desk, d, token)
	}, func(t testing.TB, state *disktest.Disk) {
		desk.recall(start)
		enrolled := false
		for _, mark := range state.Marks() {
			if memory, ok := mark.(deskMemory); ok {
				desk.recall(memory)
			} else {
				enrolled = true
			}
		}
		o, c := desk.on(optionsOn(state, "/state")), software()
		i, err := identity.Open(background, c, o)
		if !enrolled && (errors.Is(err, identity.ErrNotEnrolled)) {
			kinds["not enrolled"]++
			deskEnroll(t, desk, c, o, identity.EnrollRequest{Token: token})
			i, err = identity.Open(background, c, o)
		}
		if err != nil {
			t.Fatalf("opening: %v", err)
		}
		kinds[finish(t, desk, i)]++
		if err := i.Close(); err != nil {
			t.Fatal(err)
		}
		checkConverged(t, state, c, o, "gw-1")
		after := state.PowerCut()
		checkConverged(t, after, c, desk.on(optionsOn(after, "/state")), "gw-1")
	})
	t.Logf("%d disk states: %v", states, kinds)
	for _, kind := range []string{"not enrolled", "nothing begun", "staged", "new key begun"} {
		if kinds[kind] == 0 {
			t.Errorf("no state was %q", kind)
		}
	}
}

// finish does what the agent would do next, and says what it was.
func finish(t testing.TB, desk *desk, i *identity.Identity) string {
	t.Helper()
	what := "nothing begun"
	if i.RotationBegun() {
		what = "new key begun"
		if err := i.RenewNow(background, desk.config(), false); err != nil {
			t.Fatal(err)
		}
	} else if i.Staged() != nil {
		what = "staged"
	}
	if staged := i.Staged(); staged != nil {
		i.Promote(staged)
	}
	if s := i.Status(); s.Problem != "" || s.Staged {
		t.Fatalf("it is not finished: %+v", s)
	}
	return what
}

// world1 is an enrolled device with a software key at a desk.
func enrolledAt(t testing.TB, desk *desk, dir string) (identity.Config, identity.Options) {
	t.Helper()
	c, o := software(), desk.on(options(dir))
	deskEnroll(t, desk, c, o, identity.EnrollRequest{Token: desk.token("gw-1")})
	return c, o
}

func TestRotationOfTheKey(t *testing.T) {
	desk := newDesk(t)
	c, o := enrolledAt(t, desk, t.TempDir())
	i := mustOpen(t, c, o)
	old, oldKey := i.Current(), read(t, o.StateDir, "device.pem")
	changed := 0
	o.Changed = func() { changed++ }
	i = mustOpen(t, c, o)
	if err := i.RenewNow(background, desk.config(), true); err != nil {
		t.Fatal(err)
	}
	staged := i.Staged()
	if changed != 1 || staged == nil || i.Current().Fingerprint() != old.Fingerprint() {
		t.Fatalf("staged %v, %d times said", staged, changed)
	}
	if equal(staged.Leaf().PublicKey, old.Leaf().PublicKey) {
		t.Error("the new certificate is for the old key")
	}
	if read(t, o.StateDir, "device.pem") != oldKey {
		t.Error("the old key went before the new certificate was taken")
	}
	// A restart before the broker took it: it is staged again, and the old one is in use.
	again := mustOpen(t, c, o)
	if again.Current().Fingerprint() != old.Fingerprint() || again.Staged() == nil || again.Staged().Fingerprint() != staged.Fingerprint() {
		t.Error("a restart lost what was staged")
	}
	i.Promote(staged)
	if !equal(i.Key().Public(), staged.Leaf().PublicKey) || i.Status().Staged {
		t.Error("the promoted key is not in use")
	}
	names, err := os.ReadDir(o.StateDir)
	if err != nil || len(names) != 3 {
		t.Errorf("files %v, %v", names, err)
	}
	final := mustOpen(t, c, o)
	if final.Current().Fingerprint() != staged.Fingerprint() || final.Staged() != nil || final.RotationBegun() {
		t.Error("after a restart another certificate is in use")
	}
}

func equal(a, b crypto.PublicKey) bool {
	return a.(interface{ Equal(crypto.PublicKey) bool }).Equal(b)
}

// enroll --rekey without an agent leaves the new one to be proved.
func TestEnrollRekey(t *testing.T) {
	desk := newDesk(t)
	c, o := enrolledAt(t, desk, t.TempDir())
	first := deskEnroll(t, desk, c, o, identity.EnrollRequest{Rekey: true})
	second := deskEnroll(t, desk, c, o, identity.EnrollRequest{Rekey: true})
	if !first.Staged || first.Already || !second.Staged || !second.Already || len(desk.issues()) != 2 {
		t.Errorf("%+v, then %+v; %d certificates", first, second, len(desk.issues()))
	}
	if i := mustOpen(t, c, o); i.Staged() == nil || equal(i.Staged().Leaf().PublicKey, i.Current().Leaf().PublicKey) {
		t.Error("nothing is staged for the agent")
	}
	// An enrollment by token is about the certificate in use, and clears the rotation away.
	deskEnroll(t, desk, c, o, identity.EnrollRequest{Token: desk.token("gw-1"), Force: true})
	if i := mustOpen(t, c, o); i.Staged() != nil || i.RotationBegun() {
		t.Error("the rotation outlived an enrollment")
	}
}

// What waits on the disk and is of no use is thrown away, and harms nothing.
func TestUselessStagedFiles(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, d *desk, dir string, i *identity.Identity){
		"rubbish": func(t *testing.T, _ *desk, dir string, _ *identity.Identity) {
			write(t, dir, "device.crt.next", "rubbish")
		},
		"for a key that nobody has": func(t *testing.T, _ *desk, dir string, _ *identity.Identity) {
			other, _ := softwareKey(t)
			write(t, dir, "device.crt.next", string(certify(t, other.Public(), "gw-1", time.Now().Add(time.Hour))))
		},
		"expired": func(t *testing.T, _ *desk, dir string, i *identity.Identity) {
			write(t, dir, "device.crt.next", string(certify(t, i.Key().Public(), "gw-1", time.Now().Add(-time.Minute))))
		},
		"for another device": func(t *testing.T, _ *desk, dir string, i *identity.Identity) {
			write(t, dir, "device.crt.next", string(certify(t, i.Key().Public(), "gw-2", time.Now().Add(2*time.Hour))))
		},
		"the present one": func(t *testing.T, _ *desk, dir string, _ *identity.Identity) {
			write(t, dir, "device.crt.next", read(t, dir, "device.crt"))
		},
		"older than the present one": func(t *testing.T, d *desk, dir string, _ *identity.Identity) {
			write(t, dir, "device.crt.next", read(t, dir, "device.crt"))
			c, o := software(), d.on(options(dir))
			d.now = func() time.Time { return time.Now().Add(time.Minute) }
			next := read(t, dir, "device.crt.next")
			deskEnroll(t, d, c, o, identity.EnrollRequest{Token: d.token("gw-1"), Force: true})
			write(t, dir, "device.crt.next", next)
		},
		"a key of rubbish": func(t *testing.T, _ *desk, dir string, _ *identity.Identity) {
			write(t, dir, "device.pem.next", "rubbish")
		},
	} {
		t.Run(name, func(t *testing.T) {
			desk := newDesk(t)
			c, o := enrolledAt(t, desk, t.TempDir())
			i, err := identity.Open(background, c, o)
			if err != nil {
				t.Fatal(err)
			}
			spoil(t, desk, o.StateDir, i)
			_ = i.Close()
			i = mustOpen(t, c, o)
			if i.Staged() != nil {
				t.Error("it was staged")
			}
			for _, file := range []string{"device.crt.next", "device.pem.next"} {
				if _, err := os.Stat(filepath.Join(o.StateDir, file)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there: %v", file, err)
				}
			}
			if err := i.RenewNow(background, desk.config(), false); err != nil || i.Staged() == nil {
				t.Errorf("renewing: %v", err)
			}
		})
	}
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A disk that takes nothing any more: the new certificate is used all the same, the status says
// so, and it is written as soon as that works.
func TestPromotionOnADiskThatRefuses(t *testing.T) {
	desk, d := newDesk(t), disktest.New()
	c, o := software(), desk.on(optionsOn(d, "/state"))
	deskEnroll(t, desk, c, o, identity.EnrollRequest{Token: desk.token("gw-1")})
	i := mustOpen(t, c, o)
	broken := errors.New("read-only file system")
	d.Fail(func(op disktest.Op) error {
		if op.Kind.Changes() {
			return broken
		}
		return nil
	})
	for range 2 { // also the one after the one that could not be written
		if err := i.RenewNow(background, desk.config(), false); err != nil {
			t.Fatal(err)
		}
		staged := i.Staged()
		i.Promote(staged)
		if i.Current() != staged || !strings.Contains(i.Status().Problem, broken.Error()) {
			t.Fatalf("status %+v", i.Status())
		}
	}
	if _, err := i.Reload(background); err == nil {
		t.Error("what lies on the disk, which is of the past, was taken for news")
	}
	d.Fail(nil)
	if changed, err := i.Reload(background); changed || err != nil || i.Status().Problem != "" {
		t.Errorf("once the disk works: %t, %v, %+v", changed, err, i.Status())
	}
	checkConverged(t, d, c, o, "gw-1")
	if again := mustOpen(t, c, o); again.Current().Fingerprint() != i.Current().Fingerprint() {
		t.Error("the certificate in use is not on the disk")
	}
}

// Others may put a certificate beside the present one, as this package does.
func TestReloadFindsWhatOthersStaged(t *testing.T) {
	desk := newDesk(t)
	c, o := enrolledAt(t, desk, t.TempDir())
	i := mustOpen(t, c, o)
	write(t, o.StateDir, "device.crt.next", string(certify(t, i.Key().Public(), "gw-1", time.Now().Add(2*time.Hour))))
	if changed, err := i.Reload(background); !changed || err != nil || i.Staged() == nil {
		t.Fatalf("changed %t, %v", changed, err)
	}
	if changed, err := i.Reload(background); changed || err != nil || i.Staged() == nil {
		t.Errorf("once more: changed %t, %v", changed, err)
	}
	staged := i.Staged()
	i.Promote(staged)
	names := []string{}
	entries, _ := os.ReadDir(o.StateDir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{"device.crt", "device.pem", "identity.json"}) {
		t.Errorf("files %v", names)
	}
}
