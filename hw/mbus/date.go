package mbus

import (
	"time"

	"ferrule/hw/point"
)

// decodeTime reads a date or a time by its size (EN 13757-3, annex A): type G (2 bytes), J (3), F (4)
// or I (6). Units keep their local time and do not say which. What stands for "every" day or hour, the
// bit "time invalid", and dates that the calendar does not have, are invalid.
func decodeTime(b []byte) decoded {
	switch len(b) {
	case 0:
		return decoded{}
	case 2:
		return date(yearG(b), b[1]&0x0F, b[0]&0x1F, clock{}, point.Date)
	case 3:
		return timeOfDay(b)
	case 4:
		return typeF(b)
	case 6:
		return typeI(b)
	}
	return invalid()
}

type clock struct{ hour, minute, second byte }

func (c clock) valid() bool { return c.hour < 24 && c.minute < 60 && c.second < 60 }

// date puts a time together.
func date(year int, month, day byte, c clock, form point.TimeForm) decoded {
	if month < 1 || month > 12 || day < 1 || !c.valid() || year < 0 {
		return invalid()
	}
	t := time.Date(year, time.Month(month), int(day), int(c.hour), int(c.minute), int(c.second), 0, time.UTC)
	if t.Day() != int(day) { // 31 February
		return invalid()
	}
	return decoded{value: point.Time(t, form)}
}

// twoDigits is the year of two digits that a date has: 0 to 80 are of this century, 81 to 99 of the
// last, as the standard recommends; -1 where it is none.
func twoDigits(low, high byte) int {
	year := int(low>>5 | high>>4<<3)
	switch {
	case year > 99:
		return -1
	case year > 80:
		return 1900 + year
	}
	return 2000 + year
}

func yearG(b []byte) int { return twoDigits(b[0], b[1]) }

// typeF is minute, hour, day, month, year (CP32).
func typeF(b []byte) decoded {
	if b[0]&0x80 != 0 {
		return invalid()
	}
	year := twoDigits(b[2], b[3])
	if hundreds := int(b[1] >> 5 & 3); hundreds > 0 && year >= 0 {
		year = 1900 + 100*hundreds + year%100
	}
	return date(year, b[3]&0x0F, b[2]&0x1F, clock{hour: b[1] & 0x1F, minute: b[0] & 0x3F}, point.Local)
}

// typeI is second, minute, hour, day, month, year (CP48).
func typeI(b []byte) decoded {
	if b[1]&0x80 != 0 {
		return invalid()
	}
	c := clock{hour: b[2] & 0x1F, minute: b[1] & 0x3F, second: b[0] & 0x3F}
	return date(twoDigits(b[3], b[4]), b[4]&0x0F, b[3]&0x1F, c, point.Local)
}

// timeOfDay is type J: second, minute, hour (CP24).
func timeOfDay(b []byte) decoded {
	c := clock{hour: b[2] & 0x1F, minute: b[1] & 0x3F, second: b[0] & 0x3F}
	if !c.valid() {
		return invalid()
	}
	t := time.Date(1970, 1, 1, int(c.hour), int(c.minute), int(c.second), 0, time.UTC)
	return decoded{value: point.Time(t, point.TimeOfDay)}
}
