package sparkplug

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"time"

	"ferrule/hw"
	"ferrule/hw/point"
)

// An entry names its metrics itself, since it may be sent by a start of the agent that has never read
// them:
//
//	kind │ boot │ seq │ time in ms │ flags │ metrics: type │ name │ unit of measure │ value
//
// Numbers are varints, texts have their length before them. The type of a bad reading is 0, and its
// value is the reason. Join makes wire metrics of it: an alias instead of the name.
const flagUnsynced = 1

// header is what an entry begins with.
type header struct {
	boot, seq, ms uint64
	unsynced      bool
}

// stored is one metric of an entry. Its slices are those of the entry.
type stored struct {
	datatype  byte // 0: a bad reading
	name, uom []byte
	n         uint64 // the number, the bits of a double, 0 or 1
	text      []byte // of a String; of a bad reading the reason
}

// appendEntry appends a poll as it is stored.
func appendEntry(dst []byte, kind byte, h header, readings []hw.Reading) []byte {
	dst = append(dst, kind)
	dst = binary.AppendUvarint(dst, h.boot)
	dst = binary.AppendUvarint(dst, h.seq)
	dst = binary.AppendUvarint(dst, h.ms)
	flags := byte(0)
	if h.unsynced {
		flags = flagUnsynced
	}
	dst = append(dst, flags)
	for i := range readings {
		dst = appendStored(dst, &readings[i])
	}
	return dst
}

func appendStored(dst []byte, r *hw.Reading) []byte {
	reason := badReason(r)
	datatype, n := byte(0), uint64(0)
	if reason == "" {
		datatype, n = valueOf(r.Value)
	}
	dst = appendLong(append(dst, datatype), cleanName(r.Point))
	dst = appendLong(dst, clean(r.Uom))
	switch datatype {
	case 0:
		return appendLong(dst, clean(reason))
	case typeString:
		if s, ok := r.Value.Text(); ok {
			return appendLong(dst, clean(s))
		}
		start := len(dst) // a time that no zone belongs to
		dst = r.Value.AppendJSON(dst)
		dst[start] = byte(len(dst) - start - 2) // in place of the quotes; shorter than 128
		return dst[:len(dst)-1]
	case typeDouble:
		return binary.LittleEndian.AppendUint64(dst, n)
	}
	return binary.AppendUvarint(dst, n)
}

func appendLong(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// valueOf returns the data type of a value and its number.
func valueOf(v point.Value) (datatype byte, n uint64) {
	switch v.Kind() {
	case point.KindBool:
		if b, _ := v.Bool(); b {
			n = 1
		}
		return typeBoolean, n
	case point.KindInt:
		i, _ := v.Int64()
		return typeInt64, uint64(i)
	case point.KindUint:
		u, _ := v.Uint64()
		return typeUInt64, u
	case point.KindFloat:
		f, _ := v.Float64()
		return typeDouble, math.Float64bits(f)
	case point.KindTime:
		if t, form, _ := v.Time(); form == point.UTC && t.UnixMilli() >= 0 {
			return typeDateTime, uint64(t.UnixMilli())
		}
	}
	return typeString, 0
}

// badReason is why a reading has no value, or "" for a good one.
func badReason(r *hw.Reading) string {
	if r.Bad == "" && r.Value.Kind() == point.None {
		return "invalid"
	}
	return r.Bad
}

// clean replaces what is not UTF-8.
func clean(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

// cleanName is clean for the name of a metric: not empty, and none of the encoder's own.
func cleanName(s string) string {
	s = clean(s)
	if s == "" {
		return "%"
	}
	if strings.HasPrefix(s, own) {
		return strings.Replace(s, "/", "%2F", 1)
	}
	return s
}

// reader goes through a stored entry.
type reader struct {
	rest []byte
	bad  bool // the entry is damaged
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.rest, r.bad = nil, true
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.rest)) {
		r.rest, r.bad = nil, true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) text() []byte { return r.take(r.uvarint()) }

// header reads the beginning of an entry, kind included.
func (r *reader) header() (h header) {
	r.take(1)
	h = header{boot: r.uvarint(), seq: r.uvarint(), ms: r.uvarint()}
	if flags := r.take(1); flags != nil {
		h.unsynced = flags[0]&flagUnsynced != 0
	}
	return h
}

// next reads the next metric. It answers false at the end, and where the entry is damaged.
func (r *reader) next() (s stored, ok bool) {
	if len(r.rest) == 0 {
		return s, false
	}
	s.datatype = r.take(1)[0]
	s.name, s.uom = r.text(), r.text()
	switch s.datatype {
	case 0, typeString:
		s.text = r.text()
	case typeDouble:
		if b := r.take(8); b != nil {
			s.n = binary.LittleEndian.Uint64(b)
		}
	case typeInt64, typeUInt64, typeBoolean, typeDateTime:
		s.n = r.uvarint()
	default:
		r.bad = true
	}
	return s, !r.bad
}

// wider returns the data type that holds values of both: a metric has one type, and a reading may
// come as another than before.
func wider(a, b byte) byte {
	number := func(t byte) bool { return t == typeInt64 || t == typeUInt64 || t == typeDouble }
	switch {
	case a == b:
		return a
	case number(a) && number(b):
		return typeDouble
	}
	return typeString
}

// appendValue appends the value of s as a metric of type datatype has it.
func appendValue(dst []byte, datatype byte, s *stored) []byte {
	switch {
	case datatype == typeString && s.datatype != typeString:
		return appendText(dst, metricString, s.words())
	case datatype == typeDouble && s.datatype == typeInt64:
		return appendDouble(dst, metricDouble, float64(int64(s.n)))
	case datatype == typeDouble && s.datatype == typeUInt64:
		return appendDouble(dst, metricDouble, float64(s.n))
	}
	switch datatype {
	case typeString:
		return appendText(dst, metricString, s.text)
	case typeDouble:
		return appendDouble(dst, metricDouble, math.Float64frombits(s.n))
	case typeBoolean:
		return appendBool(dst, metricBoolean, s.n != 0)
	}
	return appendField(dst, metricLong, s.n)
}

// words is the value as text.
func (s *stored) words() string {
	switch s.datatype {
	case typeInt64:
		return strconv.FormatInt(int64(s.n), 10)
	case typeUInt64:
		return strconv.FormatUint(s.n, 10)
	case typeDouble:
		return strconv.FormatFloat(math.Float64frombits(s.n), 'g', -1, 64)
	case typeBoolean:
		return strconv.FormatBool(s.n != 0)
	case typeDateTime:
		return time.UnixMilli(int64(s.n)).UTC().Format("2006-01-02T15:04:05.999Z")
	}
	return string(s.text)
}
