package sparkplug

import (
	"encoding/binary"
	"math"
)

// The data types of Sparkplug B (3.0, 6.4.16) that are written.
const (
	typeInt32    = 3
	typeInt64    = 4
	typeUInt64   = 8
	typeDouble   = 10
	typeBoolean  = 11
	typeString   = 12
	typeDateTime = 13
)

// The wire types of protobuf.
const (
	varint  = 0
	fixed64 = 1
	sized   = 2
	fixed32 = 5
)

// The fields of Payload, Metric, PropertySet and PropertyValue in sparkplug_b.proto, as protobuf writes
// their tags: the number and, in the lowest three bits, the wire type.
const (
	payloadTimestamp = 1<<3 + varint
	payloadMetric    = 2<<3 + sized
	payloadSeq       = 3<<3 + varint

	metricName       = 1<<3 + sized
	metricAlias      = 2<<3 + varint
	metricTimestamp  = 3<<3 + varint
	metricDatatype   = 4<<3 + varint
	metricHistorical = 5<<3 + varint
	metricNull       = 7<<3 + varint
	metricProperties = 9<<3 + sized
	metricLong       = 11<<3 + varint
	metricDouble     = 13<<3 + fixed64
	metricBoolean    = 14<<3 + varint
	metricString     = 15<<3 + sized

	propertyKeys   = 1<<3 + sized
	propertyValues = 2<<3 + sized
	propertyType   = 1<<3 + varint
	propertyInt    = 3<<3 + varint
	propertyString = 8<<3 + sized
)

// The qualities of a metric (3.0, 6.4.13).
const (
	qualityBad   = 0
	qualityGood  = 192
	qualityStale = 500
)

func appendField(dst []byte, tag byte, n uint64) []byte {
	return binary.AppendUvarint(append(dst, tag), n)
}

func appendText[T string | []byte](dst []byte, tag byte, s T) []byte {
	return append(binary.AppendUvarint(append(dst, tag), uint64(len(s))), s...)
}

func appendBool(dst []byte, tag byte, b bool) []byte {
	if b {
		return append(dst, tag, 1)
	}
	return append(dst, tag, 0)
}

func appendDouble(dst []byte, tag byte, f float64) []byte {
	return binary.LittleEndian.AppendUint64(append(dst, tag), math.Float64bits(f))
}

// open begins a message within a message; one byte is left for its length. close writes the length, and
// moves the message where that takes more.
func open(dst []byte, tag byte) (_ []byte, start int) {
	return append(dst, tag, 0), len(dst) + 2
}

func closeAt(dst []byte, start int) []byte {
	n := len(dst) - start
	if n < 0x80 {
		dst[start-1] = byte(n)
		return dst
	}
	var length [binary.MaxVarintLen64]byte
	size := binary.PutUvarint(length[:], uint64(n))
	for range size - 1 {
		dst = append(dst, 0)
	}
	copy(dst[start-1+size:], dst[start:start+n])
	copy(dst[start-1:], length[:size])
	return dst
}

// appendProperties appends what is known of a metric besides its value; "" and negative: nothing.
func appendProperties(dst []byte, uom string, quality int, reason []byte) []byte {
	if uom == "" && quality < 0 {
		return dst
	}
	dst, set := open(dst, metricProperties)
	if uom != "" {
		dst = appendText(dst, propertyKeys, "engUnit")
	}
	if quality >= 0 {
		dst = appendText(dst, propertyKeys, "Quality")
	}
	if len(reason) > 0 {
		dst = appendText(dst, propertyKeys, "bad")
	}
	if uom != "" {
		dst = appendTextProperty(dst, uom)
	}
	if quality >= 0 {
		var value int
		dst, value = open(dst, propertyValues)
		dst = appendField(appendField(dst, propertyType, typeInt32), propertyInt, uint64(quality))
		dst = closeAt(dst, value)
	}
	if len(reason) > 0 {
		dst = appendTextProperty(dst, reason)
	}
	return closeAt(dst, set)
}

func appendTextProperty[T string | []byte](dst []byte, s T) []byte {
	dst, value := open(dst, propertyValues)
	dst = appendText(appendField(dst, propertyType, typeString), propertyString, s)
	return closeAt(dst, value)
}

// fields goes through the fields of a protobuf message that somebody else wrote.
type fields struct {
	rest  []byte
	tag   uint64
	value []byte // of a field with a length
	n     uint64 // of a varint
}

// next reads the next field. It answers false at the end, and where the message is damaged.
func (f *fields) next() bool {
	tag, size := binary.Uvarint(f.rest)
	if size <= 0 {
		return false
	}
	f.rest = f.rest[size:]
	f.tag, f.value, f.n = tag, nil, 0
	switch tag & 7 {
	case varint:
		if f.n, size = binary.Uvarint(f.rest); size <= 0 {
			return false
		}
		f.rest = f.rest[size:]
		return true
	case fixed64:
		return f.skip(8)
	case sized:
		n, size := binary.Uvarint(f.rest)
		if size <= 0 || n > uint64(len(f.rest)-size) {
			return false
		}
		f.rest = f.rest[size:]
		f.value = f.rest[:n]
		return f.skip(int(n))
	case fixed32:
		return f.skip(4)
	}
	return false // groups: no Sparkplug payload has any
}

func (f *fields) skip(n int) bool {
	if n > len(f.rest) {
		return false
	}
	f.rest = f.rest[n:]
	return true
}

// asksRebirth says whether an NCMD payload sets Node Control/Rebirth.
func asksRebirth(payload []byte) bool {
	asks := false
	for p := (fields{rest: payload}); p.next(); {
		if p.tag != payloadMetric {
			continue
		}
		name, value := false, false
		for m := (fields{rest: p.value}); m.next(); {
			switch m.tag {
			case metricName:
				name = string(m.value) == rebirth
			case metricBoolean:
				value = m.n != 0
			}
		}
		asks = asks || name && value
	}
	return asks
}
