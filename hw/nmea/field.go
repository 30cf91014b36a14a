package nmea

import (
	"time"

	"ferrule/hw/point"
)

// kind says how a field is read.
type kind uint8

const (
	kNumber    kind = iota // a number, always a float64
	kCount                 // a whole number
	kText                  // text as it stands
	kRest                  // text from here to the end, commas and all
	kWord                  // one of words; what is none of them as it stands
	kLatitude              // a position and, in the next field, N or S
	kLongitude             // a position and, in the next field, E or W
	kEast                  // a number and, in the next field, E or W: west is negative
	kBow                   // an angle and, in the next field, L or R of the bow: 0° to 360°
	kSpeed                 // a number and, in the next field, the letter of its unit
	kClock                 // a time of day
	kStamp                 // a time of day, UTC with the date in the field arg
	kCalendar              // the same with day, month and year in three fields from arg on
)

// word is one code of an enumeration.
type word struct{ code, text string }

// Guards of a field, where not the number of a field that is V or N when the value is invalid.
const (
	always = 0
	ifFix  = 255 // the sentence has a fix
)

// field is how one point stands in a sentence; fields count from 1.
type field struct {
	point string
	kind  kind
	at    uint8
	arg   uint8
	guard uint8
	uom   string
	words []word
}

// sentence is how a sentence of one formatter is read.
type sentence struct {
	title  string
	fields []field
	// void tells whether the sentence says that it has no fix; nil: it cannot say so.
	void func(d *Decoder) bool
	// more appends what no field describes, as groups that repeat; nil: nothing.
	more func(d *Decoder, dst []point.Reading) []point.Reading
	// groups describes, for the documentation, what more appends.
	groups []field
}

// read appends the readings of the sentence whose fields are marked in d.
func (s *sentence) read(d *Decoder, dst []point.Reading) []point.Reading {
	void := s.void != nil && s.void(d)
	for i := range s.fields {
		f := &s.fields[i]
		switch {
		case f.guard == always:
			dst = f.read(d, dst)
		case f.guard == ifFix && void || f.guard != ifFix && refused(d.field(f.guard)):
			dst = append(dst, point.Reading{Point: f.point, Bad: "invalid", Uom: f.uom})
		default:
			dst = f.read(d, dst)
		}
	}
	if s.more != nil {
		dst = s.more(d, dst)
	}
	return dst
}

// refused tells whether a status or mode field says that the data are not valid.
func refused(b []byte) bool { return len(b) == 1 && (b[0] == 'V' || b[0] == 'N') }

// read appends the reading of one field: none where it is empty, a bad one where it makes no sense.
func (f *field) read(d *Decoder, dst []point.Reading) []point.Reading {
	b := d.field(f.at)
	if len(b) == 0 {
		return dst
	}
	uom := f.uom
	var v point.Value
	ok := true
	switch f.kind {
	case kNumber:
		v, ok = number(b)
	case kCount:
		var n int64
		n, ok = integer(b)
		v = point.Int(n)
	case kText:
		v = d.text(b)
	case kRest:
		v = d.text(d.body[d.starts[f.at]:])
	case kWord:
		v = d.word(b, f.words)
	case kSpeed:
		v, ok = number(b)
		uom = speedUnit(d.field(f.at + 1))
	case kClock, kStamp, kCalendar:
		v, ok = f.time(d, b)
	default:
		v, ok = f.angle(d, b)
	}
	if !ok {
		return append(dst, point.Reading{Point: f.point, Bad: "invalid", Uom: uom})
	}
	return append(dst, point.Reading{Point: f.point, Value: v, Uom: uom})
}

// angle reads the kinds whose direction stands in the next field.
func (f *field) angle(d *Decoder, b []byte) (point.Value, bool) {
	side := d.field(f.at + 1)
	switch f.kind {
	case kLatitude:
		return degrees(b, side, 'S', 'N', 90)
	case kLongitude:
		return degrees(b, side, 'W', 'E', 180)
	}
	n, ok := parseDecimal(b)
	if !ok || len(side) != 1 {
		return point.Value{}, false
	}
	switch {
	case f.kind == kEast && side[0] == 'W':
		n.m = -n.m
	case f.kind == kBow && side[0] == 'L' && n.m > 0:
		n.m = 360*tens[n.places] - n.m
	case f.kind == kEast && side[0] != 'E', f.kind == kBow && side[0] != 'L' && side[0] != 'R':
		return point.Value{}, false
	}
	return float(n.float())
}

// time reads the kinds of time: UTC where the date is known, too, else the time of day.
func (f *field) time(d *Decoder, b []byte) (point.Value, bool) {
	of, ok := clock(b)
	if !ok {
		return point.Value{}, false
	}
	var on time.Time
	dated := false
	switch f.kind {
	case kStamp:
		if len(d.field(f.arg)) > 0 {
			dated = true
			on, ok = date(d.field(f.arg))
		}
	case kCalendar:
		if len(d.field(f.arg)) > 0 && len(d.field(f.arg+1)) > 0 && len(d.field(f.arg+2)) > 0 {
			dated = true
			on, ok = d.calendar(f.arg)
		}
	}
	switch {
	case !ok:
		return point.Value{}, false
	case dated:
		return point.Time(on.Add(of), point.UTC), true
	}
	return point.Time(time.Unix(0, int64(of)).UTC(), point.TimeOfDay), true
}

// calendar reads day, month and year from the field at on.
func (d *Decoder) calendar(at uint8) (time.Time, bool) {
	dd, ok1 := integer(d.field(at))
	mm, ok2 := integer(d.field(at + 1))
	yy, ok3 := integer(d.field(at + 2))
	if !ok1 || !ok2 || !ok3 || yy < 1 || yy > 9999 || mm > 12 || dd > 31 {
		return time.Time{}, false
	}
	return day(int(yy), int(mm), int(dd))
}

// word returns the text that stands for the code b.
func (d *Decoder) word(b []byte, words []word) point.Value {
	for i := range words {
		if words[i].code == string(b) {
			return point.String(words[i].text)
		}
	}
	return d.text(b)
}

// speedUnit returns the unit of measure that a letter stands for.
func speedUnit(b []byte) string {
	if len(b) != 1 {
		return ""
	}
	switch b[0] {
	case 'N':
		return "kn"
	case 'K':
		return "km/h"
	case 'M':
		return "m/s"
	case 'S':
		return "mi/h"
	}
	return ""
}
