package nmea

import (
	"strconv"
	"time"

	"ferrule/hw/point"
)

// maxPlaces is how many decimals are read exactly; those behind them are below 0.1 nm of latitude.
const maxPlaces = 12

// tens holds powers of ten, which are exact as float64, too.
var tens = [...]int64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12}

// decimal is the number m / 10^places; rest says that digits behind them were left out.
type decimal struct {
	m      int64
	places int
	rest   bool
}

// parseDecimal reads a number as NMEA writes it: sign, digits, point; blanks around it are fill.
// It answers false for anything else, and for more digits than it can hold exactly.
func parseDecimal(b []byte) (decimal, bool) {
	b = trim(b)
	negative := false
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		negative = b[0] == '-'
		b = b[1:]
	}
	var d decimal
	digits, point := 0, false
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			digits++
			if point {
				if d.places == maxPlaces {
					d.rest = d.rest || c != '0'
					continue
				}
				d.places++
			}
			if d.m >= 1e17 {
				return decimal{}, false
			}
			d.m = d.m*10 + int64(c-'0')
		case c == '.' && !point:
			point = true
		default:
			return decimal{}, false
		}
	}
	if negative {
		d.m = -d.m
	}
	return d, digits > 0
}

func trim(b []byte) []byte {
	for len(b) > 0 && b[0] == ' ' {
		b = b[1:]
	}
	for len(b) > 0 && b[len(b)-1] == ' ' {
		b = b[:len(b)-1]
	}
	return b
}

// float returns d as a float64: the nearest one wherever d has 15 digits or fewer, since then
// both operands of the one division are exact.
func (d decimal) float() float64 { return float64(d.m) / float64(tens[d.places]) }

// number reads a number as a float64 Value.
func number(b []byte) (point.Value, bool) {
	d, ok := parseDecimal(b)
	if ok && !d.rest && d.m < 1<<53 && d.m > -1<<53 {
		return float(d.float())
	}
	if !ok && !numeric(trim(b)) {
		return point.Value{}, false
	}
	f, err := strconv.ParseFloat(string(trim(b)), 64)
	if err != nil {
		return point.Value{}, false
	}
	return float(f)
}

// numeric keeps strconv from what Go calls a number and NMEA does not: 0x1p4, Inf, 1_000.
func numeric(b []byte) bool {
	for i, c := range b {
		if (c < '0' || c > '9') && c != '.' && (i > 0 || c != '-' && c != '+') {
			return false
		}
	}
	return len(b) > 0
}

func float(f float64) (point.Value, bool) {
	v, err := point.Float(f)
	return v, err == nil
}

// integer reads a whole number.
func integer(b []byte) (int64, bool) {
	d, ok := parseDecimal(b)
	return d.m, ok && d.places == 0
}

// degrees reads a position, dddmm.mmm and its hemisphere, as signed degrees (IEC 61162-1, 7.2.3.4).
// Degrees and minutes become one fraction with one rounding: nothing is lost of up to 11
// decimals of a minute.
func degrees(b, hemisphere []byte, negative, positive byte, limit int64) (point.Value, bool) {
	d, ok := parseDecimal(b)
	if !ok || d.m < 0 || len(hemisphere) != 1 || hemisphere[0] != negative && hemisphere[0] != positive {
		return point.Value{}, false
	}
	scale := tens[d.places]
	whole := d.m / (100 * scale)
	minutes := d.m - whole*100*scale
	total := whole*60*scale + minutes
	if minutes >= 60*scale || total > limit*60*scale {
		return point.Value{}, false
	}
	f := float64(total) / float64(60*scale)
	if hemisphere[0] == negative {
		f = -f
	}
	return float(f)
}

// clock reads a time of day, hhmmss.sss, to the microsecond. A leap second is the first moment
// of the next minute.
func clock(b []byte) (time.Duration, bool) {
	b = trim(b)
	if len(b) < 6 || len(b) > 6 && b[6] != '.' {
		return 0, false
	}
	h, ok1 := pair(b)
	m, ok2 := pair(b[2:])
	s, ok3 := pair(b[4:])
	if !ok1 || !ok2 || !ok3 || h > 23 || m > 59 || s > 60 {
		return 0, false
	}
	of := time.Duration(h*3600+m*60+s) * time.Second
	unit := 100 * time.Millisecond
	for i := 7; i < len(b); i++ {
		if b[i] < '0' || b[i] > '9' {
			return 0, false
		}
		of += time.Duration(b[i]-'0') * unit
		unit /= 10
	}
	return of.Truncate(time.Microsecond), true
}

// pair reads two digits.
func pair(b []byte) (int, bool) {
	if len(b) < 2 || b[0] < '0' || b[0] > '9' || b[1] < '0' || b[1] > '9' {
		return 0, false
	}
	return int(b[0]-'0')*10 + int(b[1]-'0'), true
}

// date reads ddmmyy. GPS began in 1980: smaller years are of this century.
func date(b []byte) (time.Time, bool) {
	if len(b) != 6 {
		return time.Time{}, false
	}
	d, ok1 := pair(b)
	m, ok2 := pair(b[2:])
	y, ok3 := pair(b[4:])
	if !ok1 || !ok2 || !ok3 {
		return time.Time{}, false
	}
	if y += 2000; y >= 2080 {
		y -= 100
	}
	return day(y, m, d)
}

// day returns a day, and whether the calendar has it.
func day(y, m, d int) (time.Time, bool) {
	if m < 1 || m > 12 || d < 1 || d > 31 {
		return time.Time{}, false
	}
	t := time.Date(y, time.Month(m), d, 0, 0, 0, 0, time.UTC)
	return t, t.Day() == d
}
