// Package modbus speaks Modbus RTU as the master of a serial line: a pure codec for both
// directions and a client that reads exactly as many bytes as an answer has. RTU answers carry no
// transaction number, so the trap is the late answer: one that comes after its timeout fits the
// next request of the same shape. The client remembers what every unit still owes and never takes
// such a frame for a value.
package modbus

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ferrule/internal/hint"
)

// Function is a Modbus function code (Application Protocol V1.1b3, 6).
type Function byte

// The functions that Ferrule speaks. An answer with the top bit set is an exception.
const (
	ReadCoils            Function = 1
	ReadDiscreteInputs   Function = 2
	ReadHoldingRegisters Function = 3
	ReadInputRegisters   Function = 4
	WriteSingleCoil      Function = 5
	WriteSingleRegister  Function = 6
	WriteCoils           Function = 15
	WriteRegisters       Function = 16
	MaskWriteRegister    Function = 22
	ReadWriteRegisters   Function = 23

	exceptionBit Function = 0x80
)

// The most that one request may carry (Application Protocol V1.1b3, 6.1 to 6.17).
const (
	MaxReadBits           = 2000
	MaxReadRegisters      = 125
	MaxWriteBits          = 1968
	MaxWriteRegisters     = 123
	MaxReadWriteRegisters = 121 // written by function 23
	MaxFrame              = 256 // bytes, with unit and CRC (V1.02, 2.5.1)
)

// Exception is a unit's refusal (Application Protocol V1.1b3, 7).
type Exception byte

func (e Exception) Error() string {
	if int(e) < len(exceptionText) && exceptionText[e] != "" {
		return "exception " + strconv.Itoa(int(e)) + ": " + exceptionText[e]
	}
	return "exception " + strconv.Itoa(int(e))
}

var exceptionText = [...]string{
	1: "illegal function", 2: "illegal data address", 3: "illegal data value", 4: "server device failure",
	5: "acknowledge", 6: "server device busy", 8: "memory parity error", 10: "gateway path unavailable",
	11: "gateway target device failed to respond",
}

// What went wrong on the wire. Any other error but an Exception or that of the context is the port's.
var (
	ErrTimeout  = errors.New("no answer in time")
	ErrCRC      = errors.New("answer with a wrong checksum")
	ErrMismatch = errors.New("answer that fits no request")
)

// ErrRequest is a request that the protocol cannot carry; nothing was sent.
var ErrRequest = errors.New("request outside the protocol's limits")

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

// Timing is how long bytes and silences last on a line (Modbus over Serial Line V1.02, 2.5.1.1).
// The zero Timing is a line without a baud rate: no silences are kept.
type Timing struct {
	Char time.Duration // one character on the wire
	T15  time.Duration // a silence this long inside a frame spoils it
	T35  time.Duration // a silence this long ends a frame
}

// TimingOf is the timing at baud, a character being bitsPerChar bits with start, parity and stop.
// Above 19,200 the silences are fixed, as V1.02, 2.5.1.1 recommends.
func TimingOf(baud, bitsPerChar int) Timing {
	if baud <= 0 || bitsPerChar <= 0 {
		return Timing{}
	}
	second := time.Duration(bitsPerChar) * time.Second
	t := Timing{Char: second / time.Duration(baud), T15: 750 * time.Microsecond, T35: 1750 * time.Microsecond}
	if baud <= 19_200 {
		t.T15, t.T35 = 3*second/time.Duration(2*baud), 7*second/time.Duration(2*baud)
	}
	return t
}

// Chars is how long n characters last.
func (t Timing) Chars(n int) time.Duration { return time.Duration(n) * t.Char }
