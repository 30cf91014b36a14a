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
	// Running is the slot that this system came from; "" is the packaged program, of the directory
	// backend alone.
	Running Slot
	// Active boots unless another is on trial; "" as above.
	Active Slot
	// Trial is tried at the next boots, or is what runs until it is committed or cancelled; ""
	// where no slot is on trial, or none any more.
	Trial Slot
	// Tries is how many more boots Trial gets: 0 in its last one.
	Tries int
}

// OnTrial says that the running system is one on trial.
func (s State) OnTrial() bool { return s.Trial != "" && s.Running == s.Trial }

// FellOver says that neither a trial nor the active slot runs: the active one could not be
// booted, or this is a trial that was cancelled and not yet left. Commit the running slot before
// the active one is overwritten, since a half-written one may boot again.
func (s State) FellOver() bool { return s.Running != s.Active && !s.OnTrial() }

// Boot is a boot loader's environment. A power cut leaves every change done or not done, and an
// environment that a power cut spoilt is that of before the change. Every change is durable and
// was read back when it returns nil. Errors are ErrEnvironment where neither copy can be used.
type Boot interface {
	State() (State, error)
	// Try has s booted up to tries times, until Commit or Cancel; tryboot has it booted once. s is
	// not the active slot, nor the running one but while OnTrial: then its tries are set anew.
	Try(s Slot, tries int) error
	// Commit makes s, which runs, the active slot, and ends the trial.
	Commit(s Slot) error
	// Cancel ends a trial: the active slot boots next. Afterwards no copy of the environment, however old,
	// has another slot booted, so that the other one may be overwritten.
	Cancel() error
}

// MaxTries bounds the tries of a trial: one digit, so that its length never changes.
const MaxTries = 9

var (
	// ErrEnvironment: the boot loader's environment cannot be used.
	ErrEnvironment = errors.New("the boot loader's environment cannot be used")
	// ErrSlot: a change was asked for of a slot that it must not be made of.
	ErrSlot = errors.New("not a slot that this can be done with")
	// ErrRunning: what runs must not be overwritten.
	ErrRunning = errors.New("it belongs to the slot that runs")
)

// Device is one part of one slot: a partition, or a file that stands for one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes what was written durable and drops it from the page cache, so that the next
	// ReadAt asks the medium. After one that failed every later one fails.
	Sync() error
	// Size in bytes; 0 where the medium sets no bound.
	Size() int64
	io.Closer
}
