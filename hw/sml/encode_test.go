package sml_test

import (
	"encoding/binary"
	"slices"
)

// An encoder of SML, written after the grammar (SML 1.04, 5 and 6), to test the decoder with.

// header writes type and length of an element; extra counts the header in, as all but lists do.
func header(kind byte, length int, counts bool) []byte {
	n := 1
	for ; ; n++ {
		total := length
		if counts {
			total += n
		}
		if total < 1<<(4*n) {
			length = total
			break
		}
	}
	h := make([]byte, n)
	for i := range h {
		h[i] = byte(length>>(4*(n-1-i))) & 0xf
		if i < n-1 {
			h[i] |= 0x80
		}
	}
	h[0] |= kind << 4
	return h
}

func octets(b ...byte) []byte   { return append(header(0, len(b), true), b...) }
func text(s string) []byte      { return octets([]byte(s)...) }
func flag(b byte) []byte        { return []byte{0x42, b} }
func list(e ...[]byte) []byte   { return append(header(7, len(e), false), slices.Concat(e...)...) }
func seconds(n uint64) []byte   { return list(unsigned(1, 1), unsigned(4, n)) }
func timestamp(n uint64) []byte { return list(unsigned(1, 2), unsigned(4, n)) }

// unsigned and signed write a number of the given bytes, which may be fewer than it needs.
func unsigned(size int, n uint64) []byte { return number(6, size, n) }
func signed(size int, n int64) []byte    { return number(5, size, uint64(n)) }

func number(kind byte, size int, n uint64) []byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	return append(header(kind, size, true), b[8-size:]...)
}

// none is an optional element that is not there.
var none = octets()

// crcOf is a CRC of reflected bits, bit by bit.
func crcOf(init, xor uint16) func([]byte) uint16 {
	return func(data []byte) uint16 {
		crc := init
		for _, c := range data {
			crc ^= uint16(c)
			for range 8 {
				crc = crc>>1 ^ 0x8408&-(crc&1)
			}
		}
		return crc ^ xor
	}
}

var (
	x25    = crcOf(0xffff, 0xffff)
	kermit = crcOf(0, 0)
)

type sum func([]byte) uint16

// message wraps a body: transaction, group, abort on error, body, CRC with the low byte first,
// end.
func message(crc sum, tag uint64, body []byte) []byte {
	m := append([]byte{0x76}, slices.Concat(octets(0, 1, 2), unsigned(1, 0), unsigned(1, 0), list(unsigned(2, tag), body))...)
	c := crc(m)
	return append(m, 0x63, byte(c), byte(c>>8), 0x00)
}

// transmission wraps messages: escapes, fill, CRC.
func transmission(crc sum, messages ...[]byte) []byte {
	out := []byte{0x1b, 0x1b, 0x1b, 0x1b, 1, 1, 1, 1}
	run := 0
	for _, c := range slices.Concat(messages...) {
		out = append(out, c)
		if run++; c != 0x1b {
			run = 0
		}
		if run == 4 {
			out = append(out, 0x1b, 0x1b, 0x1b, 0x1b)
			run = 0
		}
	}
	fill := -len(out) & 3
	out = append(append(out, make([]byte, fill)...), 0x1b, 0x1b, 0x1b, 0x1b, 0x1a, byte(fill))
	return binary.LittleEndian.AppendUint16(out, crc(out))
}

// plate is a server id of DIN 43863-5: the medium electricity, the maker, a block and a number.
func plate(maker string, n uint32) []byte {
	id := append([]byte{0x0a, 0x01}, maker...)
	return binary.BigEndian.AppendUint32(append(id, 0), n)
}

func open(server []byte) []byte {
	return list(none, none, text("file"), octets(server...), none, none)
}

func values(server, time []byte, entries ...[]byte) []byte {
	return list(none, octets(server...), octets(1, 0, 98, 10, 255, 255), time, list(entries...), none, none)
}

var closing = list(none)

func entry(code [6]byte, status, time, unit, scaler, value []byte) []byte {
	return list(octets(code[:]...), status, time, unit, scaler, value, none)
}

func code(c, d, e byte) [6]byte { return [6]byte{1, 0, c, d, e, 255} }

func measured(c, d, e, unit byte, scaler int64, value []byte) []byte {
	return entry(code(c, d, e), none, none, unsigned(1, uint64(unit)), signed(1, scaler), value)
}

// file is the transmission of a meter: open, a list, close.
func file(crc sum, server, time []byte, entries ...[]byte) []byte {
	return transmission(crc, message(crc, 0x0101, open(server)), message(crc, 0x0701, values(server, time, entries...)), message(crc, 0x0201, closing))
}
