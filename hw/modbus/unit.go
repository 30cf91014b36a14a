package modbus

import (
	"encoding/binary"
	"errors"
)

// Unit is what a server answers for. An error refuses the request: an Exception as it is, any other
// as ServerFailure. A server calls it from one goroutine.
type Unit interface {
	// Read fills values from a table: a register each, or a bit each as 0 or 1.
	Read(t Table, from uint16, values []uint16) error
	// Write sets coils, as 0 or 1, or holding registers. Values are good until it returns.
	Write(t Table, from uint16, values []uint16) error
}

// FileUnit is a Unit that knows functions 20 and 21.
type FileUnit interface {
	Unit
	ReadFile(file, number uint16, values []uint16) error
	WriteFile(file, number uint16, values []uint16) error
}

// QueueUnit is a Unit that knows function 24.
type QueueUnit interface {
	Unit
	// ReadQueue copies the queue at an address, up to len(values) registers of it, and says how many.
	ReadQueue(at uint16, values []uint16) (n int, err error)
}

// KnownUnit is a Unit that knows function 43/14.
type KnownUnit interface {
	Unit
	// Identity is all objects in the order of their IDs.
	Identity() []Object
}

// Units are units by their addresses.
type Units map[byte]Unit

// At is the unit at an address, or nil.
func (u Units) At(address byte) Unit { return u[address] }

// Execute is the unit's side of the protocol (Application Protocol V1.1b3, 6): it does what a
// sound request says and returns the answer, which may be an exception.
func Execute(u Unit, r Request) Response {
	response := Response{Unit: r.Unit, Function: r.Function}
	e, err := r.refusal()
	if err == nil {
		err = execute(u, &r, &response)
	}
	if err != nil {
		response = Response{Unit: r.Unit, Function: r.Function, Exception: ServerFailure}
		if e != 0 {
			response.Exception = e
		}
		errors.As(err, &response.Exception)
	}
	return response
}

func execute(u Unit, r *Request, answer *Response) (err error) {
	switch r.Function {
	case ReadCoils:
		answer.Data, err = readBits(u, Coils, r)
	case ReadDiscreteInputs:
		answer.Data, err = readBits(u, DiscreteInputs, r)
	case ReadHoldingRegisters:
		answer.Data, err = readRegisters(u, HoldingRegisters, r)
	case ReadInputRegisters:
		answer.Data, err = readRegisters(u, InputRegisters, r)
	case WriteSingleCoil:
		answer.Address, answer.Data = r.Address, r.Data
		return u.Write(Coils, r.Address, []uint16{uint16(r.Data[0] & 1)})
	case WriteCoils:
		answer.Address, answer.Count = r.Address, r.Count
		return write(u, Coils, r.Address, unpack(r.Data, int(r.Count)))
	case WriteSingleRegister:
		answer.Address, answer.Data = r.Address, r.Data
		return u.Write(HoldingRegisters, r.Address, words(r.Data))
	case WriteRegisters:
		answer.Address, answer.Count = r.Address, r.Count
		return write(u, HoldingRegisters, r.Address, words(r.Data))
	case MaskWriteRegister:
		answer.Address, answer.And, answer.Or = r.Address, r.And, r.Or
		var v [1]uint16
		if err := u.Read(HoldingRegisters, r.Address, v[:]); err != nil {
			return err
		}
		v[0] = v[0]&r.And | r.Or&^r.And
		return u.Write(HoldingRegisters, r.Address, v[:])
	case ReadWriteRegisters:
		if err := write(u, HoldingRegisters, r.WriteAddress, words(r.Data)); err != nil {
			return err
		}
		answer.Data, err = readRegisters(u, HoldingRegisters, r)
	default:
		return executeSpecial(u, r, answer)
	}
	return err
}

// executeSpecial does the functions that not every unit has.
func executeSpecial(u Unit, r *Request, answer *Response) error {
	switch u := u.(type) {
	case FileUnit:
		switch r.Function {
		case ReadFileRecord:
			return readFile(u, r, answer)
		case WriteFileRecord:
			return writeFile(u, r, answer)
		}
	}
	if u, ok := u.(QueueUnit); ok && r.Function == ReadFIFOQueue {
		var values [MaxFIFO + 1]uint16
		n, err := u.ReadQueue(r.Address, values[:])
		if err == nil && n > MaxFIFO { // V1.1b3, 6.18
			err = IllegalValue
		}
		if err != nil {
			return err
		}
		answer.Count, answer.Data = uint16(n), appendWords(nil, values[:n]...)
		return nil
	}
	if u, ok := u.(KnownUnit); ok && r.Function == ReadDeviceID {
		return identify(u.Identity(), r, answer)
	}
	return IllegalFunction
}

// within tells whether a range ends where a table does at the latest.
func within(from uint16, n int) error {
	if int(from)+n > 1<<16 {
		return IllegalAddress
	}
	return nil
}

func write(u Unit, t Table, from uint16, values []uint16) error {
	if err := within(from, len(values)); err != nil {
		return err
	}
	return u.Write(t, from, values)
}

func readRegisters(u Unit, t Table, r *Request) ([]byte, error) {
	values := make([]uint16, r.Count)
	err := within(r.Address, len(values))
	if err == nil {
		err = u.Read(t, r.Address, values)
	}
	if err != nil {
		return nil, err
	}
	return appendWords(make([]byte, 0, 2*len(values)), values...), nil
}

func readBits(u Unit, t Table, r *Request) ([]byte, error) {
	values := make([]uint16, r.Count)
	err := within(r.Address, len(values))
	if err == nil {
		err = u.Read(t, r.Address, values)
	}
	if err != nil {
		return nil, err
	}
	data := make([]byte, bitBytes(r.Count))
	for i, v := range values {
		if v != 0 {
			data[i/8] |= 1 << (i % 8)
		}
	}
	return data, nil
}

func words(data []byte) []uint16 {
	w := make([]uint16, len(data)/2)
	for i := range w {
		w[i] = binary.BigEndian.Uint16(data[2*i:])
	}
	return w
}

func unpack(data []byte, n int) []uint16 {
	b := make([]uint16, n)
	for i := range b {
		b[i] = uint16(data[i/8] >> (i % 8) & 1)
	}
	return b
}

func readFile(u FileUnit, r *Request, answer *Response) error {
	records, err := r.Records()
	if err != nil {
		return err
	}
	for _, c := range records {
		values := make([]uint16, c.Count)
		if err := u.ReadFile(c.File, c.Number, values); err != nil {
			return err
		}
		answer.Data = appendWords(append(answer.Data, byte(1+2*len(values)), recordType), values...)
	}
	return nil
}

func writeFile(u FileUnit, r *Request, answer *Response) error {
	records, err := r.Records()
	if err != nil {
		return err
	}
	answer.Data = r.Data
	for _, c := range records {
		if err := u.WriteFile(c.File, c.Number, words(c.Data)); err != nil {
			return err
		}
	}
	return nil
}

// maxObjects is how many bytes of objects an answer of function 43 holds.
const maxObjects = MaxFrame - identityHead - 2

// identify answers function 43/14: a kind of objects from one on, as many as fit, or one alone.
func identify(all []Object, r *Request, answer *Response) error {
	last := map[Objects]byte{BasicObjects: Revision, RegularObjects: 0x7F, ExtendedObjects: 0xFF, OneObject: 0xFF}[r.Objects]
	at, conformity := -1, BasicObjects
	for i, o := range all {
		if o.ID == r.Object {
			at = i
		}
		switch {
		case o.ID > 0x7F:
			conformity = ExtendedObjects
		case o.ID > Revision && conformity == BasicObjects:
			conformity = RegularObjects
		}
	}
	answer.Objects, answer.Conformity = r.Objects, byte(conformity)|0x80
	if at < 0 || all[at].ID > last {
		if r.Objects == OneObject {
			return IllegalAddress
		}
		at = 0 // as the specification says
	}
	for _, o := range all[at:] {
		value := o.Value[:min(len(o.Value), maxObjects-2)]
		switch {
		case o.ID > last:
			return nil
		case len(answer.Data)+2+len(value) > maxObjects:
			answer.More, answer.Next = true, o.ID
			return nil
		}
		answer.Data = append(append(answer.Data, o.ID, byte(len(value))), value...)
		if answer.Count++; r.Objects == OneObject {
			return nil
		}
	}
	return nil
}
