package firmware_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/record"
)

var harnesses = map[string]func() slottest.Harness{
	"uboot script": slottest.UBootScript,
	"uboot":        func() slottest.Harness { return slottest.UBootRedundant(false, false) },
	"tryboot":      slottest.Tryboot,
	"grub":         slottest.GRUB,
	"efi":          slottest.EFI,
	"directory":    slottest.Directory,
}

func TestAnUpdateIsCommitted(t *testing.T) {
	for name, harness := range harnesses {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, harness())
				w.publish("1.1.0", image(2, 5200), nil)
				m := w.live(3*time.Hour, settled(w))
				if m.version != "1.1.0" || !slices.Equal(reportsOf(w.reports), []string{"1.1.0 committed"}) || w.boots != 2 {
					t.Errorf("%s runs after %d boots, reported %v, %+v", m.version, w.boots, w.reports, m.engine.Status())
				}
			})
		})
	}
}

func TestAnUnhealthyUpdateIsRolledBackOnce(t *testing.T) {
	for name, harness := range harnesses {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, harness())
				w.publish("1.1.0", image(2, 5200), nil)
				w.health = func(version string) firmware.Health {
					h := well()
					h.Session = version == "1.0.0"
					return h
				}
				m := w.live(3*time.Hour, settled(w))
				if m.version != "1.0.0" || !slices.Equal(reportsOf(w.reports), []string{"1.1.0 rolled-back"}) || w.tried["1.1.0"] != 1 {
					t.Errorf("%s runs, %v, reported %+v", m.version, w.tried, w.reports)
				}
				t.Log(w.reports[0].Reason)
				// Neither now nor in a week.
				m = w.start(m.slot, m.version)
				start := time.Now()
				m.until(200*time.Hour, func(firmware.Status) bool { return time.Since(start) > 168*time.Hour })
				m.stop()
				if w.tried["1.1.0"] != 1 || len(w.reports) != 1 {
					t.Errorf("tried again: %v, %v", w.tried, w.reports)
				}
			})
		})
	}
}

func TestAKernelThatHangsIsRolledBack(t *testing.T) {
	for name, harness := range harnesses {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, harness())
				w.publish("1.1.0", image(2, 5200), nil)
				w.hangs["1.1.0"] = true
				m := w.live(3*time.Hour, settled(w))
				if m.version != "1.0.0" || !slices.Equal(reportsOf(w.reports), []string{"1.1.0 rolled-back"}) || w.tried["1.1.0"] != 3 {
					t.Errorf("%s runs, %v, reported %+v", m.version, w.tried, w.reports)
				}
			})
		})
	}
}

// The active slot does not come up one day: the other one runs in its place, and the next update
// goes into the broken one, which is not the active one any more before it is written.
func TestASlotThatBreaksLaterIsWrittenAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), nil)
		w.live(3*time.Hour, settled(w))
		w.broken[slot.B] = true
		m := w.live(3*time.Hour, func(m *machine, s firmware.Status) bool { return quiet(s) })
		if s := m.engine.Status(); m.version != "1.0.0" || !strings.Contains(s.Problem, "slot b is active but did not boot") {
			t.Errorf("%s runs, %+v", m.version, s)
		}
		w.publish("1.2.0", image(3, 5200), nil)
		w.broken = nil
		m = w.start(m.slot, m.version)
		if !m.until(3*time.Hour, func(firmware.Status) bool { return false }) {
			t.Fatal("no restart")
		}
		m.stop()
		if m = w.live(3*time.Hour, settled(w)); m.version != "1.2.0" || m.slot != slot.B {
			t.Errorf("%s runs in %s, %+v", m.version, m.slot, w.reports)
		}
	})
}

// A journal of a newer agent, which this one cannot read, holds automatic updates: the version that
// wrote it may be the one that rolled back.
func TestAJournalOfANewerAgentHoldsUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), nil)
		payload := []byte(`{"schema":9,"state":{"of":"mind"}}`)
		w.put(rootDir+"/journal.0", record.NewSeed(1).Append([]byte("FRLJRNL1\x01\x00\x00\x00\x00\x00\x00\x00"), payload))
		m := w.start(w.power())
		begun := time.Now()
		m.until(48*time.Hour, func(firmware.Status) bool { return time.Since(begun) > 24*time.Hour })
		if s := m.engine.Status(); s.State != firmware.Idle || !strings.Contains(s.Problem, "written by a newer agent (schema 9)") {
			t.Errorf("%+v", s)
		}
		if err := m.engine.Propose(t.Context(), firmware.Request{}); err != nil {
			t.Error(err)
		}
		if !m.until(3*time.Hour, func(firmware.Status) bool { return false }) {
			t.Fatal("no restart")
		}
		m.stop()
		if m = w.live(3*time.Hour, settled(w)); m.version != "1.1.0" {
			t.Errorf("%s runs, %+v", m.version, w.reports)
		}
	})
}

// installer is RAUC, or another one.
type installer struct {
	fails int
	calls []string
}

func (i *installer) Install(_ context.Context, m *manifest.Manifest, progress func(done, total int64)) error {
	i.calls = append(i.calls, m.Version())
	progress(1, 2)
	if len(i.calls) <= i.fails {
		return errors.New("signature of the bundle is wrong")
	}
	return nil
}

func TestAnInstallerOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), nil)
		w.installer = &installer{fails: 1}
		m := w.live(3*time.Hour, settled(w))
		if m.version != "1.0.0" || len(w.reports) != 1 || !strings.Contains(w.reports[0].Reason, "installing: signature of the bundle is wrong") {
			t.Errorf("%s runs, %+v", m.version, w.reports)
		}
		w.mended(t)
		if !slices.Equal(w.installer.calls, []string{"1.1.0", "1.1.0"}) {
			t.Errorf("installed %v", w.installer.calls)
		}
	})
}

// A TPM that cannot be raised keeps neither the commit nor the report; it is raised later.
func TestAFloorThatCannotBeRaisedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), func(r *bundletest.Release) { r.SecurityVersion = 4 })
		w.chip.fail = errors.New("lockout")
		m := w.live(3*time.Hour, settled(w))
		if s := m.engine.Status(); m.version != "1.1.0" || s.Floor.Value != 4 || !strings.Contains(s.Floor.Weak, "lockout") || !strings.Contains(s.Problem, "raising the floor in the TPM to 4: lockout") {
			t.Errorf("%s runs, %+v", m.version, s)
		}
		w.chip.fail = nil
		w.live(3*time.Hour, settled(w))
		if w.chip.value != 4 {
			t.Errorf("the TPM is at %d", w.chip.value)
		}
	})
}
