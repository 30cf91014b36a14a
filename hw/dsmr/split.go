package dsmr

import (
	"bytes"
	"errors"
	"sync"

	"ferrule/hw/frame"
)

// MaxFrame is the longest telegram that is taken, in bytes. The longest that the standards
// allow has two messages of 1,024 octets, in hexadecimal, and 3 KiB of everything else.
const MaxFrame = 8 << 10

// maxSlashes is how many slashes at the end of what was no telegram are tried as the beginning
// of the next. A header has one, or two where the maker does as he likes.
const maxSlashes = 4

// Split finds telegrams: from a "/" to the line that begins with "!", that line included. A "/"
// at the beginning of a line ends a telegram that was cut off, and begins the next.
//
// From DSMR 4 on a telegram carries a CRC behind the "!", which must be right. Before there was
// none; such a telegram is a frame when its structure is whole: printable characters, every
// line of codes with values in parentheses, and a number before every unit of measure.
func Split(data []byte, _ bool) frame.Cut {
	if data[0] != '/' {
		return outside(data)
	}
	data = data[:min(len(data), MaxFrame)]
	for i := 0; ; {
		n := bytes.IndexByte(data[i:], '\n')
		if n < 0 || i+n+1 == len(data) {
			break
		}
		i += n + 1
		if data[i] == '/' {
			return frame.Cut{Skip: i, Fault: frame.Malformed}
		}
		if data[i] == '!' {
			size, ok := endLine(data[i:])
			if !ok {
				return frame.Cut{Skip: nextSlash(data[:i+1]), Fault: frame.Malformed}
			}
			if size > 0 {
				return judge(data[:i+size])
			}
			break
		}
	}
	if len(data) == MaxFrame {
		return frame.Cut{Skip: nextSlash(data), Fault: frame.Oversize}
	}
	return frame.Cut{}
}

// outside skips to the next "/". Line ends between telegrams are no garbage.
func outside(data []byte) frame.Cut {
	quiet := isLineEnd(data[0])
	for i, c := range data {
		if c == '/' || isLineEnd(c) != quiet {
			return frame.Cut{Skip: i, Quiet: quiet}
		}
	}
	return frame.Cut{Skip: len(data), Quiet: quiet}
}

func isLineEnd(c byte) bool { return c == '\r' || c == '\n' }

// endLine returns the size of the last line of a telegram, "!" or "!" and four hexadecimal
// digits with a line end behind; 0 where data ends too early to tell, false where it is another
// line. The digits are capitals: else two ways of writing them would be one bit apart.
func endLine(data []byte) (size int, ok bool) {
	rest := data[1:]
	if len(rest) > 0 && !isLineEnd(rest[0]) {
		for i := range min(len(rest), 4) {
			if hexDigit(rest[i]) < 0 || rest[i] >= 'a' {
				return 0, false
			}
		}
		rest = rest[min(len(rest), 4):]
	}
	if len(rest) > 0 && rest[0] == '\r' {
		rest = rest[1:]
	}
	switch {
	case len(rest) == 0:
		return 0, true
	case rest[0] != '\n':
		return 0, false
	}
	return len(data) - len(rest) + 1, true
}

// judge tells whether what has a beginning and an end is a telegram.
func judge(telegram []byte) frame.Cut {
	switch _, _, err := open(telegram); {
	case err == nil:
		return frame.Cut{Size: len(telegram)}
	case errors.Is(err, ErrChecksum):
		return frame.Cut{Skip: nextSlash(telegram), Fault: frame.Checksum}
	}
	return frame.Cut{Skip: nextSlash(telegram), Fault: frame.Malformed}
}

// nextSlash returns where behind the first byte of data a telegram may begin: at one of the last
// few slashes. Few, so that a flood of them costs no more than its length.
func nextSlash(data []byte) int {
	next := len(data)
	for range maxSlashes {
		i := bytes.LastIndexByte(data[1:next], '/')
		if i < 0 {
			break
		}
		next = i + 1
	}
	return next
}

// open checks the telegram and returns its header, without the "/", and its data lines.
func open(telegram []byte) (header, lines []byte, err error) {
	header, _, ok := bytes.Cut(telegram, []byte("\n"))
	end := bytes.Index(telegram, []byte("\n!"))
	if !ok || end < 0 || len(header) == 0 || header[0] != '/' {
		return nil, nil, errNoTelegram
	}
	lines = telegram[min(len(header)+1, end):end]
	header = bytes.TrimSuffix(header[1:], []byte("\r"))
	written := bytes.TrimRight(telegram[end+2:], "\r\n")
	if len(written) == 0 {
		return header, lines, whole(header, lines)
	}
	said, ok := parseCRC(written)
	if !ok {
		return header, lines, errEnd
	}
	if said != checksum(header, telegram[:end+2]) {
		return header, lines, ErrChecksum
	}
	return header, lines, nil
}

func parseCRC(written []byte) (crc uint32, ok bool) {
	for _, c := range written {
		n := hexDigit(c)
		if n < 0 || c >= 'a' {
			return 0, false
		}
		crc = crc<<4 | uint32(n)
	}
	return crc, len(written) == 4
}

var (
	arc = sync.OnceValues(func() (*frame.Sum, error) { return frame.ParseSum("crc16-arc") })
	x25 = sync.OnceValues(func() (*frame.Sum, error) { return frame.ParseSum("crc16-x25") })
)

// checksum is the CRC of a telegram from the "/" to the "!" (DSMR P1 companion standard 5.0.2,
// 6.2): CRC-16/ARC. The Holley DTSD545 sends CRC-16/X-25 instead. The choice is made by the
// header and not by trying both, which would let one telegram in 65536 pass with an error.
//
// Some network bridges take the CRs away. The CRC was made with them, so they count again.
func checksum(header, covered []byte) uint32 {
	sum, err := arc()
	if bytes.HasPrefix(header, []byte("HLY5/D545")) {
		sum, err = x25()
	}
	if err != nil {
		return 1 << 16 // no CRC is that
	}
	if sum.String() == "crc16-arc" && bytes.IndexByte(covered, '\r') < 0 {
		return arcWithCR(covered)
	}
	return sum.Of(covered)
}

// arcWithCR is the CRC-16/ARC of data with a CR before every LF.
func arcWithCR(data []byte) uint32 {
	var crc uint32
	add := func(c byte) {
		crc ^= uint32(c)
		for range 8 {
			crc = crc>>1 ^ 0xa001&-(crc&1)
		}
	}
	for _, c := range data {
		if c == '\n' {
			add('\r')
		}
		add(c)
	}
	return crc
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}
