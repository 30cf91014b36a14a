package slottest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"ferrule/internal/disk/disktest"
)

// powerCuts cuts the power at every write of every step in every situation: those of the system and those of
// the boot loader, torn and reordered. Then the boot loader runs, and is cut as well.
func (h Harness) powerCuts(t T) (states int) {
	t.Helper()
	seen := make(map[string]bool)
	for name, m := range h.starts(t) {
		for _, s := range steps() {
			if s.may(m.m) {
				states += h.cut(t, m, s, name+", then "+s.name, 1, seen)
			}
		}
	}
	return states
}

// outcome is what may be found after a cut.
type outcome struct{ models []model }

// cut does a step on a device and looks at every disk that a power cut in it may leave. As many more
// cuts as more says may come in what follows.
func (h Harness) cut(t T, start *machine, s step, where string, more int, seen map[string]bool) (states int) {
	t.Helper()
	m := start.clone()
	before, after := m.m, s.next(h, m.m)
	if err := s.do(m); err != nil {
		t.Errorf("%s: %v", where, err)
		return 0
	}
	m.d.Mark("done")
	for cut, d := range m.d.CrashStates() {
		possible := outcome{[]model{before, after}}
		if len(d.Marks()) > len(start.d.Marks()) {
			possible.models = possible.models[1:]
		}
		key := fmt.Sprintf("%d %v ", more, possible.models) + contents(d)
		if seen[key] {
			continue
		}
		seen[key] = true
		states++
		there := &machine{h, d, before}
		if err := h.recovers(there, possible); err != nil {
			t.Errorf("%s; cut %s: %v", where, cut, err)
			continue
		}
		if more > 0 {
			states += h.again(t, there, possible, where+"; cut "+cut, more-1, seen)
		}
	}
	return states
}

// recovers: the power comes back without anybody having asked for a trial.
func (h Harness) recovers(m *machine, possible outcome) error {
	var problems []string
	for _, was := range possible.models {
		err := h.recoversAs(m, was)
		if err == nil {
			return nil
		}
		problems = append(problems, err.Error())
	}
	return fmt.Errorf("%s", strings.Join(problems, "; and "))
}

func (h Harness) recoversAs(m *machine, was model) error {
	want := was.boot(h, false)
	now := m.clone()
	now.m = was
	now.m.running = h.Boot(h.FS(now.d), Power{})
	now.m.boots++
	if now.m.running != want.running {
		return fmt.Errorf("%q starts, want %v", now.m.running, want)
	}
	if err := now.compare(want); err != nil {
		return err
	}
	return h.settles(now, want)
}

// again cuts the recovery: the boot, and what the system does that then runs.
func (h Harness) again(t T, m *machine, possible outcome, where string, more int, seen map[string]bool) (states int) {
	t.Helper()
	for _, was := range possible.models {
		if h.recoversAs(m, was) != nil {
			continue // it was the other one
		}
		here := m.clone()
		here.m = was
		states += h.cut(t, here, boot(false), where+"; boot", more, seen)
		if err := here.take(boot(false)); err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		for _, s := range []step{cancel(), commit(), try(2)} {
			if s.may(here.m) {
				states += h.cut(t, here, s, where+"; boot, "+s.name, more, seen)
			}
		}
	}
	return states
}

// Disks shows every disk that the suite meets without a second cut, once.
func (h Harness) Disks(t T, visit func(where string, d *disktest.Disk)) {
	t.Helper()
	seen := make(map[string]bool)
	for _, name := range slices.Sorted(maps.Keys(h.starts(t))) {
		start := h.starts(t)[name]
		for _, s := range steps() {
			m := start.clone()
			if !s.may(m.m) || s.do(m) != nil {
				continue
			}
			for cut, d := range m.d.CrashStates() {
				if key := contents(d); !seen[key] {
					seen[key] = true
					visit(name+", then "+s.name+"; cut "+cut, d)
				}
			}
		}
	}
}

func contents(d *disktest.Disk) string {
	var all strings.Builder
	for _, name := range d.Names() {
		content, _ := d.Content(name)
		all.WriteString(name + "\x00" + string(content) + "\x00")
	}
	return all.String()
}
