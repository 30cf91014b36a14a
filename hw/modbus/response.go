package modbus

import (
	"encoding/binary"
	"fmt"
)

// Response is one answer, from either side of the line.
type Response struct {
	Unit      byte
	Function  Function  // without the exception bit
	Exception Exception // 0: none
	Address   uint16    // functions 5, 6, 15, 16, 22
	Count     uint16    // functions 15, 16; registers of 24, objects of 43
	And, Or   uint16    // function 22

	Objects    Objects // function 43: as asked for
	Conformity byte    // function 43: what the unit has, 1 to 3, with 0x80 if single objects too
	More       bool    // function 43: objects from Next on did not fit
	Next       byte

	// Data is what was read, packed bits or registers big-endian; for functions 5 and 6 the value
	// written; for 20 the records, each after its length and type; for 21 as in the request; for 43
	// the objects. It points into the decoded frame.
	Data []byte
}

// Append appends the response as an RTU frame with its checksum.
func (r Response) Append(dst []byte) []byte {
	start := len(dst)
	if r.Exception != 0 {
		return appendCRC(append(dst, r.Unit, byte(r.Function|exceptionBit), byte(r.Exception)), start)
	}
	dst = append(dst, r.Unit, byte(r.Function))
	switch r.Function {
	case WriteSingleCoil, WriteSingleRegister:
		dst = append(appendWords(dst, r.Address), r.Data...)
	case WriteCoils, WriteRegisters:
		dst = appendWords(dst, r.Address, r.Count)
	case MaskWriteRegister:
		dst = appendWords(dst, r.Address, r.And, r.Or)
	case ReadFIFOQueue:
		dst = append(appendWords(dst, uint16(2+len(r.Data)), uint16(len(r.Data)/2)), r.Data...)
	case ReadDeviceID:
		more := byte(0)
		if r.More {
			more = 0xFF
		}
		dst = append(dst, meiDeviceID, byte(r.Objects), r.Conformity, more, r.Next, byte(r.Count))
		dst = append(dst, r.Data...)
	default:
		dst = append(append(dst, byte(len(r.Data))), r.Data...)
	}
	return appendCRC(dst, start)
}

// ResponseLength is how many bytes the RTU response that begins with p has, checksum included: 0
// while p is too short to tell, −1 for a function that is not known.
func ResponseLength(p []byte) int {
	if len(p) < 2 {
		return 0
	}
	f := Function(p[1])
	length := 0
	switch f &^ exceptionBit {
	case ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters, ReadWriteRegisters, ReadFileRecord, WriteFileRecord:
		if len(p) > 2 {
			length = 5 + int(p[2])
		}
	case WriteSingleCoil, WriteSingleRegister, WriteCoils, WriteRegisters:
		length = 8
	case MaskWriteRegister:
		length = 10
	case ReadFIFOQueue:
		if len(p) > 3 {
			length = 6 + int(binary.BigEndian.Uint16(p[2:]))
		}
	case ReadDeviceID:
		if f&exceptionBit == 0 {
			return identityLength(p)
		}
	default:
		return -1
	}
	if f&exceptionBit != 0 {
		return 5
	}
	return length
}

// responseData is how many bytes of data a good answer to a read carries.
func (r *Request) responseData() int {
	switch r.Function {
	case ReadCoils, ReadDiscreteInputs:
		return bitBytes(r.Count)
	case ReadHoldingRegisters, ReadInputRegisters, ReadWriteRegisters:
		return 2 * int(r.Count)
	case ReadFileRecord:
		return r.answerBytes()
	case WriteFileRecord:
		return len(r.Data)
	}
	return 0
}

// DecodeResponse reads a whole RTU frame as the answer to req: unit, function, byte count, what an
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
		return Response{}, fmt.Errorf("%w: %w", ErrFrame, ErrMismatch)
	}
	r := Response{Unit: frame[0], Function: req.Function}
	if Function(frame[1])&exceptionBit != 0 {
		r.Exception = Exception(frame[2])
		return r, nil
	}
	if !r.decode(&req, frame[2:n-2]) {
		return Response{}, fmt.Errorf("%w: %w", ErrFrame, ErrMismatch)
	}
	return r, nil
}

// decode reads what follows the function. It returns false if that is no answer to req after all.
func (r *Response) decode(req *Request, p []byte) bool {
	word := func(at int) uint16 { return binary.BigEndian.Uint16(p[at:]) }
	switch req.Function {
	case WriteSingleCoil, WriteSingleRegister:
		r.Address, r.Data = word(0), p[2:4]
	case WriteCoils, WriteRegisters:
		r.Address, r.Count = word(0), word(2)
	case MaskWriteRegister:
		r.Address, r.And, r.Or = word(0), word(2), word(4)
	case ReadFileRecord:
		r.Data = p[1:]
		return recordsFit(req.Data, r.Data)
	case WriteFileRecord:
		r.Data = p[1:]
		return string(r.Data) == string(req.Data)
	case ReadFIFOQueue:
		r.Count, r.Data = word(2), p[4:]
	case ReadDeviceID:
		r.Objects, r.Conformity, r.More, r.Next = Objects(p[1]), p[2], p[3] == 0xFF, p[4]
		r.Count, r.Data = uint16(p[5]), p[6:]
		return p[3] == 0 || r.More
	default:
		r.Data = p[1:]
	}
	return true
}
