package modbus

import (
	"fmt"
	"strconv"
	"strings"

	"ferrule/internal/hint"
)

// Table is one of the four tables of a unit's data model (Application Protocol V1.1b3, 4.3).
type Table uint8

const (
	Coils Table = iota
	DiscreteInputs
	InputRegisters
	HoldingRegisters
)

func (t Table) String() string {
	switch t {
	case Coils:
		return "coil"
	case DiscreteInputs:
		return "discrete"
	case InputRegisters:
		return "input"
	case HoldingRegisters:
		return "holding"
	}
	return "table " + strconv.Itoa(int(t))
}

// Bits tells whether the table holds single bits rather than registers.
func (t Table) Bits() bool { return t == Coils || t == DiscreteInputs }

func (t Table) readFunction() Function {
	switch t {
	case Coils:
		return ReadCoils
	case DiscreteInputs:
		return ReadDiscreteInputs
	case InputRegisters:
		return ReadInputRegisters
	}
	return ReadHoldingRegisters
}

// Reads returns the table that a function reads, of functions 1 to 4.
func (f Function) Reads() (t Table, reads bool) {
	for _, t := range [...]Table{Coils, DiscreteInputs, InputRegisters, HoldingRegisters} {
		if t.readFunction() == f {
			return t, true
		}
	}
	return 0, false
}

// Address is where a bit or a register lies; Offset counts from 0, as on the wire.
type Address struct {
	Table  Table
	Offset uint16
}

func (a Address) String() string { return a.Table.String() + ":" + strconv.Itoa(int(a.Offset)) }

const addressHint = `write "input:12" or "holding:0x000C" (counted from 0), or "30013" or "400013" (counted from 1, as in many manuals)`

// ParseAddress reads "input:0x000C" and "holding:100", whose offsets count from 0, and the
// five- and six-digit forms "30013" and "400013" of manuals, which count from 1: first digit 0
// coils, 1 discrete inputs, 3 input registers, 4 holding registers.
func ParseAddress(s string) (Address, error) {
	name, offset, named := strings.Cut(s, ":")
	if !named {
		return parseDigits(s)
	}
	for _, t := range [...]Table{Coils, DiscreteInputs, InputRegisters, HoldingRegisters} {
		if name != t.String() {
			continue
		}
		base, digits := 10, offset
		if rest, hex := strings.CutPrefix(strings.ToLower(offset), "0x"); hex {
			base, digits = 16, rest
		}
		n, err := strconv.ParseUint(digits, base, 16)
		if err != nil {
			return Address{}, badAddress(s, "the offset is not a number from 0 to 65535")
		}
		return Address{t, uint16(n)}, nil
	}
	return Address{}, badAddress(s, "the table is none of coil, discrete, input, holding")
}

func parseDigits(s string) (Address, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || len(s) != 5 && len(s) != 6 {
		return Address{}, badAddress(s, "neither table:offset nor five or six digits")
	}
	tables := map[byte]Table{'0': Coils, '1': DiscreteInputs, '3': InputRegisters, '4': HoldingRegisters}
	t, ok := tables[s[0]]
	if !ok {
		return Address{}, badAddress(s, "the first digit is none of 0, 1, 3, 4")
	}
	if len(s) == 5 {
		n %= 10_000
	} else {
		n %= 100_000
	}
	if n < 1 || n > 65_536 {
		return Address{}, badAddress(s, "such addresses count from 1 to 65536")
	}
	return Address{t, uint16(n - 1)}, nil
}

func badAddress(s, why string) error {
	return hint.With(fmt.Errorf("reading address %q: %s", s, why), addressHint)
}
