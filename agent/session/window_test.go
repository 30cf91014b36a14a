package session

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/session/cause"
)

func TestPacerSpacesMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pacer{rate: 100, last: time.Now()}
		start, sent := time.Now(), 0
		for sent < 1000 {
			n := p.take(t.Context(), 50)
			if n < 1 || n > 10 {
				t.Fatalf("%d at one time", n)
			}
			sent += n
		}
		if took := time.Since(start); took < 9800*time.Millisecond || took > 10100*time.Millisecond {
			t.Errorf("1000 messages at 100/s took %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for p.take(ctx, 1) > 0 {
		}
		if n := (&pacer{}).take(t.Context(), 77); n != 77 {
			t.Errorf("without a limit: %d", n)
		}
	})
}

func TestWindowOpensByQuarters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(16)
		if n := w.room(t.Context()); n != 16 {
			t.Fatalf("room %d", n)
		}
		w.add(16)
		rooms := make(chan int)
		go func() { rooms <- w.room(t.Context()) }()
		synctest.Wait()
		w.done(4)
		if n := <-rooms; n != 4 {
			t.Errorf("room %d after a quarter was acknowledged", n)
		}
		w.add(4)
		start := time.Now()
		go func() { rooms <- w.room(t.Context()) }()
		synctest.Wait()
		w.done(1)
		if n := <-rooms; n != 1 || time.Since(start) != gather {
			t.Errorf("room %d after %v", n, time.Since(start))
		}
	})
}

func TestFirstAttemptIsMadeAtOnce(t *testing.T) {
	w := newWorld(t)
	b, _ := w.broker()
	s := w.session(b.Address())
	s.tries = newTries(10*time.Minute, 1)
	s.random = func() float64 { return 1 } // any pause is a long one
	w.run(s)
	until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
}

func TestSecondBrokerIsTriedAfterTheFirst(t *testing.T) {
	w := newWorld(t)
	b, _ := w.broker()
	s := w.session(freeAddress(t), func(o *Options) { o.Brokers = append(o.Brokers, "mqtts://"+b.Address()) })
	w.run(s)
	until(t, "the session", func() bool { return s.Status().Stage == cause.StageUp })
}

// What has gathered in an outage goes in the order in which it was taken, and no faster than the rate,
// which counts from the first message on.
func TestBacklogDrainsAtTheRate(t *testing.T) {
	t.Parallel()
	const n, rate = 2000, 1000
	w := newWorld(t)
	w.fill(n, 100, "a", "b", "c")
	b, got := w.broker()
	s := w.session(b.Address(), func(o *Options) { o.Rate = rate })
	w.run(s)
	until(t, "the outbox to drain", w.drained)
	checkSeqs(t, seqs(t, got.of("readings/")), n)
	got.mu.Lock()
	defer got.mu.Unlock()
	var at []time.Time
	for _, m := range got.messages {
		if strings.HasPrefix(m.Topic, "readings/") {
			at = append(at, m.At)
		}
	}
	if took := at[n-1].Sub(at[0]); took < (n-rate/10-64)*time.Second/rate {
		t.Errorf("%d messages at %d/s took %v", n, rate, took)
	}
}
