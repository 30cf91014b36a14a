package hw

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// wait lets d pass in the bubble.
func wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestPollsOnSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1, 2)
		bus.units[1].regs = map[modbus.Address]uint16{holding(0): 2301, holding(1): 0x4366, holding(2): 0x199a, holding(9): 7,
			{Table: modbus.Coils, Offset: 12}: 1}
		b := run(t, lineOf(
			unitOf("meter-a", 1, time.Second,
				profile.Point{Name: "energy", At: "holding:9", Every: quantity.Duration(4 * time.Second)},
				profile.Point{Name: "voltage", At: "holding:0", Scale: 0.1},
				profile.Point{Name: "power", At: "holding:1", Type: "float32"},
				profile.Point{Name: "door", At: "coil:12"}),
			unitOf("meter-b", 2, 2*time.Second, profile.Point{Name: "x", At: "input:0"}),
		), bus)
		wait(20*time.Second + 900*time.Millisecond)
		polls := of(b.polls.take(), "meter-a")
		if first := describe(polls[0]); first != "energy=7 voltage=230.1 power=230.1 door=true" {
			t.Errorf("the first poll is %q", first)
		}
		if at := polls[0].Time.Sub(b.start); at > 50*time.Millisecond {
			t.Errorf("the first poll came after %s", at)
		}
		if n := len(polls); n < 20 || n > 22 {
			t.Errorf("%d polls in 20.9 s, want one a second", n)
		}
		energies := 0
		for i, p := range polls[1:] {
			if i > 0 {
				if gap := p.Time.Sub(polls[i].Time).Round(100 * time.Millisecond); gap != time.Second {
					t.Errorf("polls %d and %d are %s apart", i, i+1, gap)
				}
			}
			if strings.HasPrefix(describe(p), "energy=7 voltage=230.1") {
				energies++
			}
		}
		if energies != 4 && energies != 5 { // the second comes half a period to one and a half after the first
			t.Errorf("the slow point came %d times after the first, in polls with the fast ones; want 4 or 5", energies)
		}
		if s := b.Status(); s.State != StateUp || s.MissedSlots != 0 || s.Units[0].State != UnitOK || s.P50Milliseconds != 10 {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestUnitsArePhased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var units []UnitConfig
		bus := newBus(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
		for i := 1; i <= 10; i++ {
			units = append(units, unitOf(fmt.Sprintf("unit-%d", i), i, 10*time.Second, profile.Point{Name: "x", At: "input:0"}))
		}
		b := run(t, lineOf(units...), bus)
		wait(20 * time.Second)
		b.polls.take()
		wait(10 * time.Second)
		seconds := make(map[int64]bool)
		for _, p := range b.polls.take() {
			seconds[p.Time.Unix()] = true
		}
		if len(seconds) < 4 {
			t.Errorf("ten units with a period of 10 s are polled within %d of the seconds", len(seconds))
		}
	})
}

// A line that cannot keep up leaves slots out, evenly, and never catches up in a burst.
func TestMissedSlotsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1, 2)
		bus.cost = 150 * time.Millisecond
		b := run(t, lineOf(
			unitOf("a", 1, 100*time.Millisecond, profile.Point{Name: "x", At: "input:0"}),
			unitOf("b", 2, 100*time.Millisecond, profile.Point{Name: "x", At: "input:0"}),
		), bus)
		wait(30 * time.Second)
		polls := b.polls.take()
		a, c := len(of(polls, "a")), len(of(polls, "b"))
		if a+c < 198 || a+c > 200 || a < 90 || c < 90 {
			t.Errorf("%d and %d polls; 200 fit", a, c)
		}
		if missed := b.Status().MissedSlots; missed < 390 || missed > 410 {
			t.Errorf("%d missed slots; 600 were due and %d polls made", missed, a+c)
		}
		if load := b.Status().LoadPercent; load < 99 {
			t.Errorf("the load is %.1f %%", load)
		}
		bus.set(func() { bus.cost = time.Millisecond })
		wait(time.Second)
		b.polls.take()
		wait(10 * time.Second)
		if n := len(b.polls.take()); n < 198 || n > 202 {
			t.Errorf("%d polls in 10 s once the line is fast; 200 were due", n)
		}
	})
}

func deadOfTen(t *testing.T, dead int, every, cost, long time.Duration) (polls int, b *bench) {
	var units []UnitConfig
	bus := newBus()
	bus.cost = cost
	for i := 1; i <= 10; i++ {
		bus.units[byte(i)] = &fakeUnit{regs: map[modbus.Address]uint16{}, dead: i <= dead}
		units = append(units, unitOf(fmt.Sprintf("unit-%d", i), i, every, profile.Point{Name: "x", At: "input:0"}))
	}
	b = run(t, lineOf(units...), bus)
	wait(long)
	for _, p := range b.polls.take() {
		if p.Readings[0].Bad == "" {
			polls++
		}
	}
	return polls, b
}

func TestDeadUnitsCostTheOthersLittle(t *testing.T) {
	for _, test := range []struct {
		name        string
		dead        int
		every, cost time.Duration
		long        time.Duration
	}{
		{"half loaded", 1, time.Second, 46 * time.Millisecond, time.Minute},
		{"full", 1, time.Second, 110 * time.Millisecond, time.Minute},
		{"full, three dead", 3, time.Second, 142 * time.Millisecond, 10 * time.Minute},
		{"overloaded", 1, 100 * time.Millisecond, 46 * time.Millisecond, time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			var ideal, with int
			synctest.Test(t, func(t *testing.T) {
				// What nine, or seven, units would get of the line alone.
				with, _ = deadOfTen(t, test.dead, test.every, test.cost, test.long)
				live := 10 - test.dead
				ideal = min(live*int(test.long/test.every), int(test.long/test.cost))
			})
			if with < ideal*95/100 {
				t.Errorf("%d polls of the live units, %d without dead ones", with, ideal)
			}
			t.Logf("%d of %d polls", with, ideal)
		})
	}
}

func TestDeadUnitIsDegradedAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		b := run(t, lineOf(unitOf("a", 1, 5*time.Second, profile.Point{Name: "x", At: "input:0"},
			profile.Point{Name: "far", At: "input:90"})), bus)
		wait(11 * time.Second)
		bus.set(func() { bus.units[1].dead = true })
		before := len(bus.seen())
		b.polls.take()
		wait(5 * time.Minute)
		s := b.Status().Units[0]
		if s.State != UnitDegraded || s.Backoff != 60 || s.NextProbe.IsZero() || s.LastError == "" || s.Errors["timeout"] == 0 {
			t.Errorf("status: %+v", s)
		}
		// Three polls, one with a retry, then probes 1, 2, 4, 8, 16, 32, 60 … s after the last ended.
		var pauses []string
		tries := bus.seen()[before:]
		for i := 4; i < len(tries); i++ {
			pauses = append(pauses, (tries[i].at.Sub(tries[i-1].at) - longestPatience).String())
		}
		if got := strings.Join(pauses, " "); got != "1s 2s 4s 8s 16s 32s 1m0s 1m0s" && got != "1s 2s 4s 8s 16s 32s 1m0s 1m0s 1m0s" {
			t.Errorf("the pauses between probes are %s", got)
		}
		for _, p := range b.polls.take() {
			if describe(p) != "x=!timeout far=!timeout" {
				t.Errorf("a poll without an answer says %q", describe(p))
			}
		}
		if n := b.logs.of("unit degraded"); n != 1 {
			t.Errorf("%d log events for one dead unit", n)
		}
		bus.set(func() { bus.units[1].dead = false })
		wait(time.Minute + 2*time.Second)
		if polls := b.polls.take(); len(polls) == 0 || describe(polls[len(polls)-1]) != "x=0 far=0" {
			t.Errorf("the unit answers again, and the polls are %v", polls)
		}
		if s := b.Status().Units[0]; s.State != UnitOK || s.Backoff != 0 {
			t.Errorf("status: %+v", s)
		}
	})
}

// A unit that is mute at one address loses that point only, whichever comes first.
func TestMuteSpanHidesNoOther(t *testing.T) {
	for _, mute := range []uint16{0, 50, 90} {
		synctest.Test(t, func(t *testing.T) {
			bus := newBus(1)
			bus.units[1].fault = func(at modbus.Address, _ uint16) error {
				if at.Offset == mute {
					return modbus.ErrTimeout
				}
				return nil
			}
			b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "p0", At: "input:0"},
				profile.Point{Name: "p50", At: "input:50"}, profile.Point{Name: "p90", At: "input:90"})), bus)
			wait(2 * time.Minute)
			b.polls.take()
			wait(10 * time.Second)
			want := "p0=0 p50=0 p90=0"
			want = strings.Replace(want, fmt.Sprintf("p%d=0", mute), fmt.Sprintf("p%d=!timeout", mute), 1)
			polls := b.polls.take()
			if len(polls) < 9 {
				t.Errorf("%d polls in 10 s", len(polls))
			}
			for _, p := range polls {
				if describe(p) != want {
					t.Errorf("got %q, want %q", describe(p), want)
				}
			}
			if s := b.Status().Units[0].State; s != UnitOK {
				t.Errorf("the unit is %s", s)
			}
		})
	}
}

func TestDamagedAnswersAreRetriedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		n := 0
		bus.units[1].fault = func(modbus.Address, uint16) error {
			if n++; n%2 == 1 {
				return modbus.ErrCRC
			}
			return nil
		}
		b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "x", At: "input:0"})), bus)
		wait(10 * time.Second)
		for _, p := range b.polls.take() {
			if describe(p) != "x=0" {
				t.Errorf("got %q", describe(p))
			}
		}
		bus.set(func() { bus.units[1].fault = func(modbus.Address, uint16) error { return modbus.ErrMismatch } })
		wait(1500 * time.Millisecond)
		polls := b.polls.take()
		if len(polls) == 0 || describe(polls[0]) != "x=!mismatch" {
			t.Errorf("got %v", polls)
		}
		if s := b.Status(); s.Errors["crc"] < 9 || s.Errors["mismatch"] < 2 || s.Units[0].Errors["crc"] != s.Errors["crc"] {
			t.Errorf("errors: %v", s.Errors)
		}
	})
}

func TestExceptionsByKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		refuse := map[uint16]modbus.Exception{11: 2, 40: 6, 60: 4}
		bus.units[1].fault = func(at modbus.Address, n uint16) error {
			for i := at.Offset; i < at.Offset+n; i++ {
				if e, ok := refuse[i]; ok {
					return e
				}
			}
			return nil
		}
		var points []profile.Point
		for _, n := range []int{10, 11, 12, 13, 40, 60} {
			points = append(points, profile.Point{Name: fmt.Sprintf("p%d", n), At: fmt.Sprintf("input:%d", n)})
		}
		b := run(t, lineOf(unitOf("a", 1, time.Second, points...)), bus)
		wait(5 * time.Minute)
		want := "p10=0 p11=!exception-2 p12=0 p13=0 p40=!exception-6 p60=!exception-4"
		for _, p := range b.polls.take() {
			if describe(p) != want {
				t.Fatalf("got %q, want %q", describe(p), want)
			}
		}
		count := make(map[uint16]int)
		for _, a := range bus.seen() {
			count[a.addr.Offset]++
		}
		// The refused point alone once; the busy one in every poll; the failing one with back-off.
		if count[11] != 1 || count[40] < 299 || count[60] < 8 || count[60] > 12 {
			t.Errorf("asked by address: %v", count)
		}
		if n := b.logs.of("point refused"); n != 1 {
			t.Errorf("%d log events for one refused point", n)
		}
		bus.set(func() { refuse = nil })
		wait(6 * time.Minute)
		polls := b.polls.take()
		if last := describe(polls[len(polls)-1]); strings.Contains(last, "!") {
			t.Errorf("once nothing is refused, the poll is %q", last)
		}
		if s := b.Status().Units[0].State; s != UnitOK {
			t.Errorf("the unit is %s", s)
		}
	})
}

func TestDeadbandAndMaxSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		b := run(t, lineOf(unitOf("a", 1, time.Second,
			profile.Point{Name: "p", At: "holding:0", Deadband: 5, MaxSilence: quantity.Duration(10 * time.Second)},
			profile.Point{Name: "b", At: "holding:1", Type: "bit@0", Deadband: 1})), bus)
		step := func(value, bit uint16) string {
			bus.set(func() { bus.units[1].regs[holding(0)], bus.units[1].regs[holding(1)] = value, bit })
			wait(time.Second)
			var all []string
			for _, p := range b.polls.take() {
				all = append(all, describe(p))
			}
			return strings.Join(all, "|")
		}
		if got := step(100, 0); !strings.HasPrefix(got, "p=100 b=false") {
			t.Fatalf("first: %q", got)
		}
		step(100, 0)
		for _, s := range []struct {
			value, bit uint16
			want       string
		}{{105, 0, ""}, {106, 0, "p=106"}, {103, 0, ""}, {103, 1, "b=true"}, {100, 1, "p=100"}, {102, 1, ""}} {
			if got := step(s.value, s.bit); got != s.want {
				t.Errorf("%d, %d: got %q, want %q", s.value, s.bit, got, s.want)
			}
		}
		quiet := 0
		for range 30 {
			if got := step(100, 1); got == "p=100" {
				quiet++
			} else if got != "" {
				t.Errorf("got %q", got)
			}
		}
		if quiet != 3 {
			t.Errorf("reported %d times in 30 s without change; max_silence is 10 s", quiet)
		}
		bus.set(func() { bus.units[1].fault = func(modbus.Address, uint16) error { return modbus.Exception(6) } })
		if got := step(100, 1); got != "p=!exception-6 b=!exception-6" {
			t.Errorf("got %q", got)
		}
		if got := step(100, 1); got != "" {
			t.Errorf("got %q", got)
		}
		bus.set(func() { bus.units[1].fault = nil })
		if got := step(100, 1); got != "p=100 b=true" {
			t.Errorf("got %q", got)
		}
	})
}

func TestLineGoesAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "x", At: "holding:0", Write: &profile.Write{}},
			profile.Point{Name: "y", At: "holding:1", MaxSilence: quantity.Duration(20 * time.Second)})), bus)
		wait(5 * time.Second)
		b.polls.take()
		bus.set(func() { bus.gone = fmt.Errorf("reading: %w", errGone) })
		wait(time.Minute)
		s := b.Status()
		if s.State != StateReopening || !strings.Contains(s.Problem, errGone.Error()) || s.Errors["port"] != 1 {
			t.Errorf("status: %+v", s)
		}
		polls := b.polls.take()
		if len(polls) != 3 || describe(polls[0]) != "x=!line y=!line" || describe(polls[1]) != "y=!line" {
			t.Errorf("in a minute without a port: %v", polls)
		}
		if n := b.logs.of("line down"); n != 1 {
			t.Errorf("%d log events for one loss", n)
		}
		if _, err := b.Write(t.Context(), "a", "x", 1); !errors.Is(err, ErrDown) || !errors.Is(err, errGone) {
			t.Errorf("a write while the line is down: %v", err)
		}
		if _, err := b.Line.Read(t.Context(), Query{Unit: "a", At: holding(0), Type: typeOf(t, "uint16")}); !errors.Is(err, ErrDown) {
			t.Errorf("a read while the line is down: %v", err)
		}
		bus.set(func() { bus.gone = nil })
		wait(2100 * time.Millisecond)
		if polls := b.polls.take(); len(polls) == 0 || describe(polls[0]) != "x=0 y=0" {
			t.Errorf("two seconds after the port is back: %v", polls)
		}
		if s := b.Status(); s.State != StateUp || s.Problem != "" {
			t.Errorf("status: %+v", s)
		}
		b.stop()
		if s := b.Status(); s.State != StateStopped {
			t.Errorf("after the end: %s", s.State)
		}
		if bus.opened != bus.closed {
			t.Errorf("opened %d times, closed %d times", bus.opened, bus.closed)
		}
		if _, err := b.Write(t.Context(), "a", "x", 1); !errors.Is(err, ErrDown) {
			t.Errorf("a write after the end: %v", err)
		}
	})
}

func TestSinkThatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "x", At: "holding:0", Deadband: 10})), bus)
		b.polls.refuseWith(errors.New("full"))
		wait(5 * time.Second)
		if n := b.Status().Errors["sink"]; n < 4 || b.logs.of("poll not taken over") != 1 {
			t.Errorf("%d polls refused, %d log events", n, b.logs.of("poll not taken over"))
		}
		b.polls.refuseWith(nil)
		wait(2 * time.Second)
		if polls := b.polls.take(); len(polls) != 1 || describe(polls[0]) != "x=0" {
			t.Errorf("a value that the sink refused is not reported anew: %v", polls)
		}
	})
}

func TestBadValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus(1)
		bus.units[1].regs = map[modbus.Address]uint16{holding(0): 0x7fc0, holding(2): 0xabcd, holding(3): 5}
		b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "f", At: "holding:0", Type: "float32"},
			profile.Point{Name: "d", At: "holding:2", Type: "bcd16"}, profile.Point{Name: "x", At: "holding:3"})), bus)
		wait(100 * time.Millisecond)
		if got := describe(b.polls.take()[0]); got != "f=!nan d=!invalid x=5" {
			t.Errorf("got %q", got)
		}
		if n := b.Status().Errors["value"]; n != 2 {
			t.Errorf("%d bad values counted", n)
		}
	})
}

func typeOf(t testing.TB, name string) point.Type {
	t.Helper()
	typ, err := point.ParseType(name)
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

func TestRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := run(t, lineOf(), newBus())
		wait(time.Second)
		if err := b.Run(context.Background()); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("a second Run at once: %v", err)
		}
		b.stop()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := b.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second Run after the first: %v", err)
		}
	})
}
