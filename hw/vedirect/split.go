package vedirect

import (
	"bytes"

	"ferrule/hw/frame"
)

const (
	// MaxFrame is the size of the longest frame in bytes. The protocol has 22 fields of 8 + 32
	// characters at most, which are 990 bytes; the rest is for hex messages in between.
	MaxFrame = 2048
	// maxHex bounds a hex message; the longest, of the history of a day, have some 80 bytes.
	maxHex = 256
)

// last is the label of the last field of a block, with what stands around it.
const last = "\nChecksum\t"

// Split cuts text blocks: fields "\r\nLABEL\tVALUE", the last of them "\r\nChecksum\t" and one
// byte that makes the sum of all bytes 0 modulo 256. Hex messages, ":…\n", count for nothing in
// that sum; within a block they stay in the frame, and Decode takes them out. Between blocks,
// right ones are fill, and a wrong one is counted as Checksum.
//
// A block has no mark at its beginning, and a sum of 8 bits lets one in 256 tails pass. So after
// bytes were lost, and within a block that is wrong, a block is only taken to begin at PID, which
// is the first field of all products that have it, or with the first byte at H1, where the
// second block of a battery monitor begins.
func Split(data []byte, lost bool) frame.Cut {
	if data[0] == ':' && !lost {
		return splitHex(data)
	}
	end, sum := block(data)
	if end == 0 {
		return frame.Cut{}
	}
	data = data[:end]
	begun := data[0] == '\r'
	if lost {
		begun = bytes.HasPrefix(data, []byte("\r\nPID\t")) || bytes.HasPrefix(data, []byte("\r\nH1\t"))
	}
	if begun && sum == 0 {
		return frame.Cut{Size: end}
	}
	if next := bytes.LastIndex(data, []byte("\r\nPID\t")); next > 0 {
		end = next
	}
	switch {
	case begun:
		return frame.Cut{Size: end, Fault: frame.Checksum}
	case lost:
		return frame.Cut{Skip: end}
	}
	return frame.Cut{Size: end, Fault: frame.Malformed}
}

// block returns where the first block of data ends, behind its checksum, and the sum of its
// bytes without hex messages; 0 when it has no end yet.
func block(data []byte) (end int, sum byte) {
	matched, hex := 0, false
	for i, c := range data {
		if matched == len(last) {
			return i + 1, sum + c
		}
		if hex {
			if hex = isHex(c); hex || c == '\n' {
				continue
			}
		}
		if c == ':' {
			hex = true
			continue
		}
		sum += c
		switch {
		case c == last[matched]:
			matched++
		case c == last[0]:
			matched = 1
		default:
			matched = 0
		}
	}
	return 0, 0
}

// splitHex cuts the hex message that begins data (VE.Direct HEX protocol: a nibble of command,
// bytes, and a byte that makes their sum 0x55 modulo 256).
func splitHex(data []byte) frame.Cut {
	for i := 1; i < len(data); i++ {
		switch {
		case data[i] == '\n' && rightHex(data[1:i]):
			return frame.Cut{Skip: i + 1, Quiet: true}
		case data[i] == '\n':
			return frame.Cut{Size: i + 1, Fault: frame.Checksum}
		case !isHex(data[i]) || i == maxHex:
			return frame.Cut{Skip: i}
		}
	}
	return frame.Cut{}
}

func rightHex(digits []byte) bool {
	if len(digits)%2 == 0 {
		return false
	}
	sum := nibble(digits[0])
	for i := 1; i < len(digits); i += 2 {
		sum += nibble(digits[i])<<4 | nibble(digits[i+1])
	}
	return sum == 0x55
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' || c >= 'a' && c <= 'f' }

func nibble(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}
