package session

import (
	"context"
	"sync"
	"time"
)

// window counts the messages in flight and bounds those of the outbox.
type window struct {
	limit int

	mu    sync.Mutex
	n     int
	since time.Time     // when n became more than 0
	wake  chan struct{} // there may be room again, or nothing is in flight any more
}

func newWindow(limit int) *window {
	return &window{limit: limit, wake: make(chan struct{}, 1)}
}

// add puts n messages in flight.
func (w *window) add(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n == 0 {
		w.since = time.Now()
	}
	w.n += n
}

// done takes n messages out of flight.
func (w *window) done(n int) {
	w.mu.Lock()
	w.n -= n
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// inFlight returns how many messages are in flight, and since when there are any.
func (w *window) inFlight() (n int, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n, w.since
}

// gather is how long a window that was full waits for more than one place to become free.
const gather = 5 * time.Millisecond

// room waits for room and returns how much there is, or 0 when ctx has ended. A full window
// opens again when a quarter of it is free, so that several messages share one write, or a
// moment after one place is.
func (w *window) room(ctx context.Context) int {
	full := false
	var late <-chan time.Time
	for ctx.Err() == nil {
		n, _ := w.inFlight()
		free := w.limit - n
		full = full || free < 1
		if free > 0 && (!full || free >= (w.limit+3)/4) {
			return free
		}
		if free > 0 && late == nil {
			late = time.After(gather)
		}
		select {
		case <-w.wake:
		case <-late:
			full, late = false, nil
		case <-ctx.Done():
		}
	}
	return 0
}

// empty waits until nothing is in flight. It answers false when ctx has ended.
func (w *window) empty(ctx context.Context) bool {
	for {
		if n, _ := w.inFlight(); n == 0 {
			return true
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return false
		}
	}
}

// pacer spaces messages out so that there are at most rate a second, with bursts of a tenth
// of a second.
type pacer struct {
	rate   float64
	tokens float64
	last   time.Time
}

// take waits until a message may go, and returns how many of n may go together, or 0 when
// ctx has ended.
func (p *pacer) take(ctx context.Context, n int) int {
	if p.rate <= 0 {
		return n
	}
	for {
		now := time.Now()
		p.tokens = min(p.tokens+now.Sub(p.last).Seconds()*p.rate, max(1, p.rate/10))
		p.last = now
		if p.tokens >= 1 {
			n = min(n, int(p.tokens))
			p.tokens -= float64(n)
			return n
		}
		wait := time.NewTimer(time.Duration((1 - p.tokens) / p.rate * float64(time.Second)))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return 0
		}
	}
}

// give takes back what was not used of the last take.
func (p *pacer) give(n int) { p.tokens += float64(n) }
