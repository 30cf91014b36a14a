package sml

import (
	"ferrule/hw/obis"
	"ferrule/hw/point"
)

// entry reads SML_ListEntry (SML 1.04, 5.1.12): name, status, time, unit, scaler, value …
func (d *Decoder) entry(dst []point.Reading, r *reader) []point.Reading {
	n := r.list(6)
	d.place++
	name, code := d.name(r.octets())
	status := r.next()
	if status.kind == list {
		r.fail(errStructure)
	}
	at := readMoment(r)
	unit, scaler := r.next(), r.next()
	from := *r
	value := r.next()
	if value.kind == list {
		r.skip(value.count)
	}
	r.skip(n - 6)
	if r.err != nil || name == "" {
		return dst
	}
	reading := point.Reading{Point: name}
	if value.kind == list {
		from.list(0)
		reading.Value, reading.Bad = choice(&from, value.count)
	} else if !value.missing() {
		d.note(code, value)
		reading = d.value(name, code, unit, scaler, value)
	}
	if reading.Value.Kind() != point.None || reading.Bad != "" {
		dst = append(dst, reading)
	}
	return d.beside(dst, name, status, at)
}

// beside appends what an entry says beside its value.
func (d *Decoder) beside(dst []point.Reading, name string, status element, at moment) []point.Reading {
	if _, bits, ok := status.integer(); ok {
		dst = append(dst, point.Reading{Point: d.join(name, "_status"), Value: point.Uint(bits)})
	}
	if at.kind == calendar {
		return append(dst, point.Reading{Point: d.join(name, "_time"), Value: at.value()})
	}
	return d.sensorTime(dst, at)
}

func (d *Decoder) join(name, suffix string) string {
	d.scratch = append(append(d.scratch[:0], name...), suffix...)
	return d.texts.Of(d.place, d.scratch)
}

// name returns the point of an object name; the zero Code where it is no OBIS code.
func (d *Decoder) name(object []byte) (string, obis.Code) {
	if len(object) == 6 {
		code := obis.Code(object)
		name, _ := d.names.Of(code)
		return name, code
	}
	if object == nil || len(object) > 32 {
		return "", obis.Code{}
	}
	return d.hex(object), obis.Code{}
}

// value makes a reading of an entry's value.
func (d *Decoder) value(name string, code obis.Code, unit, scaler, value element) point.Reading {
	reading := point.Reading{Point: name}
	switch value.kind {
	case octets:
		reading.Value = d.text(value.bytes)
		return reading
	case boolean:
		reading.Value = point.Bool(len(value.bytes) > 0 && value.bytes[len(value.bytes)-1] != 0)
		return reading
	}
	if d.overflows && power(code) && value.kind == signed && len(value.bytes) <= 3 {
		value.kind = unsigned
	}
	_, u, hasUnit := unit.integer()
	reading.Uom = obis.Unit(uint8(min(u, 255)))
	e, hasScaler := exponent(scaler)
	negative, magnitude, ok := value.integer()
	switch {
	case !ok:
		reading.Bad = "invalid"
	case hasUnit || hasScaler:
		var err error
		if reading.Value, err = obis.Decimal(negative, magnitude, e); err != nil {
			reading.Bad = "invalid"
		}
	case negative:
		reading.Value = point.Int(-int64(magnitude))
	default:
		reading.Value = point.Uint(magnitude)
	}
	return reading
}

// exponent returns what a scaler says, which is one byte. Of a longer number the last one
// counts: it has been filled up.
func exponent(scaler element) (int, bool) {
	_, _, ok := scaler.integer()
	if !ok {
		return 0, false
	}
	return int(int8(scaler.bytes[len(scaler.bytes)-1])), true
}

// choice reads a value that is itself one of several types: SML_ListType, of which there is the
// time only (SML 1.04, 5.1.12).
func choice(r *reader, count int) (point.Value, string) {
	if count != 2 {
		return point.Value{}, ""
	}
	if _, tag, ok := r.next().integer(); !ok || tag != 1 {
		return point.Value{}, ""
	}
	m := readMoment(r)
	if r.err != nil || m.kind == unknown {
		return point.Value{}, ""
	}
	return m.value(), ""
}

// The choices of SML_Time (SML 1.04, 5.1.1).
const (
	secondsIndex = 1
	timestamp    = 2
	localTime    = 3
)

// earliest is the first second of 2000. A meter that says it is earlier counts its seconds, and
// calls that a time.
const earliest = 946684800

// readMoment reads SML_Time: a list of the kind and the seconds. Of a local time the seconds are
// UTC too; offset and season are behind them. The Holley DTZ541 leaves the list and the kind
// away and has seconds only, and the Froetec Multiflex ZG22 calls a local time by another kind.
func readMoment(r *reader) moment {
	e := r.next()
	kind := uint64(secondsIndex)
	if e.kind == list && e.count == 2 {
		_, kind, _ = r.next().integer()
		e = r.next()
	}
	if e.kind == list {
		if e.count != 3 {
			r.skip(e.count)
			return moment{}
		}
		kind = localTime
		e = r.next()
		r.skip(2)
	}
	negative, seconds, ok := e.integer()
	switch {
	case !ok || negative || seconds > 1<<32-1:
		return moment{}
	case kind == secondsIndex, kind == timestamp && seconds < earliest:
		return moment{kind: counted, seconds: seconds}
	case kind == timestamp, kind == localTime && seconds >= earliest:
		return moment{kind: calendar, seconds: seconds}
	}
	return moment{}
}

// note looks for the number of the meter among the values, where some meters have it only.
func (d *Decoder) note(code obis.Code, value element) {
	if value.kind == octets && (code == obis.Code{1, 0, 96, 1, 0, 255} || code == obis.Code{1, 0, 0, 0, 9, 255}) {
		d.overflows = d.overflows || overflowing(value.bytes)
		if d.server == nil {
			d.server = value.bytes
		}
	}
}

// overflowing tells whether the server id is that of a DZG DVS74 of a series that sends a power
// of 327.68 W and more as a signed number of too few bytes: 53 80 00 is 32768 and not −32768.
// Numbers below zero it sends with four bytes always. The maker gave out the numbers of the
// series.
func overflowing(id []byte) bool {
	if len(id) != 10 || id[0] != 0x0a || id[1] != 0x01 || string(id[2:5]) != "DZG" || id[5] != 0 {
		return false
	}
	n := uint32(id[6])<<24 | uint32(id[7])<<16 | uint32(id[8])<<8 | uint32(id[9])
	return n >= 42_000_000 && n <= 48_999_999 || n >= 55_000_000 && n <= 58_999_999
}

// power tells whether code is the active power, of all phases or of one.
func power(code obis.Code) bool {
	return code[0] == 1 && code[3] == 7 && code[4] == 0 && code[2] <= 76 && code[2]%20 == 16
}
