package modbus

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Request is one request, from either side of the line.
type Request struct {
	Unit     byte // 0: all units, and none answers
	Function Function
	Address  uint16 // first bit or register; of the read, for function 23; the queue, for 24
	Count    uint16 // how many bits or registers; of the read, for function 23

	WriteAddress uint16  // function 23 only
	And, Or      uint16  // masks of function 22
	Objects      Objects // which objects function 43 asks for
	Object       byte    // function 43: the first, or the one
	// Data is what is written: packed bits, or registers big-endian. Functions 5, 6, 15, 16, 23.
	// For function 5 it is FF 00 or 00 00. For 20 and 21 it is as RecordRequest makes it.
	Data []byte
}

// ErrFrame is a frame that is no sound request or response.
var ErrFrame = errors.New("malformed frame")

func malformed(why string) error { return fmt.Errorf("%w: %s", ErrFrame, why) }

// bitBytes is how many bytes n packed bits take.
func bitBytes(n uint16) int { return (int(n) + 7) / 8 }

// writes tells whether f writes and reads nothing, so that it may be sent to all units at once
// (Modbus over Serial Line V1.02, 2.1).
func (f Function) writes() bool {
	switch f {
	case WriteSingleCoil, WriteSingleRegister, WriteCoils, WriteRegisters, WriteFileRecord, MaskWriteRegister:
		return true
	}
	return false
}

// Validate says what the protocol cannot carry (Application Protocol V1.1b3, 6). The address range
// is not checked: a unit answers exception 2 where it ends.
func (r Request) Validate() error {
	if _, err := r.refusal(); err != nil {
		return err
	}
	if r.Unit == 0 && !r.Function.writes() {
		return fmt.Errorf("%w: nobody answers function %d at unit 0", ErrRequest, r.Function)
	}
	return nil
}

// refusal is why a unit refuses the request before it looks at its tables, and how.
func (r *Request) refusal() (Exception, error) {
	switch r.Function {
	case ReadCoils, ReadDiscreteInputs:
		return r.within(MaxReadBits, 0)
	case ReadHoldingRegisters, ReadInputRegisters:
		return r.within(MaxReadRegisters, 0)
	case WriteSingleCoil, WriteSingleRegister:
		if len(r.Data) != 2 || r.Function == WriteSingleCoil && (r.Data[0] != 0 && r.Data[0] != 0xFF || r.Data[1] != 0) {
			return IllegalValue, fmt.Errorf("%w: value of function %d", ErrRequest, r.Function)
		}
		return 0, nil
	case WriteCoils:
		return r.within(MaxWriteBits, bitBytes(r.Count))
	case WriteRegisters:
		return r.within(MaxWriteRegisters, 2*int(r.Count))
	case MaskWriteRegister, ReadFIFOQueue:
		return 0, nil
	case ReadWriteRegisters:
		if n := len(r.Data); n < 2 || n > 2*MaxReadWriteRegisters || n%2 != 0 {
			return IllegalValue, fmt.Errorf("%w: function 23 writing %d bytes", ErrRequest, n)
		}
		return r.within(MaxReadRegisters, len(r.Data))
	case ReadFileRecord, WriteFileRecord:
		return r.recordRefusal()
	case ReadDeviceID:
		if r.Objects < BasicObjects || r.Objects > OneObject {
			return IllegalValue, fmt.Errorf("%w: function 43 with the code %d, of 1 to 4", ErrRequest, r.Objects)
		}
		return 0, nil
	}
	return IllegalFunction, fmt.Errorf("%w: function %d", ErrRequest, r.Function)
}

// within refuses a count outside of 1 to limit, and data of another length.
func (r *Request) within(limit, bytes int) (Exception, error) {
	switch count := int(r.Count); {
	case count < 1 || count > limit:
		return IllegalValue, fmt.Errorf("%w: function %d for %d items, of 1 to %d", ErrRequest, r.Function, count, limit)
	case len(r.Data) != bytes:
		return IllegalValue, fmt.Errorf("%w: function %d for %d items with %d bytes", ErrRequest, r.Function, count, len(r.Data))
	}
	return 0, nil
}

// Append appends the request as an RTU frame with its checksum.
func (r Request) Append(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, r.Unit, byte(r.Function))
	switch r.Function {
	case WriteSingleCoil, WriteSingleRegister:
		dst = append(binary.BigEndian.AppendUint16(dst, r.Address), r.Data...)
	case MaskWriteRegister:
		dst = appendWords(dst, r.Address, r.And, r.Or)
	case ReadWriteRegisters:
		dst = appendWords(dst, r.Address, r.Count, r.WriteAddress, uint16(len(r.Data)/2))
		dst = append(append(dst, byte(len(r.Data))), r.Data...)
	case WriteCoils, WriteRegisters:
		dst = appendWords(dst, r.Address, r.Count)
		dst = append(append(dst, byte(len(r.Data))), r.Data...)
	case ReadFileRecord, WriteFileRecord:
		dst = append(append(dst, byte(len(r.Data))), r.Data...)
	case ReadFIFOQueue:
		dst = appendWords(dst, r.Address)
	case ReadDeviceID:
		dst = append(dst, meiDeviceID, byte(r.Objects), r.Object)
	default:
		dst = appendWords(dst, r.Address, r.Count)
	}
	return appendCRC(dst, start)
}

func appendWords(dst []byte, words ...uint16) []byte {
	for _, w := range words {
		dst = binary.BigEndian.AppendUint16(dst, w)
	}
	return dst
}

// RequestLength is how many bytes the RTU request that begins with p has, checksum included: 0 while
// p is too short to tell, −1 for a function that is not known.
func RequestLength(p []byte) int {
	if len(p) < 2 {
		return 0
	}
	counted := func(at int) int {
		if len(p) <= at {
			return 0
		}
		return at + 1 + int(p[at]) + 2
	}
	switch Function(p[1]) {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters, WriteSingleCoil, WriteSingleRegister:
		return 8
	case WriteCoils, WriteRegisters:
		return counted(6)
	case ReadFileRecord, WriteFileRecord:
		return counted(2)
	case MaskWriteRegister:
		return 10
	case ReadWriteRegisters:
		return counted(10)
	case ReadFIFOQueue:
		return 6
	case ReadDeviceID:
		switch {
		case len(p) < 3:
			return 0
		case p[2] == meiDeviceID:
			return 7
		}
	}
	return -1
}

// DecodeRequest reads a whole RTU frame as a request. Data points into it. Where the frame is sound
// and the request is not, Unit and Function are set, and the error is the Exception that a unit
// answers.
func DecodeRequest(frame []byte) (Request, error) {
	n := RequestLength(frame)
	switch {
	case len(frame) < 4 || len(frame) > MaxFrame:
		return Request{}, malformed("length")
	case !sound(frame):
		return Request{}, fmt.Errorf("%w: %w", ErrFrame, ErrCRC)
	}
	r := Request{Unit: frame[0], Function: Function(frame[1])}
	refuse := func(e Exception, why error) (Request, error) {
		return Request{Unit: r.Unit, Function: r.Function}, fmt.Errorf("%w: %w: %w", ErrFrame, why, e)
	}
	switch {
	case n < 0:
		return refuse(IllegalFunction, errors.New("unknown function"))
	case n != len(frame):
		return refuse(IllegalValue, errors.New("length"))
	}
	if !r.decode(frame[2 : n-2]) {
		return refuse(IllegalValue, errors.New("byte count"))
	}
	if e, err := r.refusal(); err != nil {
		return refuse(e, err)
	}
	return r, nil
}

// decode reads what follows the function. It returns false if two counts contradict each other.
func (r *Request) decode(p []byte) bool {
	word := func(at int) uint16 { return binary.BigEndian.Uint16(p[at:]) }
	switch r.Function {
	case WriteSingleCoil, WriteSingleRegister:
		r.Address, r.Data = word(0), p[2:4]
	case MaskWriteRegister:
		r.Address, r.And, r.Or = word(0), word(2), word(4)
	case WriteCoils, WriteRegisters:
		r.Address, r.Count, r.Data = word(0), word(2), p[5:]
	case ReadFileRecord, WriteFileRecord:
		r.Data = p[1:]
	case ReadWriteRegisters:
		r.Address, r.Count, r.WriteAddress, r.Data = word(0), word(2), word(4), p[9:]
		return int(word(6))*2 == len(r.Data)
	case ReadFIFOQueue:
		r.Address = word(0)
	case ReadDeviceID:
		r.Objects, r.Object = Objects(p[1]), p[2]
	default:
		r.Address, r.Count = word(0), word(2)
	}
	return true
}
