package encode

import (
	"encoding/binary"
	"math"
	"unicode/utf8"

	"ferrule/hw"
	"ferrule/hw/point"
)

// The major types of CBOR (RFC 8949, 3.1), in their place in the first byte.
const (
	cborUint  = 0 << 5
	cborNint  = 1 << 5
	cborText  = 3 << 5
	cborArray = 4 << 5
	cborMap   = 5 << 5
	cborTag   = 6 << 5
	cborFalse = 0xf4
	cborTrue  = 0xf5
)

const (
	// tagEpoch: seconds since 1970 (RFC 8949, 3.4.2).
	tagEpoch = 1
	// tagSelf marks what follows as CBOR; it means nothing else (RFC 8949, 3.4.6).
	tagSelf = 55799
	// tagSenML marks application/senml+cbor: CoAP content format 112 (RFC 9277, 4.3).
	tagSenML = 1668546817 + 112
)

// appendHead appends the head of a CBOR item in its shortest form (RFC 8949, 3).
func appendHead(dst []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n <= math.MaxUint8:
		return append(dst, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, major|27), n)
}

// appendCBORText appends s; bytes that are not UTF-8 become U+FFFD, as in JSON.
func appendCBORText(dst []byte, s string) []byte {
	if utf8.ValidString(s) {
		return append(appendHead(dst, cborText, uint64(len(s))), s...)
	}
	n := 0
	for _, r := range s {
		n += utf8.RuneLen(r)
	}
	dst = appendHead(dst, cborText, uint64(n))
	for _, r := range s {
		dst = utf8.AppendRune(dst, r)
	}
	return dst
}

// appendCBORFloat appends f in the shortest of the three forms that keeps its value
// (RFC 8949, 4.1). f is finite.
func appendCBORFloat(dst []byte, f float64) []byte {
	single := float32(f)
	if float64(single) != f {
		return binary.BigEndian.AppendUint64(append(dst, 0xfb), math.Float64bits(f))
	}
	if half, ok := half(single); ok {
		return binary.BigEndian.AppendUint16(append(dst, 0xf9), half)
	}
	return binary.BigEndian.AppendUint32(append(dst, 0xfa), math.Float32bits(single))
}

// half returns f as an IEEE 754 binary16 if that keeps its value.
func half(f float32) (uint16, bool) {
	bits := math.Float32bits(f)
	sign, exp, frac := uint16(bits>>16&0x8000), int(bits>>23&0xff)-127, bits&0x7fffff
	switch {
	case f == 0:
		return sign, true
	case exp >= -14 && exp <= 15 && frac&0x1fff == 0:
		return sign | uint16(exp+15)<<10 | uint16(frac>>13), true
	case exp >= -24 && exp < -14: // a subnormal: the fraction counts 2^-24
		shift := uint(-exp - 1) // of the 24 bits with the leading one
		whole := frac | 0x800000
		if whole&(1<<shift-1) == 0 {
			return sign | uint16(whole>>shift), true
		}
	}
	return 0, false
}

// appendCBORValue appends v, a time as the text that JSON has.
func appendCBORValue(dst []byte, v point.Value) []byte {
	switch v.Kind() {
	case point.KindBool:
		if b, _ := v.Bool(); b {
			return append(dst, cborTrue)
		}
		return append(dst, cborFalse)
	case point.KindInt, point.KindUint:
		if u, ok := v.Uint64(); ok {
			return appendHead(dst, cborUint, u)
		}
		i, _ := v.Int64()
		return appendHead(dst, cborNint, uint64(-1-i))
	case point.KindFloat:
		f, _ := v.Float64()
		return appendCBORFloat(dst, f)
	case point.KindTime:
		return appendCBORTime(dst, v)
	}
	s, _ := v.Text()
	return appendCBORText(dst, s)
}

// appendCBORTime appends the text of a time without making a string of it: as JSON with its quotes,
// in whose place the head then goes.
func appendCBORTime(dst []byte, v point.Value) []byte {
	start := len(dst)
	dst = v.AppendJSON(dst)
	n := len(dst) - start - 2
	if n < 24 {
		dst[start] = cborText | byte(n)
		return dst[:len(dst)-1]
	}
	copy(dst[start+2:], dst[start+1:len(dst)-1])
	dst[start], dst[start+1] = cborText|24, byte(n)
	return dst
}

// appendSeconds appends a time in seconds since 1970, cut to milliseconds.
func appendSeconds(dst []byte, ms int64) []byte {
	if ms%1000 != 0 {
		return appendCBORFloat(dst, float64(ms)/1000)
	}
	if ms < 0 {
		return appendHead(dst, cborNint, uint64(-1-ms/1000))
	}
	return appendHead(dst, cborUint, uint64(ms/1000))
}

// appendCBOR appends one poll as a CBOR map: the keys and values of JSON, but t is an epoch time.
func (e *Encoder) appendCBOR(dst []byte, u *unit, seq uint64, p hw.Poll, unsynced bool) []byte {
	good := 0
	for i := range p.Readings {
		if badReason(p.Readings[i]) == "" {
			good++
		}
	}
	bad := len(p.Readings) - good
	pairs := uint64(6)
	if unsynced {
		pairs++
	}
	if bad > 0 {
		pairs++
	}
	dst = appendHead(dst, cborMap, pairs)
	dst = appendHead(append(dst, "\x64boot"...), cborUint, e.boot)
	dst = appendHead(append(dst, "\x63seq"...), cborUint, seq)
	dst = appendHead(append(dst, "\x61t"...), cborTag, tagEpoch)
	dst = appendSeconds(dst, p.Time.UnixMilli())
	if unsynced {
		dst = append(append(dst, "\x68unsynced"...), cborTrue)
	}
	dst = append(dst, u.cbor...)
	dst = appendHead(append(dst, "\x68readings"...), cborMap, uint64(good))
	for i := range p.Readings {
		if r := &p.Readings[i]; badReason(*r) == "" {
			dst = appendCBORValue(appendCBORText(dst, r.Point), r.Value)
		}
	}
	if bad == 0 {
		return dst
	}
	dst = appendHead(append(dst, "\x63bad"...), cborMap, uint64(bad))
	for i := range p.Readings {
		if reason := badReason(p.Readings[i]); reason != "" {
			dst = appendCBORText(appendCBORText(dst, p.Readings[i].Point), reason)
		}
	}
	return dst
}
