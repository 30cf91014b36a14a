// Package vedirect decodes the text blocks of Victron's VE.Direct ports. The trap is the hex
// message, which may stand in the middle of a block and counts for nothing in its checksum.
package vedirect

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"strconv"

	"ferrule/hw/point"
)

// ErrBlock says that the bytes are no text block.
var ErrBlock = errors.New("the bytes are no text block")

// ErrChecksum says that the sum of a block is not 0. Split hands out no such block.
var ErrChecksum = errors.New("the checksum of the block is wrong")

// ErrField says that a line of a block is no label with a value.
var ErrField = errors.New("a field has no label or no value")

const (
	maxLabel = 16 // the protocol has 8
	maxValue = 64 // the protocol has 32
	// maxDigits keeps numbers exact: below 2^53, and no overflow.
	maxDigits = 15
)

// Decoder decodes blocks that Split cut. It holds only words, so that they are made once. The
// zero Decoder is ready; one goroutine may use it.
type Decoder struct {
	words point.Strings
	text  []byte // a block without hex messages
	key   []byte // for words that are made of several
}

// Decode appends the readings of one block to dst. The name is always "": one product speaks on a
// port, and its second block, where it has one, does not say which; "product_id" does.
//
// Numbers are in the units of measure that people use (V, A, Ah, W, kWh) and float64; counts are
// int64; on and off are bool; states are words, or the number where it has no word; sets of
// reasons are words joined by commas, "none" for the empty set. A label that is not known is a
// point of the same name, and its value text. What the product marks as not available, and an
// infinite time to go, is bad as "nan".
func (d *Decoder) Decode(dst []point.Reading, frame []byte) (name string, readings []point.Reading, err error) {
	end, sum := block(frame)
	if end == 0 || end != len(frame) {
		return "", dst, ErrBlock
	}
	rest, begun := bytes.CutPrefix(d.strip(frame), []byte("\r\n"))
	switch {
	case !begun:
		return "", dst, ErrBlock
	case sum != 0:
		return "", dst, ErrChecksum
	}
	for readings = dst; ; {
		line, after, more := bytes.Cut(rest, []byte("\r\n"))
		if !more { // the checksum is the last, and may be any byte
			return "", readings, nil
		}
		what, value, ok := bytes.Cut(line, []byte{'\t'})
		if !ok || len(what) == 0 || len(what) > maxLabel || len(value) > maxValue {
			return "", dst, ErrField
		}
		if len(value) > 0 {
			readings = append(readings, d.reading(what, value))
		}
		rest = after
	}
}

// strip returns the text of a block without hex messages and without the checksum itself, which
// might look like anything.
func (d *Decoder) strip(block []byte) []byte {
	lines := block[:len(block)-1]
	if bytes.IndexByte(lines, ':') < 0 {
		return lines
	}
	d.text = d.text[:0]
	hex := false
	for _, c := range lines {
		if hex {
			if hex = isHex(c); hex || c == '\n' {
				continue
			}
		}
		if c == ':' {
			hex = true
			continue
		}
		d.text = append(d.text, c)
	}
	return d.text
}

func (d *Decoder) reading(what, value []byte) point.Reading {
	l, known := labels[string(what)]
	if !known {
		return point.Reading{Point: d.words.Of(what), Value: point.String(d.words.Of(value))}
	}
	r := point.Reading{Point: l.point, Uom: l.uom}
	if len(bytes.Trim(value, "-")) == 0 {
		r.Bad = "nan"
		return r
	}
	ok := true
	switch l.kind {
	case kText:
		r.Value = point.String(d.words.Of(value))
	case kSwitch:
		on := bytes.EqualFold(value, []byte("ON"))
		ok = on || bytes.EqualFold(value, []byte("OFF"))
		r.Value = point.Bool(on)
	default:
		var n int64
		if n, ok = integer(value); ok {
			r.Value = d.number(&l, n)
		}
		if l.point == "time_to_go" && n == -1 {
			r.Value, r.Bad = point.Value{}, "nan"
		}
	}
	if !ok {
		r.Value, r.Bad = point.Value{}, "invalid"
	}
	return r
}

// number returns the value that a number stands for.
func (d *Decoder) number(l *label, n int64) point.Value {
	switch l.kind {
	case kWord:
		if word, ok := l.words[n]; ok {
			return point.String(word)
		}
	case kBits:
		return point.String(d.set(l.words, uint64(n)))
	case kNumber:
		// Both operands are exact, so that the one division rounds to the nearest float64.
		tens := [...]float64{1, 10, 100, 1000}
		v, _ := point.Float(float64(n) / tens[l.places]) // finite
		return v
	}
	return point.Int(n)
}

// set names the bits of a number; a bit that has no word is written in hex.
func (d *Decoder) set(words map[int64]string, set uint64) string {
	if set == 0 {
		return "none"
	}
	d.key = d.key[:0]
	for ; set != 0; set &= set - 1 {
		if len(d.key) > 0 {
			d.key = append(d.key, ',')
		}
		bit := int64(1) << bits.TrailingZeros64(set)
		if word, ok := words[bit]; ok {
			d.key = append(d.key, word...)
		} else {
			d.key = fmt.Appendf(d.key, "0x%x", uint64(bit))
		}
	}
	return d.words.Of(d.key)
}

// integer reads a whole number, decimal with a sign or, as in PID and OR, 0x and hex.
func integer(b []byte) (int64, bool) {
	if len(b) > 2 && b[0] == '0' && b[1]|0x20 == 'x' {
		u, err := strconv.ParseUint(string(b[2:]), 16, 32)
		return int64(u), err == nil
	}
	negative := b[0] == '-'
	if negative || b[0] == '+' {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > maxDigits {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if negative {
		n = -n
	}
	return n, true
}
