package main

import (
	"reflect"
	"slices"
	"testing"
	"time"
)

var start = time.Date(2026, time.November, 21, 4, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }

func valuesOf(_ string, count uint32) values { return values{power: float32(count)} }

// goodRun is a run of two boots in which nothing goes wrong: a poll of each unit per second from
// second 1 on, a kill at 5.5 and a start at 6, a stop at 11.
func goodRun() evidence {
	e := evidence{
		units: []string{"a", "b"}, sync: time.Second, expected: valuesOf,
		kills: []kill{{at: at(5.5), restarted: at(5.9)}}, stopped: at(10.5),
	}
	for n := range uint32(10) {
		boot, seq := uint64(1), uint64(2*n+1)
		if n >= 5 {
			boot, seq = 2, uint64(2*(n-5)+1)
		}
		for i, unit := range e.units {
			when := at(float64(n) + 1 + 0.01*float64(i))
			e.polls = append(e.polls, poll{unit: unit, count: n + 1, at: when})
			e.arrivals = append(e.arrivals, arrival{unit: unit, count: n + 1, boot: boot, seq: seq + uint64(i),
				at: when.Add(time.Millisecond), values: valuesOf(unit, n+1)})
		}
	}
	return e
}

func TestTallyOfAGoodRun(t *testing.T) {
	got := tally(goodRun())
	want := total{units: []unitTally{{unit: "a", taken: 10, received: 10}, {unit: "b", taken: 10, received: 10}}, boots: 2}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Each of these breaks a good run in one way, and the tally has to say so, and nothing else.
func TestTallyFinds(t *testing.T) {
	drop := func(e *evidence, i int) { e.arrivals = slices.Delete(e.arrivals, i, i+1) }
	for name, c := range map[string]struct {
		plant func(e *evidence)
		want  func(w *total) // what changes against the good run; units[0] is a
	}{
		"a loss, as a gap too": {
			func(e *evidence) { drop(e, 4) }, // a's third
			func(w *total) { w.units[0].received, w.units[0].lost, w.gaps = 9, 1, 1 },
		},
		"a loss that no gap shows": {
			func(e *evidence) { // a's third is missing, and its number was given to the next
				drop(e, 4)
				for i := range e.arrivals {
					if e.arrivals[i].boot == 1 && e.arrivals[i].seq > 5 {
						e.arrivals[i].seq--
					}
				}
			},
			func(w *total) { w.units[0].received, w.units[0].lost = 9, 1 },
		},
		"a loss at the end": {
			func(e *evidence) { drop(e, 19) }, // b's last, half a second before the stop
			func(w *total) { w.units[1].received, w.units[1].lost = 9, 1 },
		},
		"a loss more than sync before the kill": {
			func(e *evidence) { e.arrivals = slices.Delete(e.arrivals, 7, 10) }, // b at 4, both at 5
			func(w *total) {
				w.units[0].received, w.units[0].unsynced = 9, 1
				w.units[1].received, w.units[1].unsynced, w.units[1].lost = 8, 1, 1
			},
		},
		"a poll inside the sync window": {
			func(e *evidence) { drop(e, 9) },
			func(w *total) { w.units[1].received, w.units[1].unsynced = 9, 1 },
		},
		"an answer to a dead agent": {
			func(e *evidence) { e.polls = append(e.polls, poll{"a", 11, at(5.52)}) },
			func(w *total) { w.units[0].taken, w.units[0].unsynced = 11, 1 },
		},
		"a loss after the restart": {
			func(e *evidence) { e.polls = append(e.polls, poll{"a", 11, at(5.95)}) },
			func(w *total) { w.units[0].taken, w.units[0].lost = 11, 1 },
		},
		"an answer after the stop": {
			func(e *evidence) { e.polls = append(e.polls, poll{"b", 11, at(10.51)}) },
			func(w *total) { w.units[1].taken, w.units[1].unfinished = 11, 1 },
		},
		"a duplicate": {
			func(e *evidence) { e.arrivals = slices.Insert(e.arrivals, 6, e.arrivals[2]) },
			func(w *total) { w.units[0].duplicates = 1 },
		},
		"two of a unit that changed places": {
			func(e *evidence) { e.arrivals[6], e.arrivals[8] = e.arrivals[8], e.arrivals[6] },
			func(w *total) { w.units[0].disorder = 1 },
		},
		"nothing, where two units changed places": {
			func(e *evidence) { e.arrivals[6], e.arrivals[7] = e.arrivals[7], e.arrivals[6] },
			func(w *total) {},
		},
		"an old boot after a new one": {
			func(e *evidence) { late := e.arrivals[9]; drop(e, 9); e.arrivals = append(e.arrivals, late) },
			func(w *total) { w.units[1].disorder = 1 },
		},
		"one poll under two numbers": {
			func(e *evidence) {
				again := e.arrivals[19]
				again.seq++
				e.arrivals = append(e.arrivals, again)
			},
			func(w *total) { w.twice = 1 },
		},
		"another value": {
			func(e *evidence) { e.arrivals[3].values.power++ },
			func(w *total) { w.units[1].wrong = 1 },
		},
		"a poll that never was": {
			func(e *evidence) {
				e.arrivals = append(e.arrivals, arrival{unit: "a", count: 11, boot: 2, seq: 11, values: valuesOf("a", 11)})
			},
			func(w *total) { w.units[0].wrong = 1 },
		},
		"a unit that never was": {
			func(e *evidence) { e.arrivals = append(e.arrivals, arrival{unit: "c", count: 1, boot: 2, seq: 11}) },
			func(w *total) { w.strangers = 1 },
		},
		"an entry without a value": {
			func(e *evidence) { e.arrivals[0].count = 0 },
			func(w *total) { w.units[0].received, w.units[0].lost, w.unreadable = 9, 1, 1 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, want := goodRun(), tally(goodRun())
			c.plant(&e)
			c.want(&want)
			got := tally(e)
			if !slices.Equal(got.units, want.units) {
				t.Errorf("units:\n got %+v\nwant %+v", got.units, want.units)
			}
			if got.units, want.units = nil, nil; !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}
