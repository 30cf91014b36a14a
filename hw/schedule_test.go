package hw

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ferrule/hw/modbus"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// Whatever mix of periods, costs, dead, mute and noisy units and writes a line has: every unit
// that answers is polled, evenly, and every write is done.
func TestNobodyStarves(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(r, "units")
		cost := time.Duration(rapid.IntRange(5, 300).Draw(r, "cost")) * time.Millisecond
		periods := rapid.SliceOfN(rapid.SampledFrom([]int{50, 100, 333, 1000, 5000, 20000}), n, n).Draw(r, "periods")
		dead := rapid.SliceOfN(rapid.IntRange(0, 3), n, n).Draw(r, "dead") // 0: dead
		writes := rapid.IntRange(0, 3).Draw(r, "writers")
		synctest.Test(t, func(t *testing.T) { starve(t, r, n, cost, periods, dead, writes) })
	})
}

func starve(t *testing.T, r *rapid.T, n int, cost time.Duration, periods, dead []int, writers int) {
	bus := newBus()
	bus.cost = cost
	var units []UnitConfig
	live := 0
	period := make(map[string]time.Duration)
	for i := range n {
		bus.units[byte(i+1)] = &fakeUnit{regs: map[modbus.Address]uint16{}, dead: dead[i] == 0}
		units = append(units, unitOf(fmt.Sprintf("u%d", i), i+1, time.Duration(periods[i])*time.Millisecond,
			profile.Point{Name: "x", At: "holding:0", Write: &profile.Write{}}))
		if dead[i] != 0 {
			period[fmt.Sprintf("u%d", i)] = time.Duration(periods[i]) * time.Millisecond
			live++
		}
	}
	b := run(t, lineOf(units...), bus)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int)
	for w := range writers {
		go func() {
			count := 0
			for ctx.Err() == nil {
				if _, err := b.Write(ctx, fmt.Sprintf("u%d", w%n), "x", 1); err != nil && ctx.Err() == nil && dead[w%n] != 0 {
					t.Errorf("writing: %v", err)
					break
				}
				count++
			}
			done <- count
		}()
	}
	wait(time.Minute)
	cancel()
	for range writers {
		if count := <-done; count < 10 {
			r.Errorf("a writer got %d writes through in a minute", count)
		}
	}
	last := make(map[string]time.Time)
	for _, p := range b.polls.take() {
		if before, ok := last[p.Unit]; ok {
			// What stands in the way at worst: a slot at its end after one at its beginning; then
			// one round of everybody, each behind four jobs of two transactions with a silent unit.
			bound := 2*period[p.Unit] + time.Duration(n)*9*max(cost, defaultTimeout)
			if gap := p.Time.Sub(before); gap > bound && p.Readings[0].Bad == "" {
				r.Errorf("unit %s was not polled for %s, bound %s", p.Unit, gap, bound)
			}
		}
		if p.Readings[0].Bad == "" {
			last[p.Unit] = p.Time
		}
	}
	if len(last) != live {
		r.Errorf("%d of %d live units were polled", len(last), live)
	}
	b.stop()
}

// The requests read every point once, ask no more than one request may, and with holes = "never"
// read nothing else.
func TestRequestsReadEveryPointAndNoHole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c UnitConfig
		n := rapid.IntRange(0, 60).Draw(t, "points")
		for i := range n {
			p := profile.Point{Name: fmt.Sprintf("p%d", i)}
			if rapid.Bool().Draw(t, "bit") {
				p.At = fmt.Sprintf("coil:%d", rapid.IntRange(0, 3000).Draw(t, "at"))
			} else {
				p.At = fmt.Sprintf("holding:%d", rapid.IntRange(0, 300).Draw(t, "at"))
				p.Type = rapid.SampledFrom([]string{"int16", "int32", "float64", "string(250)", "bit@3"}).Draw(t, "type")
			}
			p.Every = quantity.Duration(time.Duration(rapid.IntRange(1, 2).Draw(t, "every")) * time.Second)
			c.Points = append(c.Points, p)
		}
		c.Name, c.Address, c.Holes = "a", 1, "never"
		line, err := New(lineOf(c), nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		read, used := make(map[string]int), make(map[modbus.Address]bool)
		for _, p := range line.units[0].points {
			for i := range p.codec.Type().Registers() {
				used[modbus.Address{Table: p.at.Table, Offset: p.at.Offset + uint16(i)}] = true
			}
		}
		for _, class := range line.units[0].classes {
			for _, r := range class.requests {
				for _, p := range r.points {
					from := int(p.at.Offset) - int(r.at.Offset)
					if p.at.Table != r.at.Table || p.every < class.every || from < 0 || from+p.codec.Type().Registers() > int(r.count) {
						t.Fatalf("point %s at %s is not in %d from %s", p.name, p.at, r.count, r.at)
					}
					read[p.name]++
				}
				for i := range int(r.count) {
					if !used[modbus.Address{Table: r.at.Table, Offset: r.at.Offset + uint16(i)}] {
						t.Fatalf("request %d from %s reads %d, where no point is", r.count, r.at, int(r.at.Offset)+i)
					}
				}
				if limit := map[bool]int{true: 2000, false: 125}[r.at.Table.Bits()]; int(r.count) > limit {
					t.Fatalf("a request for %d", r.count)
				}
			}
		}
		if len(read) != n {
			t.Fatalf("%d of %d points are read", len(read), n)
		}
		for name, times := range read {
			if times != 1 {
				t.Fatalf("%s is read %d times", name, times)
			}
		}
	})
}

func TestPlan(t *testing.T) {
	c := lineOf(unitOf("meter-a", 3, time.Second,
		profile.Point{Name: "l1", At: "input:0x000C", Type: "float32"}, profile.Point{Name: "l2", At: "input:14", Type: "float32"},
		profile.Point{Name: "energy", At: "input:72", Type: "float32", Every: quantity.Duration(time.Minute)},
		profile.Point{Name: "door", At: "coil:3"}))
	c.Settings = "9600 8E1"
	line, err := New(c, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	// 9600 8E1: a character is 1.146 ms, t3.5 is 4.01 ms; 13 + 8, 13 + 1 and 13 + 4 bytes.
	want := `line rs485-1: modbus-rtu, 9600 8E1, 3 requests, load 5.7 %
  meter-a  coil:3    × 1  every 1s    24.06 ms  2.41 %
  meter-a  input:12  × 4  every 1s    32.08 ms  3.21 %
  meter-a  input:72  × 2  every 1m0s  27.50 ms  0.05 %
`
	plan := line.Plan()
	if got := plan.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if plan.Overload() {
		t.Error("a load of 6 % is called an overload")
	}
	text, err := json.Marshal(plan)
	if err != nil || !strings.Contains(string(text), `{"unit":"meter-a","address":3,"table":"input","from":12,"count":4,"points":["l1","l2"],"every":"1s","milliseconds":32.08,"percent":3.208`) {
		t.Errorf("got %s, %v", text, err)
	}
	c.Units[0].Every = quantity.Duration(50 * time.Millisecond)
	if line, err = New(c, nil, slog.New(slog.DiscardHandler)); err != nil || !line.Plan().Overload() {
		t.Errorf("load %v %% is no overload, %v", line.Plan().LoadPercent, err)
	}
}

func TestSlotsAreAbsolute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := time.Unix(1000, 0)
		every := time.Duration(rapid.IntRange(10, 5000).Draw(t, "every")) * time.Millisecond
		c := &class{every: every, phase: spread(every, "a"), due: base}
		now := base
		var slots, missed uint64
		first := true
		for range 50 {
			now = now.Add(time.Duration(rapid.IntRange(0, 20000).Draw(t, "late")) * time.Millisecond)
			if now.Before(c.due) {
				now = c.due
			}
			before := c.due
			n := c.advance(base, now)
			if !c.due.After(now) || c.due.Sub(base.Add(c.phase))%every != 0 {
				t.Fatalf("the slot after %s is %s", now, c.due)
			}
			if c.due.Sub(now) > every*3/2 {
				t.Fatalf("the next slot is %s away, the period is %s", c.due.Sub(now), every)
			}
			if first {
				first = false
				continue
			}
			slots += uint64(c.due.Sub(before) / every)
			missed += n + 1
		}
		if slots != missed {
			t.Fatalf("%d slots passed, %d were used or counted as missed", slots, missed)
		}
	})
}

func TestUsage(t *testing.T) {
	var u usage
	now := time.Unix(1000, 0)
	if u.percent(now) != 0 {
		t.Error("a line that did nothing has a load")
	}
	for range 300 {
		now = now.Add(time.Second)
		u.add(now, 250*time.Millisecond)
	}
	if p := u.percent(now); p < 24 || p > 26 {
		t.Errorf("a quarter of the time is %.1f %%", p)
	}
	if p := u.percent(now.Add(30 * time.Second)); p < 11 || p > 14 {
		t.Errorf("half a minute later it is %.1f %%", p)
	}
	if p := u.percent(now.Add(time.Hour)); p != 0 {
		t.Errorf("an hour later it is %.1f %%", p)
	}
}

func TestStatusIsJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := newBus()
		b := run(t, lineOf(unitOf("a", 1, time.Second, profile.Point{Name: "x", At: "input:0"})), bus)
		wait(time.Minute)
		text, err := json.Marshal(b.Status())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"name":"rs485-1"`, `"protocol":"modbus-rtu"`, `"settings":"19200 8E1"`, `"state":"up"`, `"timeout":`, `"crc":0`,
			`"load_percent":`, `"missed_slots":0`, `"state":"degraded"`, `"last_error":`, `"next_probe":`, `"backoff":`, `"p50_ms":0`, `"wire":{`} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s is missing in %s", want, text)
			}
		}
	})
}
