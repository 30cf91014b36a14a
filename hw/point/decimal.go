package point

import (
	"math"
	"strconv"
)

// maxExact is 2^53: every integer up to it is a float64, so that one division of it by an
// exact power of ten is rounded once, which is what "correctly rounded" means.
const maxExact = 1 << 53

// maxTens is the largest power of ten that is exactly a float64.
const maxTens = 22

var tens = [maxTens + 1]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}

// decimal is the number m × 10^e.
type decimal struct {
	m int64
	e int
}

// decimalOf returns the shortest decimal that reads back as f in a float of the given size,
// 32 or 64 bits. f must be finite.
func decimalOf(f float64, size int) decimal {
	var buf [32]byte
	return parseDecimal(strconv.AppendFloat(buf[:0], f, 'e', -1, size))
}

// parseDecimal reads what strconv writes in the format 'e': -d.dddde±dd, at most 17 digits.
func parseDecimal(s []byte) decimal {
	var d decimal
	negative, point := false, false
	for i, c := range s {
		switch {
		case c == '-':
			negative = true
		case c == '.':
			point = true
		case c == 'e':
			d.e += parseExponent(s[i+1:])
			if negative {
				d.m = -d.m
			}
			return d
		default:
			d.m = d.m*10 + int64(c-'0')
			if point {
				d.e--
			}
		}
	}
	return d
}

func parseExponent(s []byte) int {
	e := 0
	for _, c := range s[1:] {
		e = e*10 + int(c-'0')
	}
	if s[0] == '-' {
		return -e
	}
	return e
}

// float returns d as the nearest float64, and whether that could be had by one rounding.
func (d decimal) float() (float64, bool) {
	switch {
	case d.m > maxExact || d.m < -maxExact || d.e > maxTens || d.e < -maxTens:
		return 0, false
	case d.e < 0:
		return float64(d.m) / tens[-d.e], true
	}
	return float64(d.m) * tens[d.e], true
}

// shifted returns f × 10^n, |n| ≤ maxTens, rounded once.
func shifted(f float64, n int) float64 {
	if n < 0 {
		return f / tens[-n]
	}
	return f * tens[n]
}

// mul multiplies; ok is false where either factor or the product is not below ±2^62.
func mul(a, b int64) (product int64, ok bool) {
	const limit = 1<<62 - 1
	x, y := abs(a), abs(b)
	if x > limit || y > limit || x != 0 && y > limit/x {
		return 0, false
	}
	return a * b, true
}

func abs(a int64) uint64 {
	if a < 0 {
		return -uint64(a)
	}
	return uint64(a)
}

// shift returns a × 10^n for n ≥ 0; ok as with mul.
func shift(a int64, n int) (shifted int64, ok bool) {
	if a == 0 {
		return 0, true
	}
	if n > 18 {
		return 0, false
	}
	return mul(a, int64(tens[n]))
}

// linear is value = raw × scale + offset. Where scale and offset are decimals of few digits,
// which they are in every datasheet, they are kept as integers too:
// value = (raw × num + add) / 10^places.
type linear struct {
	scale, offset float64
	identity      bool
	exact         bool
	num, add      int64
	places        int
}

func newLinear(scale, offset float64) linear {
	l := linear{scale: scale, offset: offset, identity: scale == 1 && offset == 0}
	s, o := decimalOf(scale, 64), decimalOf(offset, 64)
	l.places = max(0, -s.e, -o.e)
	var ok1, ok2 bool
	l.num, ok1 = shift(s.m, s.e+l.places)
	l.add, ok2 = shift(o.m, o.e+l.places)
	l.exact = ok1 && ok2 && l.places <= maxTens
	return l
}

// apply returns raw × scale + offset, rounded once where the decimals fit, else as float64
// arithmetic has it.
func (l *linear) apply(raw decimal, approximate float64) float64 {
	if f, ok := l.applyExact(raw); ok {
		return f
	}
	return approximate*l.scale + l.offset
}

func (l *linear) applyExact(raw decimal) (float64, bool) {
	if !l.exact {
		return 0, false
	}
	up, down := max(0, raw.e), max(0, -raw.e)
	m, ok1 := shift(raw.m, up)
	m, ok2 := mul(m, l.num)
	add, ok3 := shift(l.add, down)
	if !ok1 || !ok2 || !ok3 {
		return 0, false
	}
	// Both summands are below ±2^62, so that the sum cannot overflow.
	return decimal{m: m + add, e: -(l.places + down)}.float()
}

// invert returns (value − offset) / scale / 10^exponent as the fraction num/den, den > 0; ok is
// false where it does not fit.
func (l *linear) invert(value decimal, exponent int) (num, den int64, ok bool) {
	if !l.exact {
		return 0, 0, false
	}
	up, down := max(0, value.e), max(0, -value.e)
	m, ok1 := shift(value.m, up)
	m, ok2 := shift(m, l.places)
	add, ok3 := shift(l.add, down)
	den, ok4 := shift(l.num, down)
	den, ok5 := shift(den, max(0, exponent))
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return 0, 0, false
	}
	num, ok = shift(m-add, max(0, -exponent))
	if den < 0 {
		num, den = -num, -den
	}
	return num, den, ok
}

// roundedQuotient returns num/den rounded to the nearest integer, halves away from zero.
func roundedQuotient(num, den int64) int64 {
	q, r := num/den, num%den
	if 2*abs(r) >= uint64(den) {
		if num < 0 {
			return q - 1
		}
		return q + 1
	}
	return q
}

// shortest returns the float64 that a float32 stands for: the integer it holds, or else the
// shortest decimal that reads back as the same float32: 230.1, not 230.10000610351562.
func shortest(f float32) float64 {
	exact := float64(f)
	if exact == math.Trunc(exact) && math.Abs(exact) < maxExact || math.IsNaN(exact) || math.IsInf(exact, 0) {
		return exact
	}
	if d, ok := decimalOf(exact, 32).float(); ok && float32(d) == f {
		return d
	}
	return exact
}

// shortestHalf is shortest for half precision; strconv knows no 16-bit floats.
func shortestHalf(h uint16) float64 {
	exact := halfToFloat(h)
	if exact == math.Trunc(exact) || math.IsNaN(exact) {
		return exact
	}
	var buf [32]byte
	for digits := range 5 {
		d, ok := parseDecimal(strconv.AppendFloat(buf[:0], exact, 'e', digits, 64)).float()
		if back, fits := halfOf(d); ok && fits && back == h {
			return d
		}
	}
	return exact
}

// halfToFloat widens an IEEE 754 binary16, exactly.
func halfToFloat(h uint16) float64 {
	exponent, fraction := int(h>>10&0x1f), float64(h&0x3ff)
	f := math.Ldexp(1024+fraction, exponent-25)
	switch exponent {
	case 0:
		f = math.Ldexp(fraction, -24)
	case 0x1f:
		f = math.Inf(1)
		if fraction != 0 {
			return math.NaN()
		}
	}
	if h&0x8000 != 0 {
		return -f
	}
	return f
}

// halfOf rounds f to an IEEE 754 binary16, ties to even; false where it is too large.
func halfOf(f float64) (uint16, bool) {
	var sign uint16
	if math.Signbit(f) {
		sign, f = 0x8000, -f
	}
	if f < 0x1p-14 { // a multiple of 2^-24; rounding up to the first normal number is right too
		return sign | uint16(math.RoundToEven(f*0x1p24)), true
	}
	_, e := math.Frexp(f) // f = x × 2^e with ½ ≤ x < 1
	if e > 16 || math.IsInf(f, 0) || math.IsNaN(f) {
		return 0, false
	}
	m := math.RoundToEven(math.Ldexp(f, 11-e))  // 1024 … 2048
	bits := uint32(e+14)<<10 + uint32(m) - 1024 // a carry moves into the exponent
	return sign | uint16(bits), bits < 0x1f<<10 // 65520 and above are too large
}
