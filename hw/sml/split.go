package sml

import (
	"bytes"
	"sync"

	"ferrule/hw/frame"
)

// MaxFrame is the longest transmission that is taken, in bytes. Meters push lists of a few
// hundred bytes; with a signature and every harmonic they stay below 2 KiB.
const MaxFrame = 8 << 10

// The marks of the transport protocol, version 1 (BSI TR-03109-1, part b, 3; SML 1.04, 8.1).
var (
	escape = []byte{0x1b, 0x1b, 0x1b, 0x1b}
	begin  = []byte{0x1b, 0x1b, 0x1b, 0x1b, 0x01, 0x01, 0x01, 0x01}
)

const (
	endMark = 0x1a
	maxFill = 3 // bytes that make the size a multiple of four
	margin  = 8 // bytes of the beginning, and of the end
)

// Split finds transmissions of version 1: from 1B1B1B1B 01010101 to 1B1B1B1B 1A, the number of
// fill bytes and the CRC, which must be right. What version 2 has is skipped. The beginning of
// a transmission inside of another says that the other was cut off.
func Split(data []byte, _ bool) frame.Cut {
	if !bytes.HasPrefix(data, begin) {
		return outside(data)
	}
	data = data[:min(len(data), MaxFrame)]
	for i := margin; ; {
		n := bytes.Index(data[i:], escape)
		if n < 0 || i+n+margin > len(data) {
			break
		}
		i += n
		word := data[i+4 : i+8]
		switch {
		case bytes.Equal(word, escape): // four bytes 1B of the data
			i += margin
		case bytes.Equal(word, begin[4:]):
			return frame.Cut{Skip: i, Fault: frame.Malformed}
		case word[0] == endMark && word[1] <= maxFill:
			if !sound(data[:i+margin]) {
				return frame.Cut{Skip: 1, Fault: frame.Checksum}
			}
			return frame.Cut{Size: i + margin}
		default:
			i++
		}
	}
	if len(data) == MaxFrame {
		return frame.Cut{Skip: 1, Fault: frame.Oversize}
	}
	return frame.Cut{}
}

// outside skips to the next beginning, or to what may become one.
func outside(data []byte) frame.Cut {
	if i := bytes.Index(data, begin); i > 0 {
		return frame.Cut{Skip: i}
	}
	keep := min(len(data), margin-1)
	for !bytes.HasPrefix(begin, data[len(data)-keep:]) {
		keep--
	}
	return frame.Cut{Skip: len(data) - keep}
}

var (
	x25    = sync.OnceValues(func() (*frame.Sum, error) { return frame.ParseSum("crc16-x25") })
	kermit = sync.OnceValues(func() (*frame.Sum, error) { return frame.ParseSum("crc16-kermit") })
)

// right tells whether said is the CRC of covered: CRC-16/X-25, as the standard wants it (DIN EN
// 62056-46), or CRC-16/KERMIT, as the Holley DTZ541 has it. To allow both weakens neither: they
// differ by a number with an even count of ones, and an odd count of flipped bits changes a CRC
// by an odd one, because x+1 divides their polynomial.
func right(covered []byte, said uint16) bool {
	for _, algorithm := range [2]func() (*frame.Sum, error){x25, kermit} {
		if sum, err := algorithm(); err == nil && uint16(sum.Of(covered)) == said {
			return true
		}
	}
	return false
}

// sound tells whether the CRC of a transmission is right.
func sound(transmission []byte) bool {
	end := len(transmission) - 2
	return right(transmission[:end], uint16(transmission[end])|uint16(transmission[end+1])<<8)
}

// unescape appends data to dst with its escapes undone: four bytes 1B stand for the four behind.
func unescape(dst, data []byte) []byte {
	for {
		i := bytes.Index(data, escape)
		if i < 0 {
			return append(dst, data...)
		}
		if bytes.HasPrefix(data[i+len(escape):], escape) {
			dst = append(append(dst, data[:i]...), escape...)
			data = data[i+2*len(escape):]
			continue
		}
		dst = append(dst, data[:i+1]...)
		data = data[i+1:]
	}
}
