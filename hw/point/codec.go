package point

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// Spec says how a point is read and written.
type Spec struct {
	Type  Type
	Order Order
	// The value is raw × Scale + Offset. Scale 0 counts as 1. Text, bits and flags have neither.
	Scale, Offset float64
	// NaN is what the registers hold when there is no value: "0x8000", all the bits of the point
	// once its bytes are in order, or the number before scale and offset: "-32768".
	NaN []string
	// Values names numbers before scale and offset, decimal or 0x…; see Codec.Decode.
	Values map[string]string
	// Flags names bits, 0 the least significant of the point.
	Flags map[string]string
}

// SpecError is a mistake in a Spec; Key is how the configuration calls what is wrong: "type",
// "scale", "offset", "nan", "values" or "flags".
type SpecError struct {
	Key string
	Err error
}

func (e *SpecError) Error() string { return e.Key + ": " + e.Err.Error() }

// Unwrap is Err.
func (e *SpecError) Unwrap() error { return e.Err }

func wrong(key, format string, args ...any) error {
	return &SpecError{Key: key, Err: fmt.Errorf(format, args...)}
}

// Codec reads and writes one point. Build it with NewCodec; it is immutable.
type Codec struct {
	typ    Type
	order  Order
	linear linear
	nan    []uint64         // bits that stand for no value
	values map[int64]string // names of numbers
	flags  []string         // names of bits, "" for those without; nil: the value is a number
}

// NewCodec returns the codec of s. Errors are *SpecError.
func NewCodec(s Spec) (Codec, error) {
	if s.Scale == 0 {
		s.Scale = 1
	}
	t := s.Type
	switch {
	case t.kind == 0:
		return Codec{}, &SpecError{"type", errors.New("the type is invalid")}
	case math.IsNaN(s.Scale) || math.IsInf(s.Scale, 0):
		return Codec{}, wrong("scale", "%v is no factor", s.Scale)
	case math.IsNaN(s.Offset) || math.IsInf(s.Offset, 0):
		return Codec{}, wrong("offset", "%v is no number", s.Offset)
	case !t.Numeric() && (s.Scale != 1 || s.Offset != 0):
		return Codec{}, wrong("scale", "scale and offset have no meaning for the type %s", t)
	case len(s.Flags) > 0 && (s.Scale != 1 || s.Offset != 0):
		return Codec{}, wrong("scale", "scale and offset have no meaning for flags")
	}
	if t.kind == bit {
		s.Order = ABCD
	}
	c := Codec{typ: t, order: s.Order, linear: newLinear(s.Scale, s.Offset)}
	if err := c.setNaN(s.NaN); err != nil {
		return Codec{}, err
	}
	if err := c.setNames(s.Values, s.Flags); err != nil {
		return Codec{}, err
	}
	return c, nil
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

// factor is the power of ten that a register of the unit holds.
type factor struct {
	exponent int
	used     bool // there is such a register
}

// Decode reads the value from raw, the bytes of the point's registers as they stood on the
// wire; for the type bit, raw[0]&1 is the coil. Numbers cost no allocation, and neither do
// their names.
//
// With scale 1 and offset 0, integers stay exact int64 (signed) and uint64 (unsigned, BCD).
// All other numbers become float64, rounded once wherever raw, scale and offset fit 53 bits
// as decimals. A float32 counts as the shortest decimal that names it. NaN, the infinities and
// what the Spec says stands for no value are ErrNaN, a BCD nibble above 9 is ErrDigit.
//
// A number or bit that has a name in Values becomes that text. With Flags the value is always
// text: the names of the bits that are set, the least significant first, joined by commas, "bit5"
// for one without a name; "" when none is set.
func (c *Codec) Decode(raw []byte) (Value, error) { return c.decode(raw, factor{}) }

// MaxExponent is the largest exponent of a scale factor, and -MaxExponent the smallest (SunSpec
// Device Information Model Specification, sunssf).
const MaxExponent = 10

// DecodeScaled is Decode for a point whose unit says the power of ten itself, in another register:
// the value is raw × 10^exponent × scale + offset, always a float64, since the exponent may change.
// The exponent 0x8000, "not implemented", is ErrNaN; one beyond ±MaxExponent ErrRange; and ErrKind
// says that the point is no number.
func (c *Codec) DecodeScaled(raw []byte, exponent int16) (Value, error) {
	f, err := c.factor(exponent)
	if err != nil {
		return Value{}, err
	}
	return c.decode(raw, f)
}

func (c *Codec) factor(exponent int16) (factor, error) {
	switch {
	case exponent == math.MinInt16:
		return factor{}, ErrNaN
	case exponent > MaxExponent || exponent < -MaxExponent:
		return factor{}, fmt.Errorf("%w: the exponent %d of the scale factor", ErrRange, exponent)
	case !c.typ.Numeric() || c.flags != nil:
		return factor{}, fmt.Errorf("%w: %s has no scale factor", ErrKind, c.typ)
	}
	return factor{int(exponent), true}, nil
}

// Convert turns a value that was read already, by a decoder of text or telegrams, into the value of
// the point: Values, Flags, Scale and Offset hold, and NaN where the type is float64. Type and
// order play no other part. ErrKind says that there is something to scale and no number.
func (c *Codec) Convert(v Value) (Value, error) {
	f, isNumber := v.Float64()
	switch {
	case isNumber && c.typ == Float64() && slices.Contains(c.nan, math.Float64bits(f)):
		return Value{}, ErrNaN
	case v.kind == KindInt && c.flags == nil:
		return c.signed(int64(v.bits), factor{})
	case v.kind == KindUint && c.flags == nil:
		return c.unsigned(v.bits, factor{})
	case v.kind == KindInt || v.kind == KindUint:
		return String(c.flagNames(v.bits)), nil
	case v.kind == KindFloat:
		return c.float(f, factor{})
	case v.kind == KindBool && c.values != nil:
		return c.boolean(v.bits), nil
	case !c.linear.identity:
		return Value{}, fmt.Errorf("%w: a %s has no scale and offset", ErrKind, v.kind)
	}
	return v, nil
}

func (c *Codec) decode(raw []byte, f factor) (Value, error) {
	need := 2 * c.typ.Registers()
	if c.typ.kind == bit {
		need = 1
	}
	if len(raw) < need {
		return Value{}, fmt.Errorf("%d bytes are too few for %s", len(raw), c.typ)
	}
	if c.typ.kind == text {
		return String(c.decodeText(raw)), nil
	}
	u := c.pattern(raw)
	switch {
	case c.nan != nil && slices.Contains(c.nan, u):
		return Value{}, ErrNaN
	case c.flags != nil:
		return String(c.flagNames(u)), nil
	}
	switch c.typ.kind {
	case bit, registerBit:
		return c.boolean(u), nil
	case float:
		return c.float(floatOf(u, c.typ.size), f)
	case signed:
		spare := 64 - c.typ.size
		return c.signed(int64(u<<spare)>>spare, f)
	case bcd:
		n, err := decodeBCD(u)
		if err != nil {
			return Value{}, err
		}
		u = n
	}
	return c.unsigned(u, f)
}

// pattern returns the bits of the point, the least significant lowest, and nothing else.
func (c *Codec) pattern(raw []byte) uint64 {
	if c.typ.kind == bit {
		return uint64(raw[0] & 1)
	}
	return c.assemble(raw) >> c.typ.low & (1<<c.typ.size - 1)
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

func (c *Codec) boolean(u uint64) Value {
	if name, ok := c.values[int64(u)]; ok {
		return String(name)
	}
	return Bool(u == 1)
}

func (c *Codec) signed(i int64, f factor) (Value, error) {
	if name, ok := c.values[i]; ok {
		return String(name), nil
	}
	if c.linear.identity && !f.used {
		return Int(i), nil
	}
	return Float(c.linear.apply(decimal{m: i, e: f.exponent}, shifted(float64(i), f.exponent)))
}

func (c *Codec) unsigned(u uint64, f factor) (Value, error) {
	if name, ok := c.values[int64(u)]; ok {
		return String(name), nil
	}
	switch {
	case c.linear.identity && !f.used:
		return Uint(u), nil
	case u > math.MaxInt64:
		return Float(shifted(float64(u), f.exponent)*c.linear.scale + c.linear.offset)
	}
	return Float(c.linear.apply(decimal{m: int64(u), e: f.exponent}, shifted(float64(u), f.exponent)))
}

func (c *Codec) float(x float64, f factor) (Value, error) {
	if c.values != nil && x == math.Trunc(x) && math.Abs(x) < maxExact {
		if name, ok := c.values[int64(x)]; ok {
			return String(name), nil
		}
	}
	if c.linear.identity && !f.used || math.IsNaN(x) || math.IsInf(x, 0) {
		return Float(x)
	}
	d := decimalOf(x, 64)
	d.e += f.exponent
	return Float(c.linear.apply(d, shifted(x, f.exponent)))
}

// floatOf reads the bits of a float as people mean it: the shortest decimal that names it.
func floatOf(u uint64, size uint8) float64 {
	switch size {
	case 16:
		return shortestHalf(uint16(u))
	case 32:
		return shortest(math.Float32frombits(uint32(u)))
	}
	return math.Float64frombits(u)
}

func decodeBCD(u uint64) (uint64, error) {
	var n uint64
	for i := 60; i >= 0; i -= 4 {
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
		c, err := NewCodec(Spec{Type: t, Order: o})
		if err == nil {
			reading.Value, err = c.Decode(raw)
		}
		reading.Err = err
		all = append(all, reading)
	}
	return all
}
