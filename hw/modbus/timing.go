package modbus

import "time"

// Framing is how frames are marked on the line.
type Framing uint8

// The two transmission modes of V1.02, 2.5. RTU over TCP is RTU with the zero Timing.
const (
	RTU   Framing = iota // binary, ended by a silence, with a CRC
	ASCII                // hexadecimal between a colon and CR LF, with an LRC
)

func (f Framing) String() string {
	if f == ASCII {
		return "ascii"
	}
	return "rtu"
}

// Timing is how long bytes and silences last on a line (Modbus over Serial Line V1.02, 2.5.1.1).
// The zero Timing is a line without a baud rate: no silences are kept.
type Timing struct {
	Char time.Duration // one character on the wire
	T15  time.Duration // a silence this long inside a frame spoils it
	T35  time.Duration // a silence this long ends a frame
}

// TimingOf is the timing at baud, a character being bitsPerChar bits with start, parity and stop.
// Above 19,200 the silences are fixed, as V1.02, 2.5.1.1 recommends.
func TimingOf(baud, bitsPerChar int) Timing {
	if baud <= 0 || bitsPerChar <= 0 {
		return Timing{}
	}
	second := time.Duration(bitsPerChar) * time.Second
	t := Timing{Char: second / time.Duration(baud), T15: 750 * time.Microsecond, T35: 1750 * time.Microsecond}
	if baud <= 19_200 {
		t.T15, t.T35 = 3*second/time.Duration(2*baud), 7*second/time.Duration(2*baud)
	}
	return t
}

// Chars is how long n characters last.
func (t Timing) Chars(n int) time.Duration { return time.Duration(n) * t.Char }

// of is the timing of a framing: in ASCII the colon marks a frame, no silence is needed, and up to
// a second may pass between two characters (V1.02, 2.5.2.1).
func (t Timing) of(f Framing) Timing {
	if f == ASCII {
		t.T15, t.T35 = asciiGap, 0
	}
	return t
}

// asciiGap is the longest silence inside of an ASCII frame.
const asciiGap = time.Second

// onWire is how many bytes an RTU frame of n bytes takes in the framing.
func (f Framing) onWire(n int) int {
	if f == ASCII {
		return 2*n + 1 // colon, n−2 bytes and LRC in hex, CR, LF
	}
	return n
}
