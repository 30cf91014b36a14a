package outbox

import (
	"context"
	"time"
)

// Next hands out the next entries, the urgent ones first, and waits for the first. They are in flight
// until Ack, SetAside or Rewind; Next may be called again before. The error is ErrClosed or that of
// ctx.
func (s *Outbox) Next(ctx context.Context, w Want) ([]Entry, error) {
	w.Entries = max(w.Entries, 1)
	for {
		if err := ctx.Err(); err != nil {
			signal(s.ready) // for another, if it was taken from there
			return nil, err
		}
		run, next := s.handOut(w)
		switch {
		case run != nil || next.err != nil:
			return run, next.err
		case next.load != nil:
			if err := next.load.load(ctx); err != nil {
				return nil, err
			}
		default:
			s.wait(ctx, next)
		}
	}
}

// step is what Next does where nothing is handed out: load, or wait until something changes; for a batch
// no longer than atMost.
type step struct {
	load   *lane
	wait   waitFor
	atMost time.Duration
	err    error
}

// wait returns when it is time to look again. handOut has counted the one who waits.
func (s *Outbox) wait(ctx context.Context, next step) {
	var due <-chan time.Time
	if next.wait == aBatch {
		timer := time.NewTimer(next.atMost)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-s.ready:
	case <-due:
	case <-s.done:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits.count[next.wait]--
}

// handOut returns a run, or what has to be done first.
func (s *Outbox) handOut(w Want) ([]Entry, step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, step{err: ErrClosed}
	}
	var now moment
	if s.aging || w.MaxAge > 0 {
		now = s.moment()
	}
	var counts [2]int
	lanes := s.lanes
	if w.Urgent {
		lanes = lanes[:len(lanes)-1]
	}
	n, bytes := 0, 0
	for i, l := range lanes {
		counts[i], bytes = l.offer(w, n, bytes, now)
		n += counts[i]
		if l.more(w, counts[i], n, bytes) && (n == 0 || l.problems[reading].err == nil) {
			return nil, step{load: l}
		}
		if l.flight+counts[i] < l.depth() {
			break // what is less urgent must not overtake the rest
		}
	}
	switch {
	case n == 0 && w.Urgent:
		return nil, s.begin(anUrgent)
	case n == 0:
		return nil, s.begin(anEntry)
	case w.MaxAge > 0 && n == counts[len(s.lanes)-1]:
		if next := s.hold(w, n, bytes, now); next.atMost > 0 {
			return nil, next
		}
	}
	run, left := make([]Entry, 0, n), false
	for i, l := range lanes {
		run = l.take(run, counts[i])
		left = left || l.flight < l.depth()
	}
	if left {
		signal(s.ready) // for another Next
	}
	return run, step{}
}

// offer returns how many entries of the lane go into a run that has n already, and the bytes that
// the run then has. It brings into front what is in memory.
func (l *lane) offer(w Want, n, bytes int, now moment) (count, total int) {
	for fill := true; fill; fill = l.aging && l.expire(w.Entries, now) {
		for l.unread == 0 && l.tail.n > 0 && l.front.n-l.flight < w.Entries {
			l.front.push(l.tail.pop())
			l.waiting++
		}
	}
	for l.flight+count < l.front.n && n+count < w.Entries {
		more := bytes + len(l.front.at(l.flight+count).payload)
		if n+count > 0 && more > w.Bytes {
			break
		}
		count, bytes = count+1, more
	}
	return count, bytes
}

// more reports whether the log has to be read for a run of n, count of which are of the lane.
func (l *lane) more(w Want, count, n, bytes int) bool {
	return l.unread > 0 && l.flight+count == l.front.n && n < w.Entries && (n == 0 || bytes < w.Bytes)
}

// hold lets the n entries of the normal lane wait for others to join them, as w says; or not, where atMost is 0.
func (c *common) hold(w Want, n, bytes int, now moment) step {
	l, enough := c.normal, w.Bytes
	if w.BatchBytes > 0 {
		enough = min(enough, w.BatchBytes)
	}
	if n >= w.Entries || bytes >= enough || l.flight+n < l.front.n || l.unread > 0 {
		return step{}
	}
	for i := l.flight; i < l.front.n; i++ {
		if e := l.front.at(i); e.sent || e.taken.IsZero() {
			return step{} // what is sent again, or comes from the log, has waited
		}
	}
	wait := w.MaxAge - now.mono.Sub(l.front.at(l.flight).taken)
	if wait <= 0 {
		return step{}
	}
	c.waits.need(enough-bytes, w.Entries-n)
	next := c.begin(aBatch)
	next.atMost = wait
	return next
}

// take puts the next n entries of front in flight.
func (l *lane) take(run []Entry, n int) []Entry {
	for range n {
		e := l.front.at(l.flight)
		l.flight++
		if e.id <= l.handed {
			l.id++
			e.id = l.id
		}
		l.handed = e.id
		if e.sent {
			l.stats.Resent++
		}
		e.sent = true
		run = append(run, Entry{ID: e.id, Boot: e.boot, Seq: e.seq, Line: e.line, Topic: e.topic, Payload: e.payload})
	}
	return run
}

// waitFor is what Next waits for.
type waitFor int

const (
	anEntry waitFor = iota
	anUrgent
	aBatch
	waitKinds
)

// waits says how many wait in Next for what, so that an entry wakes only who has a use for it.
type waits struct {
	count          [waitKinds]int
	bytes, entries int // the least that one who waits for a batch needs
}

// begin counts who is about to wait. What it may have been woken by in another's place wakes the other.
func (c *common) begin(what waitFor) step {
	if what != anEntry && c.waits.count[anEntry] > 0 {
		signal(c.ready)
	}
	c.waits.count[what]++
	return step{wait: what}
}

// need is told what a batch lacks.
func (w *waits) need(bytes, entries int) {
	if w.count[aBatch] == 0 {
		w.bytes, w.entries = bytes, entries
	}
	w.bytes, w.entries = min(w.bytes, bytes), min(w.entries, entries)
}

// over is told of an entry of the normal lane, and reports whether somebody is to be woken.
func (w *waits) over(bytes int) bool {
	w.bytes -= bytes
	w.entries--
	idle := w.count[aBatch]+w.count[anUrgent] == 0
	return idle || w.count[anEntry] > 0 || w.count[aBatch] > 0 && (w.bytes <= 0 || w.entries <= 0)
}
