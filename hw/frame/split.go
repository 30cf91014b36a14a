package frame

import "bytes"

// Delimited cuts frames that end with one of the delimiters, none of which may be a part of
// another. The check, if any, stands before the delimiter; the delimiter is a part of the frame.
// Empty frames are skipped, so that a stream with CR, LF or both has the delimiters CR and LF.
func Delimited(delimiters [][]byte, check *Check) Split {
	return func(data []byte, lost bool) Cut {
		i, n := firstOf(data, delimiters)
		switch {
		case i < 0:
			return Cut{}
		case i == 0:
			return Cut{Skip: n, Quiet: true}
		case lost:
			return Cut{Skip: i + n}
		case check == nil:
			return Cut{Size: i + n}
		case i <= check.size():
			return Cut{Size: i + n, Fault: Malformed}
		case !check.Right(data[:i-check.size()], data[i-check.size():i]):
			return Cut{Size: i + n, Fault: Checksum}
		}
		return Cut{Size: i + n}
	}
}

// firstOf returns where the delimiter stands that ends first, and its size; -1 where none does.
func firstOf(data []byte, delimiters [][]byte) (at, size int) {
	if len(delimiters) == 1 {
		return bytes.Index(data, delimiters[0]), len(delimiters[0])
	}
	at = -1
	end := len(data)
	for _, d := range delimiters {
		if i := bytes.Index(data[:end], d); i >= 0 {
			at, size, end = i, len(d), i+len(d)
		}
	}
	return at, size
}

// Silent cuts frames that stand between two silences of the line, so the Split cannot see
// them: see Cutter.Whole. It only cuts what is longer than max bytes.
func Silent(max int) Split {
	return func(data []byte, _ bool) Cut {
		if len(data) < max {
			return Cut{}
		}
		return Cut{Size: max}
	}
}

// Begin says that what comes next is the beginning of a frame, as after a long silence of the
// line, or where it answers a request. It has no effect on a frame that has begun.
func (c *Cutter) Begin() {
	if c.rd == len(c.buf) {
		c.lost = false
	}
}

// Marks are the bytes that all frames begin and end with; either may be empty.
type Marks struct{ Start, End []byte }

// Fixed cuts frames of size bytes: start, payload, check, end. Without a start, a check of 16
// bits or more tells where they begin; without that a silence must, see Cutter.Gap.
func Fixed(size int, m Marks, check *Check) Split {
	return func(data []byte, lost bool) Cut {
		if i := seek(data, m.Start); i > 0 {
			return Cut{Skip: i}
		}
		if lost && !m.synchronise(check) || len(data) < size {
			return Cut{}
		}
		return m.judge(data[:size], check)
	}
}

// LengthField says where a frame has its length, and what that means.
type LengthField struct {
	At, Size int // in bytes, from the first of the frame; 1 to 4 bytes
	Little   bool
	Add      int // the frame has so many bytes more than the field says
}

// Length cuts frames that say how long they are, up to max bytes: start, payload with the
// length in it, check, end. See Fixed on frames without a start.
func Length(f LengthField, max int, m Marks, check *Check) Split {
	least := f.At + f.Size + check.size() + len(m.End)
	return func(data []byte, lost bool) Cut {
		if i := seek(data, m.Start); i > 0 {
			return Cut{Skip: i}
		}
		if lost && !m.synchronise(check) || len(data) < f.At+f.Size {
			return Cut{}
		}
		size := f.read(data) + int64(f.Add)
		if size < int64(least) || size > int64(max) {
			return m.refuse(check, Malformed)
		}
		if int64(len(data)) < size {
			return Cut{}
		}
		return m.judge(data[:size], check)
	}
}

func (f *LengthField) read(data []byte) int64 {
	var n int64
	for i, b := range data[f.At : f.At+f.Size] {
		if f.Little {
			n |= int64(b) << (8 * i)
		} else {
			n = n<<8 | int64(b)
		}
	}
	return n
}

// synchronise says that a frame shows where it begins.
func (m *Marks) synchronise(check *Check) bool { return len(m.Start) > 0 || check.strong() }

// judge checks a frame that is whole.
func (m *Marks) judge(frame []byte, check *Check) Cut {
	body, ok := bytes.CutSuffix(frame, m.End)
	if !ok {
		return m.refuse(check, Malformed)
	}
	n := len(body) - check.size()
	if n < 0 || !check.Right(body[:n], body[n:]) {
		return m.refuse(check, Checksum)
	}
	return Cut{Size: len(frame)}
}

// refuse goes on behind a start that led nowhere. Where nothing but the check says that there
// was a start, every byte of garbage is tried, and counting each would say nothing. Where only
// silences tell frames apart, it waits for one: what follows would be cut at the wrong bytes.
func (m *Marks) refuse(check *Check, fault Fault) Cut {
	switch {
	case len(m.Start) > 0:
		return Cut{Skip: 1, Fault: fault}
	case check.strong():
		return Cut{Skip: 1}
	}
	return Cut{}
}

// seek returns where data has mark, or at its end the beginning of it; len(data) where neither.
func seek(data, mark []byte) int {
	if len(mark) == 0 {
		return 0
	}
	for at := 0; ; at++ {
		i := bytes.IndexByte(data[at:], mark[0])
		if i < 0 {
			return len(data)
		}
		at += i
		if begins(data[at:], mark) {
			return at
		}
	}
}

// begins says that data begins with mark, or is a beginning of it.
func begins(data, mark []byte) bool {
	n := min(len(data), len(mark))
	return string(data[:n]) == string(mark[:n])
}
