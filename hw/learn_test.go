package hw

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// What a unit refused stays refused when its requests are planned anew, which a unit that gets slower
// brings about.
func TestWhatWasLearnedSurvivesReplanning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		bus.thinks = 2 * time.Millisecond
		bus.units[1].fault = func(at modbus.Address, n uint16) error {
			if at.Offset <= 5 && at.Offset+n > 5 || at.Offset <= 8 && at.Offset+n > 8 { // a hole, and a point
				return modbus.IllegalAddress
			}
			return nil
		}
		b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "p4", At: "holding:4"}, profile.Point{Name: "p6", At: "holding:6"},
			profile.Point{Name: "p8", At: "holding:8", Every: quantity.Duration(2 * time.Second)}, profile.Point{Name: "q8", At: "holding:8", Type: "bit@3"},
			profile.Point{Name: "p9", At: "holding:9"})), bus)
		wait(10 * time.Second)
		learning := len(bus.seen())
		for i := range 5 {
			bus.set(func() { bus.thinks = time.Duration(5*(i+1)) * time.Millisecond })
			wait(time.Minute + time.Second)
		}
		count := make(map[string]int)
		for _, a := range bus.seen()[learning:] {
			count[fmt.Sprintf("%d+%d", a.addr.Offset, a.count)]++
		}
		if len(count) != 3 || count["4+1"] < 300 || count["6+1"] < 300 || count["9+1"] < 300 {
			t.Errorf("asked after five replans: %v", count)
		}
		for _, p := range b.polls.take() {
			got := describe(p)
			if got != "p4=0 p6=0 p8=!exception-2 q8=!exception-2 p9=0" && got != "p4=0 p6=0 q8=!exception-2 p9=0" {
				t.Fatalf("got %q", got)
			}
		}
		if n := b.logs.of("point refused"); n != 1 {
			t.Errorf("%d log events", n)
		}
	})
}

// A point of a longer period that is read along with faster ones has slots of its own: it is neither
// reported nor spoilt in between.
func TestPointsReadAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		busy := false
		bus.units[1].fault = func(modbus.Address, uint16) error {
			if busy {
				return modbus.Exception(6)
			}
			return nil
		}
		bus.units[1].regs = map[modbus.Address]uint16{holding(0): 5, holding(1): 7, holding(2): 0xffff}
		b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "fast", At: "holding:0"},
			profile.Point{Name: "slow", At: "holding:1", Every: quantity.Duration(4 * time.Second), ScaleFactor: "holding:2"})), bus)
		if len(b.units[0].classes) != 1 {
			t.Fatalf("%d classes", len(b.units[0].classes))
		}
		wait(15500 * time.Millisecond)
		b.polls.take()
		for i := range 40 {
			bus.set(func() { busy = i%4 == 3 }) // in slots that are not those of the slow point
			wait(time.Second)
		}
		slow := 0
		for _, p := range b.polls.take() {
			for _, r := range p.Readings {
				if r.Point == "slow" {
					if slow++; r.Value.String() != "0.7" {
						t.Errorf("the slow point is %s", describe(p))
					}
				}
			}
		}
		if slow != 10 {
			t.Errorf("the slow point was reported %d times in 40 s", slow)
		}
	})
}

// A unit that is no SunSpec unit and takes its time is asked again, with back-off.
func TestDiscoveryThatFindsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		bus.thinks = 20 * time.Millisecond
		bus.units[1].fault = func(modbus.Address, uint16) error { return modbus.IllegalAddress }
		u := unitOf("a", 1, time.Second)
		u.Profile = sunSpec
		b := run(t, lineOf(u), bus)
		wait(10 * time.Minute)
		if n := len(bus.seen()); n < 30 || n > 100 {
			t.Errorf("%d transactions in ten minutes", n)
		}
		if s := b.Status().Units[0]; s.State != UnitOK || s.LastError == "" {
			t.Errorf("status: %+v", s)
		}
	})
}

// Timeouts are learned within their bounds, and recover when a slow unit is quick again.
func TestLearnedTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		bus.thinks = 5 * time.Millisecond
		b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "x", At: "holding:0"})), bus)
		timeout := func(want float64) {
			t.Helper()
			if got := b.Status().Units[0].TimeoutMilliseconds; got != want {
				t.Errorf("the timeout is %v ms, want %v", got, want)
			}
		}
		wait(3 * time.Second)
		timeout(50)
		bus.set(func() { bus.thinks = 30 * time.Millisecond })
		wait(3 * time.Second)
		timeout(120)
		bus.set(func() { bus.thinks = 800 * time.Millisecond })
		wait(3 * time.Second)
		timeout(1000)
		bus.set(func() { bus.units[1].dead, bus.thinks = true, 5*time.Millisecond })
		wait(time.Minute)
		timeout(1000)
		bus.set(func() { bus.units[1].dead = false })
		wait(2 * time.Minute)
		timeout(50)
	})
}

// A frame that is wrong is named with its unit, whole.
func TestUnitThatAnswersWronglyIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1, 2)
		wrong := []byte{1, 3, 2, 0, 7, 0xff, 0xff}
		bus.units[1].fault = func(modbus.Address, uint16) error { return &modbus.FrameError{Err: modbus.ErrCRC, Frame: wrong} }
		b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "x", At: "holding:0"}), unitOf("b", 2, time.Second, profile.Point{Name: "x", At: "holding:0"})), bus)
		wait(5 * time.Second)
		s := b.Status()
		if u := s.Units[0]; u.Errors["crc"] == 0 || u.LastFrame != "010302"+"0007ffff" || !strings.Contains(u.LastError, "checksum") || u.LastErrorAt.IsZero() {
			t.Errorf("status: %+v", u)
		}
		if u := s.Units[1]; u.Errors["crc"] != 0 || u.LastFrame != "" {
			t.Errorf("status: %+v", u)
		}
	})
}
