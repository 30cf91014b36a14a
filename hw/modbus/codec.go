package modbus

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Request is one request, from either side of the line.
type Request struct {
	Unit     byte
	Function Function
	Address  uint16 // first bit or register; of the read, for function 23
	Count    uint16 // how many bits or registers; of the read, for function 23

	WriteAddress uint16 // function 23 only
	And, Or      uint16 // masks of function 22
	// Data is what is written: packed bits, or registers big-endian. Functions 5, 6, 15, 16, 23.
	// For function 5 it is FF 00 or 00 00.
	Data []byte
}

// Response is one answer, from either side of the line.
type Response struct {
	Unit      byte
	Function  Function  // without the exception bit
	Exception Exception // 0: none
	Address   uint16    // functions 5, 6, 15, 16, 22
	Count     uint16    // functions 15, 16
	And, Or   uint16    // function 22
	// Data is what was read, packed bits or registers big-endian; for functions 5 and 6 the value
	// written. It points into the decoded frame.
	Data []byte
}

// ErrFrame is a frame that is no sound request or response.
var ErrFrame = errors.New("malformed frame")

func malformed(why string) error { return fmt.Errorf("%w: %s", ErrFrame, why) }

// CRC is the checksum of V1.02, 2.5.1.2 over p; it travels low byte first.
func CRC(p []byte) uint16 {
	crc := uint16(0xFFFF)
	for _, b := range p {
		crc = crc>>8 ^ crcTable[byte(crc)^b]
	}
	return crc
}

// crcTable holds the checksum steps of polynomial 0xA001 for each byte.
var crcTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

func appendCRC(dst []byte, start int) []byte {
	return binary.LittleEndian.AppendUint16(dst, CRC(dst[start:]))
}

// sound tells whether the frame's last two bytes are its checksum.
func sound(frame []byte) bool {
	n := len(frame) - 2
	return n >= 2 && binary.LittleEndian.Uint16(frame[n:]) == CRC(frame[:n])
}

// bitBytes is how many bytes n packed bits take.
func bitBytes(n uint16) int { return (int(n) + 7) / 8 }

// Validate says what the protocol cannot carry (Application Protocol V1.1b3, 6). The address range
// is not checked: a unit answers exception 2 where it ends.
func (r Request) Validate() error {
	count, data := int(r.Count), len(r.Data)
	within := func(limit, bytes int) error {
		switch {
		case count < 1 || count > limit:
			return fmt.Errorf("%w: function %d for %d items, of 1 to %d", ErrRequest, r.Function, count, limit)
		case data != bytes:
			return fmt.Errorf("%w: function %d for %d items with %d bytes", ErrRequest, r.Function, count, data)
		}
		return nil
	}
	switch r.Function {
	case ReadCoils, ReadDiscreteInputs:
		return within(MaxReadBits, 0)
	case ReadHoldingRegisters, ReadInputRegisters:
		return within(MaxReadRegisters, 0)
	case WriteSingleCoil, WriteSingleRegister:
		if data != 2 || r.Function == WriteSingleCoil && (r.Data[0] != 0 && r.Data[0] != 0xFF || r.Data[1] != 0) {
			return fmt.Errorf("%w: value of function %d", ErrRequest, r.Function)
		}
		return nil
	case WriteCoils:
		return within(MaxWriteBits, bitBytes(r.Count))
	case WriteRegisters:
		return within(MaxWriteRegisters, 2*count)
	case MaskWriteRegister:
		return nil
	case ReadWriteRegisters:
		if data < 2 || data > 2*MaxReadWriteRegisters || data%2 != 0 {
			return fmt.Errorf("%w: function 23 writing %d bytes", ErrRequest, data)
		}
		return within(MaxReadRegisters, data)
	}
	return fmt.Errorf("%w: function %d", ErrRequest, r.Function)
}

// Append appends the request as a frame with its checksum.
func (r Request) Append(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, r.Unit, byte(r.Function))
	dst = binary.BigEndian.AppendUint16(dst, r.Address)
	switch r.Function {
	case WriteSingleCoil, WriteSingleRegister:
		dst = append(dst, r.Data...)
	case MaskWriteRegister:
		dst = binary.BigEndian.AppendUint16(dst, r.And)
		dst = binary.BigEndian.AppendUint16(dst, r.Or)
	case ReadWriteRegisters:
		dst = binary.BigEndian.AppendUint16(dst, r.Count)
		dst = binary.BigEndian.AppendUint16(dst, r.WriteAddress)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(r.Data)/2))
		dst = append(append(dst, byte(len(r.Data))), r.Data...)
	case WriteCoils, WriteRegisters:
		dst = binary.BigEndian.AppendUint16(dst, r.Count)
		dst = append(append(dst, byte(len(r.Data))), r.Data...)
	default:
		dst = binary.BigEndian.AppendUint16(dst, r.Count)
	}
	return appendCRC(dst, start)
}

// RequestLength is how many bytes the request that begins with p has, checksum included: 0 while p
// is too short to tell, −1 for a function that is not known.
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
	case MaskWriteRegister:
		return 10
	case ReadWriteRegisters:
		return counted(10)
	}
	return -1
}

// DecodeRequest reads a whole frame as a request. Data points into it.
func DecodeRequest(frame []byte) (Request, error) {
	n := RequestLength(frame)
	switch {
	case n < 0:
		return Request{}, malformed("unknown function")
	case n == 0 || n != len(frame):
		return Request{}, malformed("length")
	case !sound(frame):
		return Request{}, fmt.Errorf("%w: %w", ErrFrame, ErrCRC)
	}
	word := func(at int) uint16 { return binary.BigEndian.Uint16(frame[at:]) }
	r := Request{Unit: frame[0], Function: Function(frame[1]), Address: word(2)}
	switch r.Function {
	case WriteSingleCoil, WriteSingleRegister:
		r.Data = frame[4:6]
	case MaskWriteRegister:
		r.And, r.Or = word(4), word(6)
	case WriteCoils, WriteRegisters:
		r.Count, r.Data = word(4), frame[7:n-2]
	case ReadWriteRegisters:
		r.Count, r.WriteAddress, r.Data = word(4), word(6), frame[11:n-2]
		if int(word(8))*2 != len(r.Data) {
			return Request{}, malformed("byte count")
		}
	default:
		r.Count = word(4)
	}
	if err := r.Validate(); err != nil {
		return Request{}, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return r, nil
}

// Append appends the response as a frame with its checksum.
func (r Response) Append(dst []byte) []byte {
	start := len(dst)
	if r.Exception != 0 {
		return appendCRC(append(dst, r.Unit, byte(r.Function|exceptionBit), byte(r.Exception)), start)
	}
	dst = append(dst, r.Unit, byte(r.Function))
	switch r.Function {
	case WriteSingleCoil, WriteSingleRegister:
		dst = append(binary.BigEndian.AppendUint16(dst, r.Address), r.Data...)
	case WriteCoils, WriteRegisters:
		dst = binary.BigEndian.AppendUint16(dst, r.Address)
		dst = binary.BigEndian.AppendUint16(dst, r.Count)
	case MaskWriteRegister:
		dst = binary.BigEndian.AppendUint16(dst, r.Address)
		dst = binary.BigEndian.AppendUint16(dst, r.And)
		dst = binary.BigEndian.AppendUint16(dst, r.Or)
	default:
		dst = append(append(dst, byte(len(r.Data))), r.Data...)
	}
	return appendCRC(dst, start)
}

// ResponseLength is how many bytes the response that begins with p has, checksum included: 0 while
// p is too short to tell, −1 for a function that is not known.
func ResponseLength(p []byte) int {
	if len(p) < 2 {
		return 0
	}
	switch f := Function(p[1]); f &^ exceptionBit {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters, ReadWriteRegisters:
		switch {
		case f&exceptionBit != 0:
			return 5
		case len(p) < 3:
			return 0
		}
		return 5 + int(p[2])
	case WriteSingleCoil, WriteSingleRegister, WriteCoils, WriteRegisters:
		if f&exceptionBit != 0 {
			return 5
		}
		return 8
	case MaskWriteRegister:
		if f&exceptionBit != 0 {
			return 5
		}
		return 10
	}
	return -1
}

// responseData is how many bytes of data a good answer to a read carries.
func (r *Request) responseData() int {
	switch r.Function {
	case ReadCoils, ReadDiscreteInputs:
		return bitBytes(r.Count)
	case ReadHoldingRegisters, ReadInputRegisters, ReadWriteRegisters:
		return 2 * int(r.Count)
	}
	return 0
}

// DecodeResponse reads a whole frame as the answer to req: unit, function, byte count, what an
// answer repeats of its request, and the checksum must all match. Data points into the frame.
func DecodeResponse(req Request, frame []byte) (Response, error) {
	n := ResponseLength(frame)
	switch {
	case n < 0:
		return Response{}, malformed("unknown function")
	case n == 0 || n != len(frame) || n > MaxFrame:
		return Response{}, malformed("length")
	case !sound(frame):
		return Response{}, fmt.Errorf("%w: %w", ErrFrame, ErrCRC)
	}
	d := debtOf(&req)
	if frame[0] != req.Unit || !d.settledBy(frame) {
		return Response{}, ErrMismatch
	}
	word := func(at int) uint16 { return binary.BigEndian.Uint16(frame[at:]) }
	r := Response{Unit: frame[0], Function: req.Function}
	switch {
	case Function(frame[1])&exceptionBit != 0:
		r.Exception = Exception(frame[2])
	case req.Function == WriteSingleCoil || req.Function == WriteSingleRegister:
		r.Address, r.Data = word(2), frame[4:6]
	case req.Function == WriteCoils || req.Function == WriteRegisters:
		r.Address, r.Count = word(2), word(4)
	case req.Function == MaskWriteRegister:
		r.Address, r.And, r.Or = word(2), word(4), word(6)
	default:
		r.Data = frame[3 : n-2]
	}
	return r, nil
}
