package frame

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Match says which frames are meant, by bytes of their payload; the zero Match means all.
type Match struct{ terms []matchTerm }

// matchTerm wants the bits of mask in the byte at the place to be those of value.
type matchTerm struct {
	at          int // negative: counted from the end
	mask, value byte
}

// errMatch is what a match is not.
var errMatch = errors.New(`it is neither bytes from the first of the payload on, such as "41 ?? 02", nor "byte:0=41, byte:-1=0?"`)

// ParseMatch reads a match as the configuration writes it: hexadecimal bytes from the first of
// the payload on, in which ? stands for any digit, "41 ?? 02"; or bytes at places, each counted
// from 0 or, negative, from the end, "byte:0=0x41, byte:-1=0?".
func ParseMatch(s string) (Match, error) {
	var m Match
	if !strings.Contains(s, ":") {
		err := m.add(0, s)
		return m, err
	}
	for part := range strings.SplitSeq(s, ",") {
		place, want, found := strings.Cut(part, "=")
		at, err := parsePlace(strings.TrimSpace(place))
		if !found || err != nil {
			return Match{}, fmt.Errorf("%q: %w", s, errMatch)
		}
		if err := m.add(at, want); err != nil {
			return Match{}, err
		}
	}
	return m, nil
}

// add wants the digits from a place on.
func (m *Match) add(at int, digits string) error {
	plain := strings.NewReplacer(" ", "", "0x", "").Replace(digits)
	if len(plain) == 0 || len(plain)%2 != 0 {
		return fmt.Errorf("%q: %w", digits, errMatch)
	}
	if at < 0 && at+len(plain)/2 > 0 {
		return fmt.Errorf("%q: the bytes from %d on lead beyond the end", digits, at)
	}
	for i := 0; i < len(plain); i += 2 {
		t := matchTerm{at: at + i/2}
		for _, c := range []byte(plain[i : i+2]) {
			t.mask, t.value = t.mask<<4, t.value<<4
			n := nibble(c)
			switch {
			case n <= 15:
				t.mask, t.value = t.mask|15, t.value|n
			case c != '?':
				return fmt.Errorf("%q: %w", digits, errMatch)
			}
		}
		m.terms = append(m.terms, t)
	}
	return nil
}

// Of reports whether the payload is meant. One that lacks a byte that is asked for is not.
func (m *Match) Of(payload []byte) bool {
	for _, t := range m.terms {
		i := t.at
		if i < 0 {
			i += len(payload)
		}
		if i < 0 || i >= len(payload) || payload[i]&t.mask != t.value {
			return false
		}
	}
	return true
}

// parsePlace reads the place of a byte in the payload: "byte:4", "byte:0x10", "byte:-2".
func parsePlace(s string) (int, error) {
	digits, ok := strings.CutPrefix(s, "byte:")
	at, err := strconv.ParseInt(digits, 0, 32)
	if !ok || err != nil || at < -maxLength || at >= maxLength || strings.HasPrefix(digits, "+") {
		return 0, fmt.Errorf("%q is no place in a frame", s)
	}
	return int(at), nil
}
