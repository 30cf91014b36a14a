// Package slottest is the conformance suite that every boot loader's environment passes, and a
// fake of each boot loader to pass it with: one that decides, counts and writes as the real one
// does. The trap is a fake that shares code with what it tests: these read and write the formats
// on their own.
package slottest

import (
	"errors"
	"fmt"
	"strconv"

	"ferrule/firmware/slot"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// T is what the suite needs of *testing.T.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Power is how a boot begins.
type Power struct {
	Asked  bool               // the system that ran asked for the trial as it restarted: reboot "0 tryboot"
	Broken map[slot.Slot]bool // slots that cannot be loaded
}

// Nothing is what boots where no slot does.
const Nothing slot.Slot = "nothing"

// Harness is one boot loader, and how a system opens its environment.
type Harness struct {
	// Disk is the disk of a device whose slot a is active and never heard of a trial.
	Disk func() *disktest.Disk
	// FS is what programs and the boot loader see of a disk.
	FS func(d *disktest.Disk) disk.FS
	// Config is what a system opens, without Running, BootID and FS.
	Config slot.Config
	// Boot is the boot loader after power has come on. It returns what it starts.
	Boot func(fsys disk.FS, p Power) slot.Slot
	// Once: a trial is booted once, when asked for. Asked is what a new device boots then.
	Once  bool
	Asked slot.Slot
	// Last is what boots where both slots are broken: Nothing, or "" for a packaged program.
	Last slot.Slot
	// Copies are the files, or places in one, that hold the environment where there are several of them: each
	// alone may be lost.
	Copies []Copy
}

// Copy is where one copy of an environment lies.
type Copy struct {
	File string
	Off  int64
}

// model is what an environment should say.
type model struct {
	active, trial slot.Slot
	tries         int
	running       slot.Slot
	boots         int // since the beginning; the boot id
	// Of a boot loader that tries once: what it boots when asked, and the boot in which that was set.
	asked slot.Slot
	armed int
}

func (m model) String() string {
	return fmt.Sprintf("active %s, trial %q, %d tries, running %q", m.active, m.trial, m.tries, m.running)
}

// machine is one device in the middle of a test.
type machine struct {
	h Harness
	d *disktest.Disk
	m model
}

func (h Harness) begin() *machine {
	return &machine{h, h.Disk(), model{active: slot.A, running: slot.A, asked: h.Asked, armed: -1}}
}

func (m *machine) clone() *machine { return &machine{m.h, m.d.Kill(), m.m} }

func (m *machine) open() (slot.Boot, error) {
	c := m.h.Config
	running := m.m.running
	c.Running, c.BootID, c.FS = &running, "boot-"+strconv.Itoa(m.m.boots), m.h.FS(m.d)
	return slot.Open(c)
}

func (m *machine) state() (slot.State, error) {
	b, err := m.open()
	if err != nil {
		return slot.State{}, err
	}
	return b.State()
}

// step is something that happens to a device. may says whether it can, next what it leads to.
type step struct {
	name string
	boot bool // of the boot loader's
	may  func(m model) bool
	next func(h Harness, m model) model
	do   func(m *machine) error
}

func onTrial(m model) bool { return m.trial != "" && m.running == m.trial }

func always(model) bool { return true }

// try has the slot tried that is not active.
func try(tries int) step {
	return step{
		name: fmt.Sprintf("try %d", tries),
		may:  func(m model) bool { return onTrial(m) || m.running == m.active },
		next: func(h Harness, m model) model {
			m.trial, m.tries = m.active.Other(), tries
			if h.Once {
				m.asked, m.tries, m.armed = m.trial, 1, m.boots
			}
			return m
		},
		do: func(m *machine) error {
			b, err := m.open()
			if err != nil {
				return err
			}
			return b.Try(m.m.active.Other(), tries)
		},
	}
}

func commit() step {
	return step{
		name: "commit", may: always,
		next: func(_ Harness, m model) model { m.active, m.trial, m.tries, m.asked = m.running, "", 0, ""; return m },
		do: func(m *machine) error {
			b, err := m.open()
			if err != nil {
				return err
			}
			return b.Commit(m.m.running)
		},
	}
}

func cancel() step {
	return step{
		name: "cancel", may: always,
		next: func(_ Harness, m model) model { m.trial, m.tries, m.asked = "", 0, ""; return m },
		do: func(m *machine) error {
			b, err := m.open()
			if err != nil {
				return err
			}
			return b.Cancel()
		},
	}
}

// boot switches off and on.
func boot(asked bool) step {
	return step{
		name: map[bool]string{true: "restart", false: "reset"}[asked], boot: true, may: always,
		next: func(h Harness, m model) model { return m.boot(h, asked) },
		do: func(m *machine) error {
			m.m.running = m.h.Boot(m.h.FS(m.d), Power{Asked: asked})
			m.m.boots++
			return nil
		},
	}
}

// boot is what any boot loader should make of m.
func (m model) boot(h Harness, asked bool) model {
	m.boots++
	switch {
	case h.Once && asked && m.asked != "":
		m.running, m.trial, m.tries = m.asked, m.asked, 0
		if m.armed < 0 {
			m.trial = "" // nobody armed it: this is no trial
		}
	case h.Once || m.trial == "" || m.tries == 0:
		m.running, m.trial, m.tries = m.active, "", 0
	default:
		m.running, m.tries = m.trial, m.tries-1
	}
	return m
}

func steps() []step {
	return []step{try(1), try(3), commit(), cancel(), boot(true), boot(false)}
}

// take does a step and its model, and compares.
func (m *machine) take(s step) error {
	want := s.next(m.h, m.m)
	err := s.do(m)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	booted := m.m.running
	m.m = want
	if booted != want.running {
		return fmt.Errorf("%s: %q runs, want %v", s.name, booted, want)
	}
	return m.compare(want)
}

func (m *machine) compare(want model) error {
	got, err := m.state()
	if err != nil {
		return err
	}
	if (got != slot.State{Running: want.running, Active: want.active, Trial: want.trial, Tries: want.tries}) {
		return fmt.Errorf("the environment says %+v, want %v", got, want)
	}
	if got.OnTrial() != onTrial(want) {
		return fmt.Errorf("on trial: %v", got.OnTrial())
	}
	return nil
}

// errAny is what a test of failures injects.
var errAny = errors.New("the medium fails")
