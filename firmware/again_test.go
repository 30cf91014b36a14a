package firmware_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/slot/slottest"
)

// onTrial runs the trial for a while, as one configuration of the agent; true: it ended with a restart.
func (w *world) onTrial(t *testing.T, version string, d time.Duration) (restarted bool) {
	t.Helper()
	m := w.start("b", version)
	begun := time.Now()
	restarted = m.until(time.Hour, func(firmware.Status) bool { return time.Since(begun) >= d })
	m.stop()
	w.again = true
	return restarted
}

// An agent that reads its configuration again and again while it is on trial has not died.
func TestReloadsAreNoStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inTrial(t, slottest.UBootScript(), nil)
		_, version := w.power()
		for range 100 {
			if w.onTrial(t, version, time.Second) {
				t.Fatal("given up")
			}
		}
		w.again = false
		m := w.live(3*time.Hour, settled(w))
		if m.version != "1.1.0" || !slices.Equal(reportsOf(w.reports), []string{"1.1.0 committed"}) {
			t.Errorf("%s, %+v", m.version, w.reports)
		}
	})
}

// One that is not healthy is given up in its time nevertheless.
func TestReloadsProlongNoTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inTrial(t, slottest.UBootScript(), nil)
		w.health = func(version string) firmware.Health {
			h := well()
			h.Reported = version == "1.0.0"
			return h
		}
		_, version := w.power()
		begun := time.Now()
		for !w.onTrial(t, version, 3*time.Second) {
			if time.Since(begun) > 20*time.Minute {
				t.Fatal("never given up")
			}
		}
		w.again = false
		m := w.live(3*time.Hour, settled(w))
		if m.version != "1.0.0" || !strings.Contains(w.reports[0].Reason, "not healthy for 10m") {
			t.Errorf("%s, %+v", m.version, w.reports)
		}
	})
}
