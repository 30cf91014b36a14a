package slottest

import (
	"errors"
	"fmt"
	"strings"

	"ferrule/firmware/slot"
	"ferrule/internal/disk/disktest"
)

// Run tests one boot loader, and returns how many disks it looked at.
func Run(t T, h Harness) (states int) {
	t.Helper()
	h.transitions(t)
	h.refusals(t)
	h.fallsOver(t)
	h.losesACopy(t)
	h.failures(t)
	return h.powerCuts(t)
}

// depth is how many steps the sequences have that are tried, all of them.
const depth = 4

// transitions does every sequence of steps.
func (h Harness) transitions(t T) {
	t.Helper()
	var walk func(m *machine, path []string)
	walk = func(m *machine, path []string) {
		if len(path) == depth {
			return
		}
		for _, s := range steps() {
			if !s.may(m.m) {
				continue
			}
			next := m.clone()
			path := append(path[:len(path):len(path)], s.name)
			if err := next.take(s); err != nil {
				t.Errorf("%s: %v", strings.Join(path, ", "), err)
				continue
			}
			walk(next, path)
		}
	}
	first := h.begin()
	if err := first.compare(first.m); err != nil {
		t.Fatalf("a new device: %v", err)
	}
	walk(first, nil)
}

// after is a device on which some steps were done.
func (h Harness) after(t T, done ...step) *machine {
	t.Helper()
	m := h.begin()
	for _, s := range done {
		if err := m.take(s); err != nil {
			t.Fatalf("%v", err)
		}
	}
	return m
}

// refusals: what must not be done changes nothing.
func (h Harness) refusals(t T) {
	t.Helper()
	onA := h.after(t)
	onTrialOfB := h.after(t, try(2), boot(true))
	for name, ask := range map[string]func() error{
		"trying the running slot":   func() error { return onA.ask(func(b slot.Boot) error { return b.Try(slot.A, 1) }) },
		"trying no slot":            func() error { return onA.ask(func(b slot.Boot) error { return b.Try("c", 1) }) },
		"trying it never":           func() error { return onA.ask(func(b slot.Boot) error { return b.Try(slot.B, 0) }) },
		"trying it too often":       func() error { return onA.ask(func(b slot.Boot) error { return b.Try(slot.B, slot.MaxTries+1) }) },
		"committing the other slot": func() error { return onA.ask(func(b slot.Boot) error { return b.Commit(slot.B) }) },
		"trying the active slot":    func() error { return onTrialOfB.ask(func(b slot.Boot) error { return b.Try(slot.A, 1) }) },
		"committing the slot that does not run": func() error {
			return onTrialOfB.ask(func(b slot.Boot) error { return b.Commit(slot.A) })
		},
	} {
		if err := ask(); !errors.Is(err, slot.ErrSlot) && !errors.Is(err, slot.ErrRunning) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, m := range []*machine{onA, onTrialOfB} {
		if err := m.compare(m.m); err != nil {
			t.Errorf("after a refusal: %v", err)
		}
	}
}

func (m *machine) ask(question func(slot.Boot) error) error {
	b, err := m.open()
	if err != nil {
		return err
	}
	return question(b)
}

// fallsOver: what cannot be loaded is passed over, and the system that runs then can make itself the active one.
func (h Harness) fallsOver(t T) {
	t.Helper()
	broken := func(s ...slot.Slot) Power {
		p := Power{Asked: true, Broken: map[slot.Slot]bool{}}
		for _, one := range s {
			p.Broken[one] = true
		}
		return p
	}
	for name, c := range map[string]struct {
		m    *machine
		p    Power
		want slot.Slot
	}{
		"a broken active slot": {h.after(t), broken(slot.A), slot.B},
		"a broken trial":       {h.after(t, try(3)), broken(slot.B), slot.A},
		"all are broken":       {h.after(t), broken(slot.A, slot.B), h.Last},
		"a broken active slot after a commit": {
			h.after(t, try(3), boot(true), commit()), broken(slot.B), slot.A,
		},
	} {
		for i := range 4 {
			if got := h.Boot(h.FS(c.m.d), c.p); got != c.want {
				t.Errorf("%s, boot %d: %q starts, want %q", name, i, got, c.want)
			}
		}
	}
	m := h.after(t)
	m.m.running = h.Boot(h.FS(m.d), broken(slot.A))
	m.m.boots++
	if s, err := m.state(); err != nil || !s.FellOver() || s.OnTrial() {
		t.Errorf("after falling over: %+v, %v", s, err)
	}
	if err := m.take(commit()); err != nil {
		t.Errorf("committing what runs instead: %v", err)
	}
	if err := m.take(boot(false)); err != nil {
		t.Errorf("after committing what runs instead: %v", err)
	}
}

// losesACopy: once Cancel has returned, no copy alone has the other slot booted, so that it may
// be overwritten.
func (h Harness) losesACopy(t T) {
	t.Helper()
	for name, m := range map[string]*machine{
		"after a commit":       h.after(t, try(3), boot(true), commit(), cancel()),
		"after a trial failed": h.after(t, try(1), boot(true), boot(false), boot(false), cancel()),
		"after a cancel":       h.after(t, try(3), cancel()),
		"on a new device":      h.after(t, cancel()),
	} {
		for i, c := range h.Copies {
			spoilt := m.clone()
			content, ok := spoilt.d.Content(c.File)
			if !ok {
				t.Errorf("%s: copy %d is not there", name, i)
				continue
			}
			content[c.Off+20] ^= 0x40
			spoilt.d.SetContent(c.File, content)
			for _, asked := range []bool{false, true} {
				if got := h.Boot(h.FS(spoilt.d), Power{Asked: asked}); got != m.m.active {
					t.Errorf("%s, without copy %d: %q starts, want %q", name, i, got, m.m.active)
				}
			}
			if err := spoilt.compare(m.m); err != nil {
				t.Errorf("%s, without copy %d: %v", name, i, err)
			}
		}
	}
}

// starts are devices in each situation that a step may meet, by name.
func (h Harness) starts(t T) map[string]*machine {
	t.Helper()
	return map[string]*machine{
		"new":             h.after(t),
		"armed":           h.after(t, try(2)),
		"on trial":        h.after(t, try(3), boot(true)),
		"in its last try": h.after(t, try(1), boot(true)),
		"given up":        h.after(t, try(1), boot(true), boot(false)),
		"committed":       h.after(t, try(3), boot(true), commit()),
		"and back":        h.after(t, try(3), boot(true), commit(), cancel(), try(2), boot(true)),
	}
}

// failures: each call of each step fails once, in several ways. What is told as done is done;
// what failed is done or not done.
func (h Harness) failures(t T) {
	t.Helper()
	for name, m := range h.starts(t) {
		for _, s := range steps() {
			if !s.may(m.m) {
				continue
			}
			for _, short := range []bool{false, true} {
				for n := 0; ; n++ {
					failed, err := h.fail(m, s, n, short)
					if err != nil {
						t.Errorf("%s, then %s, call %d fails (short write: %v): %v", name, s.name, n, short, err)
					}
					if !failed {
						break
					}
				}
			}
		}
	}
}

// fail lets call n of a step fail, and says whether there was one.
func (h Harness) fail(start *machine, s step, n int, short bool) (failed bool, err error) {
	m := start.clone()
	calls := 0
	m.d.Fail(func(op disktest.Op) error {
		if s.boot && len(h.Copies) == 0 && !op.Kind.Changes() && op.Kind != disktest.Sync {
			return nil // a boot loader that cannot read its only copy knows nothing
		}
		calls++
		if calls-1 != n {
			return nil
		}
		failed = true
		if short && op.Kind == disktest.Write {
			return &disktest.ShortWrite{N: op.Size / 2, Err: errAny}
		}
		return errAny
	})
	before, after := m.m, s.next(h, m.m)
	done := s.do(m)
	m.d.Fail(nil)
	booted := m.m.running
	if s.boot { // a boot loader tells nobody; it starts one or the other
		if booted != before.active && booted != before.trial && booted != after.running {
			return failed, fmt.Errorf("%q starts, want %q or %q", booted, before.active, after.running)
		}
		return failed, h.settles(m.clone(), before)
	}
	if done != nil && failed && m.compare(before) == nil {
		return failed, nil
	}
	if err := m.compare(after); err != nil {
		return failed, fmt.Errorf("%w (it returned: %v)", err, done)
	}
	return failed, nil
}

// settles says that a dead system is left for the active one: a trial that nobody commits ends
// after its tries, and the same slot boots from then on.
func (h Harness) settles(m *machine, was model) error {
	trials, quiet, trial, limit := 0, 0, was.trial, was.tries
	if h.Once && was.asked != "" {
		trial, limit = was.asked, 1
	}
	for i := 0; i < 2*slot.MaxTries && quiet < 3; i++ { // nothing changes any more after that
		got := h.Boot(h.FS(m.d), Power{Asked: i == 0})
		switch {
		case got == was.active:
			quiet++
		case got == trial && trial != "" && quiet == 0:
			trials++
		default:
			return fmt.Errorf("boot %d: %q starts after %d of the active slot (%v)", i, got, quiet, was)
		}
	}
	if trials > limit {
		return fmt.Errorf("the trial was booted %d times, %d were left (%v)", trials, limit, was)
	}
	return nil
}
