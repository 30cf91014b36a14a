package delta

import (
	"slices"

	"ferrule/firmware/patch"
)

// span is a piece of the old image, and how many bytes of the segment were found in it.
type span struct {
	start, end int64
	weight     int64
	to         int64 // where in the segment its beginning was found
}

// matches finds what of b, which lies at position at of the new image, is in the old image, and
// returns where, in the order of b.
func (o *Old) matches(b []byte, at int64) []span {
	var found []span
	r := roll(b, o.block)
	drift := o.guess(at) - at
	for ok := r.jump(0); ok; {
		where, hit := o.find(mix(r.h), at+int64(r.at)+drift)
		if !hit {
			ok = r.next()
			continue
		}
		drift = where - at - int64(r.at)
		end := where + int64(o.block)
		if last := len(found) - 1; last >= 0 && found[last].end == where {
			found[last].end, found[last].weight = end, found[last].weight+int64(o.block)
		} else {
			found = append(found, span{start: where, end: end, weight: int64(o.block), to: int64(r.at)})
		}
		ok = r.jump(r.at + o.block)
	}
	return found
}

// guess is where in the old image what lies at at would be if nothing had moved.
func (o *Old) guess(at int64) int64 { return min(at, o.size) }

// near is how far apart two spans may be to become one: between two things that are the same
// before and after lies mostly something that has changed a little.
const near = 8 << 10

// choose turns the spans that were found into the extents of a window: at most count, and Window
// bytes together. Where they have less than width, the rest is given to their surroundings, for
// the same reason; where nothing was found, to the place where the segment lies.
func (o *Old) choose(found []span, at int64, count int, width int64) []patch.Extent {
	if len(found) == 0 {
		middle := o.guess(at)
		found = []span{{start: middle, end: middle}}
	}
	found = slices.Clone(found)
	slices.SortFunc(found, func(a, b span) int {
		if a.start != b.start {
			return int(max(min(a.start-b.start, 1), -1))
		}
		return int(max(min(a.end-b.end, 1), -1))
	})
	spans := join(found, near)
	for gap := int64(2 * near); len(spans) > 4*count && gap <= patch.Window; gap *= 2 {
		spans = join(spans, gap)
	}
	spans = heaviest(spans, count)
	spans = o.grow(spans, width)
	extents := make([]patch.Extent, 0, len(spans))
	for _, s := range spans {
		if s.end > s.start {
			extents = append(extents, patch.Extent{Offset: s.start, Length: int(s.end - s.start)})
		}
	}
	return extents
}

// join makes one span of sorted ones that are at most gap apart, as long as they fit a window.
func join(spans []span, gap int64) []span {
	joined := spans[:0:0]
	for _, s := range spans {
		last := len(joined) - 1
		if last >= 0 && s.start-joined[last].end <= gap && max(s.end, joined[last].end)-joined[last].start <= patch.Window {
			joined[last].end = max(s.end, joined[last].end)
			joined[last].weight += s.weight
		} else {
			joined = append(joined, s)
		}
	}
	return joined
}

// heaviest keeps the count spans with the greatest weight that fit a window together, in order.
func heaviest(spans []span, count int) []span {
	order := make([]int, len(spans))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(max(min(spans[b].weight-spans[a].weight, 1), -1)) })
	var kept []int
	left := int64(patch.Window)
	for _, i := range order {
		if length := spans[i].end - spans[i].start; length <= left && len(kept) < count {
			kept, left = append(kept, i), left-length
		}
	}
	slices.Sort(kept)
	result := make([]span, len(kept))
	for i, k := range kept {
		result[i] = spans[k]
	}
	return result
}

// grow widens spans on both sides until they have width together, or take in the whole old image.
func (o *Old) grow(spans []span, width int64) []span {
	for {
		total := int64(0)
		for _, s := range spans {
			total += s.end - s.start
		}
		pad := (width - total) / int64(2*len(spans))
		if pad < 1<<10 {
			return spans
		}
		wider := make([]span, len(spans))
		for i, s := range spans {
			wider[i] = span{start: max(s.start-pad, 0), end: min(s.end+pad, o.size), weight: s.weight}
		}
		wider = union(wider)
		after := int64(0)
		for _, s := range wider {
			after += s.end - s.start
		}
		spans = wider
		if after == total {
			return spans
		}
	}
}

// union joins sorted spans that overlap or touch.
func union(spans []span) []span {
	joined := spans[:0:0]
	for _, s := range spans {
		if last := len(joined) - 1; last >= 0 && s.start <= joined[last].end {
			joined[last].end = max(joined[last].end, s.end)
			joined[last].weight += s.weight
		} else {
			joined = append(joined, s)
		}
	}
	return joined
}
