package hw

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// Every fourth answer is late, doubled, foreign or damaged: a reading is what the unit said to the
// request of that very poll, or it is bad. Each answer carries a number of its own.
func TestNoWrongValueWithEveryFourthAnswerWrong(t *testing.T) {
	foreign := []byte{9, 3, 4, 0xde, 0xad, 0xbe, 0xef}
	foreign = binary.LittleEndian.AppendUint16(foreign, modbus.CRC(foreign))
	for _, echo := range []bool{false, true} {
		unit := hwtest.NewUnit(3)
		unit.Counter(modbus.HoldingRegisters, 0)
		for i := range uint16(8) { // requests of the same shape, told apart by their values alone
			unit.Set(modbus.HoldingRegisters, 100+20*i, 0xa000+i, 0xb000+i)
		}
		faults := []hwtest.Fault{{Delay: 70 * time.Millisecond}, {Duplicate: 1}, {Before: foreign}, {Delay: 130 * time.Millisecond},
			{After: foreign}, {Duplicate: 1, DuplicateAfter: 5 * time.Millisecond}, {Flip: []int{33}}, {Delay: 90 * time.Millisecond}}
		unit.Script(func(n int, _ modbus.Request) hwtest.Fault {
			if n%4 != 3 {
				return hwtest.Fault{}
			}
			return faults[n/4%len(faults)]
		})
		// At 9600 baud a duplicate is heard before t3.5 is over, 4 ms, also where this machine is
		// busy: one that comes later, within the next request of its shape, nobody can tell.
		wire, err := hwtest.NewWire(hwtest.WireConfig{Baud: 9600, BitsPerChar: 10, Echo: echo})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { wire.Close() })
		wire.Attach(unit)
		points := []profile.Point{{Name: "n", At: "holding:0", Type: "uint32"}}
		for i := range 8 {
			points = append(points, profile.Point{Name: fmt.Sprintf("p%d", i), At: fmt.Sprintf("holding:%d", 100+20*i), Type: "uint32"})
		}
		u := unitOf("a", 3, 10*time.Millisecond, points...)
		u.Holes, u.Timeout = "never", quantity.Duration(50*time.Millisecond)
		c := lineOf(u)
		c.Port, c.Settings = wire.Path(), "9600 8N1"
		checkEveryReading(t, c, unit, echo)
	}
}

func checkEveryReading(t *testing.T, c LineConfig, unit *hwtest.Unit, echo bool) {
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	good, bad := 0, make(map[string]int)
	line, err := New(c, func(_ context.Context, p Poll) error {
		held := unit.Get(modbus.HoldingRegisters, 0, 2) // nobody asks while we are here
		for _, r := range p.Readings {
			want := uint64(held[0])<<16 | uint64(held[1])
			if r.Point != "n" {
				i := uint64(r.Point[1] - '0')
				want = (0xa000+i)<<16 | (0xb000 + i)
			}
			got, _ := r.Value.Uint64()
			switch {
			case r.Bad != "":
				bad[r.Bad]++
			case got != want:
				t.Errorf("echo %v: %s is %#x, want %#x", echo, r.Point, got, want)
			default:
				good++
			}
		}
		return nil
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := line.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run returned %v", err)
	}
	s := line.Status()
	if w := s.Wire.(modbus.Stats); good < 10 || w.Late == 0 || w.Foreign == 0 || w.Timeouts == 0 || echo != (w.Echoes > 0) {
		t.Errorf("%d good, bad %v, %+v", good, bad, w)
	}
	t.Logf("echo %v: %d readings right, 0 wrong, bad %v, wire %+v", echo, good, bad, s.Wire)
}

// One dead unit among ten, on whatever line: the others keep 95 % of the polls that they would have
// without it. The quiet after a missing answer counts, too.
func TestOneDeadUnitOfTen(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		cost := time.Duration(rapid.IntRange(4, 120).Draw(r, "cost")) * time.Millisecond
		every := time.Duration(rapid.SampledFrom([]int{50, 200, 1000, 5000}).Draw(r, "every")) * time.Millisecond
		late := rapid.Bool().Draw(r, "dies later")
		const long = 2 * time.Minute
		polls := func(dead bool) (n int) {
			synctest.Test(t, func(t *testing.T) {
				bus := newBus(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
				bus.cost, bus.thinks = cost, cost/2
				var units []UnitConfig
				for i := 1; i <= 10; i++ {
					if i == 4 && !dead {
						continue
					}
					units = append(units, unitOf(fmt.Sprintf("unit-%d", i), i, every, profile.Point{Name: "x", At: "input:0"}))
				}
				bus.units[4].dead = dead && !late
				b := run(t, lineOf(units...), bus)
				wait(10 * time.Second)
				bus.set(func() { bus.units[4].dead = dead })
				b.polls.take()
				wait(long)
				for _, p := range b.polls.take() {
					if p.Readings[0].Bad == "" {
						n++
					}
				}
				b.stop()
			})
			return n
		}
		with, without := polls(true), polls(false)
		if with < without*95/100 {
			r.Errorf("%d polls with a dead unit, %d without", with, without)
		}
	})
}

// A write waits for the transaction under way, and for nothing else.
func TestWriteLatency(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		cost := time.Duration(rapid.IntRange(4, 300).Draw(r, "cost")) * time.Millisecond
		every := time.Duration(rapid.SampledFrom([]int{10, 50, 1000}).Draw(r, "every")) * time.Millisecond
		dead := rapid.IntRange(0, 3).Draw(r, "dead units")
		pauses := rapid.SliceOfN(rapid.IntRange(0, 3000), 8, 8).Draw(r, "pauses")
		synctest.Test(t, func(t *testing.T) {
			bus := newBus(1, 2, 3, 4, 5, 6)
			bus.cost, bus.thinks = cost, cost/2
			var units []UnitConfig
			for i := 1; i <= 6; i++ {
				bus.units[byte(i)].dead = i <= dead
				units = append(units, unitOf(fmt.Sprintf("u%d", i), i, every, profile.Point{Name: "x", At: "holding:0", Write: &profile.Write{}},
					profile.Point{Name: "y", At: "holding:999"}))
			}
			b := run(t, lineOf(units...), bus)
			for _, ms := range pauses {
				wait(time.Duration(ms) * time.Millisecond)
				asked := time.Now()
				if _, err := b.Write(t.Context(), "u6", "x", ms); err != nil {
					r.Error(err)
				}
				// One transaction: a good one, or one that ends by its timeout and is followed by quiet.
				for _, a := range bus.seen() {
					if a.write && !a.at.Before(asked) {
						if waited := a.at.Sub(asked); waited > max(cost, longestPatience)+afterSilence {
							r.Errorf("a write waited for %s", waited)
						}
					}
				}
			}
			b.stop()
		})
	})
}

// descriptors is how many files this process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// The port is pulled out under load and comes back under another number behind the same name: the
// line resumes within 2 s, and neither here nor in a child does a descriptor stay.
func TestReplugUnderLoad(t *testing.T) {
	name := filepath.Join(t.TempDir(), "port")
	plug := func() *hwtest.Wire {
		wire := newWire(t, 115200, meter(3))
		if err := os.Symlink(wire.Path(), name); err != nil {
			t.Fatal(err)
		}
		return wire
	}
	wire := plug()
	u := meterConfig("a", 3)
	u.Every = quantity.Duration(10 * time.Millisecond)
	line, polls := onWire(t, name, "115200 8E1", u)
	const good = "power=230.1 voltage=230.1 signed=-2 target=0 pump=true flag=false"
	until(t, polls, "a", good)
	var writes sync.WaitGroup
	var stop atomic.Bool
	writes.Go(func() { // and writes go on
		for !stop.Load() {
			line.Write(t.Context(), "a", "pump", true)
		}
	})
	before := descriptors(t)
	keep := newWire(t, 0) // takes the old number, so that the next is another
	slowest := time.Duration(0)
	for range 4 {
		if err := errors.Join(os.Remove(name), wire.Close()); err != nil {
			t.Fatal(err)
		}
		until(t, polls, "a", strings.ReplaceAll("power=! voltage=! signed=! target=! pump=! flag=!", "!", "!line"))
		wire = plug()
		start := time.Now()
		until(t, polls, "a", good)
		slowest = max(slowest, time.Since(start))
	}
	if slowest > 2*time.Second {
		t.Errorf("the line resumed after %s", slowest)
	}
	child, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil || strings.Contains(string(child), "/dev/pt") {
		t.Errorf("a child inherits a port: %v\n%s", err, child)
	}
	drain(t, polls)
	stop.Store(true)
	writes.Wait()
	keep.Close()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	t.Logf("resumed within %s", slowest)
}
