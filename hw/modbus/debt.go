package modbus

import (
	"encoding/binary"
	"time"
)

// debt is a request that its unit may still answer, reduced to what an answer shows of it.
//
// A unit answers its requests in the order they came, each at most once. So when requests are
// outstanding, an answer belongs to the earliest of them that it fits, at best: everything before
// that one is settled, and nothing after it is proved. A frame is taken as the answer to the
// current request only if it fits no earlier debt.
type debt struct {
	function Function
	length   byte    // bytes of data; functions 1 to 4 and 23
	echo     [6]byte // what functions 5, 6, 15, 16 and 22 repeat of the request
	times    int     // how many such requests in a row
	sent     time.Time
}

func debtOf(r *Request) debt {
	d := debt{function: r.Function, length: byte(r.responseData()), times: 1}
	switch r.Function {
	case WriteSingleCoil, WriteSingleRegister:
		binary.BigEndian.PutUint16(d.echo[0:], r.Address)
		copy(d.echo[2:4], r.Data)
	case WriteCoils, WriteRegisters:
		binary.BigEndian.PutUint16(d.echo[0:], r.Address)
		binary.BigEndian.PutUint16(d.echo[2:], r.Count)
	case MaskWriteRegister:
		binary.BigEndian.PutUint16(d.echo[0:], r.Address)
		binary.BigEndian.PutUint16(d.echo[2:], r.And)
		binary.BigEndian.PutUint16(d.echo[4:], r.Or)
	}
	return d
}

// settledBy tells whether a frame, whole and sound, of the debt's unit can be its answer.
func (d *debt) settledBy(frame []byte) bool {
	f := Function(frame[1])
	if f == d.function|exceptionBit {
		return len(frame) == 5 && frame[2] != 0
	}
	if f != d.function {
		return false
	}
	switch f {
	case WriteSingleCoil, WriteSingleRegister, WriteCoils, WriteRegisters:
		return len(frame) == 8 && [4]byte(frame[2:]) == [4]byte(d.echo[:])
	case MaskWriteRegister:
		return len(frame) == 10 && [6]byte(frame[2:]) == d.echo
	}
	return len(frame) == 5+int(d.length) && frame[2] == d.length
}

// like tells whether a good answer to one could be a good answer to the other. Exceptions are left
// out: they carry no value, and confirm no write.
func (d *debt) like(o *debt) bool {
	return d.function == o.function && d.length == o.length && d.echo == o.echo
}

// debts are what one unit still owes, oldest first, without the current request.
type debts struct {
	list  [8]debt
	n     int
	heard time.Time // when the unit last sent a sound frame
}

// room tells whether d can be added.
func (b *debts) room(d *debt) bool {
	return b.n < len(b.list) || b.last(d)
}

func (b *debts) add(d debt) {
	if b.last(&d) {
		b.newest().times++
		b.newest().sent = d.sent
		return
	}
	if b.n < len(b.list) {
		b.list[b.n] = d
		b.n++
	}
}

// drop forgets the n oldest.
func (b *debts) drop(n int) {
	copy(b.list[:], b.list[n:b.n])
	b.n -= n
}

func (b *debts) newest() *debt { return &b.list[b.n-1] }

// last tells whether d is like the newest debt, and so takes no room.
func (b *debts) last(d *debt) bool { return b.n > 0 && b.newest().like(d) }

// settle takes off the earliest request that the frame can answer, and all before it.
func (b *debts) settle(frame []byte) bool {
	for i := range b.n {
		if b.list[i].settledBy(frame) {
			b.drop(i)
			if b.list[0].times--; b.list[0].times == 0 {
				b.drop(1)
			}
			return true
		}
	}
	return false
}

// expire writes off what was asked before t, unless the unit was heard since: then it is slow, not
// silent, and comes to it.
func (b *debts) expire(t time.Time) {
	for b.n > 0 && b.list[0].sent.Before(t) && b.heard.Before(t) {
		b.drop(1)
	}
}

// blocks tells whether the answer to d could not be told from that to a debt.
func (b *debts) blocks(d *debt) bool {
	for i := range b.n {
		if b.list[i].like(d) {
			return true
		}
	}
	return false
}
