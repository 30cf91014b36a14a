package dsmr

import (
	"encoding/hex"
	"time"
	"unicode/utf8"

	"ferrule/hw/obis"
	"ferrule/hw/point"
)

// invalid is why a value that is none of its kind is bad.
const invalid = "invalid"

// reading makes one value a reading. place is where among the values of its code it stands.
func (d *Decoder) reading(name string, kind obis.Kind, place int, v []byte) point.Reading {
	r := point.Reading{Point: name}
	if digits, unit := cutUnit(v); len(unit) > 0 {
		r.Uom = d.unit(unit)
		r.Value, r.Bad = decimal(digits)
		return r
	}
	switch kind {
	case obis.Number:
		r.Value, r.Bad = decimal(v)
		return r
	case obis.Clock:
		r.Value, r.Bad = d.clock(v)
		return r
	case obis.Count:
		if n, ok := parseNumber(v); ok && n.plain {
			r.Value = point.Uint(n.digits)
			return r
		}
	case obis.ID:
		if len(v) >= minHexID {
			v = d.unhex(v)
		}
	case obis.Message:
		v = d.unhex(v)
	}
	r.Value = point.String(d.texts.Of(place, v))
	return r
}

// minHexID is from how many digits on an identification is taken for octets in hexadecimal: a
// short one may be a number that looks like them.
const minHexID = 16

// unhex returns the text that v stands for in hexadecimal, or v where that is no text.
func (d *Decoder) unhex(v []byte) []byte {
	for _, c := range v {
		if hexDigit(c) < 0 {
			return v
		}
	}
	if len(v)%2 != 0 {
		return v
	}
	d.scratch = append(d.scratch[:0], v...)
	n, err := hex.Decode(d.scratch, d.scratch)
	text := d.scratch[:max(n, 0)]
	if err != nil || !utf8.Valid(text) {
		return v
	}
	for _, c := range text {
		if c < ' ' || c == 0x7f {
			return v
		}
	}
	return text
}

// decimal reads a number as a float64.
func decimal(s []byte) (point.Value, string) {
	n, ok := parseNumber(s)
	if !ok {
		return point.Value{}, invalid
	}
	v, err := obis.Decimal(n.negative, n.digits, -n.places)
	if err != nil {
		return point.Value{}, invalid
	}
	return v, ""
}

// unit returns the unit of measure as it is written in payloads.
func (d *Decoder) unit(u []byte) string {
	switch string(u) {
	case "kVArh", "kvarh", "KVARh", "kVarh":
		return "kvarh"
	case "kVAr", "kvar", "kVar", "KVAR":
		return "kvar"
	case "VArh", "Varh":
		return "varh"
	case "VAr", "Var", "VAR":
		return "var"
	}
	if !printable(u) {
		return ""
	}
	return d.texts.Of(0, u)
}

// seasoned tells whether v has the form YYMMDDhhmmssX with X = S or W (P1 companion standard
// 5.0.2, 6.4, tag TST), whatever the time.
func seasoned(v []byte) bool {
	if len(v) != 13 || v[12] != 'S' && v[12] != 'W' {
		return false
	}
	for _, c := range v[:12] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// clock reads YYMMDDhhmm, with seconds or without, and with S for summer, W for winter or
// nothing behind. 1970 is what a meter says that was never told the time, or never captured
// anything: that is no time, too.
func (d *Decoder) clock(v []byte) (point.Value, string) {
	var n [6]int
	digits := v
	if seasoned(v) {
		digits = v[:12]
	}
	if len(digits) != 12 && len(digits) != 10 {
		return point.Value{}, invalid
	}
	for i, c := range digits {
		if c < '0' || c > '9' {
			return point.Value{}, invalid
		}
		n[i/2] = n[i/2]*10 + int(c-'0')
	}
	year, month, day := 2000+n[0], time.Month(n[1]), n[2]
	t := time.Date(year, month, day, n[3], n[4], n[5], 0, time.UTC)
	if n[0] == 70 || t.Month() != month || t.Day() != day || t.Hour() != n[3] || t.Minute() != n[4] || t.Second() != n[5] {
		return point.Value{}, invalid
	}
	if d.Zone == nil {
		return point.Time(t, point.Local), ""
	}
	if len(digits) == len(v) {
		return point.Time(time.Date(year, month, day, n[3], n[4], n[5], 0, d.Zone), point.UTC), ""
	}
	return point.Time(t.Add(-offset(d.Zone, year, v[12] == 'S')), point.UTC), ""
}

// offset returns how far the zone is ahead of UTC in summer or in winter. The telegram's letter
// counts and not the date: in the hour that comes twice nothing else tells which one it is, and
// a meter may know no summer time at all.
func offset(zone *time.Location, year int, summer bool) time.Duration {
	_, january := time.Date(year, time.January, 15, 12, 0, 0, 0, zone).Zone()
	_, july := time.Date(year, time.July, 15, 12, 0, 0, 0, zone).Zone()
	if summer {
		return time.Duration(max(january, july)) * time.Second
	}
	return time.Duration(min(january, july)) * time.Second
}
