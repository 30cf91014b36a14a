package firmware_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

func window(t *testing.T, text string) firmware.Window {
	t.Helper()
	var w firmware.Window
	if err := w.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if back, err := w.MarshalText(); err != nil || string(back) != strings.Replace(text, "24:00", "00:00", 1) {
		t.Errorf("%s is written %s, %v", text, back, err)
	}
	return w
}

func TestWindow(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ window, at, next string }{
		{"", "2026-03-01 12:00", "2026-03-01 12:00 CET"},
		{"02:00-04:00", "2026-03-01 02:00", "2026-03-01 02:00 CET"},
		{"02:00-04:00", "2026-03-01 03:59", "2026-03-01 03:59 CET"},
		{"02:00-04:00", "2026-03-01 04:00", "2026-03-02 02:00 CET"},
		{"22:00-03:00", "2026-03-01 23:59", "2026-03-01 23:59 CET"},
		{"22:00-03:00", "2026-03-02 02:59", "2026-03-02 02:59 CET"},
		{"22:00-03:00", "2026-03-02 03:00", "2026-03-02 22:00 CET"},
		{"20:00-24:00", "2026-03-02 03:00", "2026-03-02 20:00 CET"},
		{"00:00-24:00", "2026-03-02 03:00", "2026-03-02 03:00 CET"},
		// Clocks go from 02:00 to 03:00 on 29 March.
		{"02:00-03:00", "2026-03-28 12:00", "2026-03-30 02:00 CEST"},
		{"02:30-04:00", "2026-03-28 12:00", "2026-03-29 03:00 CEST"},
		{"01:00-05:00", "2026-03-28 12:00", "2026-03-29 01:00 CET"},
		// And from 03:00 back to 02:00 on 25 October.
		{"02:00-03:00", "2026-10-24 12:00", "2026-10-25 02:00 CEST"},
	} {
		w := window(t, c.window)
		at, err := time.ParseInLocation("2006-01-02 15:04", c.at, berlin)
		if err != nil {
			t.Fatal(err)
		}
		next := w.Next(at)
		if got := next.Format("2006-01-02 15:04 MST"); got != c.next || !w.Open(next) || w.Open(at) != next.Equal(at) {
			t.Errorf("%s at %s opens at %s, want %s", c.window, c.at, got, c.next)
		}
	}
	// In the night of October the window opens twice.
	w, open := window(t, "02:00-03:00"), 0
	for at := time.Date(2026, 10, 24, 12, 0, 0, 0, berlin); at.Before(time.Date(2026, 10, 25, 12, 0, 0, 0, berlin)); at = at.Add(time.Minute) {
		if w.Open(at) {
			open++
		}
	}
	if open != 120 {
		t.Errorf("open for %d minutes", open)
	}
}

func TestWindowsThatAreNone(t *testing.T) {
	for _, text := range []string{"2-4", "02:00", "02:00-02:00", "25:00-03:00", "02:60-03:00", "02:00-24:01", "-2:00-03:00", "02:00-03:00x", "02:00 -03:00", "+2:00-03:00"} {
		var w firmware.Window
		if err := w.UnmarshalText([]byte(text)); err == nil || hint.Of(err) == "" {
			t.Errorf("%q: %v, %v", text, w, err)
		}
	}
}

func FuzzWindow(f *testing.F) {
	f.Add("02:00-04:00")
	f.Fuzz(func(t *testing.T, text string) {
		var w firmware.Window
		if w.UnmarshalText([]byte(text)) != nil {
			return
		}
		var again firmware.Window
		if err := again.UnmarshalText([]byte(w.String())); w.String() != "00:00-00:00" && (err != nil || again != w) {
			t.Fatalf("%q is %v, again %v, %v", text, w, again, err)
		}
	})
}

func TestAnUpdateKeepsToItsWindow(t *testing.T) {
	for _, now := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, slottest.UBootScript())
			w.publish("1.1.0", image(2, 5200), nil)
			w.config.Window = window(t, "02:00-04:00") // it is midnight, UTC
			w.config.CheckEvery = 0
			m := w.start(w.power())
			if err := m.engine.Propose(t.Context(), firmware.Request{Now: now}); err != nil {
				t.Fatal(err)
			}
			asked := w.asked.Load() // for the metadata
			begun := time.Now()
			restarted := m.until(5*time.Hour, func(s firmware.Status) bool {
				waits := s.State == firmware.Fetching && time.Since(begun) < 119*time.Minute
				if waits && (now || w.asked.Load() > asked || !strings.Contains(s.Reason, "the window 02:00-04:00 opens at 2000-01-01T02:00:00Z")) {
					t.Errorf("%+v", s)
				}
				return t.Failed()
			})
			m.stop()
			if took := time.Since(begun); !restarted || now != (took < time.Minute) || took > 2*time.Hour+time.Minute {
				t.Errorf("now %v: restart %v after %v", now, restarted, took)
			}
		})
	}
}

// Whether a window is open cannot be known by a clock that nobody vouches for.
func TestAWindowWithoutAClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), nil)
		w.config.Window = window(t, "00:00-23:00")
		w.vouched.Store(false)
		m := w.start(w.power())
		begun := time.Now()
		m.until(5*time.Hour, func(s firmware.Status) bool { return time.Since(begun) > 4*time.Hour })
		if s := m.engine.Status(); s.State != firmware.Fetching || !strings.Contains(s.Reason, "nobody vouches for the clock") {
			t.Errorf("%+v", s)
		}
		w.vouched.Store(true)
		if !m.until(time.Hour, func(firmware.Status) bool { return false }) {
			t.Error("no restart")
		}
		m.stop()
	})
}

func TestValidate(t *testing.T) {
	if err := firmware.Default().Validate(); err != nil {
		t.Fatal(err)
	}
	good := firmware.Default()
	good.Repository, good.Product, good.Boot, good.Environment = "https://updates.example/f", "gw", "uboot", "/etc/fw_env.config"
	good.Slots = firmware.SlotPaths{A: map[string]string{"rootfs": "/dev/mmcblk0p2"}, B: map[string]string{"rootfs": "/dev/mmcblk0p3"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for says, edit := range map[string]func(c *firmware.Config){
		`boot "lilo" is not known`:          func(c *firmware.Config) { c.Boot = "lilo" },
		`floor "sky" is not known`:          func(c *firmware.Config) { c.Floor = "sky" },
		"tries 0":                           func(c *firmware.Config) { c.Tries = 0 },
		"check_every 1s":                    func(c *firmware.Config) { c.CheckEvery = quantity.Duration(time.Second) },
		"health_command has no program":     func(c *firmware.Config) { c.HealthCommand = []string{""} },
		"is not an http or https URL":       func(c *firmware.Config) { c.Repository = "updates.example" },
		"a query, a fragment or a password": func(c *firmware.Config) { c.Repository = "https://a:b@updates.example" },
		"product is missing":                func(c *firmware.Config) { c.Product = "" },
		"root is missing":                   func(c *firmware.Config) { c.Root = "" },
		"channel is missing":                func(c *firmware.Config) { c.Channel = "" },
		"could not be installed":            func(c *firmware.Config) { c.Boot = "none" },
		"environment is missing":            func(c *firmware.Config) { c.Environment = "" },
		"the parts of a and of b":           func(c *firmware.Config) { c.Slots.B = nil },
		"is in one slot only":               func(c *firmware.Config) { c.Slots.B = map[string]string{"boot": "/dev/x"} },
		"not an absolute path":              func(c *firmware.Config) { c.Slots.B = map[string]string{"rootfs": "x"} },
		"is slot":                           func(c *firmware.Config) { c.Slots.B = c.Slots.A },
		"reboot is missing":                 func(c *firmware.Config) { c.Reboot = "" },
	} {
		c := good
		edit(&c)
		if says == "is slot" {
			says = "/dev/mmcblk0p2 is "
		}
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), says) || hint.Of(errors.Unwrap(err)) == "" && hint.Of(err) == "" && !hinted(err) {
			t.Errorf("%s: %v", says, err)
		}
	}
}

// hinted reports whether every one of joined errors has its repair.
func hinted(err error) bool {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return hint.Of(err) != ""
	}
	for _, err := range joined.Unwrap() {
		if hint.Of(err) == "" {
			return false
		}
	}
	return true
}
