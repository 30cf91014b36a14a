// Package obis is the vocabulary of meters: OBIS codes, their readable names and the units of
// DLMS. The trap is the reduced form: a meter that writes 1.8.0 means 1-0:1.8.0, and one that
// writes 6.8 means no OBIS code at all.
package obis

import "strconv"

// Code is an OBIS code, A-B:C.D.E*F (IEC 62056-61, DIN EN 13757-1): medium, channel, quantity,
// kind of processing, tariff, billing period. F is 255 where nothing is said of it.
type Code [6]byte

// Parse reads "A-B:C.D.E*F". A-B: may be missing: 0-0 for the abstract quantities from 96 on,
// else 1-0, electricity. *F may be missing or written &F. C and D may be the letters C, F, L
// and P of IEC 62056-21, and F.F alone is 0-0:97.97.0. Anything else is no code.
func Parse(s []byte) (Code, bool) {
	c := Code{5: 255}
	a, rest, hasA := field(s, '-')
	b, rest, hasB := field(rest, ':')
	if hasA != hasB {
		return Code{}, false
	}
	if !hasA {
		rest = s
	}
	quantity, rest, ok1 := letter(rest)
	processing, rest, ok2 := letterOrEnd(rest)
	if !ok1 || !ok2 {
		return Code{}, false
	}
	c[0], c[1], c[2], c[3] = a, b, quantity, processing
	if !hasA && quantity < 96 {
		c[0] = 1
	}
	if len(rest) == 0 {
		return c, quantity >= 96
	}
	return parseTail(c, rest)
}

// parseTail reads "E", "E*F" and "E&F".
func parseTail(c Code, s []byte) (Code, bool) {
	for _, mark := range []byte{'*', '&'} {
		if e, f, ok := field(s, mark); ok {
			n, ok := number(f)
			c[4], c[5] = e, n
			return c, ok
		}
	}
	e, ok := number(s)
	c[4] = e
	return c, ok
}

// field reads a number that ends in mark.
func field(s []byte, mark byte) (n byte, rest []byte, ok bool) {
	for i := 1; i <= 3 && i < len(s); i++ {
		if s[i] == mark {
			n, ok = number(s[:i])
			return n, s[i+1:], ok
		}
	}
	return 0, s, false
}

func number(s []byte) (byte, bool) {
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return byte(n), len(s) >= 1 && len(s) <= 3 && n <= 255
}

func letter(s []byte) (n byte, rest []byte, ok bool) {
	if len(s) >= 2 && s[1] == '.' {
		if n := letterNumber(s[0]); n != 0 {
			return n, s[2:], true
		}
	}
	return field(s, '.')
}

func letterOrEnd(s []byte) (n byte, rest []byte, ok bool) {
	if len(s) == 1 {
		if n := letterNumber(s[0]); n != 0 {
			return n, nil, true
		}
		n, ok = number(s)
		return n, nil, ok
	}
	return letter(s)
}

// letterNumber returns what a letter stands for (IEC 62056-61, annex A), or 0.
func letterNumber(c byte) byte {
	switch c {
	case 'C':
		return 96
	case 'F':
		return 97
	case 'L':
		return 98
	case 'P':
		return 99
	}
	return 0
}

// Append appends c as "1-0:1.8.0", and with "*F" where F is not 255.
func (c Code) Append(dst []byte) []byte {
	for i, mark := range [5]byte{'-', ':', '.', '.', '*'} {
		dst = strconv.AppendUint(dst, uint64(c[i]), 10)
		if i < 4 || c[5] != 255 {
			dst = append(dst, mark)
		}
	}
	if c[5] != 255 {
		dst = strconv.AppendUint(dst, uint64(c[5]), 10)
	}
	return dst
}

func (c Code) String() string { return string(c.Append(nil)) }
