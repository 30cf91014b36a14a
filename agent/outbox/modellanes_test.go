package outbox_test

import (
	"context"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ferrule/agent/outbox"
	"ferrule/internal/disk/disktest"
)

// laneModel is what two lanes should hold: every entry in its lane, with its age, and what became of it. Nothing
// writes by itself (no Run), and the clock is trusted.
type laneModel struct {
	t     bubbled
	d     *disktest.Disk
	c     outbox.Config
	lines []outbox.LineConfig
	o     *box
	urgent, normal,
	flight []owed
	lost map[key]bool // dropped, expired, acknowledged or set aside
}

// bubbled is a rapid.T whose context is of no bubble: rapid ends its own outside.
type bubbled struct{ *rapid.T }

func (bubbled) Context() context.Context { return context.Background() }

type owed struct {
	key
	taken  time.Time
	onDisk bool
	id     uint64
	normal bool
	stale  bool // before the restart, by the configuration of then
}

func (m *laneModel) open() {
	m.o, m.flight = open(m.t, m.d, m.c, m.lines...), nil
}

// isUrgent and maxAge are what the model knows of the line of an entry.
func (m *laneModel) isUrgent(k key) bool {
	return slices.ContainsFunc(m.lines, func(c outbox.LineConfig) bool { return c.Name == line(k.seq) && c.Urgent })
}

func (m *laneModel) stale(e owed) bool {
	return slices.ContainsFunc(m.lines, func(c outbox.LineConfig) bool {
		return c.Name == line(e.seq) && c.MaxAge > 0 && time.Since(e.taken) > c.MaxAge
	})
}

func (m *laneModel) append() {
	if len(m.urgent)+len(m.normal) > 300 {
		return // nothing is to be dropped
	}
	n := rapid.IntRange(1, 20).Draw(m.t.T, "n")
	last := add(m.t, m.o, n)
	for seq := last - uint64(n) + 1; seq <= last; seq++ {
		e := owed{key: key{m.o.Boot(), seq}, taken: time.Now()}
		if m.isUrgent(e.key) {
			m.urgent = append(m.urgent, e)
		} else {
			m.normal = append(m.normal, e)
		}
	}
}

func (m *laneModel) sync() {
	if err := m.o.Sync(); err != nil {
		m.t.Fatal(err)
	}
	for _, lane := range [][]owed{m.urgent, m.normal, m.flight} {
		for i := range lane {
			lane[i].onDisk = true
		}
	}
}

func (m *laneModel) failingSync() {
	after := rapid.IntRange(0, 8).Draw(m.t.T, "after")
	m.d.Fail(func(op disktest.Op) error {
		if after--; after < 0 && (op.Kind.Changes() || op.Kind == disktest.Sync || op.Kind == disktest.SyncDir) {
			return syscall.EIO
		}
		return nil
	})
	_ = m.o.Sync()
	m.d.Fail(nil)
	m.sync()
}

// next checks that a run is what is fresh of the urgent entries, and then of the others.
func (m *laneModel) next() {
	fresh := func(lane []owed) []owed {
		return slices.DeleteFunc(slices.Clone(lane), m.stale)
	}
	waiting := append(fresh(m.urgent), fresh(m.normal)...)
	if len(waiting) == 0 {
		return
	}
	run, err := m.o.Next(m.t.Context(), rapid.IntRange(1, 60).Draw(m.t.T, "entries"), rapid.IntRange(1, 20_000).Draw(m.t.T, "bytes"))
	if err != nil || len(run) == 0 {
		m.t.Fatalf("%d entries, %v", len(run), err)
	}
	for i, e := range run {
		k := parse(m.t, e)
		if i >= len(waiting) || k != waiting[i].key {
			m.t.Fatalf("handed out %v as %d of %d", k, i, len(waiting))
		}
		if n := len(m.flight); n > 0 && m.flight[n-1].id >= e.ID {
			m.t.Fatalf("id %d after %d", e.ID, m.flight[n-1].id)
		}
		isNormal := slices.ContainsFunc(m.normal, func(o owed) bool { return o.key == k })
		m.flight = append(m.flight, owed{key: k, taken: waiting[i].taken, onDisk: waiting[i].onDisk, id: e.ID, normal: isNormal})
		same := func(o owed) bool { return o.key == k }
		m.urgent, m.normal = slices.DeleteFunc(m.urgent, same), slices.DeleteFunc(m.normal, same)
	}
}

func (m *laneModel) ack() {
	if len(m.flight) == 0 {
		return
	}
	n := rapid.IntRange(1, len(m.flight)).Draw(m.t.T, "n")
	m.o.Ack(m.flight[n-1].id)
	for _, e := range m.flight[:n] {
		m.lost[e.key] = true
	}
	m.flight = slices.Clone(m.flight[n:])
}

func (m *laneModel) rewind() {
	m.o.Rewind()
	m.land()
}

// land takes back what was in flight.
func (m *laneModel) land() {
	var urgent, normal []owed
	for _, e := range m.flight {
		if e.normal {
			normal = append(normal, e)
		} else {
			urgent = append(urgent, e)
		}
	}
	m.urgent, m.normal, m.flight = append(urgent, m.urgent...), append(normal, m.normal...), nil
}

func (m *laneModel) setAside() {
	if len(m.flight) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.flight)-1).Draw(m.t.T, "i")
	m.o.SetAside(m.flight[i].id, "poison")
	m.lost[m.flight[i].key] = true
	m.flight = slices.Delete(slices.Clone(m.flight), i, i+1)
}

// restart takes over by another configuration, perhaps after a power cut: order is kept for every line, and
// nothing owed is missing, of what had reached the disk.
func (m *laneModel) restart() {
	clean := rapid.Bool().Draw(m.t.T, "clean")
	if clean {
		if err := m.o.Close(); err != nil {
			m.t.Fatal(err)
		}
		m.d = m.d.Kill()
	} else {
		m.d = m.d.PowerCut()
	}
	m.land()
	before := map[key]owed{}
	for _, e := range append(slices.Clone(m.urgent), m.normal...) {
		if e.stale = m.stale(e); e.onDisk || clean {
			before[e.key] = e
		} else {
			m.lost[e.key] = true
		}
	}
	m.lines = nil
	for _, c := range []outbox.LineConfig{alarms, fleeting} {
		c.Urgent = rapid.Bool().Draw(m.t.T, "urgent")
		if rapid.Bool().Draw(m.t.T, "known") {
			m.lines = append(m.lines, c)
		}
	}
	m.open()
	m.takeOver(before)
}

// takeOver hands out and acknowledges all that a new start has.
func (m *laneModel) takeOver(owes map[key]owed) {
	last := map[string]key{}
	for _, k := range drain(m.t, m.o, 25) {
		was := last[line(k.seq)]
		switch _, owed := owes[k]; {
		case !owed && !m.lost[k]:
			m.t.Fatalf("%v is not owed", k)
		case owed && (k.boot < was.boot || k.boot == was.boot && k.seq <= was.seq):
			m.t.Fatalf("%v comes after %v", k, was)
		case owed:
			last[line(k.seq)] = k
		}
		delete(owes, k)
		m.lost[k] = true
	}
	for k, e := range owes {
		if !e.stale && !m.stale(e) {
			m.t.Fatalf("%v is lost", k)
		}
		m.lost[k] = true
	}
	m.urgent, m.normal = nil, nil
}

func (m *laneModel) check() {
	s := m.o.Status()
	if s.InFlight != len(m.flight) || s.Dropped != 0 || s.Damaged != 0 || s.Problem != "" {
		m.t.Fatalf("%d in flight, but %+v", len(m.flight), s)
	}
	// What is stale may be there still, and is let go at its turn.
	waiting, fresh := 0, 0
	for _, e := range append(slices.Clone(m.urgent), m.normal...) {
		if waiting++; !m.stale(e) {
			fresh++
		}
	}
	if n := s.Depth - s.InFlight; n < fresh || n > waiting {
		m.t.Fatalf("%d to %d wait, but %+v", fresh, waiting, s)
	}
	if named(s.ExpiredRanges) != s.Expired || s.ExpiredRangesLeftOut > 0 {
		m.t.Fatalf("status %+v", s)
	}
}

func TestModelOfLanes(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var failed any // by a panic, which has to reach rapid
		synctest.Test(t, func(*testing.T) {
			defer func() { failed = recover() }()
			modelOfLanes(r)
		})
		if failed != nil {
			panic(failed)
		}
	})
}

func modelOfLanes(r *rapid.T) {
	c := outbox.Default()
	c.MaxBytes = 512 << 10
	m := &laneModel{t: bubbled{r}, d: newDisk(bubbled{r}), c: c, lines: []outbox.LineConfig{alarms, fleeting}, lost: map[key]bool{}}
	m.open()
	r.Repeat(map[string]func(*rapid.T){
		"append":       func(*rapid.T) { m.append() },
		"sync":         func(*rapid.T) { m.sync() },
		"failing sync": func(*rapid.T) { m.failingSync() },
		"wait":         func(*rapid.T) { time.Sleep(20 * time.Second) },
		"next":         func(*rapid.T) { m.next() },
		"ack":          func(*rapid.T) { m.ack() },
		"rewind":       func(*rapid.T) { m.rewind() },
		"set aside":    func(*rapid.T) { m.setAside() },
		"restart":      func(*rapid.T) { m.restart() },
		"":             func(*rapid.T) { m.check() },
	})
}
