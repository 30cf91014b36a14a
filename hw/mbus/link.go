package mbus

import (
	"fmt"

	"ferrule/hw/frame"
)

// The bytes that mark frames (EN 13757-2, 5.3; EN 60870-5-2, FT 1.2).
const (
	ack        = 0xE5
	startShort = 0x10
	startLong  = 0x68
	stop       = 0x16
)

const (
	shortFrame = 5
	overhead   = 6 // of a long frame, beside what its length counts
	minLength  = 3 // C, A and CI
	// MaxFrame is the most bytes of a frame, marks and checksum included.
	MaxFrame = 255 + overhead
)

// C is the control field of a frame (EN 13757-2, 5.4.3).
type C byte

// The control fields that a master sends and a unit answers with.
const (
	SndNKE  C = 0x40 // reset the link: the next frame count bit is 1
	SndUD   C = 0x53 // data for the unit
	ReqUD2  C = 0x5B // asks for readings
	ReqUD1  C = 0x5A // asks for alarms
	RspUD   C = 0x08 // the answer to both
	fcb     C = 0x20 // frame count bit, of a request
	primary C = 0x40 // the frame comes from the master
	answer  C = 0xCF // what of an answer's C field is not flow control: 20h is ACD, 10h DFC
)

// Kind says which form a frame has.
type Kind uint8

// The forms of frames.
const (
	Ack   Kind = iota + 1 // E5
	Short                 // 10 C A CS 16
	Long                  // 68 L L 68 C A CI … CS 16; a control frame is one without data
)

// Frame is one frame, cut and checked. Data points into the bytes it was parsed from.
type Frame struct {
	Kind Kind
	C    C
	A    byte
	CI   byte   // of a long frame
	Data []byte // of a long frame, behind the CI field
}

// Split cuts M-Bus frames of both directions (frame.Split). A frame is sound when its marks, both
// its lengths and its checksum agree.
func Split(data []byte, _ bool) frame.Cut {
	switch data[0] {
	case ack:
		return frame.Cut{Size: 1}
	case startShort:
		return splitShort(data)
	case startLong:
		return splitLong(data)
	}
	n := 1
	for n < len(data) && data[n] != ack && data[n] != startShort && data[n] != startLong {
		n++
	}
	return frame.Cut{Skip: n}
}

func splitShort(data []byte) frame.Cut {
	switch {
	case len(data) < shortFrame:
		return frame.Cut{}
	case data[4] != stop:
		return frame.Cut{Skip: 1}
	case data[3] != data[1]+data[2]:
		return frame.Cut{Skip: 1, Fault: frame.Checksum}
	}
	return frame.Cut{Size: shortFrame}
}

func splitLong(data []byte) frame.Cut {
	n := len(data)
	if n > 1 && data[1] < minLength || n > 2 && data[2] != data[1] || n > 3 && data[3] != startLong {
		return frame.Cut{Skip: 1}
	}
	if n < 4 || n < int(data[1])+overhead {
		return frame.Cut{}
	}
	size := int(data[1]) + overhead
	switch {
	case data[size-1] != stop:
		return frame.Cut{Skip: 1, Fault: frame.Malformed}
	case data[size-2] != checksum(data[4:size-2]):
		return frame.Cut{Skip: 1, Fault: frame.Checksum}
	}
	return frame.Cut{Size: size}
}

func checksum(b []byte) (sum byte) {
	for _, c := range b {
		sum += c
	}
	return sum
}

// Parse reads b, which must be one whole frame and nothing else: ErrFormat or ErrChecksum.
func Parse(b []byte) (Frame, error) {
	if len(b) == 0 {
		return Frame{}, fmt.Errorf("parsing a frame: %w: no bytes", ErrFormat)
	}
	cut := Split(b, false)
	switch {
	case cut.Fault == frame.Checksum:
		return Frame{}, fmt.Errorf("parsing a frame: %w", ErrChecksum)
	case cut.Size != len(b):
		return Frame{}, fmt.Errorf("parsing a frame: %w: %d bytes are no frame", ErrFormat, len(b))
	}
	return parse(b), nil
}

// parse reads a frame that Split has cut.
func parse(b []byte) Frame {
	switch b[0] {
	case ack:
		return Frame{Kind: Ack}
	case startShort:
		return Frame{Kind: Short, C: C(b[1]), A: b[2]}
	}
	return Frame{Kind: Long, C: C(b[4]), A: b[5], CI: b[6], Data: b[7 : len(b)-2]}
}

// AppendAck appends an acknowledgement.
func AppendAck(dst []byte) []byte { return append(dst, ack) }

// AppendShort appends a short frame.
func AppendShort(dst []byte, c C, a byte) []byte {
	return append(dst, startShort, byte(c), a, byte(c)+a, stop)
}

// AppendLong appends a long frame, or a control frame where data is empty. Data beyond 252 bytes,
// which no frame can carry, is ErrFormat.
func AppendLong(dst []byte, c C, a, ci byte, data []byte) ([]byte, error) {
	n := len(data) + minLength
	if n > 255 {
		return dst, fmt.Errorf("writing a frame: %w: %d bytes of data", ErrFormat, len(data))
	}
	dst = append(dst, startLong, byte(n), byte(n), startLong, byte(c), a, ci)
	dst = append(dst, data...)
	return append(dst, byte(c)+a+ci+checksum(data), stop), nil
}
