// Package nmea decodes NMEA 0183 sentences, and passes AIS and UBX through whole. The trap is the
// sentence nobody wrote a parser for: every sentence with a right checksum is delivered, a known
// one as named points, any other as its fields f1, f2, … in text.
package nmea

import (
	"bytes"
	"errors"
	"time"

	"ferrule/hw/point"
)

// maxAddress bounds the address of a sentence: "GPGGA", "PTNLRXO".
const maxAddress = 16

// ErrAddress says that a sentence has no address: nothing between $ and the first comma.
var ErrAddress = errors.New("the sentence has no address")

// ErrChecksum says that the checksum of a frame is wrong. Split hands out no such frame.
var ErrChecksum = errors.New("the checksum is wrong")

// ErrFrame says that the bytes are none of a sentence, a TAG block and a UBX message.
var ErrFrame = errors.New("the bytes are no sentence")

// Decoder decodes frames that Split cut. It remembers nothing of them but names and words, so
// that these are made once. The zero Decoder is ready; one goroutine may use it.
type Decoder struct {
	names  point.Strings
	words  words
	lists  [listEnd]list
	body   []byte // of the sentence in hand, without $ and checksum
	starts []int  // where its fields begin, the address the first
	key    []byte // for names that are made of several parts
}

// Decode appends the readings of one frame to dst, and returns its name:
//
//   - a sentence: its address, talker and all: "GPRMC", "AIVDM", "PGRME"; for the makers who say
//     in the first field what a sentence is, that too: "PUBX-00", "PTNL-GGK", "PSTI-030"
//   - a UBX message: class and id in hex, "UBX-01-07"; its reading is "payload", in hex
//   - a TAG block, which speaks of the sentence behind it: "TAG"
//
// A value is a float64 wherever decimals may stand, an int64 for counts, and text. An empty field
// is no reading. A field that makes no sense is bad as "invalid", and so is what a sentence
// without a fix says of position, speed and course, even where it says nothing.
func (d *Decoder) Decode(dst []point.Reading, frame []byte) (name string, readings []point.Reading, err error) {
	switch {
	case len(frame) == 0:
		return "", dst, ErrFrame
	case frame[0] == '$' || frame[0] == '!':
		return d.sentence(dst, frame)
	case frame[0] == sync1:
		return d.ubx(dst, frame)
	case frame[0] == '\\':
		return d.tag(dst, frame)
	}
	return "", dst, ErrFrame
}

func (d *Decoder) sentence(dst []point.Reading, frame []byte) (string, []point.Reading, error) {
	body := frame[1:]
	for len(body) > 0 && lineEnd(body[len(body)-1]) {
		body = body[:len(body)-1]
	}
	if star := len(body) - 3; star >= 0 && body[star] == '*' {
		stated, digits := hexAt(body[star+1:])
		if body = body[:star]; digits < 2 || stated != xor(body) {
			return "", dst, ErrChecksum
		}
	}
	d.mark(body)
	address, rest := splitAddress(d.field(0))
	if len(address) == 0 {
		return "", dst, ErrAddress
	}
	name := d.name(address)
	if s := d.lookup(address); s != nil {
		return name, s.read(d, dst), nil
	}
	if len(rest) > 0 {
		dst = append(dst, point.Reading{Point: d.numbered(listField, 0), Value: d.text(rest)})
	}
	for i := 1; i < len(d.starts); i++ {
		if b := d.at(i); len(b) > 0 {
			dst = append(dst, point.Reading{Point: d.numbered(listField, i), Value: d.text(b)})
		}
	}
	return name, dst, nil
}

// splitAddress returns the address of a sentence, and what follows it where no comma does: SiRF
// writes "$PSRFTXTBaud rate: 57600".
func splitAddress(b []byte) (address, rest []byte) {
	if sirf := []byte("PSRFTXT"); bytes.HasPrefix(b, sirf) {
		return b[:len(sirf)], b[len(sirf):]
	}
	n := 0
	for n < len(b) && n < maxAddress && b[n] > ' ' && b[n] <= '~' {
		n++
	}
	return b[:n], b[n:]
}

// mark finds the fields of a sentence.
func (d *Decoder) mark(body []byte) {
	d.body = body
	d.starts = append(d.starts[:0], 0)
	for i, c := range body {
		if c == ',' {
			d.starts = append(d.starts, i+1)
		}
	}
}

// at returns a field of the sentence in hand, which has it.
func (d *Decoder) at(i int) []byte {
	end := len(d.body)
	if i+1 < len(d.starts) {
		end = d.starts[i+1] - 1
	}
	return d.body[d.starts[i]:end]
}

// field returns a field of the sentence in hand; nothing where it has none of this number.
func (d *Decoder) field(i uint8) []byte {
	if int(i) >= len(d.starts) {
		return nil
	}
	return d.at(int(i))
}

// name returns the name of the sentence in hand.
func (d *Decoder) name(address []byte) string {
	d.key = append(d.key[:0], address...)
	if kind := d.field(1); subtyped(address, kind) {
		d.key = append(append(d.key, '-'), kind...)
	}
	for i, c := range d.key {
		if c == '/' || c == '+' || c == '#' || c <= ' ' || c > '~' { // they mean something in topics
			d.key[i] = '_'
		}
	}
	return d.names.Of(d.key)
}

// subtyped tells whether a maker says in the first field what a sentence is.
func subtyped(address, kind []byte) bool {
	if len(kind) == 0 || len(kind) > 8 {
		return false
	}
	switch string(address) {
	case "PUBX", "PSTI", "PTNL", "PERC", "PFEC", "PSAT":
		return true
	case "PASHR": // its attitude begins with the time
		return kind[0] >= 'A' && kind[0] <= 'Z'
	}
	return false
}

// lookup returns how the sentence in hand is read; nil where that is not known. A talker has two
// letters, and a formatter three; what begins with P is a maker's own, but Quectel made PQ the
// talker of BeiDou.
func (d *Decoder) lookup(address []byte) *sentence {
	if address[0] == 'P' && (len(address) != 5 || address[1] != 'Q') {
		return proprietary[string(d.key)]
	}
	if len(address) != 5 {
		return nil
	}
	s := standard[string(address[2:])]
	if s == nil {
		s = marine[string(address[2:])]
	}
	if s == &vtg && len(d.starts) == 5 && string(d.field(2)) != "T" {
		return &oldVTG
	}
	return s
}

// ubx passes a UBX message through.
func (d *Decoder) ubx(dst []point.Reading, frame []byte) (string, []point.Reading, error) {
	if len(frame) < 8 || frame[1] != sync2 || len(frame) != 8+int(frame[4])+int(frame[5])<<8 {
		return "", dst, ErrFrame
	}
	if a, b := fletcher(frame[2 : len(frame)-2]); a != frame[len(frame)-2] || b != frame[len(frame)-1] {
		return "", dst, ErrChecksum
	}
	const hex = "0123456789ABCDEF"
	d.key = append(d.key[:0], "UBX-"...)
	d.key = append(d.key, hex[frame[2]>>4], hex[frame[2]&15], '-', hex[frame[3]>>4], hex[frame[3]&15])
	name := d.names.Of(d.key)
	d.key = d.key[:0]
	for _, c := range frame[6 : len(frame)-2] {
		d.key = append(d.key, hex[c>>4], hex[c&15])
	}
	return name, append(dst, point.Reading{Point: "payload", Value: d.text(d.key)}), nil
}

// tag reads a TAG block: one-letter keys, a colon, values, commas between them.
func (d *Decoder) tag(dst []point.Reading, frame []byte) (string, []point.Reading, error) {
	if checkTag(frame).Size == 0 {
		return "", dst, ErrChecksum
	}
	d.mark(frame[1 : len(frame)-4])
	for i := range d.starts {
		key, value, _ := bytes.Cut(d.at(i), []byte{':'})
		if len(key) == 0 || len(value) == 0 {
			continue
		}
		dst = append(dst, d.tagged(key, value))
	}
	return "TAG", dst, nil
}

// tagged returns the reading of one key of a TAG block (IEC 61162-450, 7.2.3).
func (d *Decoder) tagged(key, value []byte) point.Reading {
	switch string(key) {
	case "c":
		return tagTime(value)
	case "s":
		return point.Reading{Point: "source", Value: d.text(value)}
	case "d":
		return point.Reading{Point: "destination", Value: d.text(value)}
	case "g":
		return point.Reading{Point: "group", Value: d.text(value)}
	case "t", "i":
		return point.Reading{Point: "text", Value: d.text(value)}
	case "n", "r":
		r := point.Reading{Point: "line_count"}
		if key[0] == 'r' {
			r = point.Reading{Point: "relative_time", Uom: "s"}
		}
		n, ok := integer(value)
		if r.Value = point.Int(n); !ok {
			r.Value, r.Bad = point.Value{}, "invalid"
		}
		return r
	}
	return point.Reading{Point: d.names.Of(key), Value: d.text(value)}
}

// tagTime reads seconds since 1970, or milliseconds where they are that many.
func tagTime(value []byte) point.Reading {
	n, ok := integer(value)
	switch {
	case !ok || n < 0 || n > 1e14: // the year 5138
		return point.Reading{Point: "time", Bad: "invalid"}
	case n > 1e11:
		return point.Reading{Point: "time", Value: point.Time(time.UnixMilli(n).UTC(), point.UTC)}
	}
	return point.Reading{Point: "time", Value: point.Time(time.Unix(n, 0).UTC(), point.UTC)}
}
