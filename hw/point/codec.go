package point

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
)

// Codec reads and writes one point. Build it with NewCodec; it is immutable.
type Codec struct {
	typ    Type
	order  Order
	linear linear
}

// NewCodec returns the codec of a point of type t whose bytes stand in order o and whose
// value is raw × scale + offset. Text and bits take no scale but 1 and no offset but 0.
func NewCodec(t Type, o Order, scale, offset float64) (Codec, error) {
	switch {
	case t.kind == 0:
		return Codec{}, errors.New("the type is invalid")
	case scale == 0 || math.IsNaN(scale) || math.IsInf(scale, 0):
		return Codec{}, fmt.Errorf("scale %v is no factor", scale)
	case math.IsNaN(offset) || math.IsInf(offset, 0):
		return Codec{}, fmt.Errorf("offset %v is no number", offset)
	case !t.Numeric() && (scale != 1 || offset != 0):
		return Codec{}, fmt.Errorf("scale and offset have no meaning for the type %s", t)
	}
	if t.kind == bit {
		o = ABCD
	}
	return Codec{typ: t, order: o, linear: newLinear(scale, offset)}, nil
}

// Type returns the type of the point.
func (c *Codec) Type() Type { return c.typ }

// Mask returns the bits of its one register that the point occupies; 0xFFFF for all types
// that fill their registers. The others are written by a masked write.
func (c *Codec) Mask() uint16 {
	m := c.typ.mask()
	if c.order.bytesSwapped() {
		return bits.ReverseBytes16(m)
	}
	return m
}

// Decode reads the value from raw, the bytes of the point's registers as they stood on the
// wire; for the type bit, raw[0]&1 is the coil. Numbers cost no allocation.
//
// With scale 1 and offset 0, integers stay exact int64 (signed) and uint64 (unsigned, BCD).
// All other numbers become float64, rounded once wherever raw, scale and offset fit 53 bits
// as decimals. A float32 counts as the shortest decimal that names it. NaN and the infinities
// are ErrNaN, a BCD nibble above 9 is ErrDigit.
func (c *Codec) Decode(raw []byte) (Value, error) {
	need := 2 * c.typ.Registers()
	if c.typ.kind == bit {
		need = 1
	}
	if len(raw) < need {
		return Value{}, fmt.Errorf("%d bytes are too few for %s", len(raw), c.typ)
	}
	switch c.typ.kind {
	case bit:
		return Bool(raw[0]&1 == 1), nil
	case text:
		return String(c.decodeText(raw)), nil
	}
	u := c.assemble(raw)
	switch c.typ.kind {
	case registerBit:
		return Bool(u>>c.typ.size&1 == 1), nil
	case float:
		return c.decodeFloat(u)
	case bcd:
		n, err := decodeBCD(u)
		if err != nil {
			return Value{}, err
		}
		return c.unsigned(n)
	}
	if c.typ.high {
		u >>= 8
	}
	spare := 64 - c.typ.size
	if c.typ.kind == signed {
		return c.signed(int64(u<<spare) >> spare)
	}
	return c.unsigned(u << spare >> spare)
}

// assemble puts the registers of a number together, most significant first.
func (c *Codec) assemble(raw []byte) uint64 {
	var u uint64
	n := c.typ.Registers()
	for i := range n {
		word := uint64(raw[2*i])<<8 | uint64(raw[2*i+1])
		if c.order.bytesSwapped() {
			word = word>>8 | word<<8&0xff00
		}
		if c.order.wordsReversed() {
			u |= word << (16 * i)
		} else {
			u = u<<16 | word
		}
	}
	return u
}

func (c *Codec) signed(i int64) (Value, error) {
	if c.linear.identity {
		return Int(i), nil
	}
	return Float(c.linear.apply(decimal{m: i}, float64(i)))
}

func (c *Codec) unsigned(u uint64) (Value, error) {
	switch {
	case c.linear.identity:
		return Uint(u), nil
	case u > math.MaxInt64:
		return Float(float64(u)*c.linear.scale + c.linear.offset)
	}
	return Float(c.linear.apply(decimal{m: int64(u)}, float64(u)))
}

func (c *Codec) decodeFloat(u uint64) (Value, error) {
	var f float64
	switch c.typ.size {
	case 16:
		f = shortestHalf(uint16(u))
	case 32:
		f = shortest(math.Float32frombits(uint32(u)))
	default:
		f = math.Float64frombits(u)
	}
	if c.linear.identity || math.IsNaN(f) || math.IsInf(f, 0) {
		return Float(f)
	}
	return Float(c.linear.apply(decimalOf(f, 64), f))
}

func decodeBCD(u uint64) (uint64, error) {
	var n uint64
	for i := 28; i >= 0; i -= 4 {
		digit := u >> i & 0xf
		if digit > 9 {
			return 0, ErrDigit
		}
		n = n*10 + digit
	}
	return n, nil
}

// decodeText returns the text up to the first NUL without trailing spaces.
func (c *Codec) decodeText(raw []byte) string {
	var buf [maxText]byte
	n := copy(buf[:2*c.typ.Registers()], raw)
	if c.order.bytesSwapped() {
		for i := 0; i < n; i += 2 {
			buf[i], buf[i+1] = buf[i+1], buf[i]
		}
	}
	s, _, _ := strings.Cut(string(buf[:c.typ.size]), "\x00")
	return strings.TrimRight(s, " ")
}

// Encode returns the registers that make Decode return v, in the order of the wire; for the
// type bit one word, 0 or 1. Types that share their register come in place, the rest zero
// (see Mask).
//
// Integer types take the nearest integer to (v − offset) / scale, halves away from zero: 12.25
// at a scale of 0.1 is written as 123. What does not fit the type is ErrRange, never clipped.
// A bit takes a bool, 0 or 1; text must not be longer than the type, and is filled up with
// NUL. The wrong kind of value is ErrKind.
func (c *Codec) Encode(v Value) ([]uint16, error) {
	switch c.typ.kind {
	case bit, registerBit:
		return c.encodeBit(v)
	case text:
		return c.encodeText(v)
	}
	if v.kind == KindBool || v.kind == KindString || v.kind == KindTime || v.kind == None {
		return nil, fmt.Errorf("%w: a %s for a number", ErrKind, v.kind)
	}
	if c.typ.kind == float {
		u, err := c.encodeFloat(v)
		if err != nil {
			return nil, err
		}
		return c.split(u), nil
	}
	negative, magnitude, err := c.rawInteger(v)
	if err == nil && !c.fits(negative, magnitude) {
		err = fmt.Errorf("%w: %s does not fit %s", ErrRange, v, c.typ)
	}
	if err != nil {
		return nil, err
	}
	u := magnitude
	switch {
	case c.typ.kind == bcd:
		u = encodeBCD(magnitude)
	case negative:
		u = -magnitude
	}
	if c.typ.size == 8 {
		u &= 0xff
	}
	if c.typ.high {
		u <<= 8
	}
	return c.split(u), nil
}

// split is the inverse of assemble.
func (c *Codec) split(u uint64) []uint16 {
	words := make([]uint16, c.typ.Registers())
	for i := range words {
		place := len(words) - 1 - i
		if c.order.wordsReversed() {
			place = i
		}
		words[i] = uint16(u >> (16 * place))
		if c.order.bytesSwapped() {
			words[i] = bits.ReverseBytes16(words[i])
		}
	}
	return words
}

func (c *Codec) encodeBit(v Value) ([]uint16, error) {
	f, ok := v.Float64()
	if !ok || f != 0 && f != 1 {
		return nil, fmt.Errorf("%w: %s for a bit, which is true or false", ErrKind, v)
	}
	return c.split(uint64(f) << c.typ.size), nil
}

func (c *Codec) encodeText(v Value) ([]uint16, error) {
	s, ok := v.Text()
	if !ok {
		return nil, fmt.Errorf("%w: a %s for text", ErrKind, v.kind)
	}
	if len(s) > int(c.typ.size) {
		return nil, fmt.Errorf("%w: text of %d bytes for %s", ErrRange, len(s), c.typ)
	}
	words := make([]uint16, c.typ.Registers())
	for i := range len(s) {
		words[i/2] |= uint16(s[i]) << (8 - i%2*8)
	}
	if c.order.bytesSwapped() {
		for i := range words {
			words[i] = bits.ReverseBytes16(words[i])
		}
	}
	return words, nil
}

// decimalValue returns v as a decimal; false where it is beyond int64.
func decimalValue(v Value) (decimal, bool) {
	if i, ok := v.Int64(); ok {
		return decimal{m: i}, true
	}
	if v.kind != KindFloat {
		return decimal{}, false
	}
	return decimalOf(math.Float64frombits(v.bits), 64), true
}

// rawInteger returns the integer whose scaled value is nearest to v.
func (c *Codec) rawInteger(v Value) (negative bool, magnitude uint64, err error) {
	if c.linear.identity && v.kind != KindFloat {
		if i := int64(v.bits); v.kind == KindInt {
			return i < 0, abs(i), nil
		}
		return false, v.bits, nil
	}
	if d, ok := decimalValue(v); ok {
		if num, den, ok := c.linear.invert(d); ok {
			q := roundedQuotient(num, den)
			return q < 0, abs(q), nil
		}
	}
	f, _ := v.Float64()
	raw := math.Round((f - c.linear.offset) / c.linear.scale)
	if !(math.Abs(raw) < 0x1p64) { // too large, or not a number
		return false, 0, fmt.Errorf("%w: %s does not fit %s", ErrRange, v, c.typ)
	}
	return raw < 0, uint64(math.Abs(raw)), nil
}

// fits reports whether the integer is one of the type.
func (c *Codec) fits(negative bool, magnitude uint64) bool {
	size := c.typ.size
	switch {
	case c.typ.kind == bcd:
		return magnitude == 0 || !negative && magnitude <= [...]uint64{16: 9999, 32: 99999999}[size]
	case c.typ.kind == signed && negative:
		return magnitude <= 1<<(size-1)
	case c.typ.kind == signed:
		return magnitude < 1<<(size-1)
	}
	return magnitude == 0 || !negative && (size == 64 || magnitude < 1<<size)
}

func (c *Codec) encodeFloat(v Value) (uint64, error) {
	f, _ := v.Float64()
	raw := (f - c.linear.offset) / c.linear.scale
	if d, ok := decimalValue(v); ok && !c.linear.identity {
		if num, den, ok := c.linear.invert(d); ok && abs(num) <= maxExact && den <= maxExact {
			raw = float64(num) / float64(den)
		}
	}
	var u uint64
	fits := !math.IsNaN(raw) && !math.IsInf(raw, 0)
	switch c.typ.size {
	case 16:
		half, ok := halfOf(raw)
		u, fits = uint64(half), fits && ok
	case 32:
		single := float32(raw)
		u, fits = uint64(math.Float32bits(single)), fits && !math.IsInf(float64(single), 0)
	default:
		u = math.Float64bits(raw)
	}
	if !fits {
		return 0, fmt.Errorf("%w: %s does not fit %s", ErrRange, v, c.typ)
	}
	return u, nil
}

func encodeBCD(n uint64) uint64 {
	var u uint64
	for i := 0; n > 0; i += 4 {
		u |= n % 10 << i
		n /= 10
	}
	return u
}

// OrderedValue is one way to read the same bytes.
type OrderedValue struct {
	Order Order
	Value Value // nothing where the bytes hold no value in this order
	Err   error // why not
}

// Orders returns what raw reads as in every byte order, so that a person can pick the one
// that makes sense. Orders that always say the same as an earlier one are left out: a uint16
// has two, a coil one.
func Orders(raw []byte, t Type) []OrderedValue {
	var all []OrderedValue
	for o := ABCD; o <= DCBA; o++ {
		if t.kind == bit && o != ABCD || (t.Registers() == 1 || t.kind == text) && o.wordsReversed() {
			continue
		}
		reading := OrderedValue{Order: o}
		c, err := NewCodec(t, o, 1, 0)
		if err == nil {
			reading.Value, err = c.Decode(raw)
		}
		reading.Err = err
		all = append(all, reading)
	}
	return all
}
