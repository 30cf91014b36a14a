package frame

import (
	"bytes"
	"errors"
)

// The bytes of SLIP (RFC 1055).
const (
	slipEnd    = 0xc0
	slipEsc    = 0xdb
	slipEscEnd = 0xdc
	slipEscEsc = 0xdd
)

// ErrOverhead says that the bytes that COBS put in lead beyond the end of the frame.
var ErrOverhead = errors.New("a COBS code that leads beyond the end of the frame")

// SLIP cuts frames of max bytes at most that end with END (RFC 1055); END is a part of the
// frame, what it says is still escaped. An END in front of a frame is skipped. The check is the
// last of the unescaped bytes and covers those before it. One goroutine may use the Split.
func SLIP(max int, check *Check) Split {
	return stuffed(slipEnd, max, check, UnescapeSLIP)
}

// COBS cuts frames of max bytes at most that end with a zero (Cheshire and Baker, Consistent
// Overhead Byte Stuffing, 1999); the zero is a part of the frame, what it says is still stuffed.
// The check is as for SLIP. One goroutine may use the Split.
func COBS(max int, check *Check) Split {
	return stuffed(0, max, check, UnstuffCOBS)
}

// COBSR is COBS for the reduced form, COBS/R: where the last code would be less than the last
// byte, that byte stands in its place.
func COBSR(max int, check *Check) Split {
	return stuffed(0, max, check, UnstuffCOBSR)
}

func stuffed(end byte, max int, check *Check, decode func(dst, frame []byte) ([]byte, error)) Split {
	scratch := make([]byte, 0, max)
	return func(data []byte, lost bool) Cut {
		i := bytes.IndexByte(data, end)
		switch {
		case i < 0:
			return Cut{}
		case i == 0:
			return Cut{Skip: 1, Quiet: true}
		case lost:
			return Cut{Skip: i + 1}
		}
		payload, err := decode(scratch, data[:i+1])
		n := len(payload) - check.size()
		switch {
		case err != nil || n < 0:
			return Cut{Size: i + 1, Fault: Malformed}
		case !check.Right(payload[:n], payload[n:]):
			return Cut{Size: i + 1, Fault: Checksum}
		}
		return Cut{Size: i + 1}
	}
}

// UnescapeSLIP appends to dst what a frame says that SLIP has cut. The result is never longer
// than the frame.
func UnescapeSLIP(dst, frame []byte) ([]byte, error) {
	frame = bytes.TrimSuffix(frame, []byte{slipEnd})
	for {
		i := bytes.IndexByte(frame, slipEsc)
		if i < 0 {
			return append(dst, frame...), nil
		}
		if i+1 == len(frame) {
			return dst, ErrEscape
		}
		dst = append(dst, frame[:i]...)
		switch frame[i+1] {
		case slipEscEnd:
			dst = append(dst, slipEnd)
		case slipEscEsc:
			dst = append(dst, slipEsc)
		default: // RFC 1055 would take the byte as it is; it is a sign of damage
			return dst, ErrEscape
		}
		frame = frame[i+2:]
	}
}

// UnstuffCOBS appends to dst what a frame says that COBS has cut. The result is shorter than
// the frame.
func UnstuffCOBS(dst, frame []byte) ([]byte, error) { return unstuff(dst, frame, false) }

// UnstuffCOBSR is UnstuffCOBS for what COBSR has cut.
func UnstuffCOBSR(dst, frame []byte) ([]byte, error) { return unstuff(dst, frame, true) }

func unstuff(dst, frame []byte, reduced bool) ([]byte, error) {
	frame = bytes.TrimSuffix(frame, []byte{0})
	for len(frame) > 0 {
		code := int(frame[0])
		switch {
		case code == 0:
			return dst, ErrOverhead
		case code > len(frame) && !reduced:
			return dst, ErrOverhead
		case code > len(frame): // the code is the last byte, too
			return append(append(dst, frame[1:]...), byte(code)), nil
		}
		dst = append(dst, frame[1:code]...)
		frame = frame[code:]
		if code < 0xff && len(frame) > 0 {
			dst = append(dst, 0)
		}
	}
	return dst, nil
}
