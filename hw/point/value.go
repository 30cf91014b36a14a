// Package point turns register bytes into typed, scaled values and back. The trap is
// arithmetic: 2301 × 0.1 is 230.10000000000002 in binary floating point, so scale and offset
// are applied to decimal numbers, and only the result becomes a float64.
package point

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// ErrNaN says that a register holds no number: NaN or an infinity. It is not a value, and
// JSON could not carry it either.
var ErrNaN = errors.New("not a number")

// ErrRange says that a value does not fit the type of its point.
var ErrRange = errors.New("value out of range")

// ErrKind says that a value is of the wrong kind for its point: text for a number, say.
var ErrKind = errors.New("wrong kind of value")

// ErrDigit says that a register of a BCD type holds a nibble above 9.
var ErrDigit = errors.New("not a decimal digit")

// Kind says what a Value holds.
type Kind uint8

// The kinds of Value. The zero Value holds nothing.
const (
	None Kind = iota
	KindBool
	KindInt
	KindUint
	KindFloat
	KindString
	KindTime
)

func (k Kind) String() string {
	return [...]string{"nothing", "bool", "int", "uint", "float", "string", "time"}[k]
}

// Value is one decoded value: a bool, an int64, a uint64, a finite float64, a string or a time.
// Values are comparable with ==.
type Value struct {
	kind Kind
	form TimeForm // of a time
	bits uint64   // the number, by its kind; 0 or 1 for a bool; microseconds since 1970 for a time
	text string
}

// Bool returns b as a Value.
func Bool(b bool) Value {
	if b {
		return Value{kind: KindBool, bits: 1}
	}
	return Value{kind: KindBool}
}

// Int returns i as a Value.
func Int(i int64) Value { return Value{kind: KindInt, bits: uint64(i)} }

// Uint returns u as a Value.
func Uint(u uint64) Value { return Value{kind: KindUint, bits: u} }

// String returns s as a Value; bytes that are not UTF-8 become U+FFFD in JSON.
func String(s string) Value { return Value{kind: KindString, text: s} }

// Float returns f as a Value, or ErrNaN for NaN and the infinities. Negative zero becomes
// zero, so that equal numbers are equal Values.
func Float(f float64) (Value, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return Value{}, ErrNaN
	}
	if f == 0 {
		f = 0
	}
	return Value{kind: KindFloat, bits: math.Float64bits(f)}, nil
}

// Of converts what a JSON document, a TOML document or Go code holds: bool, any integer,
// float32, float64, json.Number, string, or a Value.
func Of(v any) (Value, error) {
	switch v := v.(type) {
	case Value:
		return v, nil
	case bool:
		return Bool(v), nil
	case string:
		return String(v), nil
	case json.Number:
		return ParseNumber(string(v))
	case float64:
		return Float(v)
	case float32:
		return Float(shortest(v))
	case int:
		return Int(int64(v)), nil
	case int8:
		return Int(int64(v)), nil
	case int16:
		return Int(int64(v)), nil
	case int32:
		return Int(int64(v)), nil
	case int64:
		return Int(v), nil
	case uint:
		return Uint(uint64(v)), nil
	case uint8:
		return Uint(uint64(v)), nil
	case uint16:
		return Uint(uint64(v)), nil
	case uint32:
		return Uint(uint64(v)), nil
	case uint64:
		return Uint(v), nil
	}
	return Value{}, fmt.Errorf("%w: %T", ErrKind, v)
}

// ParseNumber reads a number as JSON writes it; integers stay exact.
func ParseNumber(s string) (Value, error) {
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return Int(i), nil
	}
	if u, err := strconv.ParseUint(s, 10, 64); err == nil {
		return Uint(u), nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if errors.Is(err, strconv.ErrRange) {
		return Value{}, fmt.Errorf("%w: %s", ErrRange, s)
	}
	if err != nil {
		return Value{}, fmt.Errorf("%w: %q is not a number", ErrKind, s)
	}
	return Float(f)
}

// Parse reads a value as a person types it on a command line, for a point of type t: on,
// off, true, false, 1 or 0 for a bit, text as it is, and a number for everything else.
func Parse(s string, t Type) (Value, error) {
	switch t.kind {
	case text:
		return String(s), nil
	case bit, registerBit:
		switch s {
		case "on", "true", "1":
			return Bool(true), nil
		case "off", "false", "0":
			return Bool(false), nil
		}
		return Value{}, fmt.Errorf("%w: %q is neither on nor off", ErrKind, s)
	}
	return ParseNumber(s)
}

// Kind returns what v holds.
func (v Value) Kind() Kind { return v.kind }

// Float64 returns v as a float64; a bool is 0 or 1. It answers false for text and nothing.
func (v Value) Float64() (float64, bool) {
	switch v.kind {
	case KindBool, KindUint:
		return float64(v.bits), true
	case KindInt:
		return float64(int64(v.bits)), true
	case KindFloat:
		return math.Float64frombits(v.bits), true
	}
	return 0, false
}

// Bool returns the bool that v holds, and whether it holds one.
func (v Value) Bool() (value, ok bool) { return v.bits == 1, v.kind == KindBool }

// Int64 returns the integer that v holds; false where it holds none or one above the range.
func (v Value) Int64() (int64, bool) {
	return int64(v.bits), v.kind == KindInt || v.kind == KindUint && v.bits <= math.MaxInt64
}

// Uint64 returns the integer that v holds; false where it holds none or a negative one.
func (v Value) Uint64() (uint64, bool) {
	return v.bits, v.kind == KindUint || v.kind == KindInt && int64(v.bits) >= 0
}

// Text returns the text that v holds, and whether it holds any.
func (v Value) Text() (string, bool) { return v.text, v.kind == KindString }

// String returns v as people read it: as JSON, but text without quotes.
func (v Value) String() string {
	switch v.kind {
	case KindString:
		return v.text
	case KindTime:
		return string(v.appendTime(nil))
	}
	return string(v.AppendJSON(nil))
}

// MarshalJSON implements json.Marshaler.
func (v Value) MarshalJSON() ([]byte, error) { return v.AppendJSON(nil), nil }

// UnmarshalJSON implements json.Unmarshaler: a number without point and exponent is an
// integer, as AppendJSON writes it.
func (v *Value) UnmarshalJSON(text []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var any any
	if err := decoder.Decode(&any); err != nil {
		return err
	}
	if any == nil {
		*v = Value{}
		return nil
	}
	var err error
	*v, err = Of(any)
	return err
}

// AppendJSON appends v as JSON: integers exactly, floats in the shortest form that reads
// back as the same float64 and always with a point or an exponent, so that consumers who
// guess a column's type by its first value guess right. Nothing is null.
func (v Value) AppendJSON(dst []byte) []byte {
	switch v.kind {
	case KindBool:
		return strconv.AppendBool(dst, v.bits == 1)
	case KindInt:
		return strconv.AppendInt(dst, int64(v.bits), 10)
	case KindUint:
		return strconv.AppendUint(dst, v.bits, 10)
	case KindFloat:
		return appendFloat(dst, math.Float64frombits(v.bits))
	case KindString:
		return appendString(dst, v.text)
	case KindTime:
		return append(v.appendTime(append(dst, '"')), '"')
	}
	return append(dst, "null"...)
}

// appendFloat writes as encoding/json does, exponents only below 1e-6 and from 1e21 on, but
// keeps the point.
func appendFloat(dst []byte, f float64) []byte {
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64)
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	for _, c := range dst[start:] {
		if c == '.' {
			return dst
		}
	}
	return append(dst, '.', '0')
}

// appendString writes s as a JSON string; the bytes come from a foreign unit.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for _, r := range s { // a byte that is not UTF-8 arrives here as U+FFFD
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < 0x20 || r == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			dst = utf8.AppendRune(dst, r)
		}
	}
	return append(dst, '"')
}
