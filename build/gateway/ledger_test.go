package gateway

import (
	"cmp"
	"slices"
	"testing"
)

// judge holds what the witness saw against what the sensor gave, whose answers are numbered: no number of
// any boot is missing, and between two readings that arrived no answer is, but one for an entry that says
// that none came in time, and one where the agent ended between: it may have been on the line.
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
	last := entry{}
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
