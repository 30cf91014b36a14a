package text

import (
	"bytes"
	"math"
	"strconv"

	"ferrule/hw/point"
)

// kind says what a point must be.
type kind uint8

const (
	auto   kind = iota // a number where it is one for certain, else text
	asText             // text
	number             // a number, or bad
)

// tens are the powers of ten that are exactly a float64.
var tens = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}

// maxNumber is how long a number may be; nothing that measures writes more digits.
const maxNumber = 64

// numeral is a number as it is written.
type numeral struct {
	negative, signed bool
	whole, fraction  []byte // the digits before and behind the mark
	marked           bool
	exponent         []byte // with its sign
}

// scan reads s as a number whose decimal mark is mark, and says whether it is nothing else.
// Spaces may stand behind the sign where they are allowed.
func scan(s []byte, mark byte, spaces bool) (n numeral, ok bool) {
	if len(s) > 0 && (s[0] == '-' || s[0] == '+') {
		n.signed, n.negative = true, s[0] == '-'
		s = s[1:]
		if spaces {
			s = bytes.TrimLeft(s, " ")
		}
	}
	n.whole, s = digits(s)
	if len(s) > 0 && s[0] == mark {
		n.marked = true
		n.fraction, s = digits(s[1:])
	}
	if len(n.whole)+len(n.fraction) == 0 {
		return n, false
	}
	if len(s) > 1 && s[0]|0x20 == 'e' {
		rest := s[1:]
		if rest[0] == '-' || rest[0] == '+' {
			rest = rest[1:]
		}
		if d, left := digits(rest); len(d) > 0 && len(left) == 0 {
			n.exponent, s = s[1:], nil
		}
	}
	return n, len(s) == 0
}

// digits cuts the digits off that s begins with.
func digits(s []byte) (head, rest []byte) {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	return s[:i], s[i:]
}

// certain reports whether n can be nothing but a number: "0012" may be a label, "1e5" may be
// hexadecimal, and "5." the end of a sentence.
func (n *numeral) certain() bool {
	switch {
	case len(n.whole) == 0 || n.marked && len(n.fraction) == 0:
		return false
	case len(n.exponent) > 0 && !n.marked:
		return false
	}
	return n.marked || n.signed || n.whole[0] != '0' || len(n.whole) == 1
}

// value returns n as an integer, exactly, or as a float64, rounded once; false where it is too
// large for both.
func (n *numeral) value() (point.Value, bool) {
	m, fits := uint64(0), true
	for _, part := range [...][]byte{n.whole, n.fraction} {
		for _, c := range part {
			d := uint64(c - '0')
			if m > (math.MaxUint64-d)/10 {
				fits = false
			}
			m = m*10 + d
		}
	}
	whole := !n.marked && len(n.exponent) == 0
	switch {
	case whole && fits && m <= math.MaxInt64 && n.negative:
		return point.Int(-int64(m)), true
	case whole && fits && m <= math.MaxInt64:
		return point.Int(int64(m)), true
	case whole && fits && !n.negative:
		return point.Uint(m), true
	case fits && m <= 1<<53 && len(n.fraction) < len(tens) && len(n.exponent) == 0:
		f := float64(m) / tens[len(n.fraction)]
		if n.negative {
			f = -f
		}
		v, err := point.Float(f)
		return v, err == nil
	}
	return n.long()
}

// long leaves the rounding of many digits to strconv.
func (n *numeral) long() (point.Value, bool) {
	var buf [maxNumber + 8]byte
	s := buf[:0]
	if n.negative {
		s = append(s, '-')
	}
	s = append(append(append(append(s, '0'), n.whole...), '.'), n.fraction...)
	if len(n.exponent) > 0 {
		s = append(append(s, 'e'), n.exponent...)
	}
	f, err := strconv.ParseFloat(string(s), 64)
	if err != nil {
		return point.Value{}, false
	}
	v, err := point.Float(f)
	return v, err == nil
}

// parse reads s, which is not empty, as a point of kind k: its value, or why it is bad.
func (d *Decoder) parse(k kind, s []byte) (v point.Value, bad string) {
	if k == asText {
		return point.String(d.words.Of(s)), ""
	}
	if len(s) <= maxNumber {
		n, ok := scan(s, d.mark, k == number)
		if ok && (k == number || n.certain()) {
			v, ok := n.value()
			if ok && (k == number || n.marked || v.Kind() == point.KindInt) { // rounded it would be another label
				return v, ""
			}
		}
	}
	switch {
	case notANumber(s, k):
		return point.Value{}, "nan"
	case k == number:
		return point.Value{}, "invalid"
	}
	return point.String(d.words.Of(s)), ""
}

// notANumber knows what C and Arduino print for NaN and the infinities.
func notANumber(s []byte, k kind) bool {
	if len(s) > 4 {
		return false
	}
	var buf [4]byte
	word := bytes.TrimLeft(append(buf[:0], s...), "+-")
	for i := range word {
		word[i] |= 0x20
	}
	switch string(word) {
	case "nan":
		return true
	case "inf", "ovf":
		return k == number
	}
	return false
}
