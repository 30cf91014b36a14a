package slot

import (
	"fmt"
	"sync"

	"ferrule/internal/hint"
)

// choice is what the environments of all boot loaders have in common.
type choice struct {
	active, trial Slot
	tries         int
}

// store keeps a choice where a boot loader looks for it.
type store interface {
	// load is certain where every copy was read and is sound.
	load() (c choice, certain bool, err error)
	// save makes a choice durable.
	save(choice) error
	// settled says that whatever copy is lost, the boot loader has the active slot booted. It is
	// asked where there is no trial.
	settled() bool
}

// environment implements Boot on any store.
type environment struct {
	mu      sync.Mutex
	store   store
	running Slot
	once    bool // the boot loader tries a slot once, whatever it was told
}

var _ Boot = (*environment)(nil)

// State implements Boot.
func (e *environment) State() (State, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, _, err := e.state()
	return s, err
}

func (e *environment) state() (s State, certain bool, err error) {
	c, certain, err := e.store.load()
	if err != nil {
		return State{}, false, err
	}
	c = c.normal(e.running)
	return State{Running: e.running, Active: c.active, Trial: c.trial, Tries: c.tries}, certain, nil
}

// Try implements Boot.
func (e *environment) Try(s Slot, tries int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, certain, err := e.state()
	switch {
	case err != nil:
		return err
	case s != A && s != B || tries < 1 || tries > MaxTries:
		return fmt.Errorf("%w: slot %q, %d tries", ErrSlot, s, tries)
	case s == now.Active:
		return hint.With(fmt.Errorf("%w: slot %s is the active one and cannot be on trial", ErrSlot, s),
			"commit the running slot first")
	case s == now.Running && !now.OnTrial():
		return fmt.Errorf("%w: slot %s runs", ErrSlot, s)
	}
	if e.once {
		tries = 1
	}
	return e.change(now, certain, choice{now.Active, s, tries})
}

// Commit implements Boot.
func (e *environment) Commit(s Slot) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, certain, err := e.state()
	switch {
	case err != nil:
		return err
	case s != e.running:
		return fmt.Errorf("%w: slot %q does not run, slot %q does", ErrSlot, s, e.running)
	}
	if err := e.change(now, certain, choice{active: s}); err != nil {
		return err
	}
	// It is done. That an older copy agrees only helps a boot loader that cannot read the newer one,
	// and Cancel sees to it again.
	_ = e.settle(s)
	return nil
}

// Cancel implements Boot.
func (e *environment) Cancel() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, certain, err := e.state()
	if err != nil {
		return err
	}
	if err := e.change(now, certain, choice{active: now.Active}); err != nil {
		return err
	}
	return e.settle(now.Active)
}

// settle writes once more where an older copy would have another slot booted.
func (e *environment) settle(active Slot) error {
	if e.store.settled() {
		return nil
	}
	to := choice{active: active}
	if err := e.store.save(to); err != nil {
		return err
	}
	return e.check(to)
}

// change saves what differs, and reads it back. What a copy says that could not be read is not
// known to be the same.
func (e *environment) change(now State, certain bool, to choice) error {
	if certain && (choice{now.Active, now.Trial, now.Tries}) == to {
		return nil
	}
	if err := e.store.save(to); err != nil {
		return err
	}
	return e.check(to)
}

func (e *environment) check(to choice) error {
	got, _, err := e.store.load()
	if err != nil {
		return fmt.Errorf("reading the boot loader's environment back: %w", err)
	}
	if got != to {
		return fmt.Errorf("%w: %v was written, %v is there", ErrEnvironment, to, got)
	}
	return nil
}

func (c choice) String() string {
	return fmt.Sprintf("active %q, trial %q, %d tries", string(c.active), string(c.trial), c.tries)
}

// unusable is ErrEnvironment with its reason and repair.
func unusable(repair, format string, args ...any) error {
	return hint.With(fmt.Errorf("%w: %w", ErrEnvironment, fmt.Errorf(format, args...)), repair)
}

// slotOf reads a value that names a slot; anything but b is a, as the boot scripts have it.
func slotOf(value string) Slot {
	if value == string(B) {
		return B
	}
	return A
}

// trialOf reads a value that may name a slot.
func trialOf(value string) Slot {
	if value == string(A) || value == string(B) {
		return Slot(value)
	}
	return ""
}

// digit reads tries: one hexadecimal digit, which the boot loader reads alike; anything else is 0.
func digit(value string) int {
	if len(value) != 1 || value[0] < '0' || value[0] > '9' {
		return 0
	}
	return int(value[0] - '0')
}

// normal is c without a trial that cannot be one: the active slot is none, and what is out of
// tries is given up at the next boot, but while it runs.
func (c choice) normal(running Slot) choice {
	if c.trial == "" || c.trial == c.active || c.tries == 0 && c.trial != running {
		return choice{active: c.active}
	}
	return c
}
