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
	length   byte    // bytes of data; functions 1 to 4, 20, 21 and 23; the code of 43
	echo     [6]byte // what functions 5, 6, 15, 16 and 22 repeat of the request; a digest of what 21 does
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
	case WriteFileRecord:
		d.echo = digest(r.Data)
	case ReadDeviceID:
		d.length = byte(r.Objects)
	}
	return d
}

// digest is 48 bits of FNV-1a over p.
func digest(p []byte) (d [6]byte) {
	h := uint64(14695981039346656037)
	for _, b := range p {
		h = (h ^ uint64(b)) * 1099511628211
	}
	h ^= h >> 48
	for i := range d {
		d[i] = byte(h >> (8 * i))
	}
	return d
}

// answerLength is how many bytes a good answer has as an RTU frame; 0: that is not known.
func (d *debt) answerLength() int {
	switch d.function {
	case WriteSingleCoil, WriteSingleRegister, WriteCoils, WriteRegisters:
		return 8
	case MaskWriteRegister:
		return 10
	case ReadFIFOQueue, ReadDeviceID, 0:
		return 0
	}
	return 5 + int(d.length)
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
	case WriteFileRecord:
		return len(frame) == 5+int(d.length) && frame[2] == d.length && digest(frame[3:len(frame)-2]) == d.echo
	case ReadFIFOQueue:
		n := len(frame) - 8 // bytes of registers
		return n >= 0 && n <= 2*MaxFIFO && n%2 == 0 && int(frame[2])<<8|int(frame[3]) == 2+n && int(frame[4])<<8|int(frame[5]) == n/2
	case ReadDeviceID:
		return len(frame) >= identityHead+2 && len(frame) == identityLength(frame) && frame[3] == d.length
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
