package sml

import "errors"

// Errors of a transmission.
var (
	// ErrChecksum is a wrong CRC of the transmission or of a message in it.
	ErrChecksum = errors.New("the checksum is wrong")

	errFrame     = errors.New("there is no transmission from 1B1B1B1B 01010101 to 1B1B1B1B 1A")
	errShort     = errors.New("an element is longer than what is left")
	errType      = errors.New("an element has a type that SML does not know")
	errDeep      = errors.New("lists are nested too deeply")
	errStructure = errors.New("a message is not built as SML wants it")
)

// The types of elements, from bits 4 to 6 of their first byte (SML 1.04, 6.3).
const (
	octets   = 0
	boolean  = 4
	signed   = 5
	unsigned = 6
	list     = 7
)

const (
	maxDepth = 16
	// maxHeader is how many bytes type and length may take: 16 bits of length.
	maxHeader = 4
)

// element is one value: the bytes of a number or string, or the number of elements of a list,
// which follow it.
type element struct {
	kind  byte
	bytes []byte
	count int
}

// missing tells whether e stands for an optional value that is not there: an empty string.
func (e element) missing() bool { return e.kind == octets && len(e.bytes) == 0 }

// reader reads elements from data. After an error it reads no more.
type reader struct {
	data []byte
	at   int
	err  error
}

func (r *reader) fail(err error) element {
	if r.err == nil {
		r.err = err
	}
	r.at = len(r.data)
	return element{}
}

// next reads the header of an element, and its bytes unless it is a list.
func (r *reader) next() element {
	if r.at >= len(r.data) {
		return r.fail(errShort)
	}
	first := r.data[r.at]
	kind := first >> 4 & 7
	length, header := int(first&0xf), 1
	for c := first; c&0x80 != 0; header++ {
		if header == maxHeader || r.at+header >= len(r.data) {
			return r.fail(errShort)
		}
		c = r.data[r.at+header]
		length = length<<4 | int(c&0xf)
	}
	r.at += header
	switch kind {
	case list:
		return element{kind: list, count: length}
	case octets, boolean, signed, unsigned:
	default:
		return r.fail(errType)
	}
	size := length - header // the length counts the header
	if size < 0 || size > len(r.data)-r.at {
		return r.fail(errShort)
	}
	r.at += size
	return element{kind: kind, bytes: r.data[r.at-size : r.at]}
}

// skip passes over n elements with everything in them.
func (r *reader) skip(n int) { r.skipDeep(n, 0) }

func (r *reader) skipDeep(n, depth int) {
	if depth > maxDepth {
		r.fail(errDeep)
	}
	for ; n > 0 && r.err == nil; n-- {
		if e := r.next(); e.kind == list {
			r.skipDeep(e.count, depth+1)
		}
	}
}

// list reads the header of a list of least elements at least, and returns how many it has.
func (r *reader) list(least int) int {
	e := r.next()
	if r.err == nil && (e.kind != list || e.count < least) {
		r.fail(errStructure)
	}
	return e.count
}

// octets reads a string; it is nil where the string is empty or missing.
func (r *reader) octets() []byte {
	e := r.next()
	if r.err == nil && e.kind != octets {
		r.fail(errStructure)
	}
	if len(e.bytes) == 0 {
		return nil
	}
	return e.bytes
}

// integer returns the number that e holds, as magnitude and sign. Meters send fewer bytes than
// the type has where the number allows (SML 1.04, 6.3.2).
func (e element) integer() (negative bool, magnitude uint64, ok bool) {
	if e.kind != signed && e.kind != unsigned || len(e.bytes) == 0 || len(e.bytes) > 8 {
		return false, 0, false
	}
	var u uint64
	for _, c := range e.bytes {
		u = u<<8 | uint64(c)
	}
	if e.kind == signed && e.bytes[0] >= 0x80 {
		spare := 64 - 8*len(e.bytes)
		return true, -uint64(int64(u<<spare) >> spare), true
	}
	return false, u, true
}
