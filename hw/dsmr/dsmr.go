// Package dsmr reads electricity meters that speak in OBIS lines: telegrams of a P1 port (DSMR 2
// to 5 and its Belgian, Luxembourgish, Swedish, Hungarian and other kin), pushed telegrams of
// IEC 62056-21 mode D, and read-outs in modes A, B and C. The trap is what has no CRC: the
// telegrams of DSMR 2 and 3, where a damaged digit is a digit all the same.
package dsmr

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"ferrule/hw/obis"
	"ferrule/hw/point"
)

// Decoder makes readings of telegrams. Package obis has the names of their points; what it does
// not know keeps its code as the name: "0-0:96.50.68". Values behind the first of one code have
// a number behind the name, as in "LGZ.x_2", and the time at which it was captured has "_time": the
// value 0-1:24.2.1(170102161005W)(00000.107*m3) gives mbus1_value and mbus1_value_time.
//
// The power failure log gives power_failure_log (how many), power_failure_log_1_time (the end
// of the failure), power_failure_log_1_duration and so on; the Belgian history of peaks gives
// peak_history, peak_history_1_period (the end of the month), peak_history_1_time and
// peak_history_1_power.
//
// A value with a unit of measure is a float64, in that unit. What is said to be a text comes as
// one, decoded where it is sent as octets in hexadecimal. A value that is empty gives no
// reading. One that is no value of its kind is Bad, "invalid"; so is the value of a sub-meter
// that was never read, which has the time 1970 or none.
//
// The zero Decoder is ready. One goroutine may use it.
type Decoder struct {
	// Zone is where the meter stands. With it the times of the meter become UTC; without it
	// they have the form point.Local, because a telegram says no more than summer or winter.
	Zone *time.Location

	names   obis.Names
	texts   obis.Texts
	values  [maxValues][]byte
	scratch []byte
}

// Decode appends the readings of a telegram, as Split cuts it, to dst. The line end behind it
// may be missing. name is the header, without the "/" and with "_" for characters that would
// not do in a topic: "ISk5_2MT382-1000". A telegram with a wrong CRC or without the structure
// of one is an error.
func (d *Decoder) Decode(dst []point.Reading, telegram []byte) (name string, readings []point.Reading, err error) {
	header, lines, err := open(telegram)
	if err != nil {
		return d.name(header), dst, fmt.Errorf("decoding a telegram of %d bytes: %w", len(telegram), err)
	}
	return d.name(header), d.decode(dst, lines), nil
}

// decode appends the readings of data lines. Lines that say nothing are passed over: they are
// what the meter sent, as a checksum says or the structure was checked.
func (d *Decoder) decode(dst []point.Reading, lines []byte) []point.Reading {
	for {
		s, rest, broken, ok := next(lines, d.values[:])
		if !ok {
			return dst
		}
		if !broken {
			dst = d.set(dst, s)
		}
		lines = rest
	}
}

// name makes a header fit for a topic.
func (d *Decoder) name(header []byte) string {
	d.scratch = d.scratch[:0]
	for _, c := range bytes.TrimSpace(header[:min(len(header), 64)]) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' && c != '.' {
			c = '_'
		}
		d.scratch = append(d.scratch, c)
	}
	return d.texts.Of(0, d.scratch)
}

// set appends the readings of one code.
func (d *Decoder) set(dst []point.Reading, s set) []point.Reading {
	code, ok := obis.Parse(s.code)
	if !ok {
		if len(s.code) > maxCode || !printable(s.code) {
			return dst
		}
		return d.plain(dst, d.texts.Of(0, s.code), obis.Unknown, s.values)
	}
	name, kind := d.names.Of(code)
	special := false
	switch {
	case code[2] == 24 && code[3] == 3 && code[4] == 0 && len(s.values) >= 4:
		dst, special = d.profile(dst, code, s.values)
	case name == "power_failure_log":
		dst, special = d.failures(dst, name, s.values)
	case name == "peak_history":
		if dst, special = d.peaks(dst, name, s.values); !special { // Hungary has something else here
			name = d.texts.Of(0, code.Append(d.scratch[:0]))
		}
	}
	if special {
		return dst
	}
	return d.plain(dst, name, kind, s.values)
}

// maxCode is how long a code may be that is no OBIS code.
const maxCode = 32

func printable(s []byte) bool {
	for _, c := range s {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return len(s) > 0
}

// plain appends values of which the first may be the time of the others, or one of them theirs.
func (d *Decoder) plain(dst []point.Reading, name string, kind obis.Kind, values [][]byte) []point.Reading {
	captured := -1
	if kind != obis.Clock && len(values) > 1 {
		captured = d.capture(kind, values)
	}
	never := false
	if captured >= 0 {
		var r point.Reading
		r.Point = d.join(name, "_time", 0)
		r.Value, r.Bad = d.clock(values[captured])
		never = r.Bad != ""
		dst = append(dst, r)
	}
	n := 0
	for i, v := range values {
		if i == captured {
			continue
		}
		n++
		if len(v) == 0 {
			continue
		}
		r := d.reading(name, kind, i, v)
		if n > 1 {
			r.Point = d.join(name, "_", n)
		}
		if never {
			r.Value, r.Bad = point.Value{}, invalid
		}
		dst = append(dst, r)
	}
	return dst
}

// capture returns which of the values is the time at which the others were captured, or -1.
// DSMR writes it first, with S or W; other meters behind the value, with 10 or 12 digits.
func (d *Decoder) capture(kind obis.Kind, values [][]byte) int {
	for i, v := range values {
		if seasoned(v) {
			return i
		}
		if kind == obis.Number && (len(v) == 10 || len(v) == 12) {
			if _, bad := d.clock(v); bad == "" {
				return i
			}
		}
	}
	if _, ok := parseNumber(values[0]); ok && kind == obis.Number && len(values[0]) == 12 {
		return 0 // a time that is none, as of a sub-meter that was never read
	}
	return -1
}

// join returns name, suffix and, unless it is 0, n as one string.
func (d *Decoder) join(name, suffix string, n int) string {
	d.scratch = append(append(d.scratch[:0], name...), suffix...)
	if n > 0 {
		d.scratch = strconv.AppendInt(d.scratch, int64(n), 10)
	}
	return d.texts.Of(0, d.scratch)
}

// item returns "name_n_what".
func (d *Decoder) item(name string, n int, what string) string {
	d.scratch = strconv.AppendInt(append(append(d.scratch[:0], name...), '_'), int64(n), 10)
	d.scratch = append(append(d.scratch, '_'), what...)
	return d.texts.Of(0, d.scratch)
}

// profile appends what DSMR 2 and 3 write of a sub-meter (P1 companion standard 3.0, 5.3):
// 0-1:24.3.0(time)(status)(period in minutes)(n)(code)(unit)… and, on the next line, n values.
func (d *Decoder) profile(dst []point.Reading, code obis.Code, values [][]byte) ([]point.Reading, bool) {
	count, ok := parseNumber(values[3])
	n := int(min(count.digits, maxValues))
	if !ok || !count.plain || n == 0 || len(values) != 4+3*n {
		return dst, false
	}
	for k := range n {
		at, ok := obis.Parse(values[4+2*k])
		if !ok {
			at = obis.Code{code[0], code[1], 24, 2, byte(1 + k), 255}
		}
		name, _ := d.names.Of(at)
		value, unit := values[4+2*n+k], values[4+2*k+1]
		var r point.Reading
		r.Point, r.Uom = name, d.unit(unit)
		r.Value, r.Bad = decimal(value)
		captured, bad := d.clock(values[0])
		if bad != "" {
			r.Value, r.Bad = point.Value{}, invalid
		}
		dst = append(dst, point.Reading{Point: d.join(name, "_time", 0), Value: captured, Bad: bad}, r)
	}
	return dst, true
}

// failures appends the log of long power failures (P1 companion standard 5.0.2, 6.12):
// (n)(0-0:96.7.19) and n times (end)(duration).
func (d *Decoder) failures(dst []point.Reading, name string, values [][]byte) ([]point.Reading, bool) {
	count, ok := parseNumber(values[0])
	if !ok || !count.plain || len(values) < 2 || len(values)%2 != 0 {
		return dst, len(values[0]) == 0
	}
	dst = append(dst, point.Reading{Point: name, Value: point.Uint(count.digits)})
	for k := 1; 2*k+1 < len(values); k++ {
		end := point.Reading{Point: d.item(name, k, "time")}
		end.Value, end.Bad = d.clock(values[2*k])
		duration := d.reading("", obis.Number, 0, values[2*k+1])
		duration.Point = d.item(name, k, "duration")
		dst = append(dst, end, duration)
	}
	return dst, true
}

// peaks appends the highest quarter-hour of each of the last months (e-MUCS P1 1.7.1, 5.2.3):
// (n)(code)(code) and n times (end of the month)(time)(power).
func (d *Decoder) peaks(dst []point.Reading, name string, values [][]byte) ([]point.Reading, bool) {
	count, ok := parseNumber(values[0])
	if !ok || !count.plain || len(values) < 3 || len(values)%3 != 0 || len(values) > 3 && !seasoned(values[3]) {
		return dst, false
	}
	dst = append(dst, point.Reading{Point: name, Value: point.Uint(count.digits)})
	for k := 1; 3*k+2 < len(values); k++ {
		period := point.Reading{Point: d.item(name, k, "period")}
		period.Value, period.Bad = d.clock(values[3*k])
		at := point.Reading{Point: d.item(name, k, "time")}
		at.Value, at.Bad = d.clock(values[3*k+1])
		power := d.reading("", obis.Number, 0, values[3*k+2])
		power.Point = d.item(name, k, "power")
		dst = append(dst, period, at, power)
	}
	return dst, true
}
