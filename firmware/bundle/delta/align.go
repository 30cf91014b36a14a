package delta

import (
	"encoding/binary"
)

// run says that n bytes of a segment, from to on, are nearly those of the window from from on.
type run struct{ to, from, n int }

// aligner finds where in a window a segment's bytes are from, as Percival's bsdiff does: what is
// the same is a seed, and it is extended both ways as long as more than half of the bytes agree.
// It takes 32 MiB.
type aligner struct {
	window  []byte
	segment []byte
	head    []int32 // position + 1 of the last seed with a hash
	chain   []int32 // of the one before it, for every position of the window
}

const (
	seed      = 8 // bytes that must be the same
	headBits  = 22
	seedTries = 24
	// enough is a match that need not be bettered.
	enough = 256
	// gain is how many bytes more than as before a new alignment must explain.
	gain = 8
)

func seedHash(b []byte) uint64 {
	return binary.LittleEndian.Uint64(b) * prime >> (64 - headBits)
}

// index enters the window's seeds.
func (a *aligner) index(window []byte) {
	a.window = window
	if a.head == nil {
		a.head = make([]int32, 1<<headBits)
	}
	clear(a.head)
	if cap(a.chain) < len(window) {
		a.chain = make([]int32, len(window))
	}
	a.chain = a.chain[:len(window)]
	for i := 0; i+seed <= len(window); i++ {
		h := seedHash(window[i:])
		a.chain[i], a.head[h] = a.head[h], int32(i+1)
	}
}

// longest returns the longest match for the segment from at on: first where it would be if the
// alignment went on as before (drift), then by its seeds.
func (a *aligner) longest(at, drift int) (from, n int) {
	rest := a.segment[at:]
	if before := at + drift; before >= 0 && before < len(a.window) {
		from, n = before, same(rest, a.window[before:])
	}
	if n >= enough || len(rest) < seed {
		return from, n
	}
	candidate := a.head[seedHash(rest)]
	for i := 0; i < seedTries && candidate != 0; i++ {
		w := int(candidate - 1)
		if w+n < len(a.window) && n < len(rest) && a.window[w+n] == rest[n] {
			if m := same(rest, a.window[w:]); m > n {
				from, n = w, m
			}
		}
		if n >= enough {
			break
		}
		candidate = a.chain[w]
	}
	return from, n
}

// same is how many bytes a and b have in common at their beginning.
func same(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if binary.LittleEndian.Uint64(a[i:]) != binary.LittleEndian.Uint64(b[i:]) {
			break
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// align returns the runs of segment, in order and apart from each other.
func (a *aligner) align(segment []byte) []run {
	a.segment = segment
	var runs []run
	last := run{} // its n is not known before the next one is found
	at, n := 0, 0
	for at < len(segment) {
		var from int
		at, from, n = a.next(at+n, last.from-last.to)
		if at < len(segment) && n > 0 && from-at == last.from-last.to {
			continue // as before, after some bytes that differ
		}
		back := a.part(&last, at, from)
		if last.n > 0 {
			runs = append(runs, last)
		}
		last = run{to: at - back, from: from - back}
	}
	return runs
}

// next looks from at on for the next place where the alignment should change, or where it
// certainly goes on; it returns that place, where it comes from, and how much there is the same.
func (a *aligner) next(at, drift int) (to, from, n int) {
	agreed, counted := 0, at // with the alignment as before, in segment[at:counted]
	for ; at < len(a.segment); at++ {
		from, n = a.longest(at, drift)
		for ; counted < at+n; counted++ {
			agreed += a.agrees(counted, counted+drift)
		}
		if n > 0 && n == agreed {
			return at, at + drift, n
		}
		if n > agreed+gain {
			return at, from, n
		}
		if counted > at {
			agreed -= a.agrees(at, at+drift)
		} else {
			counted = at + 1
		}
	}
	return at, 0, 0
}

func (a *aligner) agrees(to, from int) int {
	if to < len(a.segment) && from >= 0 && from < len(a.window) && a.segment[to] == a.window[from] {
		return 1
	}
	return 0
}

// part says how far the run last goes, and returns how far before at the one that comes from from
// begins: each as far as more than half of its bytes agree, and where they meet, as it is best for both.
func (a *aligner) part(last *run, at, from int) (back int) {
	last.n = forward(a.segment[last.to:at], a.window[min(last.from, len(a.window)):])
	if at < len(a.segment) {
		back = backward(a.segment[max(last.to, at-maxBack):at], a.window[:from])
	}
	overlap := last.to + last.n - (at - back)
	if overlap <= 0 {
		return back
	}
	score, best, cut := 0, 0, 0
	for i := range overlap {
		to := at - back + i
		score += a.agrees(to, last.from+to-last.to) - a.agrees(to, from-at+to)
		if score > best {
			best, cut = score, i+1
		}
	}
	last.n += cut - overlap
	return back - cut
}

const (
	// maxBack bounds how far back a run is extended, so that data which repeats itself is not gone
	// through again and again.
	maxBack = 32 << 10
	// drop is how far the score going back may fall before the beginning is taken to be reached.
	drop = 256
)

// forward is how many bytes of a are best explained by those of b, where each that agrees counts
// 1 and each that does not costs 1.
func forward(a, b []byte) int {
	score, best, length := 0, 0, 0
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i+1
		}
	}
	return length
}

// backward does so from the ends.
func backward(a, b []byte) int {
	score, best, length := 0, 0, 0
	for i := 1; i <= min(len(a), len(b)); i++ {
		if a[len(a)-i] == b[len(b)-i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i
		} else if score < best-drop {
			break
		}
	}
	return length
}

// subtract returns what the frame of a Sum segment holds: the map of runs, the differences of the
// runs, and what lies between them (patch's add is the reverse).
func subtract(dst, segment, window []byte, runs []run) []byte {
	dst = binary.AppendUvarint(dst[:0], uint64(len(runs)))
	to, from := 0, 0
	for _, r := range runs {
		skip := r.to - to
		dst = binary.AppendUvarint(dst, uint64(skip))
		dst = binary.AppendUvarint(dst, uint64(r.n))
		dst = binary.AppendVarint(dst, int64(r.from-from-skip))
		to, from = r.to+r.n, r.from+r.n
	}
	for _, r := range runs {
		dst = difference(dst, r.to, segment[r.to:r.to+r.n], window[r.from:r.from+r.n])
	}
	to = 0
	for _, r := range runs {
		dst = append(dst, segment[to:r.to]...)
		to = r.to + r.n
	}
	return append(dst, segment[to:]...)
}

// difference appends a - b, where a lies at at of the segment: of 32-bit words where they are
// aligned there, since that is what addresses are, elsewhere of bytes.
func difference(dst []byte, at int, a, b []byte) []byte {
	for len(a) > 0 {
		if at&3 == 0 && len(a) >= 4 {
			dst = binary.LittleEndian.AppendUint32(dst, binary.LittleEndian.Uint32(a)-binary.LittleEndian.Uint32(b))
			at, a, b = at+4, a[4:], b[4:]
		} else {
			dst = append(dst, a[0]-b[0])
			at, a, b = at+1, a[1:], b[1:]
		}
	}
	return dst
}
