package gateway

import (
	"testing"
)

// judge holds what the witness saw against what the sensor gave: every answer arrived, but for the
// last before each end of the agent, which may have had no time to write it down; and no number of
// any boot is missing.
func (w *world) judge(t *testing.T, m *machine) {
	t.Helper()
	w.reading(t, w.heard())
	m.cut() // nothing more is asked
	arrived := make(map[uint32]bool)
	type id struct{ boot, seq uint64 }
	seen := make(map[id]bool)
	highest, count := make(map[uint64]uint64), make(map[uint64]uint64)
	again := 0
	for _, e := range w.entries(t, 0) {
		if seen[id{e.Boot, e.Seq}] {
			again++
			continue
		}
		seen[id{e.Boot, e.Seq}] = true
		highest[e.Boot] = max(highest[e.Boot], e.Seq)
		count[e.Boot]++
		if len(e.Bad) == 0 {
			arrived[e.Readings.Counter] = true
		}
	}
	gaps := uint64(0)
	for boot, top := range highest {
		gaps += top - count[boot]
	}
	missing := 0
	answers := m.unit.Ledger()
	for _, a := range answers {
		if !a.Spoilt && a.Counter != 0 && !arrived[a.Counter] {
			missing++
		}
	}
	ends := len(highest) // the last of them is the cut above
	t.Logf("%d readings taken in %d boots, %d not arrived, %d numbers missing, %d arrived again", len(answers), len(highest), missing, gaps, again)
	if missing > ends || gaps > 0 {
		t.Errorf("%d readings are lost, of which %d ends of the agent excuse one each; %d numbers are missing", missing, ends, gaps)
	}
}
