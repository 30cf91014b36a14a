package e2e

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// number returns how often a test does its worst, or for how many seconds: less by default
// than what is asked of a release, E2E_KILLS=200 E2E_BROKER_KILLS=50 E2E_QUIET=60 make e2e.
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

func TestKilledAgent(t *testing.T) {
	for sync, p := range map[string]promise{"1s": {window: time.Second}, "always": {always: true}} {
		t.Run("sync="+sync, func(t *testing.T) { testKilledAgent(t, sync, p) })
	}
}

// The agent is killed with -9 at random moments, every third time while the broker is away,
// so that what it owes exists on the disk alone.
func testKilledAgent(t *testing.T, sync string, p promise) {
	s := newSite(t, siteOptions{sync: sync, every: 50 * time.Millisecond, points: 4})
	kills := make([]time.Time, number(t, "E2E_KILLS", 30))
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for n := range kills {
		s.run(t)
		away := n%3 == 2
		pause(t, time.Duration(random.IntN(1200))*time.Millisecond) // the start included
		if away {
			s.process.Kill()
			pause(t, time.Duration(200+random.IntN(1500))*time.Millisecond)
		}
		kills[n] = time.Now()
		s.agent.kill()
		if away {
			s.startBroker(t)
		}
	}
	s.run(t)
	s.waitDrained(t)
	s.stop(t)
	v := s.judge(t, kills, p)
	if taken := v.received + v.excused; taken < 10*len(kills) {
		t.Errorf("only %d readings were taken: this was no load", taken)
	}
}

// The broker is killed with -9 at random moments under load. What it acknowledged is in its
// ledger; what it did not has to come again.
func TestKilledBroker(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: 20 * time.Millisecond, points: 4})
	s.run(t)
	kills := make([]time.Time, number(t, "E2E_BROKER_KILLS", 8))
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for n := range kills {
		waitFor(t, "the session", func() bool { return field(s.status(t), "session", "stage") == "up" })
		pause(t, time.Duration(random.IntN(1000))*time.Millisecond)
		kills[n] = time.Now()
		s.process.Kill()
		pause(t, time.Duration(random.IntN(300))*time.Millisecond)
		s.startBroker(t)
	}
	s.waitDrained(t)
	s.stop(t)
	s.judge(t, nil, promise{})
	for n, at := range kills {
		next := time.Now()
		if n+1 < len(kills) {
			next = kills[n+1]
		}
		if got, most := s.repeated(t, at, next); got > most {
			t.Errorf("kill %d: %d readings came again; at most the %d of one window may", n, got, most)
		}
	}
}
