package modbus

// listener cuts what is heard on a line into frames, be they requests or answers. It holds the bytes
// that are not cut yet.
type listener struct {
	framing   Framing
	delimiter byte
	expect    expectation
	memo      memo
	rx        [4 * MaxASCIIFrame]byte
	rd, wr    int
	frame     [MaxFrame]byte // the RTU form of an ASCII frame
	asked     [MaxFrame]byte // of expect
}

// room is where to read to. There is always some, as next takes what is too long to be a frame.
func (l *listener) room() []byte {
	if l.rd > 0 && len(l.rx)-l.wr < MaxASCIIFrame {
		l.wr = copy(l.rx[:], l.rx[l.rd:l.wr])
		l.rd = 0
	}
	return l.rx[l.wr:]
}

func (l *listener) pending() int { return l.wr - l.rd }

// next takes the first thing heard: n bytes of it, and the frame in its RTU form if it is one, good
// until bytes are read. With silent nothing will continue what is there.
func (l *listener) next(silent bool) (frame []byte, n int, k kind) {
	p := l.rx[l.rd:l.wr]
	switch {
	case len(p) == 0:
		return nil, 0, undecided
	case l.framing == ASCII:
		return l.nextASCII(p, silent)
	}
	n, k = split(p, &l.expect, silent, &l.memo)
	l.memo.advance(n, k)
	l.rd += n
	return p[:n], n, k
}

func (l *listener) nextASCII(p []byte, silent bool) ([]byte, int, kind) {
	skip, size := cutASCII(p, l.delimiter)
	switch {
	case skip > 0:
		l.rd += skip
		return p[:skip], skip, noise
	case size == 0 && silent:
		l.rd += len(p)
		return p, len(p), noise
	case size == 0:
		return nil, 0, undecided
	}
	l.rd += size
	frame, err := DecodeASCII(l.frame[:0], p[:size], l.delimiter)
	e := &l.expect
	switch {
	case err == ErrCRC && ResponseLength(frame) == len(frame) && e.met(frame):
		return frame, size, spoilt
	case err != nil:
		return p[:size], size, noise
	case ResponseLength(frame) == len(frame) && e.met(frame) && !again(frame, e):
		return frame, size, reply
	case RequestLength(frame) == len(frame):
		return frame, size, request
	case ResponseLength(frame) == len(frame):
		return frame, size, stray
	}
	return frame, size, unknown
}

// expectAnswer says that the answer to r, whose frame is given, comes next, or with 0 as the unit
// that none does.
func (l *listener) expectAnswer(r *Request, frame []byte) {
	l.expect = expectation{unit: r.Unit, debt: debtOf(r), frame: append(l.asked[:0], frame...)}
}

func (l *listener) expectNothing() { l.expect = expectation{} }
