package point

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// Encode returns the registers that make Decode return v, in the order of the wire; for the
// type bit one word, 0 or 1. Types that share their register come in place, the rest zero
// (see Mask).
//
// Integer types take the nearest integer to (v − offset) / scale, halves away from zero: 12.25
// at a scale of 0.1 is written as 123. What does not fit the type, or stands for no value there,
// is ErrRange, never clipped. A bit takes a bool, 0 or 1; text must not be longer than the type,
// and is filled up with NUL. The wrong kind of value is ErrKind.
//
// A name of Values stands for its number, the smallest if several have it; numbers are taken too,
// named or not. Flags take what Decode returns, in any order, or a number.
func (c *Codec) Encode(v Value) ([]uint16, error) { return c.encode(v, factor{}) }

// EncodeScaled is Encode for a point whose unit says the power of ten itself; see DecodeScaled.
func (c *Codec) EncodeScaled(v Value, exponent int16) ([]uint16, error) {
	f, err := c.factor(exponent)
	if err != nil {
		return nil, err
	}
	return c.encode(v, f)
}

func (c *Codec) encode(v Value, f factor) ([]uint16, error) {
	if c.typ.kind == text {
		return c.encodeText(v)
	}
	if c.typ.ReadOnly() {
		return nil, fmt.Errorf("%w: %s, bits of two registers, can only be read", ErrKind, c.typ)
	}
	u, err := c.bitsOf(v, f)
	if err == nil && slices.Contains(c.nan, u) {
		err = fmt.Errorf("%w: %s would be written as what stands for no value", ErrRange, v)
	}
	if err != nil {
		return nil, err
	}
	return c.split(u << c.typ.low), nil
}

// bitsOf returns the bits of the point that say v.
func (c *Codec) bitsOf(v Value, f factor) (uint64, error) {
	if name, ok := v.Text(); ok && c.named() {
		return c.bitsOfName(name)
	}
	switch {
	case c.typ.kind == bit || c.typ.kind == registerBit:
		x, ok := v.Float64()
		if !ok || x != 0 && x != 1 {
			return 0, fmt.Errorf("%w: %s for a bit, which is true or false", ErrKind, v)
		}
		return uint64(x), nil
	case v.kind == KindBool || v.kind == KindString || v.kind == KindTime || v.kind == None:
		return 0, fmt.Errorf("%w: a %s for a number", ErrKind, v.kind)
	case c.typ.kind == float:
		return c.floatBits(v, f)
	}
	negative, magnitude, err := c.rawInteger(v, f)
	if err == nil && !c.typ.fits(negative, magnitude) {
		err = c.outOfRange(v)
	}
	return c.typ.integerBits(negative, magnitude), err
}

func (c *Codec) outOfRange(v Value) error {
	return fmt.Errorf("%w: %s does not fit %s", ErrRange, v, c.typ)
}

// integerBits returns the bits of an integer that fits the type.
func (t Type) integerBits(negative bool, magnitude uint64) uint64 {
	switch {
	case t.kind == bcd:
		return encodeBCD(magnitude)
	case negative:
		return -magnitude & (1<<t.size - 1)
	}
	return magnitude
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
func (c *Codec) rawInteger(v Value, f factor) (negative bool, magnitude uint64, err error) {
	if c.linear.identity && f.exponent == 0 && v.kind != KindFloat {
		if i := int64(v.bits); v.kind == KindInt {
			return i < 0, abs(i), nil
		}
		return false, v.bits, nil
	}
	if d, ok := decimalValue(v); ok {
		if num, den, ok := c.linear.invert(d, f.exponent); ok {
			q := roundedQuotient(num, den)
			return q < 0, abs(q), nil
		}
	}
	raw := math.Round(c.approximateRaw(v, f))
	if !(math.Abs(raw) < 0x1p64) { // too large, or not a number
		return false, 0, c.outOfRange(v)
	}
	return raw < 0, uint64(math.Abs(raw)), nil
}

// approximateRaw undoes scale, offset and exponent as float64 arithmetic has it.
func (c *Codec) approximateRaw(v Value, f factor) float64 {
	x, _ := v.Float64()
	return shifted((x-c.linear.offset)/c.linear.scale, -f.exponent)
}

// fits reports whether the integer is one of the type.
func (t Type) fits(negative bool, magnitude uint64) bool {
	switch {
	case t.kind == signed && negative:
		return magnitude <= 1<<(t.size-1)
	case t.kind == signed:
		return magnitude < 1<<(t.size-1)
	case negative && magnitude != 0:
		return false
	case t.kind == bcd:
		return magnitude < uint64(tens[t.size/4])
	}
	return t.size == 64 || magnitude < 1<<t.size
}

func (c *Codec) floatBits(v Value, f factor) (uint64, error) {
	raw := c.approximateRaw(v, f)
	if d, ok := decimalValue(v); ok && !(c.linear.identity && f.exponent == 0) {
		if num, den, ok := c.linear.invert(d, f.exponent); ok && abs(num) <= maxExact && den <= maxExact {
			raw = float64(num) / float64(den)
		}
	}
	u, fits := bitsOfFloat(raw, c.typ.size)
	if !fits {
		return 0, c.outOfRange(v)
	}
	return u, nil
}

// bitsOfFloat rounds f to a float of the size; false where it is too large, or no number.
func bitsOfFloat(f float64, size uint8) (uint64, bool) {
	fits := !math.IsNaN(f) && !math.IsInf(f, 0)
	switch size {
	case 16:
		half, ok := halfOf(f)
		return uint64(half), fits && ok
	case 32:
		single := float32(f)
		return uint64(math.Float32bits(single)), fits && !math.IsInf(float64(single), 0)
	}
	return math.Float64bits(f), fits
}

func encodeBCD(n uint64) uint64 {
	var u uint64
	for i := 0; n > 0; i += 4 {
		u |= n % 10 << i
		n /= 10
	}
	return u
}
