package main

import (
	"cmp"
	"slices"
	"time"
)

// poll is one entry of a unit's ledger: it has answered a poll, and counted it.
type poll struct {
	unit  string
	count uint32 // from 1 on, without gaps
	at    time.Time
}

// arrival is one entry as the broker received it, in the order of receiving.
type arrival struct {
	unit      string
	count     uint32 // what the unit counted; 0: the agent could not read it
	boot, seq uint64
	at        time.Time
	values    values
}

// kill is one SIGKILL of the agent; nothing polls from at to restarted.
type kill struct{ at, restarted time.Time }

// evidence is all that the tally is made from, none of it from the agent's own mouth.
type evidence struct {
	units    []string
	polls    []poll    // from the units
	arrivals []arrival // from the broker
	kills    []kill
	stopped  time.Time // SIGTERM; zero: the agent still runs
	sync     time.Duration
	expected func(unit string, count uint32) values
}

// unitTally is what became of one unit's polls.
type unitTally struct {
	unit       string
	taken      int // polls that the unit answered
	received   int // of these, at the broker at least once
	lost       int // neither received nor excused by what follows
	unsynced   int // not received, and answered within sync before a kill
	unfinished int // not received, and answered as or after the agent was told to stop
	duplicates int // deliveries of an entry that had been delivered
	disorder   int // entries that first came after a later one of the unit
	wrong      int // entries with other values than the unit had, or with a count it never gave
}

// total is what became of everything.
type total struct {
	units      []unitTally
	gaps       int // sequence numbers missing within a boot
	twice      int // polls that came under more than one sequence number
	unreadable int // entries without a count: the agent got no answer
	strangers  int // entries of units that are not there
	boots      int
}

// lost is the number that must be zero.
func (t total) lost() int { return t.sum(func(u unitTally) int { return u.lost }) }

// sum adds up one figure of all units.
func (t total) sum(of func(unitTally) int) int {
	n := 0
	for _, u := range t.units {
		n += of(u)
	}
	return n
}

type entryID struct{ boot, seq uint64 }

type pollID struct {
	unit  string
	count uint32
}

// tally compares what the units gave with what the broker received. Lost is every poll that
// a unit answered and that never reached the broker, but for two kinds that are counted
// apart: those answered within sync before a kill, which no promise covers, and those
// answered when the agent had been told to stop.
func tally(e evidence) total {
	var t total
	perUnit := make(map[string]*unitTally)
	for _, name := range e.units {
		perUnit[name] = &unitTally{unit: name}
	}
	given := make(map[pollID]bool, len(e.polls))
	for _, p := range e.polls {
		given[pollID{p.unit, p.count}] = true
	}
	received := t.receive(e, perUnit, given)
	for _, p := range e.polls {
		u := perUnit[p.unit]
		u.taken++
		switch {
		case received[pollID{p.unit, p.count}]:
			u.received++
		case !e.stopped.IsZero() && !p.at.Before(e.stopped):
			u.unfinished++
		case e.unsynced(p):
			u.unsynced++
		default:
			u.lost++
		}
	}
	for _, name := range e.units {
		t.units = append(t.units, *perUnit[name])
	}
	return t
}

// receive goes through the arrivals and returns which polls came.
func (t *total) receive(e evidence, perUnit map[string]*unitTally, given map[pollID]bool) map[pollID]bool {
	entries := make(map[entryID]bool)
	polls := make(map[pollID]bool)
	last := make(map[string]entryID)
	for _, a := range e.arrivals {
		u := perUnit[a.unit]
		if u == nil {
			t.strangers++
			continue
		}
		id := entryID{a.boot, a.seq}
		if entries[id] {
			u.duplicates++
			continue
		}
		entries[id] = true
		if compareEntries(id, last[a.unit]) < 0 {
			u.disorder++
		} else {
			last[a.unit] = id
		}
		if a.count == 0 {
			t.unreadable++
			continue
		}
		p := pollID{a.unit, a.count}
		if polls[p] {
			t.twice++
		}
		polls[p] = true
		if !given[p] || e.expected(a.unit, a.count) != a.values {
			u.wrong++
		}
	}
	t.count(entries)
	return polls
}

// count counts boots, and the numbers that are missing below the highest of each.
func (t *total) count(entries map[entryID]bool) {
	highest, number := make(map[uint64]uint64), make(map[uint64]uint64)
	for id := range entries {
		highest[id.boot] = max(highest[id.boot], id.seq)
		number[id.boot]++
	}
	t.boots = len(highest)
	for boot, seq := range highest {
		t.gaps += int(seq - number[boot])
	}
}

func compareEntries(a, b entryID) int {
	return cmp.Or(cmp.Compare(a.boot, b.boot), cmp.Compare(a.seq, b.seq))
}

// unsynced reports whether a poll was answered within sync before a kill, or while nothing
// ran: a unit may finish an answer to an agent that is no more.
func (e evidence) unsynced(p poll) bool {
	return slices.ContainsFunc(e.kills, func(k kill) bool {
		return p.at.After(k.at.Add(-e.sync)) && (k.restarted.IsZero() || p.at.Before(k.restarted))
	})
}
