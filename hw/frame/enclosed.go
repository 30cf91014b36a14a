package frame

import (
	"bytes"
	"errors"
)

// ErrEscape says that an escape of a frame's payload means nothing.
var ErrEscape = errors.New("an escape that means nothing")

// Enclosure says how frames stand between a start and an end mark, such as STX and ETX. Neither
// mark may be the beginning of the other.
type Enclosure struct {
	Start, End []byte
	// Escape makes the next byte data; it needs Escaped. Where End begins with it (DLE ETX), it
	// is doubled in the payload, and marks count only behind a single one. Else it stands before
	// each mark, and each of itself, in the payload.
	Escape  byte
	Escaped bool
	// Check stands behind End, and covers the bytes as they stand on the wire; or before it,
	// with Inside, and covers start and payload without their escapes.
	Check  *Check
	Inside bool
}

// Enclosed cuts the frames that e describes, of max bytes at most, with their marks and check.
// A start within a frame begins another: what came before lost its end. One goroutine may use
// the Split.
func Enclosed(e Enclosure, max int) Split {
	scratch := make([]byte, 0, max)
	return func(data []byte, _ bool) Cut {
		if i := e.seek(data); i > 0 {
			return Cut{Skip: i}
		}
		end, cut := e.end(data)
		if end < 0 {
			return cut
		}
		if e.Inside {
			return e.judgeInside(scratch, data[:end])
		}
		size := end + e.Check.size()
		if len(data) < size {
			return Cut{}
		}
		if !e.Check.Right(data[:end], data[end:size]) {
			return Cut{Skip: 1, Fault: Checksum}
		}
		return Cut{Size: size}
	}
}

func (e *Enclosure) judgeInside(scratch, frame []byte) Cut {
	body, err := e.unescape(append(scratch, e.Start...), frame[len(e.Start):len(frame)-len(e.End)])
	n := len(body) - e.Check.size()
	if err != nil || n < len(e.Start) {
		return Cut{Skip: 1, Fault: Malformed}
	}
	if !e.Check.Right(body[:n], body[n:]) {
		return Cut{Skip: 1, Fault: Checksum}
	}
	return Cut{Size: len(frame)}
}

// doubled says that the escape is doubled in the payload, and that marks begin with a single one.
func (e *Enclosure) doubled() bool { return e.Escaped && e.End[0] == e.Escape }

// seek is the function seek for Start. The second of two escapes begins no mark.
func (e *Enclosure) seek(data []byte) int {
	if !e.doubled() || e.Start[0] != e.Escape {
		return seek(data, e.Start)
	}
	for at := 0; ; {
		i := bytes.IndexByte(data[at:], e.Escape)
		if i < 0 {
			return len(data)
		}
		at += i
		if begins(data[at:], e.Start) {
			return at
		}
		at += min(2, len(data)-at)
	}
}

// end returns where the end mark of the frame ends that data begins with. Where that cannot be
// known yet it returns -1 and the zero Cut, and where it will never be, -1 and what to skip.
func (e *Enclosure) end(data []byte) (int, Cut) {
	doubled := e.doubled()
	for i := len(e.Start); i < len(data); i++ {
		c := data[i]
		if c != e.End[0] && c != e.Start[0] && (!e.Escaped || c != e.Escape) {
			continue
		}
		rest := data[i:]
		if e.Escaped && c == e.Escape && (!doubled || len(rest) > 1 && rest[1] == c) {
			i++
			continue
		}
		if doubled && c != e.Escape {
			continue // marks count behind the escape alone
		}
		ends, starts := begins(rest, e.End), begins(rest, e.Start)
		switch {
		case ends && len(rest) >= len(e.End):
			return i + len(e.End), Cut{}
		case starts && len(rest) >= len(e.Start):
			return -1, Cut{Skip: i, Fault: Malformed}
		case ends || starts:
			return -1, Cut{}
		case doubled:
			return -1, Cut{Skip: 1, Fault: Malformed}
		}
	}
	return -1, Cut{}
}

// unescape appends body without its escapes to dst.
func (e *Enclosure) unescape(dst, body []byte) ([]byte, error) {
	if !e.Escaped {
		return append(dst, body...), nil
	}
	for {
		i := bytes.IndexByte(body, e.Escape)
		if i < 0 {
			return append(dst, body...), nil
		}
		if i+1 == len(body) {
			return dst, ErrEscape
		}
		dst = append(append(dst, body[:i]...), body[i+1])
		body = body[i+2:]
	}
}
