package outbox_test

import (
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"ferrule/agent/outbox"
	"ferrule/internal/disk/disktest"
)

// model is what an outbox that never writes itself (no Run) should hold.
type model struct {
	t       *rapid.T
	d       *disktest.Disk
	c       outbox.Config
	o       *box
	queue   []held
	flight  int
	settled map[key]bool // acknowledged or set aside
}

type held struct {
	key
	id     uint64 // 0: not handed out yet
	onDisk bool
}

func (m *model) append() {
	if len(m.queue) > 1000 {
		return // nothing is to be dropped here
	}
	n := rapid.IntRange(1, 40).Draw(m.t, "n")
	last := add(m.t, m.o, n)
	for seq := last - uint64(n) + 1; seq <= last; seq++ {
		m.queue = append(m.queue, held{key: key{m.o.Boot(), seq}, onDisk: m.c.Sync == outbox.Always})
	}
}

func (m *model) sync() {
	if err := m.o.Sync(); err != nil {
		m.t.Fatal(err)
	}
	for i := range m.queue {
		m.queue[i].onDisk = true
	}
}

// failingSync is a sync during which some operation fails: whatever it made durable, it loses nothing.
func (m *model) failingSync() {
	after := rapid.IntRange(0, 6).Draw(m.t, "after")
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

func (m *model) next() {
	if m.flight == len(m.queue) {
		return
	}
	run, err := m.o.Next(m.t.Context(), rapid.IntRange(1, 60).Draw(m.t, "entries"), rapid.IntRange(1, 20_000).Draw(m.t, "bytes"))
	if err != nil || len(run) == 0 {
		m.t.Fatalf("%d entries, %v", len(run), err)
	}
	for _, e := range run {
		if k := parse(m.t, e); k != m.queue[m.flight].key {
			m.t.Fatalf("handed out %v, want %v", k, m.queue[m.flight].key)
		}
		m.queue[m.flight].id = e.ID
		m.flight++
	}
}

func (m *model) ack() {
	if m.flight == 0 {
		return
	}
	n := rapid.IntRange(1, m.flight).Draw(m.t, "n")
	m.o.Ack(m.queue[n-1].id)
	for _, h := range m.queue[:n] {
		m.settled[h.key] = true
	}
	m.queue, m.flight = slices.Clone(m.queue[n:]), m.flight-n
}

func (m *model) rewind() {
	m.o.Rewind()
	m.flight = 0
}

func (m *model) setAside() {
	if m.flight == 0 {
		return
	}
	i := rapid.IntRange(0, m.flight-1).Draw(m.t, "i")
	m.o.SetAside(m.queue[i].id, "poison")
	m.settled[m.queue[i].key] = true
	m.queue, m.flight = slices.Delete(slices.Clone(m.queue), i, i+1), m.flight-1
}

func (m *model) restart() {
	switch rapid.SampledFrom([]string{"close", "kill", "power cut"}).Draw(m.t, "how") {
	case "close":
		if err := m.o.Close(); err != nil {
			m.t.Fatal(err)
		}
		m.d = m.d.Kill()
		for i := range m.queue {
			m.queue[i].onDisk = true
		}
	case "kill":
		m.d = m.d.Kill()
	case "power cut":
		m.d = m.d.PowerCut()
	}
	m.o, m.flight = open(m.t, m.d, m.c), 0
	m.queue = slices.DeleteFunc(slices.Clone(m.queue), func(h held) bool { return !h.onDisk })
	m.takeOver()
}

// takeOver looks at all that a new start has. Beyond what is owed it may only have, in front or where it was
// set aside, what was settled shortly before.
func (m *model) takeOver() {
	var found []held
	for len(found) < m.o.Status().Depth {
		run, err := m.o.Next(m.t.Context(), 1000, 1<<20)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, e := range run {
			found = append(found, held{key: parse(m.t, e), onDisk: true})
		}
	}
	m.o.Rewind()
	owed := m.queue
	for i, h := range found {
		switch {
		case len(owed) > 0 && owed[0].key == h.key:
			owed = owed[1:]
		case !m.settled[h.key] || i > 0 && found[i-1].boot == h.boot && found[i-1].seq >= h.seq:
			m.t.Fatalf("%v is not owed", h.key)
		}
	}
	if len(owed) > 0 {
		m.t.Fatalf("%d entries lost, the first %v", len(owed), owed[0].key)
	}
	m.queue = found
}

func (m *model) check() {
	s := m.o.Status()
	if s.Depth != len(m.queue) || s.InFlight != m.flight || s.Dropped != 0 || s.Damaged != 0 || s.Problem != "" {
		m.t.Fatalf("%d entries, %d in flight, but %+v", len(m.queue), m.flight, s)
	}
}

func TestModel(t *testing.T) {
	for _, sync := range []outbox.Sync{outbox.Default().Sync, outbox.Always} {
		t.Run(sync.String(), func(t *testing.T) {
			rapid.Check(t, func(r *rapid.T) {
				c := outbox.Default()
				c.MaxBytes, c.Sync = 512<<10, sync
				m := &model{t: r, d: newDisk(r), c: c, settled: map[key]bool{}}
				m.o = open(r, m.d, c)
				r.Repeat(map[string]func(*rapid.T){
					"append":       func(*rapid.T) { m.append() },
					"sync":         func(*rapid.T) { m.sync() },
					"failing sync": func(*rapid.T) { m.failingSync() },
					"next":         func(*rapid.T) { m.next() },
					"ack":          func(*rapid.T) { m.ack() },
					"rewind":       func(*rapid.T) { m.rewind() },
					"set aside":    func(*rapid.T) { m.setAside() },
					"restart":      func(*rapid.T) { m.restart() },
					"":             func(*rapid.T) { m.check() },
				})
			})
		})
	}
}
