// Package slot lets a boot loader choose between two slots, and writes them. What boots is
// decided by the boot loader's own environment alone, so every change there is one atomic write
// that is read back. The trap: a slot on trial must be given up by the boot loader, not by the
// system in it, which may never get so far.
package slot

import (
	"errors"
	"io"
)

// Slot is A or B.
type Slot string

// The slots.
const (
	A Slot = "a"
	B Slot = "b"
)

// Other is the slot that s is not.
func (s Slot) Other() Slot {
	if s == A {
		return B
	}
	return A
}

// State is what the boot loader's environment says.
type State struct {
	// Running is the slot that this system came from.
	Running Slot
	// Active boots unless another is on trial.
	Active Slot
	// Trial is tried at the next boots; "" where none is. Where the boot loader forgets a trial as
	// soon as it has booted it (tryboot), Trial is "" and Running is not Active.
	Trial Slot
	// Tries is how many boots of Trial are left.
	Tries int
}

// OnTrial says that the running system is one on trial.
func (s State) OnTrial() bool { return s.Running != s.Active }

// Boot is a boot loader's environment. A power cut leaves every change done or not done, and an
// environment that a power cut spoilt is that of before the change. Every change is durable and
// was read back when it returns nil. Errors are ErrEnvironment where neither copy can be used.
type Boot interface {
	State() (State, error)
	// Try has s booted up to tries times, until Commit or Cancel. s is not the running slot, but
	// while OnTrial: then its tries are set anew.
	Try(s Slot, tries int) error
	// Commit makes s, which runs, the active slot, and ends the trial.
	Commit(s Slot) error
	// Cancel ends a trial: the active slot boots next.
	Cancel() error
}

// ErrEnvironment: the boot loader's environment cannot be used.
var ErrEnvironment = errors.New("the boot loader's environment cannot be used")

// Device is one part of one slot: a partition, or a file that stands for one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes what was written durable and drops it from the page cache, so that the next
	// ReadAt asks the medium.
	Sync() error
	// Size in bytes; 0 where the medium sets no bound.
	Size() int64
	io.Closer
}
