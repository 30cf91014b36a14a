package outbox

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// However numbers are lost, each is named, none is counted twice, and the list stays short and in order.
func TestLostNumbersAreNamed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l lost
		named := map[[2]uint64]bool{}
		boots := rapid.SliceOfNDistinct(rapid.Uint64Range(1, 1<<53), 1, 3, rapid.ID[uint64]).Draw(t, "boots")
		for range rapid.IntRange(0, 300).Draw(t, "n") {
			r := Range{Boot: rapid.SampledFrom(boots).Draw(t, "boot"), From: rapid.Uint64Range(1, 2000).Draw(t, "from")}
			r.To = r.From + rapid.Uint64Range(0, 3).Draw(t, "more")
			if slices.ContainsFunc([]uint64{r.From, r.From + 1, r.From + 2, r.To}, func(seq uint64) bool {
				return seq <= r.To && named[[2]uint64{r.Boot, seq}]
			}) {
				continue // a number is lost once
			}
			for seq := r.From; seq <= r.To; seq++ {
				named[[2]uint64{r.Boot, seq}] = true
			}
			l.add(r)
			checkLost(t, &l, named)
		}
	})
}

func checkLost(t *rapid.T, l *lost, named map[[2]uint64]bool) {
	if len(l.ranges) > maxRanges || l.leftOut > 0 {
		t.Fatalf("%d ranges, %d left out", len(l.ranges), l.leftOut)
	}
	found, meant := 0, uint64(0)
	for i, r := range l.ranges {
		inside := uint64(0)
		for seq := r.From; seq <= r.To; seq++ {
			if named[[2]uint64{r.Boot, seq}] {
				inside++
			}
		}
		if r.From > r.To || inside != r.size() || r.Count == r.To-r.From+1 {
			t.Fatalf("%+v has %d of them", r, inside)
		}
		for _, before := range l.ranges[:i] {
			if before.Boot == r.Boot && (before.To+1 >= r.From || l.ranges[i-1].Boot != r.Boot) {
				t.Fatalf("%+v comes before %+v", before, r)
			}
		}
		found, meant = found+int(inside), meant+r.size()
	}
	if found != len(named) || meant != uint64(found) {
		t.Fatalf("%d of %d numbers are named, %d are meant", found, len(named), meant)
	}
}

// Of more boots than ranges the oldest is left out.
func TestLostNumbersOfManyBoots(t *testing.T) {
	var l lost
	for boot := uint64(1); boot <= maxRanges+5; boot++ {
		l.add(Range{Boot: boot, From: 7, To: 9})
	}
	if len(l.ranges) != maxRanges || l.leftOut != 5 || l.ranges[0].Boot != 6 {
		t.Errorf("%d left out of %v", l.leftOut, l.ranges)
	}
}
