package e2e

import (
	"math/rand/v2"
	"testing"
	"time"

	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
)

// Garbage, truncation, turned bits, and answers that come late, twice or not at all: counted,
// and never a wrong value. What a unit holds depends on the number of the poll, so that the
// answer to another poll shows.
func TestSpoiltWire(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: 50 * time.Millisecond, points: 4, wait: 300 * time.Millisecond})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for n, unit := range []*hwtest.Unit{s.units["meter-a"], s.units["meter-b"]} {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		unit.Script(func(int, modbus.Request) hwtest.Fault { return fault(random) })
		unit.OnRead(func(modbus.Table, uint16, int) {
			// The counter is raised behind this hook.
			c := unit.Get(modbus.InputRegisters, 1, 1)[0] + 1
			unit.Set(modbus.InputRegisters, 2, c, c^0xFFFF, c*7, c+1000)
		})
	}
	s.run(t)
	waitFor(t, "readings and errors", func() bool {
		received, bad := 0, 0
		for _, a := range s.arrivals(t) {
			if received++; len(a.Bad) > 0 {
				bad++
			}
		}
		return received > 120 && bad > 5
	})
	status := s.status(t)
	s.stop(t)
	s.checkValues(t)
	lines, _ := status["lines"].([]any)
	if len(lines) != 1 {
		t.Fatalf("status has the lines %v", lines)
	}
	line, _ := lines[0].(map[string]any)
	for _, kind := range []string{"timeout", "crc"} {
		if n, _ := field(line, "errors", kind).(float64); n == 0 {
			t.Errorf("status counts no %s: %v", kind, line["errors"])
		}
	}
	t.Logf("errors %v, wire %v", line["errors"], line["wire"])
}

// fault spoils one answer of three.
func fault(random *rand.Rand) (f hwtest.Fault) {
	switch random.IntN(24) {
	case 0:
		f.Drop = true
	case 1:
		f.Truncate = 1 + random.IntN(10)
	case 2, 3:
		f.Flip = []int{random.IntN(17 * 8)}
	case 4:
		f.Before = garbage(random)
	case 5:
		f.After = garbage(random)
	case 6:
		f.Delay = 400 * time.Millisecond // behind the timeout
	case 7:
		f.Duplicate = 1
	}
	return f
}

func garbage(random *rand.Rand) []byte {
	b := make([]byte, 1+random.IntN(20))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// checkValues compares what the broker received with what the units held.
func (s *site) checkValues(t *testing.T) {
	t.Helper()
	good, bad := 0, 0
	last := make(map[string]uint32)
	for _, a := range s.arrivals(t) {
		if len(a.Bad) > 0 {
			bad++
			continue
		}
		good++
		r := a.Readings
		c := uint16(r.Counter)
		if r.P0 != c || r.P1 != c^0xFFFF || r.P2 != c*7 || r.P3 != c+1000 || r.Counter <= last[a.Unit] {
			t.Errorf("a wrong value behind reading %d of %s: %s", last[a.Unit], a.Unit, a.raw)
		}
		last[a.Unit] = r.Counter
	}
	t.Logf("%d good entries, %d without a value", good, bad)
}
