package obis

import (
	"math"
	"strconv"

	"ferrule/hw/point"
)

// tens are the powers of ten that are exactly float64s.
var tens = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22}

// Decimal returns ±m × 10^e as a float64, rounded once: 12345 × 10^-1 is 1234.5. What no
// float64 can hold is point.ErrNaN.
func Decimal(negative bool, m uint64, e int) (point.Value, error) {
	f, ok := exact(m, e)
	if !ok {
		var buf [32]byte
		text := strconv.AppendInt(append(strconv.AppendUint(buf[:0], m, 10), 'e'), int64(e), 10)
		var err error
		if f, err = strconv.ParseFloat(string(text), 64); err != nil {
			return point.Value{}, point.ErrNaN
		}
	}
	if negative {
		f = -f
	}
	return point.Float(f)
}

// exact multiplies or divides two numbers that are float64s, which rounds once.
func exact(m uint64, e int) (float64, bool) {
	switch {
	case m > 1<<53 || e >= len(tens) || -e >= len(tens):
		return 0, false
	case e < 0:
		return float64(m) / tens[-e], true
	}
	f := float64(m) * tens[e]
	return f, f <= math.MaxFloat64
}

// Unit returns the unit of measure that DLMS numbers so (IEC 62056-62, table 4), "" for none
// and for numbers that mean nothing.
func Unit(n uint8) string {
	if int(n) < len(units) {
		return units[n]
	}
	return ""
}

var units = [...]string{
	1: "a", 2: "mo", 3: "wk", 4: "d", 5: "h", 6: "min", 7: "s", 8: "°", 9: "°C", 10: "currency",
	11: "m", 12: "m/s", 13: "m3", 14: "m3", 15: "m3/h", 16: "m3/h", 17: "m3/d", 18: "m3/d",
	19: "l", 20: "kg", 21: "N", 22: "Nm", 23: "Pa", 24: "bar", 25: "J", 26: "J/h", 27: "W",
	28: "VA", 29: "var", 30: "Wh", 31: "VAh", 32: "varh", 33: "A", 34: "C", 35: "V", 36: "V/m",
	37: "F", 38: "Ω", 39: "Ωm", 40: "Wb", 41: "T", 42: "A/m", 43: "H", 44: "Hz", 45: "1/Wh",
	46: "1/varh", 47: "1/VAh", 48: "V2h", 49: "A2h", 50: "kg/s", 51: "S", 52: "K", 53: "1/(V2h)",
	54: "1/(A2h)", 55: "1/m3", 56: "%", 57: "Ah", 60: "Wh/m3", 61: "J/m3", 62: "mol%", 63: "g/m3",
	64: "Pas", 65: "J/kg", 66: "g/cm2", 67: "atm", 70: "dBm", 71: "dBµV", 72: "dB",
}

// Texts gives out the same string for the same bytes. Beside the short ones, which point.Strings
// keeps, it keeps the long one that was last seen at each of a few places: a message for people,
// a public key. The zero Texts is ready; one goroutine may use it.
type Texts struct {
	short point.Strings
	long  [8]string
}

const (
	maxShort = 64
	maxLong  = 4096
)

// Of returns b as a string. place is where in a frame it stands, any number.
func (t *Texts) Of(place int, b []byte) string {
	if len(b) <= maxShort {
		return t.short.Of(b)
	}
	held := &t.long[uint(place)%uint(len(t.long))]
	if *held == string(b) {
		return *held
	}
	text := string(b)
	if len(b) <= maxLong {
		*held = text
	}
	return text
}
