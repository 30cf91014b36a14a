package firmware_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/slot/slottest"
)

var harnesses = map[string]func() slottest.Harness{
	"uboot script": slottest.UBootScript,
	"uboot":        func() slottest.Harness { return slottest.UBootRedundant(false, false) },
	"tryboot":      slottest.Tryboot,
	"grub":         slottest.GRUB,
	"efi":          slottest.EFI,
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
