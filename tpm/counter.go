package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

// CounterIndex is the first of the three NV indexes of a Counter: the TPM's counter, and two
// places for its base. They lie in the range that the TCG leaves to the owner (Registry of
// Reserved TPM 2.0 Handles and Localities, 2.2.2: 0x01800000 to 0x01BFFFFF), where TPM2_Clear
// removes them.
const CounterIndex uint32 = 0x0184FE00

const (
	// baseMagic begins a base: a foreign index at its handle is not taken for one.
	baseMagic = "ferrule1"
	baseSize  = 24
	// maxIncrements is the most that a Counter counts one by one, each of which wears the
	// TPM's memory; what is further away is reached with a new base.
	maxIncrements = 32
	// maxSteps ends the work on a TPM that forgets what it has just done.
	maxSteps = maxIncrements + 16
)

// What may be wrong with a counter.
var (
	// ErrNoCounter: this TPM has no counter of ours, or one whose making was cut short.
	ErrNoCounter = errors.New("no counter in this TPM")
	// ErrForeignIndex: something that is not ours lies at the counter's handles.
	ErrForeignIndex = errors.New("NV index is not ours")
)

// A Counter is a number in the TPM's own memory that only rises. Neither a reset of the TPM nor
// the loss of the disk sets it back; TPM2_Clear removes it, and so does whoever has the owner's
// authority.
//
// A TPM's counter does not begin at 0 but above every counter that was ever in that TPM (Part 3,
// 31.8), so the number is relative to a base that was written when it was made:
//
//	number = offset + (counter − start)
//
// The base is an ordinary index that is locked for good once it is written, so that nobody
// lowers the number by writing another. All are noDA and without policy: no power cut and no
// lockout takes them from us. The authority to use them is their own, which is empty, so that an
// owner's password is needed for making them only.
//
// What is to be done next is decided by what lies in the TPM, one changing command after the
// other, so a power cut between any two of them is made good by the next Raise.
type Counter struct {
	d     *Device
	first uint32
}

// Counter is the one whose indexes begin at first; 0 means CounterIndex. It sends no command.
func (d *Device) Counter(first uint32) *Counter {
	if first == 0 {
		first = CounterIndex
	}
	return &Counter{d: d, first: first}
}

// Read returns the number; it costs five commands and writes nothing. The error is ErrNoCounter
// where Raise would have to make it, or ErrForeignIndex.
func (c *Counter) Read(ctx context.Context) (uint64, error) {
	var s counterState
	err := again(func() error {
		call, release, err := c.d.hold(ctx)
		if err != nil {
			return err
		}
		defer release()
		s, err = c.look(call)
		return err
	})
	if err != nil {
		return 0, commandError("reading the TPM's counter", err)
	}
	if s.counting() == nil {
		return 0, ErrNoCounter
	}
	return s.number(), nil
}

// Raise brings the number to at least to, and makes the counter where there is none: then the
// number is to. It takes one write of the TPM's memory for each step up to 32, four for a
// longer way, and five for making it. Whatever a power cut left of an earlier Raise is finished.
func (c *Counter) Raise(ctx context.Context, to uint64) error {
	for range maxSteps {
		done := false
		err := again(func() error {
			call, release, err := c.d.hold(ctx)
			if err != nil {
				return err
			}
			defer release()
			done, to, err = c.step(call, to)
			return err
		})
		if err != nil {
			return counterError(err)
		}
		if done {
			return nil
		}
	}
	return fmt.Errorf("raising the TPM's counter: it is not at %d after %d commands", to, maxSteps)
}

// counterError names the repair for what only counters meet.
func counterError(err error) error {
	const doing = "raising the TPM's counter"
	if ownerRefused(err) {
		return hint.With(fmt.Errorf("%s: %w: %w", doing, ErrOwnerAuth, err), hintDefine)
	}
	return commandError(doing, err)
}

const (
	hintDefine = "define the indexes at the factory: tpm2_nvdefine 0x184fe00 -C o -P OWNERAUTH -s 8 -a 'ownerread|authread|authwrite|no_da|nt=1', then 0x184fe01 and 0x184fe02 with -s 24 -a 'ownerread|authread|authwrite|writeall|writedefine|no_da'"
	hintIndex  = "see whose it is: tpm2_nvreadpublic; where nobody needs it, run: tpm2_nvundefine -C o %#x"
)

// step looks at what is there and does the one thing that comes next. It returns what is to be
// reached: more than to, where an earlier counter had come further.
//
//	no counter, a base of one that is gone     undefine the base
//	no counter                                 define it
//	counter never counted                      increment, which gives its start
//	no base                                    define it
//	base without content                       write it
//	base not locked                            lock it
//	two bases                                  undefine the one that gives less
//	number below to, by up to maxIncrements    increment
//	number further below                       make another base (define, write, lock)
func (c *Counter) step(call *call, to uint64) (done bool, raise uint64, err error) {
	s, err := c.look(call)
	if err != nil {
		return false, to, err
	}
	switch {
	case !s.defined:
		for _, b := range s.bases {
			if b.defined {
				return false, max(to, b.offset), c.undefine(call, b.index)
			}
		}
		return false, to, c.define(call, c.counterPublic())
	case !s.written:
		return false, to, c.increment(call, s.index)
	}
	for _, b := range s.bases {
		if b.sound && !b.locked {
			return false, to, c.lock(call, b.index)
		}
	}
	base := s.counting()
	if base == nil {
		return false, to, c.makeBase(call, s, &s.bases[0], to)
	}
	other := s.other(base)
	if other.sound {
		if err = c.undefine(call, other.index); !ownerRefused(err) {
			return false, to, err
		}
		// It does no harm where it is, until its place is needed.
	}
	switch number := s.number(); {
	case number >= to:
		return true, to, nil
	case to-number <= maxIncrements:
		return false, to, c.increment(call, s.index)
	case other.sound:
		return false, to, err
	}
	return false, to, c.makeBase(call, s, other, to)
}

// ownerRefused: the owner hierarchy has a password.
func ownerRefused(err error) bool {
	return errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail)
}

// makeBase does the next of what makes b a base from which the counter is at to.
func (c *Counter) makeBase(call *call, s counterState, b *base, to uint64) error {
	switch {
	case !b.defined:
		return c.define(call, c.basePublic(b.index.Handle))
	case b.locked:
		return c.foreign(b.index.Handle, "it is locked, and holds no base")
	}
	data := binary.BigEndian.AppendUint64([]byte(baseMagic), s.value)
	data = binary.BigEndian.AppendUint64(data, to)
	_, err := tpm2.NVWrite{
		AuthHandle: own(b.index), NVIndex: b.index, Data: tpm2.TPM2BMaxNVBuffer{Buffer: data},
	}.Execute(call)
	return doing("writing the base", err)
}

func (c *Counter) define(call *call, pub tpm2.TPMSNVPublic) error {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		PublicInfo: tpm2.New2B(pub),
	}.Execute(call)
	return doing("defining an index", err)
}

func (c *Counter) undefine(call *call, index tpm2.NamedHandle) error {
	_, err := tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NVIndex: index,
	}.Execute(call)
	return doing("removing an index", err)
}

func (c *Counter) increment(call *call, index tpm2.NamedHandle) error {
	_, err := tpm2.NVIncrement{AuthHandle: own(index), NVIndex: index}.Execute(call)
	return doing("counting", err)
}

// lock ends writing for good: WRITEDEFINE has the lock outlive every reset (Part 3, 31.11).
func (c *Counter) lock(call *call, index tpm2.NamedHandle) error {
	_, err := tpm2.NVWriteLock{AuthHandle: own(index), NVIndex: index}.Execute(call)
	return doing("locking the base", err)
}

// own is the index's own authority, which is empty.
func own(index tpm2.NamedHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: index.Handle, Name: index.Name, Auth: tpm2.PasswordAuth(nil)}
}

func doing(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
