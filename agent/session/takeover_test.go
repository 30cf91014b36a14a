package session

import (
	"testing"
	"time"

	"ferrule/agent/session/cause"
)

// What ends a connection, and what does not make it a takeover.
func TestRival(t *testing.T) {
	taken := ending{worked: true, closed: true, stood: time.Second, quiet: true, witness: true, outlived: true}
	for name, test := range map[string]struct {
		change func(e *ending)
		want   bool
	}{
		"thrown out":                 {func(*ending) {}, true},
		"stood for long":             {func(e *ending) { e.stood = briefly }, false},
		"an entry in flight":         {func(e *ending) { e.poison = true }, false},
		"for what it sent":           {func(e *ending) { e.quiet = false }, false},
		"frozen":                     {func(e *ending) { e.closed = false }, false},
		"the witness died with it":   {func(e *ending) { e.outlived = false }, false},
		"never got further":          {func(e *ending) { e.worked = false }, false},
		"no witness":                 {func(e *ending) { e.witness, e.outlived = false, false }, false},
		"thrown out, and a bad line": {func(e *ending) { e.stood = 0 }, true},
	} {
		var r rival
		found := 0
		for n := range 3 * takeovers {
			e := taken
			e.witness, e.outlived = r.watches(), r.watches()
			if test.change(&e); r.ended(e) && found == 0 {
				found = n + 1
			}
		}
		if (found > 0) != test.want || test.want && found != takeovers {
			t.Errorf("%s: found at the %dth", name, found)
		}
	}
	r := rival{closed: takeovers - 1, alone: witnessed}
	if r.failed(); r.ended(taken) {
		t.Error("an attempt that failed in between counts for a takeover")
	}
	if r.held(); !r.watches() || !r.ended(taken) {
		t.Error("after it was held off, one more takeover does not hold it off again")
	}
	for random, want := range map[float64]time.Duration{0: 5 * time.Minute, 0.5: 10 * time.Minute, 1: 15 * time.Minute} {
		if got := holdOff(random); got != want {
			t.Errorf("%v: %v", random, got)
		}
	}
}

// A copied disk: two gateways with one identity, both under load, at a real broker. One of them
// stays away after a few rounds, and says why; the other one works; nothing is set aside.
func TestTwoSessionsOfOneID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.startMosquitto()
	copied := newWorldOf(t, w.ca, w.device)
	a, b := w.session(m.address, joining, commands(nil)), copied.session(m.address, joining, commands(nil))
	w.run(a)
	copied.run(b)
	held, works, other := a, b, copied
	until(t, "one of them to stay away", func() bool {
		for _, x := range []*world{w, copied} {
			if x.outbox.Status().Depth < 100 {
				x.fill(10, 100)
			}
		}
		if !b.Status().HeldOff.IsZero() {
			held, works, other = b, a, w
		}
		return !held.Status().HeldOff.IsZero()
	})
	st := held.Status()
	if left := time.Until(st.HeldOff); left < shortestHold-patience || left > longestHold || st.Takeovers != 1 || st.Stage != cause.StageWaiting && st.Stage != cause.StageUp {
		t.Errorf("%v left of the hold: %+v", left, st)
	}
	if f := st.LastFailure; f == nil || f.Cause != cause.DuplicateIdentity || f.Side != cause.SideDevice || f.Hint == "" {
		t.Errorf("failure: %+v", f)
	}
	until(t, "the other one to work", func() bool { return works.Status().Stage == cause.StageUp && other.drained() })
	for _, x := range []*world{w, copied} {
		if n := x.outbox.Status().SetAside; n != 0 {
			t.Errorf("%d entries were set aside", n)
		}
	}
	connects := held.Status().Connects
	held.Wake()
	until(t, "the hold to end early", func() bool { return held.Status().Connects > connects })
}

// A broker that restarts, however fast and often, closes connections without a word, too.
func TestBrokerThatRestartsIsNoRival(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b, _ := w.broker()
	s := w.session(b.Address(), commands(nil))
	w.run(s)
	for n := range uint64(10) {
		until(t, "the session", func() bool {
			s.Wake()
			st := s.Status()
			return st.Connects == n+1 && st.Subscribed && st.Acked > n
		})
		b.Cut()
		if err := b.Mend(); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
	if st := s.Status(); st.Takeovers != 0 {
		t.Errorf("status: %+v", st)
	}
}

// A broker that hangs up on SUBSCRIBE, with everything else in order.
func TestBrokerThatHangsUpOnSubscribeIsNoRival(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := startRogue(t, w.server.ServerTLS(w.ca), func(p peer) {
		if p.connack() {
			p.untilSubscribe()
			p.hangUp()
		}
	})
	s := w.session(r.address, commands(nil))
	w.run(s)
	until(t, "many connections", func() bool { s.Wake(); return s.Status().Connects > 2*takeovers })
	if st := s.Status(); st.Takeovers != 0 || st.LastFailure.Cause != cause.Closed {
		t.Errorf("status: %+v", st)
	}
}

// Who is woken while connected does not make the next pause a short one: a fleet that is told to read
// its configuration again would come back in one second when its broker restarts.
func TestWakeWhileUp(t *testing.T) {
	w := newWorld(t)
	b, _ := w.broker()
	s := w.session(b.Address())
	s.tries = newTries(10*time.Minute, 1)
	w.run(s)
	until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
	s.Wake()
	until(t, "it to be heard", func() bool { return len(s.wakes) == 0 })
	b.Cut()
	if err := b.Mend(); err != nil {
		t.Fatal(err)
	}
	until(t, "the pause", func() bool { return !s.Status().NextAttempt.IsZero() })
	s.Wake()
	until(t, "the next connection", func() bool { return s.Status().Connects == 2 })
}
