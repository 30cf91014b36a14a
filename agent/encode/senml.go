package encode

import (
	"encoding/binary"
	"strconv"

	"ferrule/hw"
	"ferrule/hw/point"
)

// An entry of SenML (RFC 8428) is stored in two parts, so that Join can leave out what the entry before
// it has said, and say in the first record what holds for all:
//
//	kind │ flags │ number of records │ length of base │ base │ records
//
// base is the pair of bn of the first record, and records begins behind it. Where base is left out of a
// pack, the bn before it goes on to hold. The record ":seq" is the first of each entry, with bt; names
// that begin with a colon are the encoder's own.
const senMLSecondary = 1 // in flags: a unit is of the registry of RFC 8798, so bver must be said

const (
	// senMLVersion is base version 10 with secondary units: 10 + 2^4 (RFC 9100, 3).
	senMLVersion = 26
	// senMLNow: a time below is relative to now (RFC 8428, 4.5.3), so an absolute one below it cannot
	// be said. In milliseconds.
	senMLNow = 1 << 28 * 1000
)

// The labels of SenML in CBOR (RFC 8428, 6): the heads of their integers.
const (
	senMLBaseVersion = cborNint     // -1
	senMLBaseName    = cborNint | 1 // -2
	senMLBaseTime    = cborNint | 2 // -3
	senMLName        = cborUint
	senMLUnits       = cborUint | 1
	senMLValue       = cborUint | 2
	senMLString      = cborUint | 3
	senMLBool        = cborUint | 4
)

// appendSenMLName appends s with what a name may not hold (RFC 8428, 4.5.1) written as ::XX; a colon
// that could be taken for the beginning of that too. Levels hold no slash, and no text but the
// encoder's own begins with a colon.
func appendSenMLName(dst []byte, s string, level bool) []byte {
	const hex = "0123456789ABCDEF"
	plain := func(i int) bool {
		c := s[i]
		return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c == '_' || c == '-' || c == '.' ||
			c == '/' && !level
	}
	for i := range len(s) {
		if plain(i) || s[i] == ':' && i > 0 && i+1 < len(s) && plain(i+1) {
			dst = append(dst, s[i])
			continue
		}
		dst = append(dst, ':', ':', hex[s[i]>>4], hex[s[i]&15])
	}
	return dst
}

// senMLBase is what names of a unit begin with.
func senMLBase(device, line, name string) string {
	var b []byte
	if c := device[0]; c < '0' || c > '9' && c < 'A' || c > 'Z' && c < 'a' || c > 'z' {
		b = append(b, 'x') // a name begins with a letter or a digit
	}
	b = append(appendSenMLName(b, device, true), '/')
	b = append(appendSenMLName(b, line, true), '/')
	return string(append(appendSenMLName(b, name, true), '/'))
}

// appendSenMLTime appends seconds since 1970 as a JSON number with milliseconds.
func appendSenMLTime(dst []byte, ms int64) []byte {
	dst = strconv.AppendInt(dst, ms/1000, 10)
	if ms %= 1000; ms != 0 {
		dst = append(dst, '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10))
	}
	return dst
}

// senMLTime is the time of a poll in milliseconds, or 0, which means now: nobody's clock has been that
// far back for years, and ":unsynced" says so.
func senMLTime(p hw.Poll) int64 {
	ms := p.Time.UnixMilli()
	if ms < senMLNow {
		return 0
	}
	return ms
}

// appendSenMLHead appends what an entry of SenML is stored with.
func appendSenMLHead(dst []byte, kind byte, p hw.Poll, unsynced bool, base []byte) []byte {
	flags, records := byte(0), 2+len(p.Readings)
	if unsynced {
		records++
	}
	for i := range p.Readings {
		if _, secondary := senMLUnit(p.Readings[i].Uom); secondary && badReason(p.Readings[i]) == "" {
			flags = senMLSecondary
		}
	}
	dst = append(dst, kind, flags)
	dst = binary.AppendUvarint(dst, uint64(records))
	dst = binary.AppendUvarint(dst, uint64(len(base)))
	return append(dst, base...)
}

// appendSenMLJSON appends one poll as records of SenML in JSON.
func (e *Encoder) appendSenMLJSON(dst []byte, u *unit, seq uint64, p hw.Poll, unsynced bool) []byte {
	dst = appendSenMLHead(dst, kindSenMLJSON, p, unsynced, u.senMLJSON)
	dst = appendSenMLTime(append(dst, `"bt":`...), senMLTime(p))
	dst = appendUint(append(dst, `,"n":":seq","v":`...), seq)
	dst = appendUint(append(dst, `},{"n":":boot","v":`...), e.boot)
	if unsynced {
		dst = append(dst, `},{"n":":unsynced","vb":true`...)
	}
	for i := range p.Readings {
		r := &p.Readings[i]
		dst = append(dst, `},{"n":"`...)
		if reason := badReason(*r); reason != "" {
			dst = appendSenMLName(append(dst, ":bad/"...), r.Point, false)
			dst = appendText(append(dst, `","vs":`...), reason)
			continue
		}
		dst = append(appendSenMLName(dst, r.Point, false), '"')
		if unit, _ := senMLUnit(r.Uom); unit != "" {
			dst = append(append(append(dst, `,"u":"`...), unit...), '"')
		}
		switch r.Value.Kind() {
		case point.KindBool:
			dst = append(dst, `,"vb":`...)
		case point.KindString, point.KindTime:
			dst = append(dst, `,"vs":`...)
		default:
			dst = append(dst, `,"v":`...)
		}
		dst = r.Value.AppendJSON(dst)
	}
	return append(dst, '}')
}

// appendSenMLCBOR appends one poll as records of SenML in CBOR.
func (e *Encoder) appendSenMLCBOR(dst []byte, u *unit, seq uint64, p hw.Poll, unsynced bool) []byte {
	dst = appendSenMLHead(dst, kindSenMLCBOR, p, unsynced, u.senMLCBOR)
	dst = appendSeconds(append(dst, senMLBaseTime), senMLTime(p))
	dst = append(dst, senMLName, cborText|4, ':', 's', 'e', 'q', senMLValue)
	dst = appendHead(dst, cborUint, seq)
	dst = append(dst, cborMap|2, senMLName, cborText|5, ':', 'b', 'o', 'o', 't', senMLValue)
	dst = appendHead(dst, cborUint, e.boot)
	if unsynced {
		dst = append(append(dst, cborMap|2, senMLName), "\x69:unsynced"...)
		dst = append(dst, senMLBool, cborTrue)
	}
	for i := range p.Readings {
		r := &p.Readings[i]
		if reason := badReason(*r); reason != "" {
			dst = appendSenMLText(append(dst, cborMap|2, senMLName), ":bad/", r.Point)
			dst = appendCBORText(append(dst, senMLString), reason)
			continue
		}
		unit, _ := senMLUnit(r.Uom)
		pairs := byte(2)
		if unit != "" {
			pairs++
		}
		dst = appendSenMLText(append(dst, cborMap|pairs, senMLName), "", r.Point)
		if unit != "" {
			dst = appendCBORText(append(dst, senMLUnits), unit)
		}
		switch r.Value.Kind() {
		case point.KindBool:
			dst = append(dst, senMLBool)
		case point.KindString, point.KindTime:
			dst = append(dst, senMLString)
		default:
			dst = append(dst, senMLValue)
		}
		dst = appendCBORValue(dst, r.Value)
	}
	return dst
}

// appendSenMLText appends a name as a CBOR text. Its length is known only behind it, so names that
// are longer than their head foresaw are moved.
func appendSenMLText(dst []byte, prefix, name string) []byte {
	start := len(dst)
	dst = appendHead(dst, cborText, uint64(len(prefix)+len(name)))
	text := len(dst)
	dst = appendSenMLName(append(dst, prefix...), name, false)
	n := len(dst) - text
	if n == len(prefix)+len(name) {
		return dst
	}
	var head [9]byte
	long := appendHead(head[:0], cborText, uint64(n))
	for range len(long) - (text - start) {
		dst = append(dst, 0)
	}
	copy(dst[start+len(long):], dst[text:text+n])
	copy(dst[start:], long)
	return dst
}

// senML is one stored entry.
type senML struct {
	flags         byte
	records       uint64
	base, content []byte
}

// readSenML reads a stored entry. It answers false for what is none.
func readSenML(entry []byte) (s senML, ok bool) {
	if len(entry) < 4 {
		return s, false
	}
	s.flags = entry[1]
	rest := entry[2:]
	n, size := binary.Uvarint(rest)
	if size <= 0 {
		return s, false
	}
	s.records, rest = n, rest[size:]
	n, size = binary.Uvarint(rest)
	if size <= 0 || n > uint64(len(rest)-size) {
		return s, false
	}
	rest = rest[size:]
	s.base, s.content = rest[:n], rest[n:]
	return s, true
}

// joinSenML appends entries as one pack. Entries that are damaged are left out.
func joinSenML(dst []byte, kind byte, entries [][]byte) []byte {
	secondary, records := false, uint64(0)
	for _, entry := range entries {
		if s, ok := readSenML(entry); ok {
			secondary = secondary || s.flags&senMLSecondary != 0
			records += s.records
		}
	}
	if kind == kindSenMLCBOR {
		dst = appendHead(dst, cborTag, tagSelf)
		dst = appendHead(dst, cborTag, tagSenML)
		dst = appendHead(dst, cborArray, records)
	} else {
		dst = append(dst, '[')
	}
	var base []byte
	first := true
	for _, entry := range entries {
		s, ok := readSenML(entry)
		if !ok {
			continue
		}
		version := secondary && first
		if base != nil && string(base) == string(s.base) {
			s.base = nil
		} else {
			base = s.base
		}
		if kind == kindSenMLCBOR {
			dst = appendFirstCBOR(dst, version, s)
		} else {
			dst = appendFirstJSON(dst, version, first, s)
		}
		first = false
	}
	if kind == kindSenMLJSON {
		dst = append(dst, ']')
	}
	return dst
}

// appendFirstCBOR appends an entry with the pairs of its first record that depend on its neighbours.
func appendFirstCBOR(dst []byte, version bool, s senML) []byte {
	pairs := byte(3) // bt, n, v
	if version {
		pairs++
	}
	if s.base != nil {
		pairs++
	}
	dst = append(dst, cborMap|pairs)
	if version {
		dst = appendHead(append(dst, senMLBaseVersion), cborUint, senMLVersion)
	}
	return append(append(dst, s.base...), s.content...)
}

func appendFirstJSON(dst []byte, version, first bool, s senML) []byte {
	if !first {
		dst = append(dst, ',')
	}
	dst = append(dst, '{')
	if version {
		dst = append(dst, `"bver":26,`...)
	}
	return append(append(dst, s.base...), s.content...)
}

// senMLBases returns the pair of bn in both forms.
func senMLBases(device, line, name string) (json, cbor []byte) {
	base := senMLBase(device, line, name)
	json = append(append(append(json, `"bn":"`...), base...), `",`...)
	return json, appendCBORText(append(cbor, senMLBaseName), base)
}
