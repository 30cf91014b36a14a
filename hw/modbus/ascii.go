package modbus

import (
	"bytes"
	"encoding/hex"
)

const (
	colon          = ':'
	lineFeed       = '\n' // the delimiter, unless a unit was told another (function 8, sub-function 3)
	carriageReturn = '\r'
)

// AppendASCII appends the ASCII form of an RTU frame: colon, bytes in hexadecimal, LRC, CR and the
// delimiter, which is LF but for units that were told another; 0 is LF (V1.02, 2.5.2.1).
func AppendASCII(dst, frame []byte, delimiter byte) []byte {
	const digits = "0123456789ABCDEF"
	p := frame[:max(len(frame)-2, 0)] // without the CRC
	dst = append(dst, colon)
	for _, b := range p {
		dst = append(dst, digits[b>>4], digits[b&15])
	}
	lrc := LRC(p)
	return append(dst, digits[lrc>>4], digits[lrc&15], carriageReturn, delimiterOr(delimiter))
}

func delimiterOr(d byte) byte {
	if d == 0 {
		return lineFeed
	}
	return d
}

// DecodeASCII appends the RTU form of a whole ASCII frame, from the colon to the delimiter, so that
// DecodeRequest and DecodeResponse read it. Digits may be of either case. With a wrong LRC it fails
// with ErrCRC and appends all the same, for what a frame looks like.
func DecodeASCII(dst, line []byte, delimiter byte) ([]byte, error) {
	start, n := len(dst), len(line)
	if n < 9 || n > MaxASCIIFrame || n%2 == 0 || line[0] != colon || line[n-2] != carriageReturn || line[n-1] != delimiterOr(delimiter) {
		return dst, malformed("not an ASCII frame")
	}
	dst, err := hex.AppendDecode(dst, line[1:n-2])
	if err != nil {
		return dst[:start], malformed("not hexadecimal")
	}
	end := len(dst) - 1
	lrc := dst[end]
	dst = dst[:end]
	if err = nil; LRC(dst[start:]) != lrc {
		err = ErrCRC
	}
	return appendCRC(dst, start), err
}

// cutASCII finds the first ASCII frame in p: size bytes after skip others. A size of 0 wants more
// bytes, those that are skipped aside. A colon in the midst of a frame begins another (2.5.2.1).
func cutASCII(p []byte, delimiter byte) (skip, size int) {
	for {
		at := bytes.IndexByte(p[skip:], colon)
		if at < 0 {
			return len(p), 0
		}
		skip += at
		rest := p[skip+1:]
		again, end := bytes.IndexByte(rest, colon), bytes.IndexByte(rest, delimiterOr(delimiter))
		switch {
		case again >= 0 && (end < 0 || again < end):
			skip += 1 + again
		case end >= 0 && end+2 > MaxASCIIFrame, end < 0 && len(rest) >= MaxASCIIFrame:
			skip++
		case end >= 0:
			return skip, end + 2
		default:
			return skip, 0
		}
	}
}
