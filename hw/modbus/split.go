package modbus

import "bytes"

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
// nothing continues p. What it says holds for p with any bytes behind it, so that the same bytes give
// the same frames in whatever chunks they come.
func split(p []byte, e *expectation, silent bool) (n int, k kind) {
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
		return splitUnknown(p, silent)
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

// splitUnknown is split for a head of no known function. It may be a frame that gives no length, or
// noise before a frame: what turns out whole first decides.
func splitUnknown(p []byte, silent bool) (int, kind) {
	limit := min(len(p), MaxFrame)
	for n := 4; n <= limit; n++ {
		if sound(p[:n]) {
			limit = n
			break
		}
	}
	found := limit >= 4 && sound(p[:limit])
	start, end := 0, limit
	for i := 1; i+4 <= len(p); i++ {
		for _, n := range [...]int{RequestLength(p[i:]), ResponseLength(p[i:])} {
			if n > 0 && n <= MaxFrame && i+n <= len(p) && (i+n < end || i+n == end && !found && start == 0) && sound(p[i:i+n]) {
				start, end = i, i+n
			}
		}
	}
	switch {
	case start > 0:
		return start, noise
	case found:
		return limit, unknown
	case silent || len(p) >= MaxFrame:
		return 1, noise
	}
	return 0, undecided
}
