package e2e

import (
	"slices"
	"testing"
	"time"

	"ferrule/hw/hwtest"
)

// cutOff is how long after a SIGKILL a unit may still answer what had been asked, and how long
// before SIGTERM an answer may have left its unit without having been read.
const cutOff = 50 * time.Millisecond

// verdict is what became of the readings that the units gave.
type verdict struct {
	received int // at the broker at least once
	excused  int // not received, and promised by nobody: see promise; or given as the agent was told to end
	lost     int // not received, and nothing excuses it
	again    int // arrivals of what had arrived
	bad      int // entries without a value
	gaps     int // numbers that are missing below the highest of their boot
	boots    int
}

// stop ends the agent by SIGTERM, which is a clean end.
func (s *site) stop(t *testing.T) {
	t.Helper()
	s.stopped = time.Now()
	if code := s.agent.stop(t); code != 0 {
		t.Errorf("run ended with exit code %d", code)
	}
}

// promise is what a configuration says about the readings before a kill of the agent.
type promise struct {
	// window before a kill, in which nothing is promised.
	window time.Duration
	// always: a reading is on disk before the next poll of its line is sent, so that a kill
	// costs at most one, the last of the line, however long the disk had it wait.
	always bool
}

// judge compares the ledgers of the units with the broker's, after stop.
func (s *site) judge(t *testing.T, kills []time.Time, p promise) verdict {
	t.Helper()
	if s.stopped.IsZero() {
		t.Fatal("judge is called after stop")
	}
	answers := s.answers()
	cost := make(map[time.Time]int) // of each kill
	excused := func(n int) bool {
		at := answers[n].Time
		for _, kill := range kills {
			last := !at.After(kill) && (n+1 == len(answers) || answers[n+1].Time.After(kill))
			cut := at.After(kill) && at.Before(kill.Add(cutOff)) // asked by an agent that is no more
			if cut || at.After(kill.Add(-p.window)) && !at.After(kill) || p.always && last {
				cost[kill]++
				return !p.always || cost[kill] == 1
			}
		}
		return at.After(s.stopped.Add(-cutOff))
	}
	v, received := s.count(t)
	for n, answer := range answers {
		switch {
		case received[answer.unit][answer.Counter]:
			v.received++
		case excused(n):
			v.excused++
		default:
			v.lost++
			t.Logf("%s: reading %d, taken at %s, never arrived", answer.unit, answer.Counter, answer.Time.Format("15:04:05.000"))
		}
	}
	// Without gaps, all that a crash can have cost is its tail.
	if v.lost > s.damaged || v.gaps > s.damaged {
		t.Errorf("%d readings lost, %d numbers missing; %d were damaged on the disk", v.lost, v.gaps, s.damaged)
	}
	t.Logf("%d kills, %d boots, %d readings taken, %d lost, %d not received and excused, %d received again, %d entries without a value",
		len(kills), v.boots, len(answers), v.lost, v.excused, v.again, v.bad)
	return v
}

// answered is one answer of one unit.
type answered struct {
	hwtest.Answer
	unit string
}

// answers is the ledger of the line: those of its units in order of time.
func (s *site) answers() (all []answered) {
	for name, unit := range s.units {
		for _, answer := range unit.Ledger() {
			all = append(all, answered{answer, name})
		}
	}
	slices.SortFunc(all, func(a, b answered) int { return a.Time.Compare(b.Time) })
	return all
}

type entryID struct{ boot, seq uint64 }

// count reads the broker's ledger: which readings came; that what came first came in order,
// under one number each, with one content.
func (s *site) count(t *testing.T) (v verdict, received map[string]map[uint32]bool) {
	t.Helper()
	seen := make(map[entryID]arrival)
	highest, entries := make(map[uint64]uint64), make(map[uint64]uint64)
	counter := make(map[string]uint32)
	last := make(map[string]arrival) // of each unit, which has a topic of its own
	received = map[string]map[uint32]bool{"meter-a": {}, "meter-b": {}}
	for _, a := range s.arrivals(t) {
		id := entryID{a.Boot, a.Seq}
		if before, again := seen[id]; again {
			v.again++
			if before.raw != a.raw {
				t.Errorf("boot %d seq %d came with two contents: %s and %s", a.Boot, a.Seq, before.raw, a.raw)
			}
			continue
		}
		seen[id] = a
		highest[a.Boot] = max(highest[a.Boot], a.Seq)
		entries[a.Boot]++
		if l := last[a.Unit]; a.Boot < l.Boot || a.Boot == l.Boot && a.Seq < l.Seq {
			t.Errorf("%s: boot %d seq %d came after boot %d seq %d", a.Unit, a.Boot, a.Seq, l.Boot, l.Seq)
		}
		last[a.Unit] = a
		if len(a.Bad) > 0 {
			v.bad++
			continue
		}
		if a.Readings.Counter <= counter[a.Unit] {
			t.Errorf("%s: reading %d came after %d", a.Unit, a.Readings.Counter, counter[a.Unit])
		}
		counter[a.Unit] = a.Readings.Counter
		received[a.Unit][a.Readings.Counter] = true
	}
	for boot, seq := range highest {
		v.gaps += int(seq - entries[boot])
	}
	v.boots = len(highest)
	return v, received
}

// repeated counts the entries that arrived between from and to and had arrived before, and
// how many there can be: those of one window of messages before from, whose PUBACK the cut
// may have swallowed.
func (s *site) repeated(t *testing.T, from, to time.Time) (again, most int) {
	t.Helper()
	const window = 64 // messages; the default of the configuration
	seen := make(map[entryID]bool)
	var before []int // entries of each message that came before from
	for _, m := range s.messages(t) {
		if m.at.Before(from) {
			before = append(before, len(m.entries))
		}
		for _, a := range m.entries {
			id := entryID{a.Boot, a.Seq}
			if seen[id] && !m.at.Before(from) && m.at.Before(to) {
				again++
			}
			seen[id] = true
		}
	}
	for _, n := range before[max(0, len(before)-window):] {
		most += n
	}
	return again, most
}
