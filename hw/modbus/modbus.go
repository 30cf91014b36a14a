// Package modbus speaks Modbus RTU and ASCII in every role on a serial line: a pure codec for both
// directions, a client, a server and a listener. Answers carry no transaction number, so the trap
// is the late answer: one that comes after its timeout fits the next request of the same shape. The
// client remembers what every unit still owes and never takes such a frame for a value.
package modbus

import (
	"errors"
	"strconv"
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
	ReadFileRecord       Function = 20
	WriteFileRecord      Function = 21
	MaskWriteRegister    Function = 22
	ReadWriteRegisters   Function = 23
	ReadFIFOQueue        Function = 24
	ReadDeviceID         Function = 43 // with the MEI type 14, the only one that is spoken

	exceptionBit Function = 0x80
)

// The most that one request may carry (Application Protocol V1.1b3, 6.1 to 6.17).
const (
	MaxReadBits           = 2000
	MaxReadRegisters      = 125
	MaxWriteBits          = 1968
	MaxWriteRegisters     = 123
	MaxReadWriteRegisters = 121 // written by function 23
	MaxFIFO               = 31  // registers of a queue, function 24
	MaxFrame              = 256 // bytes, with unit and CRC (V1.02, 2.5.1)
	MaxASCIIFrame         = 513 // characters, with colon, LRC, CR and LF (V1.02, 2.5.2.1)
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

// Exceptions that a server answers by itself.
const (
	IllegalFunction Exception = 1
	IllegalAddress  Exception = 2
	IllegalValue    Exception = 3
	ServerFailure   Exception = 4
)

// What went wrong on the wire. Any other error but an Exception or that of the context is the port's.
var (
	ErrTimeout  = errors.New("no answer in time")
	ErrCRC      = errors.New("answer with a wrong checksum")
	ErrMismatch = errors.New("answer that fits no request")
)

// FrameError is an answer that was wrong, with the bytes that came instead, at most MaxFrame of
// them. Err is ErrCRC or ErrMismatch, or ErrTimeout where what came was no frame at all.
type FrameError struct {
	Err   error
	Frame []byte
}

func (e *FrameError) Error() string { return e.Err.Error() }

// Unwrap is Err, so that errors.Is finds it.
func (e *FrameError) Unwrap() error { return e.Err }

// ErrRequest is a request that the protocol cannot carry; nothing was sent.
var ErrRequest = errors.New("request outside the protocol's limits")
