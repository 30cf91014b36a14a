package identity_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ferrule/agent/identity"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// lived is a device that has lived: both identities, something staged, lost and collected, and what
// the other parts keep.
func lived(t testing.TB, d *desk, fsys disk.FS, dir string) (identity.Config, identity.Options) {
	t.Helper()
	c, o := software(), d.on(optionsOn(fsys, dir))
	c.Factory = identity.Factory{Key: "file:factory.pem", Certificate: "factory.crt"}
	deskEnroll(t, d, c, o, identity.EnrollRequest{Token: d.token("serial-7"), Factory: true})
	deskEnroll(t, d, c, o, identity.EnrollRequest{Token: d.token("gw-1")})
	deskEnroll(t, d, c, o, identity.EnrollRequest{Rekey: true})
	for _, name := range []string{"outbox/0001", "outbox/deep/er", "audit/head", "roots/broker.json", "journal", "journal.bad", "time", "collected.json", "device.pem.lost", "device.crt.tmp"} {
		path := filepath.Join(dir, name)
		if err := disk.MakeFolder(fsys, filepath.Dir(path)); err != nil {
			t.Fatal(err)
		}
		f, err := fsys.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.Write([]byte("x"))
			err = errors.Join(err, f.Sync(), f.Close(), fsys.SyncDir(filepath.Dir(path)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return c, o
}

func TestReset(t *testing.T) {
	for _, all := range []bool{false, true} {
		d, dir := newDesk(t), t.TempDir()
		c, o := lived(t, d, disk.OS(), dir)
		write(t, dir, "lock", "") // what is not ours stays
		removed, err := identity.Reset(background, c, o, all)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		want := []string{"factory.crt", "factory.pem", "identity.json", "lock"}
		if all {
			want = []string{"lock"}
		}
		if !slices.Equal(names, want) {
			t.Errorf("all %t: left are %v", all, names)
		}
		if text := strings.Join(removed, "\n"); !strings.Contains(text, "device.crt") || !strings.Contains(text, "outbox/deep/er") || strings.Contains(text, "factory") != all {
			t.Errorf("removed %v", removed)
		}
		if _, err := identity.Open(background, c, o); !errors.Is(err, identity.ErrNotEnrolled) {
			t.Errorf("opening after it: %v", err)
		}
		if again, err := identity.Reset(background, c, o, all); err != nil || len(again) > 0 {
			t.Errorf("a second time: %v, %v", again, err)
		}
		if !all { // by the factory certificate, and as the device of the factory
			if result := deskEnroll(t, d, c, o, identity.EnrollRequest{}); result.Device != "serial-7" {
				t.Errorf("enrolled again: %+v", result)
			}
		}
	}
}

// A name that leads out of the state directory removes nothing.
func TestResetStaysInItsFolder(t *testing.T) {
	d, dir := newDesk(t), t.TempDir()
	c, o := lived(t, d, disk.OS(), filepath.Join(dir, "state"))
	write(t, dir, "precious", "x")
	for _, name := range []string{"../precious", "/etc/hostname-that-is-not", ".", "", "outbox/../../precious"} {
		o.State = []string{name}
		if _, err := identity.Reset(background, c, o, false); err == nil || !strings.Contains(err.Error(), "does not lie in") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if read(t, dir, "precious") != "x" {
		t.Error("it is gone")
	}
}

// Every disk that a power cut may leave in a reset: the old device or none, never half of one, and
// Open goes on with what was begun.
func TestPowerCutInAReset(t *testing.T) {
	d := newDesk(t)
	base := disktest.New()
	lived(t, d, base, "/state")
	memory := d.remember()
	before, after := 0, 0
	disktest.Replay(t, func(disk *disktest.Disk) {
		d.recall(memory)
		c, o := lived(t, d, disk, "/state")
		disk.Mark("lived")
		if _, err := identity.Reset(background, c, o, false); err != nil {
			t.Fatal(err)
		}
		disk.Mark("reset")
	}, func(t testing.TB, state *disktest.Disk) {
		marks := state.Marks()
		if len(marks) == 0 {
			return // it has not lived yet; the order of enrolling is another test's
		}
		c, o := software(), d.on(optionsOn(state, "/state"))
		c.Factory = identity.Factory{Key: "file:factory.pem", Certificate: "factory.crt"}
		i, err := identity.Open(background, c, o)
		switch {
		case err == nil && len(marks) == 1:
			before++
			if err := i.Close(); err != nil || i.Device() != "gw-1" {
				t.Errorf("%s, %v", i.Device(), err)
			}
		case errors.Is(err, identity.ErrNotEnrolled):
			after++
			for _, name := range state.Names() {
				base := filepath.Base(name)
				if !slices.Contains([]string{"factory.crt", "factory.pem", "identity.json"}, base) && !strings.HasSuffix(base, ".tmp") && strings.Contains(base, ".") {
					t.Errorf("left is %s", name)
				}
			}
			if _, ok := state.PowerCut().Content("/state/device.pem"); ok {
				t.Error("the key comes back with the next cut")
			}
		default:
			t.Fatalf("opening: %v", err)
		}
	})
	if before == 0 || after == 0 {
		t.Errorf("%d disks of the device, %d of none", before, after)
	}
	t.Logf("%d disks with the old device, %d reset", before, after)
}
