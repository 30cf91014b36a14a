package outbox

import "slices"

// maxRanges bounds a list of lost numbers.
const maxRanges = 64

// lost names numbers of entries that will not come. The ranges of a boot stand together and rise. Where there
// are too many, the two that are closest become one that says how many of its numbers are meant.
type lost struct {
	ranges  []Range
	leftOut uint64
	count   uint64 // of entries; those that were given up unread are named later
}

// add names numbers that were not named before.
func (l *lost) add(r Range) {
	at := l.place(r)
	l.ranges = slices.Insert(l.ranges, at, r)
	if at > 0 && l.ranges[at-1].touches(r) {
		at--
		l.join(at)
	}
	if at+1 < len(l.ranges) && l.ranges[at].touches(l.ranges[at+1]) {
		l.join(at)
	}
	if len(l.ranges) > maxRanges {
		l.squeeze()
	}
}

// place is where r belongs: behind those of its boot that begin before it, or else before the others, or
// else at the end.
func (l *lost) place(r Range) int {
	at := len(l.ranges)
	for i := len(l.ranges) - 1; i >= 0; i-- {
		switch old := l.ranges[i]; {
		case old.Boot == r.Boot && old.From <= r.From:
			return i + 1
		case old.Boot == r.Boot:
			at = i
		}
	}
	return at
}

// join makes one of the ranges at i and behind it.
func (l *lost) join(i int) {
	l.ranges[i] = l.ranges[i].with(l.ranges[i+1])
	l.ranges = slices.Delete(l.ranges, i+1, i+2)
}

// squeeze makes the list shorter by one.
func (l *lost) squeeze() {
	closest := -1
	var least uint64
	for i := range len(l.ranges) - 1 {
		a, b := l.ranges[i], l.ranges[i+1]
		if gap := b.From - a.To; a.Boot == b.Boot && (closest < 0 || gap < least) {
			closest, least = i, gap
		}
	}
	if closest >= 0 {
		l.join(closest)
		return
	}
	l.ranges = slices.Delete(l.ranges, 0, 1)
	l.leftOut++
}

// touches reports whether b, which begins no earlier, leaves no gap to a.
func (a Range) touches(b Range) bool { return a.Boot == b.Boot && b.From <= a.To+1 }

// with is the range over both, b beginning no earlier.
func (a Range) with(b Range) Range {
	n := a.size() + b.size()
	a.To = max(a.To, b.To)
	if a.Count = n; n >= a.To-a.From+1 {
		a.Count = 0
	}
	return a
}

// size is how many numbers are meant.
func (a Range) size() uint64 {
	if a.Count > 0 {
		return a.Count
	}
	return a.To - a.From + 1
}
