package mbus

import (
	"encoding/hex"
	"math"
	"slices"
	"strconv"

	"ferrule/hw/point"
)

// What a reading without a value says (point.Reading.Bad).
const (
	badNaN     = "nan"
	badInvalid = "invalid"
)

// decoded is what the data of a record is: a value, the reason why there is none, or neither.
type decoded struct {
	value point.Value
	bad   string
}

func invalid() decoded { return decoded{bad: badInvalid} }

// value reads the data of b. msb says that its most significant byte comes first.
func (d *Decoder) value(m *meaning, b *block, msb bool) decoded {
	data := b.data
	if msb && b.field != difSpecial {
		d.turned = append(d.turned[:0], data...)
		slices.Reverse(d.turned)
		data = d.turned
	}
	switch {
	case m.bad != "":
		return decoded{bad: m.bad}
	case b.field == difSpecial || b.field == fieldNone || b.field == fieldReadout:
		if len(data) == 0 {
			return decoded{}
		}
		return decoded{value: d.hex(data, false)}
	case b.field == fieldVar:
		return d.variable(m, b.lvar, data)
	case m.coding == opaque:
		return decoded{value: d.hex(data, true)}
	case m.coding == moment:
		if b.field >= fieldReal && b.field != 6 { // reals, 64 bits, BCD
			return invalid()
		}
		return decodeTime(data)
	case b.field == fieldReal:
		return m.real(float64(math.Float32frombits(uint32(littleEndian(data, false)))), 32)
	case b.field >= fieldBCD:
		return m.bcd(data, false)
	}
	return m.integer(data)
}

// variable reads data of variable length (EN 13757-3, table 6).
func (d *Decoder) variable(m *meaning, lvar byte, data []byte) decoded {
	switch {
	case lvar <= 0xBF:
		return decoded{value: point.String(d.latin1(data))}
	case m.coding == opaque || lvar > 0xE8 && lvar != lvarReal:
		return decoded{value: d.hex(data, true)}
	case m.coding == moment:
		return decodeTime(data)
	case len(data) == 0:
		return decoded{}
	case lvar <= 0xC9:
		return m.bcd(data, false)
	case lvar <= 0xD9:
		return m.bcd(data, true)
	case lvar == lvarReal:
		return m.real(math.Float64frombits(littleEndian(data, false)), 64)
	}
	return m.integer(data)
}

// integer reads a binary number: type B, signed, whose least value means that there is none, or
// type C and D, unsigned (EN 13757-3, annex A).
func (m *meaning) integer(data []byte) decoded {
	u := littleEndian(data, false)
	if m.coding == bits {
		if m.exp == 0 && m.mult == 1 && m.thousandth == 0 || u > math.MaxInt64 {
			return decoded{value: point.Uint(u)}
		}
		return m.scale(int64(u), 0)
	}
	spare := 64 - 8*len(data)
	i := int64(u<<spare) >> spare
	if i == math.MinInt64>>spare {
		return decoded{bad: badNaN}
	}
	return m.scale(i, 0)
}

// bcd reads type A: two digits a byte, F as the first digit being a minus. Any other digit above 9
// is what meters send for a value that they do not have.
func (m *meaning) bcd(data []byte, negative bool) decoded {
	if len(data) > 9 {
		return invalid() // more digits than an int64 has
	}
	var n int64
	for i, b := range slices.Backward(data) {
		high, low := b>>4, b&0xF
		if i == len(data)-1 && high == 0xF {
			negative, high = true, 0
		}
		if high > 9 || low > 9 {
			return invalid()
		}
		n = n*100 + int64(high)*10 + int64(low)
	}
	if negative {
		n = -n
	}
	return m.scale(n, 0)
}

// real reads a floating point number of size bits as the shortest decimal that names it.
func (m *meaning) real(f float64, size int) decoded {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return decoded{bad: badNaN}
	}
	var buf [32]byte
	var n int64
	exp, fraction := 0, 0
	text := strconv.AppendFloat(buf[:0], f, 'e', -1, size) // -d.ddde±dd
	for i, c := range text {
		switch {
		case c == '.':
			fraction = 1
		case c == 'e':
			exp += exponent(text[i+1:])
			if text[0] == '-' {
				n = -n
			}
			return m.float(n, exp)
		case c != '-':
			n = n*10 + int64(c-'0')
			exp -= fraction
		}
	}
	return invalid()
}

func exponent(text []byte) (n int) {
	for _, c := range text[1:] {
		n = n*10 + int(c-'0')
	}
	if text[0] == '-' {
		return -n
	}
	return n
}

// scale returns n × 10^exp in the unit of the record. Integers that are not scaled stay integers.
func (m *meaning) scale(n int64, exp int) decoded {
	if m.exp == 0 && m.mult == 1 && m.thousandth == 0 && m.halves == 0 && exp == 0 {
		return decoded{value: point.Int(n)}
	}
	return m.float(n, exp)
}

// float is scale for numbers that become a float64 in any case, rounded once.
func (m *meaning) float(n int64, exp int) decoded {
	exp += m.exp
	if product := n * m.mult; m.mult == 1 || n == 0 || product/n == m.mult {
		n = product
	} else {
		return float(math.Ldexp(decimal(n, exp)*float64(m.mult), int(m.halves)))
	}
	if m.thousandth == 0 {
		return float(math.Ldexp(decimal(n, exp), int(m.halves)))
	}
	add, low := m.thousandth, min(exp, -3)
	a, ok1 := shift(n, exp-low)
	b, ok2 := shift(add, -3-low)
	if ok1 && ok2 {
		return float(decimal(a+b, low))
	}
	return float(decimal(n, exp) + float64(add)/1000)
}

func float(f float64) decoded {
	v, err := point.Float(f)
	if err != nil {
		return decoded{bad: badNaN}
	}
	return decoded{value: v}
}

// shift returns n × 10^by; false where that is beyond ±2^62.
func shift(n int64, by int) (int64, bool) {
	for ; by > 0 && n != 0; by-- {
		if n > 1<<62/10 || n < -(1<<62)/10 {
			return 0, false
		}
		n *= 10
	}
	return n, true
}

var powers = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}

// decimal returns the float64 nearest to n × 10^exp: one operation on exact numbers where both fit,
// else by way of text.
func decimal(n int64, exp int) float64 {
	const exact = 1 << 53
	if n <= exact && n >= -exact && exp < len(powers) && exp > -len(powers) {
		if exp < 0 {
			return float64(n) / powers[-exp]
		}
		return float64(n) * powers[exp]
	}
	var buf [48]byte
	text := strconv.AppendInt(buf[:0], n, 10)
	text = strconv.AppendInt(append(text, 'e'), int64(exp), 10)
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil { // too large
		return math.Inf(1)
	}
	return f
}

// hex writes data in hexadecimal; turned: the last byte first, as one writes a number.
func (d *Decoder) hex(data []byte, turned bool) point.Value {
	d.text = hex.AppendEncode(d.text[:0], data)
	if turned {
		for i, j := 0, len(d.text)-2; i < j; i, j = i+2, j-2 {
			d.text[i], d.text[i+1], d.text[j], d.text[j+1] = d.text[j], d.text[j+1], d.text[i], d.text[i+1]
		}
	}
	return point.String(d.strings.Of(d.text))
}

// latin1 returns text of ISO 8859-1, whose last character comes first, without the padding.
func (d *Decoder) latin1(data []byte) string {
	d.text = d.text[:0]
	for _, c := range slices.Backward(data) {
		if c < 0x80 {
			d.text = append(d.text, c)
		} else {
			d.text = append(d.text, 0xC0|c>>6, 0x80|c&0x3F)
		}
	}
	text := d.text
	for len(text) > 0 && (text[len(text)-1] == 0 || text[len(text)-1] == ' ') {
		text = text[:len(text)-1]
	}
	for len(text) > 0 && (text[0] == 0 || text[0] == ' ') {
		text = text[1:]
	}
	return d.strings.Of(text)
}
