package gateway

import (
	"cmp"
	"slices"
	"testing"
	"time"
)

// answerTime is the timeout of the unit in the configuration.
const answerTime = time.Second

// judge holds what the witness saw against what the sensor gave, whose answers are numbered. No number of any
// boot is missing. Between two readings that arrived no answer is missing, but those that came too late on a
// machine with much else to do, for which the agent waited its time out and asked again or said so, and one
// where the agent ended between, which may have been on the line.
func (w *world) judge(t *testing.T, m *machine) {
	t.Helper()
	w.reading(t, w.heard())
	m.cut() // nothing more is asked
	type id struct{ boot, seq uint64 }
	entries := make(map[id]entry)
	again := 0
	for _, e := range w.entries(t, 0) {
		if _, known := entries[id{e.Boot, e.Seq}]; known {
			again++
		}
		entries[id{e.Boot, e.Seq}] = e
	}
	order := make([]entry, 0, len(entries))
	for _, e := range entries {
		order = append(order, e)
	}
	slices.SortFunc(order, func(a, b entry) int { return cmp.Or(cmp.Compare(a.Boot, b.Boot), cmp.Compare(a.Seq, b.Seq)) })
	boots, gaps, lost, excused := 0, uint64(0), 0, 0
	counter, may := uint32(0), 0
	last, before, boot := entry{}, time.Time{}, uint64(0)
	for _, e := range order {
		if e.Boot != last.Boot {
			boots++
			may++
			last = entry{Boot: e.Boot}
		}
		gaps += e.Seq - last.Seq - 1
		last = e
		if len(e.Bad) > 0 {
			may++
			continue
		}
		if !before.IsZero() && e.Boot == boot {
			may = max(may, int(e.T.Sub(before)/answerTime))
		}
		before, boot = e.T, e.Boot
		if missing := int(e.Readings.Counter) - int(counter) - 1; missing > 0 {
			excused += min(missing, may)
			lost += max(0, missing-may)
		}
		counter, may = e.Readings.Counter, 0
	}
	t.Logf("%d entries of %d boots arrived, %d of them again; %d answers excused, %d lost, %d numbers missing", len(order), boots, again, excused, lost, gaps)
	if lost > 0 || gaps > 0 {
		t.Errorf("%d readings are lost, %d numbers are missing", lost, gaps)
	}
}
