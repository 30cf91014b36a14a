// Package sml reads the messages that German electricity meters push over their optical or
// wired interface: SML 1.04 in the transport protocol version 1 (BSI TR-03109-1, part b). The
// trap is the meters: some send times without saying which kind, one make has a CRC of its own,
// and one sends power above 327.67 W as a negative number.
package sml

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"ferrule/hw/obis"
	"ferrule/hw/point"
)

// Decoder makes readings of transmissions. Package obis has the names of their points; what it
// does not know keeps its code as the name: "1-0:96.90.2*1".
//
// An entry with a unit or a scaler gives a float64, value × 10^scaler, in its unit; a number
// without them an integer; a string of octets its text, or hexadecimal where it is none. A
// status word beside a value gives the name of the value with "_status" behind, a time of the
// value the name with "_time". The time of the whole list gives sensor_time, or sensor_seconds
// where the meter does no more than count seconds; so does the first of the values that has a
// count of seconds where the list has none. An attention message gives attention, its number in
// hexadecimal, and attention_message.
//
// The zero Decoder is ready. One goroutine may use it.
type Decoder struct {
	names   obis.Names
	texts   obis.Texts
	buf     []byte // a transmission without its escapes
	scratch []byte

	// Of the transmission that is being decoded.
	server    []byte // the server id
	seconds   bool   // sensor_seconds was given
	overflows bool   // power is sent as the DZG DVS74 does
	place     int
}

// Decode appends the readings of a transmission, as Split cuts it, to dst. name is the server id
// as it is printed on the meter (DIN 43863-5): "1EMH0012345678"; or in hexadecimal where it is
// of another form, or "" where there is none. Every message has a CRC of its own, which must be
// right.
func (d *Decoder) Decode(dst []point.Reading, transmission []byte) (name string, readings []point.Reading, err error) {
	d.server, d.seconds, d.overflows, d.place = nil, false, false, 0
	before := len(dst)
	dst, err = d.transmission(dst, transmission)
	if d.server != nil {
		name = d.serverName(d.server)
	}
	if err != nil {
		return name, dst[:before], fmt.Errorf("decoding a transmission of %d bytes: %w", len(transmission), err)
	}
	return name, dst, nil
}

func (d *Decoder) transmission(dst []point.Reading, transmission []byte) ([]point.Reading, error) {
	end := len(transmission) - margin
	if end < margin || !bytes.HasPrefix(transmission, begin) || !bytes.HasPrefix(transmission[end:], escape) || transmission[end+4] != endMark {
		return dst, errFrame
	}
	if !sound(transmission) {
		return dst, ErrChecksum
	}
	data := transmission[margin:end]
	if bytes.Contains(data, escape) {
		d.buf = unescape(d.buf[:0], data)
		data = d.buf
	}
	r := reader{data: data}
	for r.pad(); r.at < len(r.data); r.pad() {
		dst = d.message(dst, &r)
	}
	return dst, r.err
}

// pad passes over what ends a message, and what fills up the transmission: zeros.
func (r *reader) pad() {
	for r.at < len(r.data) && r.data[r.at] == 0 {
		r.at++
	}
}

// The messages that say something (SML 1.04, 5.1).
const (
	openResponse      = 0x0101
	listResponse      = 0x0701
	attentionResponse = 0xff01
)

// message reads transaction id, group, what to do after an error, body, CRC and end (SML 1.04,
// 5.1). What other messages than the known ones say is passed over.
func (d *Decoder) message(dst []point.Reading, r *reader) []point.Reading {
	from := r.at
	if r.list(6) != 6 {
		r.fail(errStructure)
	}
	r.skip(3)
	body := *r
	if r.list(2) != 2 {
		r.fail(errStructure)
	}
	r.skip(2)
	covered := r.data[min(from, r.at):r.at]
	_, sum, ok := r.next().integer()
	if r.err == nil && (!ok || sum > 0xffff) {
		r.fail(errStructure)
	}
	if r.err == nil && !right(covered, uint16(sum)>>8|uint16(sum)<<8) {
		r.fail(ErrChecksum)
	}
	if r.err != nil {
		return dst
	}
	body.list(2)
	_, tag, _ := body.next().integer()
	switch tag {
	case openResponse:
		d.open(&body)
	case listResponse:
		dst = d.list(dst, &body)
	case attentionResponse:
		dst = d.attention(dst, &body)
	}
	if body.err != nil {
		r.fail(body.err)
	}
	return dst
}

// open reads PublicOpen.Res (SML 1.04, 5.1.1): code page, client, file, server …
func (d *Decoder) open(r *reader) {
	r.list(4)
	r.skip(3)
	d.server = r.octets()
}

// list reads GetList.Res (SML 1.04, 5.1.12): client, server, name, time, values …
func (d *Decoder) list(dst []point.Reading, r *reader) []point.Reading {
	r.list(5)
	r.skip(1)
	if server := r.octets(); server != nil {
		d.server = server
	}
	d.overflows = overflowing(d.server)
	r.skip(1)
	dst = d.sensorTime(dst, readMoment(r))
	e := r.next()
	if e.kind != list && !e.missing() {
		r.fail(errStructure)
	}
	for n := e.count; n > 0 && r.err == nil; n-- {
		dst = d.entry(dst, r)
	}
	return dst
}

func (d *Decoder) sensorTime(dst []point.Reading, m moment) []point.Reading {
	switch m.kind {
	case calendar:
		return append(dst, point.Reading{Point: "sensor_time", Value: m.value()})
	case counted:
		if d.seconds {
			return dst
		}
		d.seconds = true
		return append(dst, point.Reading{Point: "sensor_seconds", Value: m.value(), Uom: "s"})
	}
	return dst
}

// attention reads Attention.Res (SML 1.04, 5.1.15): server, number, message …
func (d *Decoder) attention(dst []point.Reading, r *reader) []point.Reading {
	r.list(3)
	if server := r.octets(); server != nil {
		d.server = server
	}
	number, message := r.octets(), r.octets()
	if number != nil {
		dst = append(dst, point.Reading{Point: "attention", Value: point.String(d.hex(number))})
	}
	if message != nil {
		dst = append(dst, point.Reading{Point: "attention_message", Value: d.text(message)})
	}
	return dst
}

// serverName writes a server id as DIN 43863-5 has it printed: 0A 01 45 4D 48 00 00 BC 61 4E is
// 1EMH0012345678. Other forms come in hexadecimal.
func (d *Decoder) serverName(id []byte) string {
	if len(id) != 10 || id[0] != 0x0a || id[1] > 15 || !letters(id[2:5]) {
		return d.hex(id)
	}
	number := uint64(id[6])<<24 | uint64(id[7])<<16 | uint64(id[8])<<8 | uint64(id[9])
	d.scratch = append(strconv.AppendUint(d.scratch[:0], uint64(id[1]), 16), id[2:5]...)
	d.scratch = hex.AppendEncode(d.scratch, id[5:6])
	for limit := uint64(10_000_000); limit > 1 && number < limit; limit /= 10 {
		d.scratch = append(d.scratch, '0')
	}
	d.scratch = strconv.AppendUint(d.scratch, number, 10)
	return d.texts.Of(d.place, d.scratch)
}

func letters(s []byte) bool {
	for _, c := range s {
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return true
}

func (d *Decoder) hex(b []byte) string {
	d.scratch = hex.AppendEncode(d.scratch[:0], b)
	return d.texts.Of(d.place, d.scratch)
}

// text returns b as it stands where it is text, else in hexadecimal.
func (d *Decoder) text(b []byte) point.Value {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return point.String(d.hex(b))
		}
	}
	return point.String(d.texts.Of(d.place, b))
}

// momentKind says what of a time is known.
type momentKind uint8

const (
	unknown  momentKind = iota
	counted             // seconds since the meter began to count
	calendar            // seconds since 1970, UTC
)

// moment is an SML_Time.
type moment struct {
	kind    momentKind
	seconds uint64
}

func (m moment) value() point.Value {
	if m.kind == calendar {
		return point.Time(time.Unix(int64(m.seconds), 0), point.UTC)
	}
	return point.Uint(m.seconds)
}
