package mbus

import (
	"fmt"
	"iter"
	"strconv"

	"ferrule/hw/point"
)

// maxKnown bounds what a Decoder remembers: kinds of records, and names.
const maxKnown = 1024

// Decoder turns telegrams into readings. The zero Decoder is ready; one goroutine may use it. It
// remembers what it worked out of record heads and names, so that a unit's next read-out costs no
// allocation.
type Decoder struct {
	strings  point.Strings
	meanings map[string]*meaning
	seen     map[string]int // how often a name came in this read-out
	numbered map[repeated]string
	header   Header // the one that name is of
	name     string
	text     []byte
	turned   []byte
}

type repeated struct {
	name string
	n    int
}

// Record is one record with what its head says of it.
type Record struct {
	Function Function
	Storage  uint64 // 0: present values
	Tariff   uint32 // 0: total
	Subunit  uint16
	Extended bool   // the head has DIFEs: tariff and subunit were said, if only to be 0
	Quantity string // "energy"; what all records of the kind share
	Point    string // the name of the reading, before repetitions are numbered
	Uom      string
	Value    point.Value // nothing where the record has no data, or Bad says why
	Bad      string
	Head     []byte // DIF to the last VIFE, as on the wire
	Data     []byte // as on the wire
}

// ParseHeader returns the header of a telegram, a whole frame: who sent it.
func ParseHeader(telegram []byte) (Header, error) {
	f, err := Parse(telegram)
	if err != nil {
		return Header{}, err
	}
	h, _, err := parseHeader(&f)
	return h, err
}

// Decode appends the readings of one read-out to dst: of one telegram, or of several whose records
// follow one another, whole frames each. name is the secondary address of the unit, as ParseSecondary
// reads it, or "" where the telegram does not say.
//
// Readings are named after what they are: the quantity, what the unit says about it, _max, _min or
// _error, and storage number, tariff and subunit where they are not 0: "energy",
// "energy_storage1", "power_max_tariff2_subunit1". The second of a name is called …_2, and so on. A last
// reading, "status", is the status byte of the header.
//
// An error means that nothing of the read-out is to be trusted: ErrFormat, ErrChecksum,
// ErrEncrypted, ErrUnsupported, ErrMismatch where telegrams are of different units, or the unit's own
// ApplicationError. Then dst is returned as it was.
func (d *Decoder) Decode(dst []point.Reading, telegrams ...[]byte) (name string, readings []point.Reading, err error) {
	if d.seen == nil {
		d.seen = make(map[string]int)
	}
	clear(d.seen)
	readings = dst
	var first Header
	for i, t := range telegrams {
		var h Header
		if h, readings, err = d.decode(readings, t); err != nil {
			return "", dst, fmt.Errorf("decoding an M-Bus telegram: %w", err)
		}
		if i == 0 {
			first = h
		} else if !sameUnit(&first, &h) {
			return "", dst, fmt.Errorf("decoding an M-Bus telegram: %w: the next telegram is of another unit", ErrMismatch)
		}
	}
	if len(telegrams) == 0 {
		return "", dst, fmt.Errorf("decoding an M-Bus telegram: %w: there is none", ErrFormat)
	}
	if !first.Fixed {
		readings = append(readings, point.Reading{Point: d.unique("status"), Value: point.Uint(uint64(first.Status))})
	}
	return d.nameOf(&first), readings, nil
}

func (d *Decoder) decode(dst []point.Reading, telegram []byte) (Header, []point.Reading, error) {
	take := func(m *meaning, _ block, v decoded) {
		if v.value.Kind() != point.None || v.bad != "" {
			dst = append(dst, point.Reading{Point: d.unique(m.name), Value: v.value, Bad: v.bad, Uom: m.uom})
		}
	}
	h, err := d.walk(telegram, take)
	return h, dst, err
}

// walk calls take with every record of a telegram. On an error some were taken already.
func (d *Decoder) walk(telegram []byte, take func(*meaning, block, decoded)) (Header, error) {
	f, err := Parse(telegram)
	if err != nil {
		return Header{}, err
	}
	if f.Kind != Long {
		return Header{}, ErrUnsupported
	}
	h, body, err := parseHeader(&f)
	if err != nil {
		return h, err
	}
	msb := f.CI == ciVariableMSB || f.CI == ciFixedMSB
	if h.Fixed {
		d.fixed(&h, body, msb, take)
		return h, nil
	}
	w := walker{rest: body}
	for {
		b, ok, err := w.next()
		if err != nil || !ok {
			return h, err
		}
		m := d.known(b.key, &b)
		take(m, b, d.value(m, &b, msb))
	}
}

// known returns the meaning of the record head key, which is b's.
func (d *Decoder) known(key []byte, b *block) *meaning {
	if m, ok := d.meanings[string(key)]; ok {
		return m
	}
	return d.learn(key, meaningOf(b))
}

func (d *Decoder) learn(key []byte, m *meaning) *meaning {
	if d.meanings == nil {
		d.meanings = make(map[string]*meaning)
	}
	if len(d.meanings) >= maxKnown {
		clear(d.meanings)
	}
	d.meanings[string(key)] = m
	return m
}

// unique returns name, or where it came before in this read-out, name_2 and so on.
func (d *Decoder) unique(name string) string {
	d.seen[name]++
	n := d.seen[name]
	if n == 1 {
		return name
	}
	for ; ; n++ {
		if s := d.repeated(name, n); d.seen[s] == 0 {
			d.seen[s], d.seen[name] = 1, n
			return s
		}
	}
}

func (d *Decoder) repeated(name string, n int) string {
	key := repeated{name, n}
	if s, ok := d.numbered[key]; ok {
		return s
	}
	if d.numbered == nil {
		d.numbered = make(map[repeated]string)
	}
	if len(d.numbered) >= maxKnown {
		clear(d.numbered)
	}
	s := name + "_" + strconv.Itoa(n)
	d.numbered[key] = s
	return s
}

// nameOf is h.String, worked out once as long as the unit is the same.
func (d *Decoder) nameOf(h *Header) string {
	if d.name == "" || !sameUnit(h, &d.header) || h.Fixed != d.header.Fixed || h.Short != d.header.Short {
		d.header, d.name = *h, h.String()
	}
	return d.name
}

func sameUnit(a, b *Header) bool {
	if a.Short || b.Short {
		return a.Short == b.Short
	}
	return a.ID == b.ID && a.Manufacturer == b.Manufacturer && a.Version == b.Version && a.Medium == b.Medium
}

// Records yields the records of one telegram, a whole frame, with all that their heads say. The last
// pair has an error where the telegram cannot be read to its end; then the records before are not to be
// trusted either. What the manufacturer appended comes as a record with the Quantity
// "manufacturer_data". Head and Data point into telegram.
func (d *Decoder) Records(telegram []byte) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		going := true
		_, err := d.walk(telegram, func(m *meaning, b block, v decoded) {
			going = going && yield(Record{
				Function: m.function, Storage: m.storage, Tariff: m.tariff, Subunit: m.subunit, Extended: m.extended,
				Quantity: m.quantity, Point: m.name, Uom: m.uom, Value: v.value, Bad: v.bad, Head: b.key, Data: b.data,
			}, nil)
		})
		if err != nil && going {
			yield(Record{}, err)
		}
	}
}

// More reports whether telegram, a whole frame, announces another one with further records.
func More(telegram []byte) bool {
	f, err := Parse(telegram)
	if err != nil || f.Kind != Long {
		return false
	}
	h, body, err := parseHeader(&f)
	if err != nil || h.Fixed {
		return false
	}
	w := walker{rest: body}
	for {
		if _, ok, err := w.next(); err != nil || !ok {
			return err == nil && w.more
		}
	}
}
