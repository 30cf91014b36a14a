package hw

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what should come within a second or two.
const patience = 20 * time.Second

func newWire(t testing.TB, baud int, units ...*hwtest.Unit) *hwtest.Wire {
	t.Helper()
	w, err := hwtest.NewWire(hwtest.WireConfig{Baud: baud})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	for _, u := range units {
		w.Attach(u)
	}
	return w
}

// onWire runs a line on a port; its polls come out of the channel.
func onWire(t testing.TB, port, settings string, units ...UnitConfig) (*Line, <-chan Poll) {
	t.Helper()
	c := lineOf(units...)
	c.Port, c.Settings = port, settings
	return runLine(t, c)
}

// runLine runs a line until the test is over; its polls come out of the channel.
func runLine(t testing.TB, c LineConfig) (*Line, <-chan Poll) {
	t.Helper()
	polls := make(chan Poll)
	ctx, cancel := context.WithCancel(context.Background())
	line, err := New(c, func(ctx context.Context, p Poll) error {
		p.Readings = append([]Reading(nil), p.Readings...)
		for _, r := range p.Readings {
			if r.Bad == "" && r.Value == noValue || r.Bad != "" && r.Value != noValue {
				t.Errorf("unit %s reports %s: either a value or a reason why there is none", p.Unit, describe(p))
			}
		}
		select {
		case polls <- p:
		case <-ctx.Done():
		}
		return nil
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- line.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		start := time.Now()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("the line took %s to stop", took)
		}
	})
	return line, polls
}

// until takes polls of a unit until one says want.
func until(t testing.TB, polls <-chan Poll, unit, want string) {
	t.Helper()
	timeout := time.After(patience)
	last := "nothing"
	for {
		select {
		case p := <-polls:
			if p.Unit != unit {
				continue
			}
			if last = describe(p); last == want {
				return
			}
		case <-timeout:
			t.Fatalf("unit %s said %q last, want %q", unit, last, want)
		}
	}
}

// drain throws polls away until the test is over, so that the line goes on.
func drain(t testing.TB, polls <-chan Poll) {
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-polls:
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(func() { close(done); <-ended })
}

func meter(address byte) *hwtest.Unit {
	u := hwtest.NewUnit(address)
	u.Set(modbus.InputRegisters, 12, 0x4366, 0x199a)
	u.Set(modbus.HoldingRegisters, 100, 2301, 0xfffe)
	u.Set(modbus.HoldingRegisters, 110, 0, 0)
	u.Set(modbus.Coils, 3, 1, 0)
	return u
}

func meterConfig(name string, address int) UnitConfig {
	return unitOf(name, address, 100*time.Millisecond,
		profile.Point{Name: "power", At: "input:0x000C", Type: "float32"},
		profile.Point{Name: "voltage", At: "40101", Scale: 0.1, Write: &profile.Write{Max: ptr(300)}},
		profile.Point{Name: "signed", At: "holding:101", Type: "int16"},
		profile.Point{Name: "target", At: "holding:110", Type: "uint32", Order: "CDAB", Write: &profile.Write{}},
		profile.Point{Name: "pump", At: "coil:3", Write: &profile.Write{}},
		profile.Point{Name: "flag", At: "holding:101", Type: "bit@0", Write: &profile.Write{}})
}

func TestWireTwoUnits(t *testing.T) {
	a, b := meter(3), meter(4)
	b.Set(modbus.HoldingRegisters, 100, 2302)
	wire := newWire(t, 115200, a, b)
	line, polls := onWire(t, wire.Path(), "115200 8E1", meterConfig("meter-a", 3), meterConfig("meter-b", 4))
	until(t, polls, "meter-a", "power=230.1 voltage=230.1 signed=-2 target=0 pump=true flag=false")
	until(t, polls, "meter-b", "power=230.1 voltage=230.2 signed=-2 target=0 pump=true flag=false")
	a.Set(modbus.HoldingRegisters, 100, 2299)
	until(t, polls, "meter-a", "power=230.1 voltage=229.9 signed=-2 target=0 pump=true flag=false")
	s := line.Status()
	if s.State != StateUp || s.Polls < 3 || s.Wire.(modbus.Stats).Requests < 9 || s.P50Milliseconds <= 0 || s.LoadPercent <= 0 {
		t.Errorf("status: %+v", s)
	}
	if n := wire.Stats().Violations; n != 0 {
		t.Errorf("%d frames came too early", n)
	}
}

func TestWireWritesAndReads(t *testing.T) {
	a := meter(3)
	wire := newWire(t, 115200, a)
	line, polls := onWire(t, wire.Path(), "115200 8E1", meterConfig("meter-a", 3))
	drain(t, polls)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, test := range []struct {
		point string
		value any
	}{{"voltage", 12.5}, {"target", 70000}, {"pump", false}, {"flag", true}} {
		if w, err := line.Write(ctx, "meter-a", test.point, test.value); err != nil || !w.Verified {
			t.Errorf("%s = %v: %+v, %v", test.point, test.value, w, err)
		}
	}
	got := append(a.Get(modbus.HoldingRegisters, 100, 2), a.Get(modbus.HoldingRegisters, 110, 2)...)
	if want := []uint16{125, 0xffff, 4464, 1}; !equalWords(got, want) || a.Get(modbus.Coils, 3, 1)[0] != 0 {
		t.Errorf("the unit holds %04x, want %04x", got, want)
	}
	raw, err := line.Read(ctx, Query{Unit: "3", At: modbus.Address{Table: modbus.InputRegisters, Offset: 12}, Type: typeOf(t, "float32")})
	if err != nil || len(raw) != 4 || raw[0] != 0x43 || raw[3] != 0x9a {
		t.Errorf("read % x, %v", raw, err)
	}
	if _, err := line.Read(ctx, Query{Unit: "3", At: holding(999), Type: typeOf(t, "int16")}); !errors.Is(err, modbus.Exception(2)) {
		t.Errorf("a register that is not there: %v", err)
	}
	// Some units know function 16 only.
	a.Script(func(_ int, r modbus.Request) hwtest.Fault {
		if r.Function == modbus.WriteSingleRegister {
			return hwtest.Fault{Exception: 1}
		}
		return hwtest.Fault{}
	})
	if w, err := line.Write(ctx, "meter-a", "voltage", 13); err != nil || !w.Verified {
		t.Errorf("a unit without function 6: %+v, %v", w, err)
	}
}

func equalWords(a, b []uint16) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Whatever happens on the wire, a reading is right or bad.
func TestWireFaultsNeverBecomeValues(t *testing.T) {
	a := hwtest.NewUnit(3)
	for i := range uint16(4) {
		a.Set(modbus.HoldingRegisters, 10*i, 1000+i)
	}
	faults := []hwtest.Fault{{Flip: []int{30}}, {Drop: true}, {Truncate: 2}, {Delay: 150 * time.Millisecond},
		{Before: []byte{0, 0xff, 3}}, {After: []byte{3, 3, 2, 0, 7}}, {Duplicate: 1}, {Exception: 6}}
	a.Script(func(n int, _ modbus.Request) hwtest.Fault {
		if n%3 != 0 {
			return hwtest.Fault{}
		}
		return faults[n/3%len(faults)]
	})
	wire := newWire(t, 115200, a)
	u := unitOf("a", 3, 50*time.Millisecond, profile.Point{Name: "p0", At: "holding:0"}, profile.Point{Name: "p1", At: "holding:10"},
		profile.Point{Name: "p2", At: "holding:20"}, profile.Point{Name: "p3", At: "holding:30"})
	u.Timeout = quantity.Duration(60 * time.Millisecond)
	line, polls := onWire(t, wire.Path(), "115200 8E1", u)
	timeout := time.After(patience)
	good, bad := 0, make(map[string]int)
	for range 20 {
		select {
		case p := <-polls:
			for _, r := range p.Readings {
				want := "100" + strings.TrimPrefix(r.Point, "p")
				switch {
				case r.Bad != "":
					bad[r.Bad]++
				case r.Value.String() != want:
					t.Fatalf("%s is %s, want %s", r.Point, r.Value, want)
				default:
					good++
				}
			}
		case <-timeout:
			t.Fatalf("20 polls took too long; good %d, bad %v, %+v", good, bad, line.Status())
		}
	}
	if good == 0 || bad["timeout"] == 0 {
		t.Errorf("%d good, bad %v", good, bad)
	}
	t.Logf("%d good, bad %v, errors %v, wire %+v", good, bad, line.Status().Errors, line.Status().Wire)
}

// The port goes and comes back under another number behind the same name.
func TestWireGoesAndComesBack(t *testing.T) {
	name := filepath.Join(t.TempDir(), "port")
	first := newWire(t, 115200, meter(3))
	if err := os.Symlink(first.Path(), name); err != nil {
		t.Fatal(err)
	}
	line, polls := onWire(t, name, "115200 8E1", meterConfig("a", 3))
	const good = "power=230.1 voltage=230.1 signed=-2 target=0 pump=true flag=false"
	until(t, polls, "a", good)
	if err := errors.Join(os.Remove(name), first.Close()); err != nil {
		t.Fatal(err)
	}
	until(t, polls, "a", "power=!line voltage=!line signed=!line target=!line pump=!line flag=!line")
	if s := line.Status(); s.State != StateReopening || s.Problem == "" {
		t.Errorf("status: %+v", s)
	}
	if _, err := line.Write(t.Context(), "a", "pump", true); !errors.Is(err, ErrDown) {
		t.Errorf("a write while the port is gone: %v", err)
	}
	second := newWire(t, 115200, meter(3))
	if err := os.Symlink(second.Path(), name); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	until(t, polls, "a", good)
	t.Logf("resumed after %s", time.Since(start))
}

func TestWireThatIsNotThere(t *testing.T) {
	line, polls := onWire(t, filepath.Join(t.TempDir(), "port"), "9600 8E1", meterConfig("a", 3))
	until(t, polls, "a", "power=!line voltage=!line signed=!line target=!line pump=!line flag=!line")
	if s := line.Status(); s.State != StateReopening || !strings.Contains(s.Problem, "port") {
		t.Errorf("status: %+v", s)
	}
}

// BenchmarkWirePoll is one poll of ten registers; the simulation's own time is in it.
func BenchmarkWirePoll(b *testing.B) {
	u := hwtest.NewUnit(3)
	u.Set(modbus.HoldingRegisters, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	wire := newWire(b, 115200, u)
	c := lineOf(unitOf("a", 3, 10*time.Millisecond, profile.Point{Name: "x", At: "holding:0"}, profile.Point{Name: "y", At: "holding:1", Type: "float64"},
		profile.Point{Name: "z", At: "holding:5", Type: "float64"}, profile.Point{Name: "w", At: "holding:9"}))
	c.Port, c.Settings = wire.Path(), "115200 8E1"
	line, err := New(c, func(context.Context, Poll) error { return nil }, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	a, err := openPort(b.Context(), line)
	if err != nil {
		b.Fatal(err)
	}
	defer a.Close()
	line.cameUp(nil)
	b.ReportAllocs()
	for b.Loop() {
		if err := line.pollUnit(b.Context(), line.units[0], line.units[0].due()); err != nil {
			b.Fatal(err)
		}
	}
	s := line.Status()
	if len(s.Errors) == 0 || s.Errors["timeout"]+s.Errors["crc"] > 0 {
		b.Fatalf("errors: %v", s.Errors)
	}
	b.ReportMetric(s.P50Milliseconds, "p50-ms")
	b.ReportMetric(line.plan.Requests[0].Milliseconds, "limit-ms")
	b.ReportMetric(float64(wire.Stats().Violations), "violations")
}
