package point

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxText is the longest string, in bytes: 125 registers, which is all one answer carries.
const maxText = 250

// MaxRegisters is the most registers that any Type occupies.
const MaxRegisters = maxText / 2

type kind uint8

const (
	bit         kind = iota + 1 // a coil or a discrete input
	registerBit                 // one bit of a register
	integer                     // unsigned
	signed                      // two's complement
	float                       // IEEE 754
	bcd                         // binary-coded decimal, four digits to a register
	field                       // neighbouring bits of one register, or of two
	text
)

// Type says how the bytes of a point are read. It is comparable; the zero Type is invalid.
//
//	bit                 one coil or discrete input
//	bit@n               bit n of a register, 0 the least significant to 15
//	bits@a..b           bits a to b as an unsigned number, a ≤ b, both included: of a register
//	                    up to bit 15, of the 32-bit value of two registers up to bit 31
//	int8, uint8         the low byte of a register; also written int8l, uint8l
//	int8h, uint8h       the high byte of a register
//	int16 … int64       two's complement in 1, 2, 3 or 4 registers (16, 32, 48, 64)
//	uint16 … uint64     unsigned, likewise
//	float16/32/64       IEEE 754 half, single and double precision
//	bcd16 … bcd64       4, 8, 12 and 16 decimal digits (16, 32, 48, 64)
//	string(n)           n bytes of text in (n+1)/2 registers, n from 1 to 250; it ends at the
//	                    first NUL and loses its trailing spaces
type Type struct {
	kind kind
	size uint8 // in bits; in bytes for text; 1 for bit and registerBit
	low  uint8 // the least significant bit of registerBit, field and the 8-bit types
}

// scalars are the types without a parameter.
var scalars = map[string]Type{
	"bit":    {kind: bit, size: 1},
	"int8":   {kind: signed, size: 8},
	"int8l":  {kind: signed, size: 8},
	"int8h":  {kind: signed, size: 8, low: 8},
	"int16":  {kind: signed, size: 16},
	"int32":  {kind: signed, size: 32},
	"int48":  {kind: signed, size: 48},
	"int64":  {kind: signed, size: 64},
	"uint8":  {kind: integer, size: 8},
	"uint8l": {kind: integer, size: 8},
	"uint8h": {kind: integer, size: 8, low: 8},
	"uint16": {kind: integer, size: 16},
	"uint32": {kind: integer, size: 32},
	"uint48": {kind: integer, size: 48},
	"uint64": {kind: integer, size: 64},

	"float16": {kind: float, size: 16},
	"float32": {kind: float, size: 32},
	"float64": {kind: float, size: 64},
	"bcd16":   {kind: bcd, size: 16},
	"bcd32":   {kind: bcd, size: 32},
	"bcd48":   {kind: bcd, size: 48},
	"bcd64":   {kind: bcd, size: 64},
}

// ParseType reads a type as the configuration writes it.
func ParseType(s string) (Type, error) {
	if t, ok := scalars[s]; ok {
		return t, nil
	}
	if digits, ok := strings.CutPrefix(s, "bit@"); ok {
		n, err := parseSmall(digits, 0, 15)
		if err != nil {
			return Type{}, fmt.Errorf("type %q: the bit is none of 0 to 15", s)
		}
		return Type{kind: registerBit, size: 1, low: n}, nil
	}
	if digits, ok := strings.CutPrefix(s, "bits@"); ok {
		from, to, _ := strings.Cut(digits, "..")
		a, err1 := parseSmall(from, 0, 31)
		b, err2 := parseSmall(to, 0, 31)
		if err1 != nil || err2 != nil || a > b {
			return Type{}, fmt.Errorf("type %q: write the lower and the upper bit, 0 to 31: bits@4..7", s)
		}
		return Type{kind: field, size: b - a + 1, low: a}, nil
	}
	if rest, ok := strings.CutPrefix(s, "string("); ok && strings.HasSuffix(rest, ")") {
		n, err := parseSmall(strings.TrimSuffix(rest, ")"), 1, maxText)
		if err != nil {
			return Type{}, fmt.Errorf("type %q: the length is none of 1 to %d bytes", s, maxText)
		}
		return Type{kind: text, size: n}, nil
	}
	return Type{}, fmt.Errorf("type %q is none of bit, bit@n, bits@a..b, int8h, uint8h, int8/16/32/48/64, uint8/16/32/48/64, "+
		"float16/32/64, bcd16/32/48/64, string(n)", s)
}

// parseSmall reads a plain decimal from low to high: no sign, no leading zero.
func parseSmall(digits string, low, high uint64) (uint8, error) {
	n, err := strconv.ParseUint(digits, 10, 8)
	if err != nil || n < low || n > high || strconv.FormatUint(n, 10) != digits {
		return 0, errors.New("out of range")
	}
	return uint8(n), nil
}

// Float64 is the type float64.
func Float64() Type { return Type{kind: float, size: 64} }

// Bit reports whether t is for coils and discrete inputs; all other types are for registers.
func (t Type) Bit() bool { return t.kind == bit }

// Numeric reports whether scale, offset and deadband have a meaning for t.
func (t Type) Numeric() bool {
	return t.whole() || t.kind == float
}

// whole reports whether the registers hold an integer.
func (t Type) whole() bool {
	return t.kind == integer || t.kind == signed || t.kind == bcd || t.kind == field
}

// ReadOnly reports whether t cannot be written: a field in two registers, since no request changes
// some bits of both at once.
func (t Type) ReadOnly() bool { return t.kind == field && t.Registers() > 1 && t.size < 32 }

// Registers returns how many registers t occupies, or 1 for a coil.
func (t Type) Registers() int {
	if t.kind == text {
		return (int(t.size) + 1) / 2
	}
	return (int(t.low) + int(t.size) + 15) / 16
}

// mask returns the bits of its one register that a point of type t occupies, before the
// bytes are ordered; 0xFFFF for all types that fill their registers.
func (t Type) mask() uint16 {
	if t.kind == bit || t.kind == text || t.size >= 16 || t.Registers() > 1 {
		return 0xffff
	}
	return (1<<t.size - 1) << t.low
}

func (t Type) String() string {
	switch t.kind {
	case 0:
		return "invalid"
	case bit:
		return "bit"
	case registerBit:
		return "bit@" + strconv.Itoa(int(t.low))
	case field:
		return "bits@" + strconv.Itoa(int(t.low)) + ".." + strconv.Itoa(int(t.low+t.size-1))
	case text:
		return "string(" + strconv.Itoa(int(t.size)) + ")"
	}
	name := [...]string{integer: "uint", signed: "int", float: "float", bcd: "bcd"}[t.kind] + strconv.Itoa(int(t.size))
	if t.low > 0 {
		name += "h"
	}
	return name
}

// MarshalText implements encoding.TextMarshaler.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Type) UnmarshalText(b []byte) (err error) {
	*t, err = ParseType(string(b))
	return err
}

// Order is the order in which the bytes of a value stand on the wire, named after the four
// bytes of a 32-bit value, A the most significant. Each name means two things, which is how
// it carries over to types of any size:
//
//	      registers             bytes of a register   16 bits  48 bits    64 bits
//	ABCD  most significant 1st  high byte first       AB       ABCDEF     ABCDEFGH
//	CDAB  least significant 1st high byte first       AB       EFCDAB     GHEFCDAB
//	BADC  most significant 1st  low byte first        BA       BADCFE     BADCFEHG
//	DCBA  least significant 1st low byte first        BA       FEDCBA     HGFEDCBA
//
// Text keeps the order of its registers in all four; bits, fields and 8-bit types count within
// the register or the 32-bit value after it was put right. Coils have no order.
type Order uint8

// The four orders; the zero Order is ABCD, what the Modbus specification says.
const (
	ABCD Order = iota
	CDAB
	BADC
	DCBA
)

var orderNames = [...]string{"ABCD", "CDAB", "BADC", "DCBA"}

// ParseOrder reads an order as the configuration writes it; "" is ABCD.
func ParseOrder(s string) (Order, error) {
	if s == "" {
		return ABCD, nil
	}
	for o, name := range orderNames {
		if s == name {
			return Order(o), nil
		}
	}
	return ABCD, fmt.Errorf("order %q is none of ABCD, CDAB, BADC, DCBA", s)
}

func (o Order) String() string { return orderNames[o&3] }

// MarshalText implements encoding.TextMarshaler.
func (o Order) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Order) UnmarshalText(b []byte) (err error) {
	*o, err = ParseOrder(string(b))
	return err
}

// wordsReversed says that the least significant register comes first.
func (o Order) wordsReversed() bool { return o == CDAB || o == DCBA }

// bytesSwapped says that the low byte of each register comes first.
func (o Order) bytesSwapped() bool { return o == BADC || o == DCBA }
