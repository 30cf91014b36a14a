package outbox

import (
	"context"
	"time"
)

// Next hands out the next entries, the urgent ones first, and waits for the first. They are in flight
// until Ack, SetAside or Rewind; Next may be called again before. The error is ErrClosed or that of
// ctx.
func (s *Lanes) Next(ctx context.Context, w Want) ([]Entry, error) {
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
			s.wait(ctx, next.wait)
		}
	}
}

// step is what Next does where nothing is handed out: load, or wait until something changes, where
// wait > 0 so long at most.
type step struct {
	load *lane
	wait time.Duration
	err  error
}

// wait returns when it is time to look again. handOut has counted the one who waits.
func (s *Lanes) wait(ctx context.Context, atMost time.Duration) {
	var due <-chan time.Time
	if atMost > 0 {
		timer := time.NewTimer(atMost)
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
	s.waits.end(atMost > 0)
}

// handOut returns a run, or what has to be done first.
func (s *Lanes) handOut(w Want) ([]Entry, step) {
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
	n, bytes := 0, 0
	for i, l := range s.lanes {
		counts[i], bytes = l.offer(w, n, bytes, now)
		n += counts[i]
		if l.more(w, counts[i], n, bytes) && (n == 0 || l.problems[reading].err == nil) {
			return nil, step{load: l}
		}
		if l.flight+counts[i] < l.depth() {
			break // what is less urgent must not overtake the rest
		}
	}
	if n == 0 {
		s.waits.begin(false, 0, 0)
		return nil, step{}
	}
	if w.MaxAge > 0 && n == counts[len(s.lanes)-1] {
		if wait := s.normal.hold(w, n, bytes, now); wait > 0 {
			return nil, step{wait: wait}
		}
	}
	run, left := make([]Entry, 0, n), false
	for i, l := range s.lanes {
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

// hold returns for how long the lane's n entries may wait for others to join them, as w says; 0: not at all.
func (l *lane) hold(w Want, n, bytes int, now moment) time.Duration {
	enough := w.Bytes
	if w.BatchBytes > 0 {
		enough = min(enough, w.BatchBytes)
	}
	if n >= w.Entries || bytes >= enough || l.flight+n < l.front.n || l.unread > 0 {
		return 0
	}
	for i := l.flight; i < l.front.n; i++ {
		if e := l.front.at(i); e.sent || e.taken.IsZero() {
			return 0 // what is sent again, or comes from the log, has waited
		}
	}
	first := l.front.at(l.flight)
	wait := w.MaxAge - now.mono.Sub(first.taken)
	if wait > 0 {
		if l.waits.any > 0 {
			signal(l.ready) // this one took it from there, and another has a use for it
		}
		l.waits.begin(true, enough-bytes, w.Entries-n)
	}
	return wait
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

// waits says who waits in Next, so that an entry wakes only who has a use for it.
type waits struct {
	any            int // wait for an entry
	batch          int // wait for so many of them, or for their time
	bytes, entries int // the least that one of those waits for
}

func (w *waits) begin(batch bool, bytes, entries int) {
	if !batch {
		w.any++
		return
	}
	if w.batch == 0 {
		w.bytes, w.entries = bytes, entries
	}
	w.batch++
	w.bytes, w.entries = min(w.bytes, bytes), min(w.entries, entries)
}

func (w *waits) end(batch bool) {
	if batch {
		w.batch--
	} else {
		w.any--
	}
}

// over is told of an entry, and reports whether somebody is to be woken.
func (w *waits) over(bytes int) bool {
	w.bytes -= bytes
	w.entries--
	return w.any > 0 || w.batch == 0 || w.bytes <= 0 || w.entries <= 0
}
