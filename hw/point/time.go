package point

import "time"

// TimeForm says what of a time is known, and so how it is written.
type TimeForm uint8

// The forms of a time. In the forms without a zone nobody said which one is meant.
const (
	UTC       TimeForm = iota // 2026-11-21T04:00:00.125Z
	Local                     // 2026-11-21T04:00:00, of the unit's own clock and zone
	Date                      // 2026-11-21
	TimeOfDay                 // 04:00:00.125
)

// Time returns what form keeps of t as a Value, to the microsecond. The forms without a zone
// take the clock that t shows.
func Time(t time.Time, form TimeForm) Value {
	if form != UTC {
		_, offset := t.Zone()
		t = t.Add(time.Duration(offset) * time.Second)
	}
	us := t.UnixMicro()
	const day = 24 * 60 * 60 * 1_000_000
	switch form {
	case Date:
		us -= ((us % day) + day) % day
	case TimeOfDay:
		us = ((us % day) + day) % day
	}
	return Value{kind: KindTime, form: form, bits: uint64(us)}
}

// Time returns the time that v holds, and in which form; false where it holds none.
func (v Value) Time() (t time.Time, form TimeForm, ok bool) {
	if v.kind != KindTime {
		return time.Time{}, UTC, false
	}
	return time.UnixMicro(int64(v.bits)).UTC(), v.form, true
}

// appendTime appends a time as ISO 8601 writes it, with as many digits of the second as it has.
func (v Value) appendTime(dst []byte) []byte {
	layout := [...]string{UTC: "2006-01-02T15:04:05.999999Z", Local: "2006-01-02T15:04:05.999999", Date: "2006-01-02", TimeOfDay: "15:04:05.999999"}
	return time.UnixMicro(int64(v.bits)).UTC().AppendFormat(dst, layout[v.form])
}
