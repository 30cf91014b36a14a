package modbus

import (
	"bytes"
	"encoding/binary"
)

// kind is what a listener takes a frame for. On a line that someone else masters both requests and
// answers are heard, and nothing marks which is which.
type kind uint8

const (
	undecided kind = iota // more bytes will tell
	noise                 // bytes of no frame
	request
	reply   // to the request that is expected to be answered
	stray   // an answer, but not that one
	spoilt  // the expected answer, but for its checksum
	unknown // a sound frame of a function that is not known
)

// expectation is the request whose answer comes next, if any does.
type expectation struct {
	unit  byte // 0: none
	debt  debt
	frame []byte
}

func (e *expectation) met(frame []byte) bool {
	return e.unit != 0 && frame[0] == e.unit && e.debt.settledBy(frame)
}

// begun tells whether p may be the beginning of the expected answer.
func (e *expectation) begun(p []byte) bool {
	switch {
	case e.unit == 0 || p[0] != e.unit:
		return false
	case len(p) < 3:
		return len(p) < 2 || Function(p[1])&^exceptionBit == e.debt.function
	case Function(p[1]) == e.debt.function|exceptionBit:
		return true
	case Function(p[1]) != e.debt.function:
		return false
	}
	switch e.debt.function {
	case WriteSingleCoil, WriteSingleRegister, WriteCoils, WriteRegisters, MaskWriteRegister, ReadFIFOQueue, ReadDeviceID:
		return true
	}
	return p[2] == e.debt.length
}

// split finds out what the first n bytes of p are, which is not empty. With silent it is certain that
// nothing continues p. m is the listener's. What split says holds for p with any bytes behind it, so that the same bytes give
// the same frames in whatever chunks they come.
func split(p []byte, e *expectation, silent bool, m *memo) (n int, k kind) {
	answer, asked := ResponseLength(p), RequestLength(p)
	open := func(n int) bool { return !silent && (n == 0 || n > len(p) && n <= MaxFrame) }
	whole := func(n int) bool { return n > 0 && n <= MaxFrame && n <= len(p) && sound(p[:n]) }
	if e.begun(p) {
		switch {
		case open(answer):
			return 0, undecided
		case whole(answer) && e.met(p[:answer]) && !again(p[:answer], e):
			return answer, reply
		}
	}
	// The shorter form goes first, as it is known first.
	first, second := asked, answer
	if answer > 0 && (asked <= 0 || answer < asked) {
		first, second = answer, asked
	}
	for _, n := range [...]int{first, second} {
		switch {
		case open(n) && n > 0 || !silent && len(p) < 3:
			return 0, undecided
		case whole(n) && n == asked:
			return n, request
		case whole(n) && plausible(p[:n]):
			return n, stray
		}
	}
	switch {
	case open(asked), open(answer):
		return 0, undecided
	case asked < 0 && answer < 0:
		return m.unknown(p, silent)
	case e.begun(p) && answer > 0 && answer <= len(p) && answer <= MaxFrame && e.met(p[:answer]):
		return 1, spoilt
	}
	return 1, noise
}

// again tells whether a frame is the expected request once more: a master that heard no answer. Only
// the answers of functions 5, 6, 21 and 22 are meant to be the same bytes.
func again(frame []byte, e *expectation) bool {
	return !repeats(e.debt.function) && bytes.Equal(frame, e.frame)
}

// plausible tells whether a sound frame can be an answer at all.
func plausible(frame []byte) bool {
	f := Function(frame[1])
	switch {
	case f&exceptionBit != 0:
		return frame[2] != 0
	case f == ReadHoldingRegisters, f == ReadInputRegisters, f == ReadWriteRegisters:
		return frame[2] > 0 && frame[2]%2 == 0
	}
	return true
}

// memo is how far splitUnknown has come, so that it looks at nothing twice: on a line full of noise it
// is asked about every byte.
type memo struct {
	prefix int    // no head of up to so many bytes is sound
	crc    uint16 // of the head's first prefix − 2 bytes
	within int    // no frame ends in the first so many bytes, but for the head
}

// advance moves the memo on by n bytes that were taken.
func (m *memo) advance(n int, k kind) {
	if k == noise && n == 1 {
		*m = memo{within: max(m.within-1, 0)}
	} else if n > 0 {
		*m = memo{}
	}
}

// known tells for each function byte whether frames of it give their length.
var known = func() (t [256]bool) {
	for f := range t {
		p := [MaxFrame]byte{1: byte(f), 2: meiDeviceID}
		t[f] = RequestLength(p[:]) > 0 || ResponseLength(p[:]) > 0
	}
	return t
}()

// unknown is split for a head of no known function. It may be a frame that gives no length, or noise
// before a frame: what turns out whole first decides.
func (m *memo) unknown(p []byte, silent bool) (int, kind) {
	limit := min(len(p), MaxFrame)
	head := m.head(p[:limit])
	start, end := m.inner(p[:limit])
	switch {
	case end > 0 && (head == 0 || end < head):
		return start, noise
	case head > 0:
		return head, unknown
	case silent || limit == MaxFrame:
		return 1, noise
	}
	return 0, undecided
}

// head is the length of the shortest sound frame at the head of p; 0: there is none.
func (m *memo) head(p []byte) int {
	if m.prefix == 0 {
		m.prefix, m.crc = 3, CRC(p[:min(len(p), 1)])
	}
	for n := m.prefix + 1; n <= len(p); n++ {
		m.crc = m.crc>>8 ^ crcTable[byte(m.crc)^p[n-3]]
		m.prefix = n
		if m.crc == binary.LittleEndian.Uint16(p[n-2:]) {
			return n
		}
	}
	return 0
}

// inner is the frame in p, not at its head, that ends first; an end of 0: there is none.
func (m *memo) inner(p []byte) (start, end int) {
	for i := 1; i+4 <= len(p); i++ {
		if !known[p[i+1]] {
			continue
		}
		for _, n := range [...]int{RequestLength(p[i:]), ResponseLength(p[i:])} {
			e := i + n
			if n > 0 && e > m.within && e <= len(p) && (end == 0 || e < end) && sound(p[i:e]) {
				start, end = i, e
			}
		}
	}
	if end == 0 {
		m.within = len(p)
	}
	return start, end
}
