package modbus

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
)

// Read reads n bits or registers from a on: packed bits, the first in the lowest bit of the first
// byte, or registers big-endian. The result is in dst if that is large enough.
func (c *Client) Read(ctx context.Context, unit byte, a Address, n uint16, dst []byte) ([]byte, error) {
	r := Request{Unit: unit, Function: a.Table.readFunction(), Address: a.Offset, Count: n}
	frame, err := c.do(ctx, &r)
	if err != nil {
		return nil, fmt.Errorf("reading %d at %s of unit %d: %w", n, a, unit, err)
	}
	return append(dst[:0], frame[3:len(frame)-2]...), nil
}

// Do has any request answered. The answer's Data is good until the next call; an exception is an
// error. A broadcast has the zero Response.
func (c *Client) Do(ctx context.Context, r Request) (Response, error) {
	frame, err := c.do(ctx, &r)
	if err != nil || frame == nil {
		return Response{}, err
	}
	answer := Response{Unit: r.Unit, Function: r.Function}
	if !answer.decode(&r, frame[2:len(frame)-2]) {
		return Response{}, c.mismatch(frame)
	}
	return answer, nil
}

// mismatch is the error for a frame that has the form of the answer and is none all the same.
func (c *Client) mismatch(frame []byte) error {
	c.stats.Mismatches++
	return &FrameError{Err: ErrMismatch, Frame: bytes.Clone(frame)}
}

// WriteCoil sets one coil (function 5). This and all other writes go to all units at once if unit is
// 0: none answers, and nothing tells whether any heard it.
func (c *Client) WriteCoil(ctx context.Context, unit byte, addr uint16, on bool) error {
	v := uint16(0)
	if on {
		v = 0xFF00
	}
	return c.write(ctx, &Request{Unit: unit, Function: WriteSingleCoil, Address: addr, Data: c.words(v)})
}

// WriteRegister sets one holding register (function 6).
func (c *Client) WriteRegister(ctx context.Context, unit byte, addr, v uint16) error {
	return c.write(ctx, &Request{Unit: unit, Function: WriteSingleRegister, Address: addr, Data: c.words(v)})
}

// WriteCoils sets coils from addr on (function 15).
func (c *Client) WriteCoils(ctx context.Context, unit byte, addr uint16, on []bool) error {
	if len(on) > MaxWriteBits {
		return tooMany(WriteCoils, len(on))
	}
	data := c.data[:bitBytes(uint16(len(on)))]
	clear(data)
	for i, set := range on {
		if set {
			data[i/8] |= 1 << (i % 8)
		}
	}
	return c.write(ctx, &Request{Unit: unit, Function: WriteCoils, Address: addr, Count: uint16(len(on)), Data: data})
}

// WriteRegisters sets holding registers from addr on (function 16).
func (c *Client) WriteRegisters(ctx context.Context, unit byte, addr uint16, v []uint16) error {
	if len(v) > MaxWriteRegisters {
		return tooMany(WriteRegisters, len(v))
	}
	return c.write(ctx, &Request{Unit: unit, Function: WriteRegisters, Address: addr, Count: uint16(len(v)), Data: c.words(v...)})
}

// MaskWrite makes a holding register (it AND and) OR (or AND NOT and), in the unit (function 22).
func (c *Client) MaskWrite(ctx context.Context, unit byte, addr, and, or uint16) error {
	return c.write(ctx, &Request{Unit: unit, Function: MaskWriteRegister, Address: addr, And: and, Or: or})
}

// ReadWrite writes v from writeAddr on, then reads n holding registers from readAddr on, in one
// transaction (function 23). The result is as with Read.
func (c *Client) ReadWrite(ctx context.Context, unit byte, readAddr, n uint16, writeAddr uint16, v []uint16, dst []byte) ([]byte, error) {
	if len(v) > MaxReadWriteRegisters {
		return nil, tooMany(ReadWriteRegisters, len(v))
	}
	r := Request{Unit: unit, Function: ReadWriteRegisters, Address: readAddr, Count: n, WriteAddress: writeAddr, Data: c.words(v...)}
	frame, err := c.do(ctx, &r)
	if err != nil {
		return nil, fmt.Errorf("writing at holding:%d and reading %d at holding:%d of unit %d: %w", writeAddr, n, readAddr, unit, err)
	}
	return append(dst[:0], frame[3:len(frame)-2]...), nil
}

func (c *Client) write(ctx context.Context, r *Request) error {
	if _, err := c.do(ctx, r); err != nil {
		return fmt.Errorf("writing at %d of unit %d by function %d: %w", r.Address, r.Unit, r.Function, err)
	}
	return nil
}

func (c *Client) words(v ...uint16) []byte {
	data := c.data[:0]
	for _, w := range v {
		data = binary.BigEndian.AppendUint16(data, w)
	}
	return data
}

func tooMany(f Function, n int) error {
	return fmt.Errorf("%w: function %d for %d items", ErrRequest, f, n)
}

// ReadRecords reads Count registers of each record into its Data (function 20). The answer to all
// of them must fit into one frame.
func (c *Client) ReadRecords(ctx context.Context, unit byte, records []Record) error {
	answer, err := c.Do(ctx, RecordRequest(ReadFileRecord, unit, records...))
	if err != nil {
		return fmt.Errorf("reading %d file records of unit %d: %w", len(records), unit, err)
	}
	data := answer.Data
	for i := range records {
		n := 2 * int(records[i].Count)
		records[i].Data = append(records[i].Data[:0], data[2:2+n]...)
		data = data[2+n:]
	}
	return nil
}

// WriteRecords writes the Data of the records, Count registers each (function 21).
func (c *Client) WriteRecords(ctx context.Context, unit byte, records []Record) error {
	if _, err := c.Do(ctx, RecordRequest(WriteFileRecord, unit, records...)); err != nil {
		return fmt.Errorf("writing %d file records of unit %d: %w", len(records), unit, err)
	}
	return nil
}

// ReadFIFO reads the queue at addr, up to 31 registers, and leaves it as it is (function 24). The
// result is as with Read.
func (c *Client) ReadFIFO(ctx context.Context, unit byte, addr uint16, dst []byte) ([]byte, error) {
	answer, err := c.Do(ctx, Request{Unit: unit, Function: ReadFIFOQueue, Address: addr})
	if err != nil {
		return nil, fmt.Errorf("reading the queue at %d of unit %d: %w", addr, unit, err)
	}
	return append(dst[:0], answer.Data...), nil
}

// Identify asks a unit who it is (function 43/14): for the objects of a kind from first on, in as
// many transactions as they take, or for the one object first. The level of conformity says what
// the unit has (Application Protocol V1.1b3, 6.21).
func (c *Client) Identify(ctx context.Context, unit byte, objects Objects, first byte) (list []Object, conformity byte, err error) {
	for next := int(first); ; {
		r := Request{Unit: unit, Function: ReadDeviceID, Objects: objects, Object: byte(next)}
		answer, err := c.Do(ctx, r)
		if err != nil {
			return nil, 0, fmt.Errorf("asking unit %d who it is: %w", unit, err)
		}
		for _, o := range answer.Identification() {
			list = append(list, Object{ID: o.ID, Value: bytes.Clone(o.Value)})
		}
		if !answer.More || objects == OneObject {
			return list, answer.Conformity, nil
		}
		if int(answer.Next) <= next { // else a unit could keep us for ever
			return nil, 0, fmt.Errorf("asking unit %d who it is: object %d follows %d: %w", unit, answer.Next, next, ErrMismatch)
		}
		next = int(answer.Next)
	}
}
