package nmea

import (
	"encoding/binary"

	"ferrule/hw/frame"
)

const (
	// MaxFrame is the size of the longest frame in bytes. The longest UBX message that a receiver
	// may send is RXM-RAWX with 255 measurements, 8184 bytes.
	MaxFrame = 8192
	// maxSentence bounds a sentence in bytes. The standard has 82 (IEC 61162-1, 7.3.1); real
	// receivers send more than 500.
	maxSentence = 1024
	// maxTag bounds a TAG block in bytes; NMEA 0183 4.00, 7.5 has 80.
	maxTag = 256
)

const (
	sync1 = 0xb5 // of UBX
	sync2 = 0x62
)

// Split cuts what an NMEA line carries: sentences from $ or ! to their checksum, TAG blocks from
// \ to \, and UBX messages. A sentence is whole as soon as its checksum is there and right; line
// ends are fill. What is between them is Garbage.
//
// A sentence with a wrong checksum is counted as Checksum. A sentence without one is counted as
// Malformed and not handed out: NMEA 0183 3.01 and IEC 61162-1 want a checksum in every sentence.
func Split(data []byte, lost bool) frame.Cut { return split(data, false) }

// SplitUnchecked is Split, but hands out sentences that end without a checksum, too, as
// instruments from before NMEA 0183 3.01 send them. Nothing protects their values; a sentence
// with a wrong checksum is refused all the same.
func SplitUnchecked(data []byte, lost bool) frame.Cut { return split(data, true) }

func split(data []byte, unchecked bool) frame.Cut {
	switch data[0] {
	case '$', '!':
		return splitSentence(data, unchecked)
	case '\\':
		return splitTag(data)
	case sync1:
		return splitUBX(data)
	}
	n := 1
	if lineEnd(data[0]) {
		for n < len(data) && lineEnd(data[n]) {
			n++
		}
		return frame.Cut{Skip: n, Quiet: true}
	}
	for n < len(data) && !lineEnd(data[n]) && !begins(data[n]) {
		n++
	}
	return frame.Cut{Skip: n}
}

func lineEnd(c byte) bool { return c == '\r' || c == '\n' }

// begins tells whether a frame may begin with c.
func begins(c byte) bool { return c == '$' || c == '!' || c == '\\' || c == sync1 }

// splitSentence cuts the sentence that begins data. Its content may hold any byte from the blank
// on, since version texts do hold what the standard reserves; only the checksum tells whether a $
// in it was text or the beginning of a sentence that cut this one short.
func splitSentence(data []byte, unchecked bool) frame.Cut {
	if !addressed(data) {
		return frame.Cut{Skip: 1}
	}
	start, sum := plain(data)
	for i := start; i < len(data); i++ {
		c := data[i]
		if c < ' ' || i == maxSentence-2 {
			return giveUp(data[:i+1], unchecked)
		}
		if c == '*' {
			switch stated, digits := hexAt(data[i+1:]); {
			case digits == 2 && stated == sum:
				return frame.Cut{Size: i + 3}
			case digits < 2 && i+1+digits == len(data):
				return frame.Cut{}
			}
		}
		sum ^= c
	}
	return frame.Cut{}
}

// plain returns where the first * or control byte of a sentence may be, at most 7 bytes too
// early, and the checksum up to there. It looks at eight bytes at once: this is where a decoder
// of NMEA spends its time.
func plain(data []byte) (end int, sum byte) {
	var sums uint64
	for end = 1; end+8 <= len(data) && end < maxSentence-16; end += 8 {
		w := binary.LittleEndian.Uint64(data[end:])
		star := w ^ ones*'*'
		if ((w-ones*' ')&^w|(star-ones)&^star)&(ones<<7) != 0 {
			break
		}
		sums ^= w
	}
	return end, fold(sums)
}

// ones has the value 1 in each of eight bytes.
const ones = 0x0101010101010101

// fold is the checksum of eight bytes.
func fold(w uint64) byte {
	w ^= w >> 32
	w ^= w >> 16
	return byte(w ^ w>>8)
}

// addressed tells whether the bytes behind a $ or ! can still be the address of a sentence. Some
// makers go on without a comma: "$PSRFTXTVersion GSW3.2.2 *5D".
func addressed(data []byte) bool {
	return len(data) < 2 || data[1] > ' ' && data[1] <= '~' && data[1] != ',' && data[1] != '*' && !begins(data[1])
}

// hexAt reads two hexadecimal digits; digits says how many of them are there.
func hexAt(data []byte) (value byte, digits int) {
	for digits < 2 && digits < len(data) {
		n, ok := hexDigit(data[digits])
		if !ok {
			break
		}
		value = value<<4 | n
		digits++
	}
	return value, digits
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// giveUp cuts a sentence that has no right checksum, up to where another may begin in it. The
// last byte of data is what showed that it ends.
func giveUp(data []byte, unchecked bool) frame.Cut {
	last := data[len(data)-1]
	data = data[:len(data)-1]
	fault, plain := frame.Malformed, true
	if last >= ' ' {
		fault = frame.Oversize
	}
	for i := 1; i < len(data); i++ {
		if begins(data[i]) {
			return frame.Cut{Size: i, Fault: fault}
		}
		if data[i] == '*' {
			plain = false
			if _, digits := hexAt(data[i+1:]); digits == 2 && fault == frame.Malformed {
				fault = frame.Checksum
			}
		}
		plain = plain && data[i] <= '~'
	}
	if unchecked && plain && lineEnd(last) && fault == frame.Malformed {
		fault = frame.NoFault
	}
	return frame.Cut{Size: len(data), Fault: fault}
}

// splitTag cuts a TAG block, \s:station,c:1700000000*hh\, as NMEA 0183 4.00 and AIS networks put
// before a sentence (IEC 61162-450, 7.2.3).
func splitTag(data []byte) frame.Cut {
	for i := 1; i < len(data); i++ {
		c := data[i]
		switch {
		case i == 1 && (c < 'a' || c > 'z') || i == 2 && c != ':' || c < ' ' || c > '~' || i == maxTag:
			return frame.Cut{Skip: 1}
		case c == '\\':
			return checkTag(data[:i+1])
		}
	}
	return frame.Cut{}
}

func checkTag(block []byte) frame.Cut {
	star := len(block) - 4
	if star < 3 || block[star] != '*' {
		return frame.Cut{Skip: 1}
	}
	stated, digits := hexAt(block[star+1:])
	if digits < 2 || stated != xor(block[1:star]) {
		return frame.Cut{Skip: 1, Fault: frame.Checksum}
	}
	return frame.Cut{Size: len(block)}
}

// xor is the checksum of sentences (IEC 61162-1, 7.2.6).
func xor(data []byte) byte {
	var sums uint64
	for ; len(data) >= 8; data = data[8:] {
		sums ^= binary.LittleEndian.Uint64(data)
	}
	sum := fold(sums)
	for _, c := range data {
		sum ^= c
	}
	return sum
}

// splitUBX cuts a UBX message: two sync bytes, class, id, length, payload, checksum (u-blox M8
// protocol specification, 32.2).
func splitUBX(data []byte) frame.Cut {
	if len(data) > 1 && data[1] != sync2 {
		return frame.Cut{Skip: 1}
	}
	if len(data) < 6 {
		return frame.Cut{}
	}
	size := 8 + int(data[4]) + int(data[5])<<8
	switch {
	case size > MaxFrame:
		return frame.Cut{Skip: 2}
	case len(data) < size:
		return frame.Cut{}
	}
	a, b := fletcher(data[2 : size-2])
	if a != data[size-2] || b != data[size-1] {
		return frame.Cut{Skip: 2, Fault: frame.Checksum}
	}
	return frame.Cut{Size: size}
}

// fletcher is the checksum of UBX (RFC 1145, with bytes).
func fletcher(data []byte) (a, b byte) {
	for _, c := range data {
		a += c
		b += a
	}
	return a, b
}
