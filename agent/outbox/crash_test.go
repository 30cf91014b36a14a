package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/disk/disktest"
)

// What a history marks: an entry that is durable, entries about to be acknowledged or dropped, a
// start about to come.
type (
	durable struct{ key }
	let     struct{ key } // may be missing from now on
	letAll  struct{ key } // and so may all of its boot up to it
)

// story uses an outbox on d and marks what is promised. It takes part of what it appends.
type story struct {
	t       testing.TB
	d       *disktest.Disk
	c       outbox.Config
	lines   []outbox.LineConfig
	o       *box
	flight  []outbox.Entry
	settled uint64 // durable up to here
}

func (s *story) open() {
	s.o, s.flight, s.settled = open(s.t, s.d, s.c, s.lines...), nil, 0
}

func (s *story) append(n int) {
	for range n {
		last := add(s.t, s.o, 1)
		if s.c.Sync == outbox.Always && s.o.Status().Problem == "" {
			s.promise(last)
		}
	}
}

// promise marks all up to seq as durable. What was acknowledged or dropped is excused by a let.
func (s *story) promise(seq uint64) {
	for ; s.settled < seq; s.settled++ {
		s.d.Mark(durable{key{s.o.Boot(), s.settled + 1}})
	}
}

func (s *story) sync() {
	seq := s.o.Status().Seq
	if err := s.o.Sync(); err == nil {
		s.promise(seq)
	}
}

func (s *story) take(n int) {
	if s.o.Status().Depth == s.o.Status().InFlight {
		return
	}
	run, err := s.o.Next(context.Background(), n, 1<<20)
	if err != nil {
		s.t.Fatal(err)
	}
	s.flight = append(s.flight, run...)
}

func (s *story) ack(n int) {
	if n = min(n, len(s.flight)); n == 0 {
		return
	}
	for _, e := range s.flight[:n] {
		s.d.Mark(let{parse(s.t, e)})
	}
	s.o.Ack(s.flight[n-1].ID)
	s.flight = s.flight[n:]
}

func (s *story) rewind() {
	s.o.Rewind()
	s.flight = nil
}

// dropping marks all that when_full may drop from now on.
func (s *story) dropping() {
	s.d.Mark(letAll{key{s.o.Boot(), s.o.Status().Seq}})
}

// promised returns what must be in a state: durable and not let go; and what was acknowledged, and may come
// again.
func promised(marks []any) (keys []key, excused map[key]bool) {
	upTo := map[uint64]uint64{}
	excused = map[key]bool{}
	for _, m := range marks {
		switch m := m.(type) {
		case let:
			excused[m.key] = true
		case letAll:
			upTo[m.boot] = m.seq
		}
	}
	for _, m := range marks {
		if m, ok := m.(durable); ok && !excused[m.key] && m.seq > upTo[m.boot] {
			keys = append(keys, m.key)
		}
	}
	return keys, excused
}

// recovered opens a state and checks that all that was promised is there once, in order, whole, and
// that nothing was invented. Where there may be lanes, order is that of each line.
func recovered(t testing.TB, state *disktest.Disk, c outbox.Config, lanes bool, lines ...outbox.LineConfig) {
	o := open(t, state, c, lines...)
	got := drain(t, o, 50)
	owed, again := promised(state.Marks())
	seen := map[key]bool{}
	last := map[string]key{}
	for _, k := range got {
		if seen[k] {
			t.Fatalf("entry %v is there twice: %v", k, got)
		}
		seen[k] = true
		if k.boot >= o.Boot() {
			t.Fatalf("boot %d comes again: %v", o.Boot(), k)
		}
		queue := ""
		if lanes {
			queue = line(k.seq)
			if again[k] {
				continue // it may stand in the lane that its line has left
			}
		}
		if was := last[queue]; k.boot < was.boot || k.boot == was.boot && k.seq < was.seq {
			t.Fatalf("entry %v comes after %v", k, was)
		}
		last[queue] = k
	}
	for _, k := range owed {
		if !seen[k] {
			t.Fatalf("entry %v is lost: %d handed out, %d owed", k, len(got), len(owed))
		}
	}
	if err := o.Close(); err != nil {
		t.Fatalf("closing: %v", err)
	}
}

// replay cuts the power everywhere in a story, and in some states again while they recover.
func replay(t *testing.T, c outbox.Config, tell func(s *story)) int {
	return replayLanes(t, c, tell, false, nil)
}

// replayLanes tells the story with a configuration that it may change, and takes over by the others
// in turn.
func replayLanes(t *testing.T, c outbox.Config, tell func(s *story), lanes bool, then ...[]outbox.LineConfig) int {
	cuts, states, second := 0, 0, 0
	disktest.Replay(t, func(d *disktest.Disk) {
		if err := errors.Join(d.MkdirAll("/state", 0o700), d.SyncDir("/")); err != nil {
			t.Fatal(err)
		}
		s := &story{t: t, d: d, c: c}
		s.open()
		tell(s)
		d.Fail(nil)
	}, func(t testing.TB, state *disktest.Disk) {
		if _, err := state.ReadDir("/state"); err != nil {
			return // cut before the state directory was durable
		}
		if cuts++; cuts%thin != 0 {
			return
		}
		states++
		lines := then[states%len(then)]
		if states%23 == 0 {
			cutAgain(t, state.Kill(), c, &second, lanes, lines)
		}
		recovered(t, state, c, lanes, lines...)
	})
	t.Logf("%d states, %d more after a second cut", states, second)
	return states + second
}

// cutAgain loses power while a state is taken over, sent in part and added to.
func cutAgain(t testing.TB, state *disktest.Disk, c outbox.Config, count *int, lanes bool, lines []outbox.LineConfig) {
	s := &story{t: t, d: state, c: c, lines: lines}
	s.open()
	s.take(5)
	s.ack(3)
	s.append(3)
	s.sync()
	s.take(20)
	s.ack(20)
	_ = s.o.Close()
	for name, again := range state.CrashStates() {
		*count++
		recovered(prefixed{t, name}, again, c, lanes, lines...)
	}
}

type prefixed struct {
	testing.TB
	name string
}

func (p prefixed) Fatalf(format string, args ...any) {
	p.TB.Helper()
	p.TB.Fatalf("then again %s: %s", p.name, fmt.Sprintf(format, args...))
}

func TestPowerCutAnywhere(t *testing.T) {
	total := 0
	for name, tell := range stories {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := small()
				if name == "always" {
					c.Sync = outbox.Always
				}
				total += replay(t, c, tell)
			})
		})
	}
	t.Logf("%d states in all", total)
	if total < 10_000/thin {
		t.Errorf("only %d states", total)
	}
}

// stories are what happens to an outbox until its power is cut.
var stories = map[string]func(s *story){
	"group commit": func(s *story) {
		rng := rand.New(rand.NewPCG(1, 2))
		for range 150 {
			s.append(1 + rng.IntN(5))
			switch rng.IntN(6) {
			case 0, 1:
				s.sync()
			case 2:
				s.take(1 + rng.IntN(8))
			case 3:
				s.take(25)
				s.ack(1 + rng.IntN(30))
			case 4:
				s.rewind()
			}
		}
		s.sync()
		for range 40 {
			s.take(10)
			s.ack(10)
		}
		_ = s.o.Close()
		s.open()
		s.append(3)
		s.sync()
	},
	"always": func(s *story) {
		for i := range 120 {
			s.append(1)
			if i%7 == 6 {
				s.take(5)
				s.ack(4)
			}
			if i == 30 { // killed
				s.open()
			}
		}
	},
	"restarts": func(s *story) {
		for i := range 8 {
			s.append(12)
			s.sync()
			s.take(9)
			s.ack(9)
			s.append(2)
			if i%2 == 0 {
				if seq := s.o.Status().Seq; s.o.Close() == nil {
					s.promise(seq)
				}
			}
			s.open()
		}
	},
	"run": func(s *story) {
		stop := start(s.t, s.o)
		for i := range 40 {
			s.append(4)
			seq := s.o.Status().Seq
			time.Sleep(time.Second)
			synctest.Wait()
			s.promise(seq)
			if i%4 == 3 {
				s.take(30)
				s.ack(12)
			}
		}
		stop()
	},
	"drop oldest": func(s *story) {
		for range 16 {
			s.dropping()
			s.append(25)
			s.sync()
			s.take(3)
			s.ack(2)
		}
	},
	"failed syncs": func(s *story) {
		for i := range 60 {
			fail := i%3 == 1
			s.d.Fail(func(op disktest.Op) error {
				if fail && (op.Kind == disktest.Sync || i%2 == 0 && op.Kind == disktest.SyncDir) {
					fail = false
					return syscall.EIO
				}
				return nil
			})
			s.append(4)
			s.sync() // fails
			s.append(2)
			s.sync()
			s.take(4)
			s.ack(3)
		}
	},
	"full disk": func(s *story) {
		for i := range 45 {
			full := 3
			s.d.Fail(func(op disktest.Op) error {
				if i%3 == 1 && op.Kind == disktest.Write && full > 0 {
					full--
					return &disktest.ShortWrite{N: op.Size / 3, Err: syscall.ENOSPC}
				}
				return nil
			})
			for range 4 {
				s.append(3)
				s.sync()
			}
			s.take(15)
			s.ack(12)
		}
	},
}
