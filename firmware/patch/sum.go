package patch

import (
	"encoding/binary"
	"fmt"
)

// add makes dst of what the frame of a Sum segment yields: a map, then the differences of all the
// map's runs, then what lies between them.
//
// The map is a count and as many runs of three numbers: how many bytes after the end of the run
// before it begins, its length, and how much further on in the window it begins than the run
// before, so continued, would lie. A run is the sum of its differences and of what it finds in
// the window. Machine code that has moved differs from what it was in every address, and in
// nothing else, so differences are nearly all zeros and the others nearly all the same.
func add(dst, frame, window []byte) ([]byte, error) {
	if len(frame) < len(dst) {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrFormat, len(frame), len(dst))
	}
	runs, err := readMap(frame[:len(frame)-len(dst)], len(dst), len(window))
	if err != nil {
		return nil, err
	}
	differences := frame[len(frame)-len(dst):]
	total := 0
	for r := runs; r.more(); {
		total += r.next().n
	}
	rest, at := differences[total:], 0
	for r := runs; r.more(); {
		x := r.next()
		rest = rest[copy(dst[at:x.to], rest):]
		at = x.to + x.n
		sum(dst[:at], x.to, differences[:x.n], window[x.from:])
		differences = differences[x.n:]
	}
	copy(dst[at:], rest)
	return dst, nil
}

// sum sets dst from at on to a + b: where at is a multiple of four, and four bytes are left, of
// little-endian words of 32 bits, elsewhere of bytes.
func sum(dst []byte, at int, a, b []byte) {
	words := min((at+3)&^3, len(dst))
	n := len(dst) - at
	dst, a, b = dst[at:], a[:n], b[:n]
	i := 0
	for ; i < words-at; i++ {
		dst[i] = a[i] + b[i]
	}
	for ; i+4 <= n; i += 4 {
		le := binary.LittleEndian
		le.PutUint32(dst[i:i+4], le.Uint32(a[i:i+4])+le.Uint32(b[i:i+4]))
	}
	for ; i < n; i++ {
		dst[i] = a[i] + b[i]
	}
}

// run says that n bytes of a segment, from to on, have to do with those of the window from from on.
type run struct{ to, from, n int }

// runs reads the runs of a map that has been checked.
type runs struct {
	in   numbers
	left uint64
	last run
}

func (r *runs) more() bool { return r.left > 0 }

func (r *runs) next() run {
	skip, n, jump := r.in.next(), r.in.next(), r.in.signed()
	r.left--
	r.last = run{
		to:   r.last.to + r.last.n + int(skip),
		from: r.last.from + r.last.n + int(skip) + int(jump),
		n:    int(n),
	}
	return r.last
}

// readMap checks a map of a segment of length bytes over a window of window bytes.
func readMap(b []byte, length, window int) (runs, error) {
	checked := runs{in: numbers{b: b}}
	checked.left = checked.in.next()
	wrong := func() (runs, error) { return runs{}, fmt.Errorf("%w: a map is wrong", ErrFormat) }
	in := checked.in
	to, from := 0, 0
	for range checked.left {
		skip, n, jump := in.next(), in.next(), in.signed()
		if in.bad || skip > uint64(length-to) || jump > Window || jump < -Window {
			return wrong()
		}
		to, from = to+int(skip), from+int(skip)+int(jump)
		if from < 0 || from > window || n > uint64(length-to) || n > uint64(window-from) {
			return wrong()
		}
		to, from = to+int(n), from+int(n)
	}
	if in.bad || len(in.b) != 0 {
		return wrong()
	}
	return checked, nil
}
