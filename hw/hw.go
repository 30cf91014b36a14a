// Package hw turns serial lines into readings: one goroutine per line owns its port, polls the
// units on an absolute schedule and puts writes in between. The trap is the unit that does not
// answer: whatever waits for it waits on everybody's line, so silence is rationed, and a value
// that could not be read is reported as bad, never as 0 and never as the value before.
package hw

import (
	"context"
	"errors"
	"time"

	"ferrule/hw/point"
)

// Reading is one point of one poll: a value, or the reason why there is none.
type Reading = point.Reading

// Poll is one poll of one unit: the readings of all points that were due, in the order of the
// configuration, except those that a deadband held back.
type Poll struct {
	Line, Unit string
	// Time is when the last answer came.
	Time time.Time
	// Readings is never empty. It is reused after the Sink returned.
	Readings []Reading
}

// Sink takes a poll over. It runs on the line's goroutine: while it blocks, the line stands
// still, and the slots that pass meanwhile are counted as missed. Polls that it refuses with
// an error are counted, and their points are reported anew with the next poll.
type Sink func(ctx context.Context, p Poll) error

// ErrDown says that the line has no open port; the reason is in the same chain.
var ErrDown = errors.New("the line is down")

// ErrBusy says that too many reads and writes wait for the line already.
var ErrBusy = errors.New("the line is busy")

// ErrUnknown says that a unit or a point is not configured.
var ErrUnknown = errors.New("not configured")

// ErrReadOnly says that a point has no key write in the configuration.
var ErrReadOnly = errors.New("the point is read only")

// State says what a line is doing.
type State string

// The states of a line:
//
//	stopped ─► opening ─► up ─► reopening ─► up …      any ─► stopped when Run ends
//	              └──────► reopening
const (
	StateStopped   State = "stopped"   // Run does not run
	StateOpening   State = "opening"   // the port is being opened for the first time
	StateUp        State = "up"        // the port is open
	StateReopening State = "reopening" // the port is gone or cannot be opened; tried again with back-off
)

// UnitState says what a line makes of a unit.
type UnitState string

// The states of a unit.
const (
	UnitNew      UnitState = "new"      // not heard since the port was opened
	UnitOK       UnitState = "ok"       // answered its last poll
	UnitMissed   UnitState = "missed"   // did not answer its last poll, or its last two
	UnitDegraded UnitState = "degraded" // missed three polls; probed now and then
)
