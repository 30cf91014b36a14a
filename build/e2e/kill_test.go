package e2e

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// number returns how often a test does its worst: less by default than what is asked of a
// release, which sets the variable.
func number(t *testing.T, variable string, usual int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s=%s is not a number", variable, text)
	}
	return n
}

// grace is how long after SIGKILL was sent an answer of a unit may still be under way: the
// transaction that the kill cut off, which nobody can have taken.
const cutOff = 50 * time.Millisecond

// kill is one kill of the agent.
type kill struct{ at time.Time }

func TestKilledAgent(t *testing.T) {
	for _, mode := range []struct {
		sync   string
		window time.Duration // before a kill, in which sync promises nothing
	}{{"1s", time.Second}, {"always", cutOff}} {
		t.Run("sync="+mode.sync, func(t *testing.T) { testKilledAgent(t, mode.sync, mode.window) })
	}
}

// The agent is killed with -9 at random moments, every third time while the broker is away,
// so that what it owes exists on the disk alone.
func testKilledAgent(t *testing.T, sync string, window time.Duration) {
	s := newSite(t, siteOptions{sync: sync, every: 50 * time.Millisecond, points: 4})
	kills := make([]kill, number(t, "E2E_KILLS", 20))
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for n := range kills {
		s.run(t)
		away := n%3 == 2
		pause(t, time.Duration(200+random.IntN(1000))*time.Millisecond)
		if away {
			s.process.Kill()
			pause(t, time.Duration(200+random.IntN(1500))*time.Millisecond)
		}
		kills[n].at = time.Now()
		s.agent.kill()
		if away {
			s.startBroker(t)
		}
	}
	s.finish(t)
	s.judge(t, kills, window)
}

// finish lets the agent deliver all that waits and stops it.
func (s *site) finish(t *testing.T) {
	t.Helper()
	s.run(t)
	s.waitDrained(t)
	if code := s.agent.stop(t); code != 0 {
		t.Errorf("run ended with exit code %d", code)
	}
}

// judge compares the ledgers.
func (s *site) judge(t *testing.T, kills []kill, window time.Duration) {
	t.Helper()
	stopped := time.Now()
	excused := func(at time.Time) bool {
		for _, k := range kills {
			if at.After(k.at.Add(-window)) && at.Before(k.at.Add(cutOff)) {
				return true
			}
		}
		// The clean stop cuts off the transaction that is under way, too.
		return at.After(stopped.Add(-10*time.Second)) && at.After(s.lastArrival(t))
	}
	received, duplicates := s.count(t)
	answered, lost, inWindow := 0, 0, 0
	for name, unit := range s.units {
		for _, answer := range unit.Ledger() {
			answered++
			switch {
			case received[name][answer.Counter]:
			case excused(answer.Time):
				inWindow++
			default:
				lost++
				t.Errorf("%s: reading %d, taken at %s, never arrived", name, answer.Counter, answer.Time.Format("15:04:05.000"))
			}
		}
	}
	t.Logf("%d kills, %d readings taken, %d lost, %d inside the window of %s, %d received again",
		len(kills), answered, lost, inWindow, window, duplicates)
	if answered < 10*len(kills) {
		t.Errorf("only %d readings were taken: this was no load", answered)
	}
}

// lastArrival is when the unit gave the latest reading that arrived at all.
func (s *site) lastArrival(t *testing.T) time.Time {
	t.Helper()
	received, _ := s.count(t)
	var last time.Time
	for name, unit := range s.units {
		for _, answer := range unit.Ledger() {
			if received[name][answer.Counter] && answer.Time.After(last) {
				last = answer.Time
			}
		}
	}
	return last
}

// count reads the broker's ledger: which readings came, and that what came did so in order,
// under one number each.
func (s *site) count(t *testing.T) (received map[string]map[uint32]bool, duplicates int) {
	t.Helper()
	type pair struct{ boot, seq uint64 }
	seen := make(map[pair]arrival)
	last := make(map[string]uint32)
	received = map[string]map[uint32]bool{"meter-a": {}, "meter-b": {}}
	for _, a := range s.arrivals(t) {
		if len(a.Bad) > 0 {
			continue
		}
		key := pair{a.Boot, a.Seq}
		if before, again := seen[key]; again {
			duplicates++
			if before.Unit != a.Unit || before.Readings.Counter != a.Readings.Counter {
				t.Errorf("boot %d seq %d came with two contents", a.Boot, a.Seq)
			}
			continue
		}
		seen[key] = a
		if a.Readings.Counter <= last[a.Unit] {
			t.Errorf("%s: reading %d came after %d", a.Unit, a.Readings.Counter, last[a.Unit])
		}
		last[a.Unit] = a.Readings.Counter
		received[a.Unit][a.Readings.Counter] = true
	}
	return received, duplicates
}

// The broker is killed with -9 at random moments under load. What it acknowledged is in its
// ledger; what it did not has to come again.
func TestKilledBroker(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: 20 * time.Millisecond, points: 4})
	s.run(t)
	kills := number(t, "E2E_BROKER_KILLS", 10)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for range kills {
		waitFor(t, "the session", func() bool { return field(s.status(t), "session", "stage") == "up" })
		pause(t, time.Duration(random.IntN(1000))*time.Millisecond)
		s.process.Kill()
		pause(t, time.Duration(random.IntN(300))*time.Millisecond)
		s.startBroker(t)
	}
	s.waitDrained(t)
	if code := s.agent.stop(t); code != 0 {
		t.Errorf("run ended with exit code %d", code)
	}
	s.judge(t, nil, 0)
	_, duplicates := s.count(t)
	t.Logf("%d kills of the broker, %d readings received again", kills, duplicates)
}
