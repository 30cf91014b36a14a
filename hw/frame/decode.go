package frame

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"ferrule/hw/point"
)

// What is wrong with a frame that was cut and cannot be decoded.
var (
	ErrNoUnit   = errors.New("no unit matches the frame")
	ErrShort    = errors.New("the frame is too short for its points")
	ErrChecksum = errors.New("the checksum of the frame is wrong")
)

// Unit is a unit whose frames are decoded.
type Unit struct {
	Name string
	// Match tells its frames from those of others, see ParseMatch; "" takes all.
	Match string
	// Points of its frames. Without any, the payload in hexadecimal is one, "frame".
	Points []Point
}

// Point is a value in a frame.
type Point struct {
	Name string
	// At is the first byte of the value in the payload, "byte:4"; negative from the end.
	At string
	// Type and Order as package point has them; the default is uint8, ABCD. Little-endian is
	// DCBA. Bits up to 7 are those of one byte, others of two or four.
	Type, Order string
	// What point.Spec says of them.
	Scale, Offset float64
	NaN           []string
	Values, Flags map[string]string
	// Uom is the unit of measure.
	Uom string
}

// New returns what cuts and decodes the frames that c describes for units, or what is wrong
// with them. Cutter.Silence is due after each silence of Config.Pause, also where nothing is pending.
func New(c Config, units []Unit) (*Cutter, *Decoder, error) {
	f, err := c.compile()
	if err != nil {
		return nil, nil, err
	}
	d := &Decoder{form: f, buf: make([]byte, 0, f.max)}
	k := &checker{}
	for _, u := range units {
		d.units = append(d.units, u.compile(k))
	}
	if err := errors.Join(k.problems...); err != nil {
		return nil, nil, err
	}
	switch {
	case f.gap:
		// One byte more, so that a single frame is still held when the first silence comes.
		cutter := NewCutter(f.split, f.max+1)
		cutter.Gap()
		return cutter, d, nil
	case c.Kind == "silence":
		cutter := NewCutter(f.split, f.max)
		cutter.Whole()
		return cutter, d, nil
	}
	return NewCutter(f.split, f.max), d, nil
}

// Decoder makes readings of frames. One goroutine may use it.
type Decoder struct {
	form  *form
	units []unit
	buf   []byte // of the unescaped payload
	text  []byte // of the payload in hexadecimal
	words point.Strings
}

type unit struct {
	name   string
	match  Match
	points []place
}

// place is a point and where it is.
type place struct {
	name, uom string
	at, size  int // in bytes
	byte      bool
	text      bool
	codec     point.Codec
}

func (u Unit) compile(k *checker) unit {
	c := unit{name: u.Name}
	if u.Match != "" {
		m, err := ParseMatch(u.Match)
		if err != nil {
			k.wrong(fmt.Sprintf("unit %q: match", u.Name), "", err)
		}
		c.match = m
	}
	for _, p := range u.Points {
		place, key, err := p.compile()
		if err != nil {
			k.wrong(fmt.Sprintf("unit %q, point %q: %s", u.Name, p.Name, key), placeHint(key), err)
		}
		c.points = append(c.points, place)
	}
	return c
}

// Validate says what is wrong with p: the key, and why.
func (p Point) Validate() error {
	_, key, err := p.compile()
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func placeHint(key string) string {
	if key == "at" {
		return `count bytes of the payload from 0, or from its end: "byte:4", "byte:-2"`
	}
	return ""
}

func (p Point) compile() (c place, key string, err error) {
	c = place{name: p.Name, uom: p.Uom}
	if c.at, err = parsePlace(p.At); err != nil {
		return c, "at", err
	}
	name := p.Type
	if name == "" {
		name = "uint8"
	}
	typ, err := point.ParseType(name)
	if err != nil {
		return c, "type", err
	}
	c.size, c.byte, c.text = sizeOf(typ)
	if c.at < 0 && c.at+c.size > 0 {
		return c, "at", fmt.Errorf("%s has %d bytes, and there are only %d from there to the end", typ, c.size, -c.at)
	}
	order, err := point.ParseOrder(p.Order)
	if err != nil {
		return c, "order", err
	}
	if c.text && order != point.ABCD {
		return c, "order", errors.New("text has none in a frame")
	}
	c.codec, err = point.NewCodec(point.Spec{
		Type: typ, Order: order, Scale: p.Scale, Offset: p.Offset, NaN: p.NaN, Values: p.Values, Flags: p.Flags,
	})
	if bad, ok := errors.AsType[*point.SpecError](err); ok {
		return c, bad.Key, bad.Err
	}
	return c, "type", err
}

// sizeOf returns how many bytes a type occupies in a frame, and whether it is one byte of
// what would be a register, or text.
func sizeOf(t point.Type) (size int, single, text bool) {
	name := t.String()
	if digits, ok := strings.CutPrefix(name, "string("); ok {
		size, _ = strconv.Atoi(strings.TrimSuffix(digits, ")"))
		return size, false, true
	}
	if _, last, ok := strings.Cut(name, "@"); ok && t.Registers() == 1 {
		if _, upper, ok := strings.Cut(last, ".."); ok {
			last = upper
		}
		n, _ := strconv.Atoi(last)
		single = n < 8
	} else {
		single = t.Bit() || strings.Contains(name, "int8")
	}
	if single {
		return 1, true, false
	}
	return 2 * t.Registers(), false, false
}

// Decode appends the readings of one frame to dst. name is the first unit that matches, "" where
// there are no units. Points of numbers allocate nothing; the payload in hexadecimal does where
// it was not seen before. An error leaves dst as it was.
func (d *Decoder) Decode(dst []point.Reading, frame []byte) (name string, readings []point.Reading, err error) {
	payload, err := d.form.payload(d.buf, frame)
	if err != nil {
		return "", dst, err
	}
	if len(d.units) == 0 {
		return "", d.whole(dst, payload), nil
	}
	for i := range d.units {
		u := &d.units[i]
		if !u.match.Of(payload) {
			continue
		}
		if len(u.points) == 0 {
			return u.name, d.whole(dst, payload), nil
		}
		readings = dst
		for j := range u.points {
			r, err := d.read(&u.points[j], payload)
			if err != nil {
				return u.name, dst, err
			}
			readings = append(readings, r)
		}
		return u.name, readings, nil
	}
	return "", dst, ErrNoUnit
}

// whole appends the payload in hexadecimal.
func (d *Decoder) whole(dst []point.Reading, payload []byte) []point.Reading {
	d.text = hex.AppendEncode(d.text[:0], payload)
	return append(dst, point.Reading{Point: "frame", Value: point.String(d.words.Of(d.text))})
}

func (d *Decoder) read(p *place, payload []byte) (point.Reading, error) {
	at := p.at
	if at < 0 {
		at += len(payload)
	}
	if at < 0 || at+p.size > len(payload) {
		return point.Reading{}, ErrShort
	}
	raw, r := payload[at:at+p.size], point.Reading{Point: p.name, Uom: p.uom}
	if p.text {
		text, _, _ := bytes.Cut(raw, []byte{0})
		r.Value = point.String(d.words.Of(bytes.TrimRight(text, " ")))
		return r, nil
	}
	var twice [2]byte // a register whose both halves are the byte suits every type and order
	if p.byte {
		twice = [2]byte{raw[0], raw[0]}
		raw = twice[:]
	}
	value, err := p.codec.Decode(raw)
	switch {
	case errors.Is(err, point.ErrNaN):
		r.Bad = "nan"
	case err != nil:
		r.Bad = "invalid"
	}
	r.Value = value
	return r, nil
}

// payload returns what a frame says, in buf where it has to be unescaped: what fixed and length
// cut keeps its start and its length, so that bytes are counted as manuals count them; the
// others lose their marks. All lose their check and their end.
func (f *form) payload(buf, frame []byte) ([]byte, error) {
	var err error
	n := f.check.size()
	switch f.kind {
	case "delimiter":
		at, _ := firstOf(frame, f.delimiters)
		frame = frame[:max(at, 0)]
	case "fixed", "length":
		frame = frame[:max(0, len(frame)-len(f.marks.End))]
	case "stx-etx":
		return f.enclosure.payload(buf, frame)
	case "slip":
		frame, err = UnescapeSLIP(buf, frame)
	case "cobs":
		frame, err = UnstuffCOBS(buf, frame)
	case "cobs-r":
		frame, err = UnstuffCOBSR(buf, frame)
	}
	if err == nil && len(frame) < n {
		err = ErrShort
	}
	if err != nil {
		return nil, err
	}
	frame, check := frame[:len(frame)-n], frame[len(frame)-n:]
	if f.kind == "silence" && !f.check.Right(frame, check) { // no Split has seen it whole
		return nil, ErrChecksum
	}
	return frame, nil
}

func (e *Enclosure) payload(buf, frame []byte) ([]byte, error) {
	outside, inside := e.Check.size(), 0
	if e.Inside {
		outside, inside = 0, outside
	}
	end := len(frame) - outside - len(e.End)
	if end < len(e.Start) {
		return nil, ErrShort
	}
	body, err := e.unescape(buf, frame[len(e.Start):end])
	if err == nil && len(body) < inside {
		err = ErrShort
	}
	if err != nil {
		return nil, err
	}
	return body[:len(body)-inside], nil
}
