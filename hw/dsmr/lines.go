package dsmr

import (
	"bytes"
	"errors"
)

// Errors of telegrams. They say which rule was broken.
var (
	// ErrChecksum is a wrong CRC of a telegram, or a wrong BCC of a read-out.
	ErrChecksum = errors.New("the checksum is wrong")

	errNoTelegram = errors.New("there is no telegram from a \"/\" to a line with \"!\"")
	errEnd        = errors.New("behind the \"!\" there are not four hexadecimal digits")
	errCharacter  = errors.New("a character that cannot be in a telegram")
	errLine       = errors.New("a line is not a code with values in parentheses")
	errNumber     = errors.New("before a unit of measure there is no number")
	errEmpty      = errors.New("there are no values")
)

// maxValues is how many values of one code are read: a history of 13 months, of three each,
// has 42.
const maxValues = 64

// set is a code with its values (IEC 62056-21, 6.6: a data set, and those that follow it
// without an address of their own).
type set struct {
	code   []byte
	values [][]byte
}

// next reads a set from the head of data and returns the rest; ok is false where there is no
// more. Values on the lines behind belong to it. A line that is no set is passed over and told
// by broken. values is memory to use.
func next(data []byte, values [][]byte) (s set, rest []byte, broken, ok bool) {
	data = trim(data)
	if len(data) == 0 {
		return set{}, nil, false, false
	}
	open := bytes.IndexAny(data, "(\r\n")
	if open < 0 || data[open] != '(' {
		return set{}, afterLine(data), true, true
	}
	s = set{code: bytes.TrimSpace(data[:open]), values: values[:0]}
	data = data[open:]
	for len(data) > 0 && data[0] == '(' {
		end := bytes.IndexAny(data[1:], "()\r\n") + 1
		if end == 0 || data[end] != ')' {
			return set{}, afterLine(data), true, true
		}
		if len(s.values) < maxValues {
			s.values = append(s.values, bytes.TrimSpace(data[1:end]))
		}
		data = trim(data[end+1:])
	}
	return s, data, len(s.code) == 0, true
}

// trim takes line ends and spaces away, and the STX that some meters send with every telegram.
func trim(data []byte) []byte {
	for i, c := range data {
		if c != '\r' && c != '\n' && c != ' ' && c != '\x02' {
			return data[i:]
		}
	}
	return nil
}

func afterLine(data []byte) []byte {
	_, rest, _ := bytes.Cut(data, []byte("\n"))
	return rest
}

// whole tells whether a telegram without a CRC has the structure of one. It is all that
// protects telegrams of DSMR 2 and 3: a damaged digit is not noticed.
func whole(header, lines []byte) error {
	for _, c := range header {
		if c >= 0x7f || c == '/' || c == '!' || isLineEnd(c) {
			return errCharacter
		}
	}
	for _, c := range lines {
		if (c < ' ' || c >= 0x7f || c == '/' || c == '!') && !isLineEnd(c) && c != '\x02' {
			return errCharacter
		}
	}
	var memory [maxValues][]byte
	some := false
	for {
		s, rest, broken, ok := next(lines, memory[:])
		switch {
		case !ok && !some:
			return errEmpty
		case !ok:
			return nil
		case broken:
			return errLine
		}
		for _, v := range s.values {
			number, unit := cutUnit(v)
			if _, ok := parseNumber(number); !ok && len(unit) > 0 {
				return errNumber
			}
		}
		lines, some = rest, true
	}
}

// cutUnit cuts "00012.345*kWh".
func cutUnit(value []byte) (number, unit []byte) {
	number, unit, _ = bytes.Cut(value, []byte("*"))
	return bytes.TrimSpace(number), bytes.TrimSpace(unit)
}

// number is ±digits × 10^-places.
type number struct {
	negative bool
	digits   uint64
	places   int
	plain    bool // there is neither a sign nor a point
}

// parseNumber reads a decimal number of up to 19 digits.
func parseNumber(s []byte) (number, bool) {
	var n number
	signed := len(s) > 0 && (s[0] == '-' || s[0] == '+')
	if signed {
		n.negative = s[0] == '-'
		s = s[1:]
	}
	whole, fraction, pointed := bytes.Cut(s, []byte("."))
	if len(whole) == 0 || len(whole)+len(fraction) > 19 {
		return number{}, false
	}
	for _, part := range [2][]byte{whole, fraction} {
		for _, c := range part {
			if c < '0' || c > '9' {
				return number{}, false
			}
			n.digits = n.digits*10 + uint64(c-'0')
		}
	}
	n.places, n.plain = len(fraction), !signed && !pointed
	return n, true
}
