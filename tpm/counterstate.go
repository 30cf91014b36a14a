package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

// counterState is what lies at a counter's handles.
type counterState struct {
	index            tpm2.NamedHandle // of the counter, by its present Name
	defined, written bool
	value            uint64
	bases            [2]base
}

// base is one place for a base.
type base struct {
	index         tpm2.NamedHandle
	defined       bool
	locked        bool
	sound         bool // it was written by us, and fits the counter
	start, offset uint64
}

// number is what b makes of the counter's value.
func (b *base) number(value uint64) uint64 { return b.offset + (value - b.start) }

// counting is the base that counts: the one that gives more, where there are two; nil: none.
func (s *counterState) counting() *base {
	var best *base
	for i := range s.bases {
		b := &s.bases[i]
		if s.written && b.sound && (best == nil || b.number(s.value) > best.number(s.value)) {
			best = b
		}
	}
	return best
}

func (s *counterState) other(b *base) *base {
	if b == &s.bases[0] {
		return &s.bases[1]
	}
	return &s.bases[0]
}

func (s *counterState) number() uint64 { return s.counting().number(s.value) }

// look reads all three indexes (Part 3, 31.6 and 31.13). ErrForeignIndex: one of them is not
// what we define.
func (c *Counter) look(call *call) (counterState, error) {
	var s counterState
	pub, err := c.public(call, &s.index, c.counterPublic())
	if err != nil {
		return s, err
	}
	if s.defined = pub != nil; s.defined && pub.Attributes.Written {
		data, err := readWhole(call, s.index, 8)
		if err != nil {
			return s, err
		}
		s.written, s.value = true, binary.BigEndian.Uint64(data)
	}
	for i := range s.bases {
		if err := c.lookAtBase(call, &s, &s.bases[i], tpm2.TPMHandle(c.first)+1+tpm2.TPMHandle(i)); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (c *Counter) lookAtBase(call *call, s *counterState, b *base, handle tpm2.TPMHandle) error {
	pub, err := c.public(call, &b.index, c.basePublic(handle))
	if err != nil || pub == nil {
		b.index.Handle = handle
		return err
	}
	b.defined, b.locked = true, pub.Attributes.WriteLocked
	if !pub.Attributes.Written {
		return nil
	}
	data, err := readWhole(call, b.index, baseSize)
	if err != nil {
		return err
	}
	if string(data[:len(baseMagic)]) != baseMagic {
		return nil
	}
	b.start, b.offset = binary.BigEndian.Uint64(data[8:]), binary.BigEndian.Uint64(data[16:])
	b.sound = !s.written || s.value >= b.start && s.value-b.start <= math.MaxUint64-b.offset
	return nil
}

// public returns the public area of an index, nil where there is none, after comparing it with
// what we define.
func (c *Counter) public(call *call, index *tpm2.NamedHandle, want tpm2.TPMSNVPublic) (*tpm2.TPMSNVPublic, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: want.NVIndex}.Execute(call)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pub, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: its public area is malformed", errIndex)
	}
	// What only tells how far it has come may differ.
	same := pub.Attributes
	same.Written, same.WriteLocked = false, false
	if pub.NVIndex != want.NVIndex || pub.NameAlg != want.NameAlg || pub.DataSize != want.DataSize ||
		len(pub.AuthPolicy.Buffer) != 0 || same != want.Attributes {
		return nil, c.foreign(want.NVIndex, "it was defined otherwise")
	}
	name, err := tpm2.NVName(pub)
	if err != nil {
		return nil, err
	}
	*index = tpm2.NamedHandle{Handle: want.NVIndex, Name: *name}
	return pub, nil
}

func (c *Counter) foreign(handle tpm2.TPMHandle, why string) error {
	return hint.With(fmt.Errorf("%w: at %#x: %s", ErrForeignIndex, uint32(handle), why), fmt.Sprintf(hintIndex, uint32(handle)))
}

func readWhole(call *call, index tpm2.NamedHandle, size uint16) ([]byte, error) {
	rsp, err := tpm2.NVRead{AuthHandle: own(index), NVIndex: index, Size: size}.Execute(call)
	if err != nil {
		return nil, err
	}
	if len(rsp.Data.Buffer) != int(size) {
		return nil, fmt.Errorf("%w: %d bytes where %d were asked for", errIndex, len(rsp.Data.Buffer), size)
	}
	return rsp.Data.Buffer, nil
}

func (c *Counter) counterPublic() tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(c.first), NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTCounter, AuthWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
	}
}

func (c *Counter) basePublic(handle tpm2.TPMHandle) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: handle, NameAlg: tpm2.TPMAlgSHA256, DataSize: baseSize,
		Attributes: tpm2.TPMANV{
			AuthWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, WriteAll: true, WriteDefine: true,
		},
	}
}
