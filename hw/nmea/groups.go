package nmea

import (
	"strconv"

	"ferrule/hw/point"
)

// put appends the reading of a field by itself: none where it is empty.
func (d *Decoder) put(dst []point.Reading, name string, k kind, at int, uom string) []point.Reading {
	if at >= len(d.starts) {
		return dst
	}
	b := d.at(at)
	if len(b) == 0 {
		return dst
	}
	r := point.Reading{Point: name, Uom: uom}
	ok := true
	switch k {
	case kNumber:
		r.Value, ok = number(b)
	case kCount:
		var n int64
		n, ok = integer(b)
		r.Value = point.Int(n)
	default:
		r.Value = d.text(b)
	}
	if !ok {
		r.Bad = "invalid"
		r.Value = point.Value{}
	}
	return append(dst, r)
}

func usedSatellites(d *Decoder, dst []point.Reading) []point.Reading {
	for i := 1; i <= 12; i++ {
		dst = d.put(dst, d.numbered(listUsed, i), kCount, 2+i, "")
	}
	return dst
}

// viewedSatellites reads groups of four fields, and the signal that NMEA 0183 4.10 has behind them.
func viewedSatellites(d *Decoder, dst []point.Reading) []point.Reading {
	n := 1
	if message, ok := integer(d.field(2)); ok && message > 0 && message < 100 {
		n = int(message)*4 - 3
	}
	at := 4
	for ; at+3 < len(d.starts); at += 4 {
		dst = d.put(dst, d.numbered(listSatellite, n), kCount, at, "")
		dst = d.put(dst, d.numbered(listElevation, n), kNumber, at+1, "°")
		dst = d.put(dst, d.numbered(listAzimuth, n), kNumber, at+2, "°")
		dst = d.put(dst, d.numbered(listSNR, n), kNumber, at+3, "dBHz")
		n++
	}
	if at+1 == len(d.starts) {
		dst = d.put(dst, "signal", kText, at, "")
	}
	return dst
}

func trackedSatellites(d *Decoder, dst []point.Reading) []point.Reading {
	for at, n := 3, 1; at+5 < len(d.starts); at, n = at+6, n+1 {
		dst = d.put(dst, d.numbered(listSatellite, n), kCount, at, "")
		dst = d.put(dst, d.numbered(listUse, n), kText, at+1, "")
		dst = d.put(dst, d.numbered(listAzimuth, n), kNumber, at+2, "°")
		dst = d.put(dst, d.numbered(listElevation, n), kNumber, at+3, "°")
		dst = d.put(dst, d.numbered(listSNR, n), kNumber, at+4, "dBHz")
		dst = d.put(dst, d.numbered(listLock, n), kNumber, at+5, "s")
	}
	return dst
}

func residuals(d *Decoder, dst []point.Reading) []point.Reading {
	for i := 1; i <= 12; i++ {
		dst = d.put(dst, d.numbered(listResidual, i), kNumber, 2+i, "m")
	}
	return dst
}

// The wind of MWV is apparent or true in turn: two series, not one.
var (
	apparentWind = [...]field{
		{point: "wind_angle_apparent", at: 1, uom: "°", guard: 5},
		{point: "wind_speed_apparent", kind: kSpeed, at: 3, guard: 5},
	}
	trueWind = [...]field{
		{point: "wind_angle_true", at: 1, uom: "°", guard: 5},
		{point: "wind_speed_true", kind: kSpeed, at: 3, guard: 5},
	}
)

func wind(d *Decoder, dst []point.Reading) []point.Reading {
	fields := apparentWind[:]
	switch string(d.field(2)) {
	case "T":
		fields = trueWind[:]
	case "R":
	default:
		return dst
	}
	for i := range fields {
		if refused(d.field(5)) {
			dst = append(dst, point.Reading{Point: fields[i].point, Bad: "invalid", Uom: fields[i].uom})
			continue
		}
		dst = fields[i].read(d, dst)
	}
	return dst
}

// transducers reads the groups of XDR: kind, value, unit of measure, name (IEC 61162-1, 8.3.112).
func transducers(d *Decoder, dst []point.Reading) []point.Reading {
	for at, n := 1, 1; at+1 < len(d.starts); at, n = at+4, n+1 {
		what := d.at(at)
		var letter byte
		if len(what) == 1 {
			letter = what[0]
		}
		var unit, called []byte
		if at+2 < len(d.starts) {
			unit = d.at(at + 2)
		}
		if at+3 < len(d.starts) {
			called = d.at(at + 3)
		}
		dst = d.put(dst, d.transducer(letter, called, n), kNumber, at+1, transducerUnit(letter, unit))
	}
	return dst
}

// transducer returns the name of a transducer as a point: as the sentence calls it, and what it
// measures where that begins with no letter.
func (d *Decoder) transducer(letter byte, called []byte, n int) string {
	d.key = d.key[:0]
	if len(called) == 0 || called[0]|0x20 < 'a' || called[0]|0x20 > 'z' {
		d.key = append(append(d.key, transducerKind(letter)...), '_')
		if len(called) == 0 {
			d.key = strconv.AppendInt(d.key, int64(n), 10)
		}
	}
	for _, c := range called {
		switch {
		case c >= 'A' && c <= 'Z':
			c |= 0x20
		case (c < 'a' || c > 'z') && (c < '0' || c > '9'):
			c = '_'
		}
		d.key = append(d.key, c)
	}
	return d.names.Of(d.key)
}

func transducerKind(letter byte) string {
	switch letter {
	case 'A':
		return "angle"
	case 'C':
		return "temperature"
	case 'D':
		return "displacement"
	case 'F':
		return "frequency"
	case 'G':
		return "generic"
	case 'H':
		return "humidity"
	case 'I':
		return "current"
	case 'L':
		return "salinity"
	case 'N':
		return "force"
	case 'P':
		return "pressure"
	case 'R':
		return "flow"
	case 'S':
		return "switch"
	case 'T':
		return "tachometer"
	case 'U':
		return "voltage"
	case 'V':
		return "volume"
	}
	return "transducer"
}

// transducerUnit returns the unit of measure that a letter stands for, which depends on what is measured.
func transducerUnit(letter byte, unit []byte) string {
	if len(unit) != 1 {
		return ""
	}
	switch unit[0] {
	case 'A':
		return "A"
	case 'B':
		return "bar"
	case 'C':
		return "°C"
	case 'D':
		return "°"
	case 'H':
		return "Hz"
	case 'K':
		return "K"
	case 'L', 'l':
		return "L/s"
	case 'M':
		if letter == 'V' {
			return "m³"
		}
		return "m"
	case 'N':
		return "N"
	case 'P':
		if letter == 'H' {
			return "%"
		}
		return "Pa"
	case 'R':
		return "1/min"
	case 'S':
		return "ppt"
	case 'V':
		return "V"
	}
	return ""
}
