package port

import (
	"context"
	"fmt"
	"time"
)

const (
	eager     = 50 * time.Millisecond // between looks after something was plugged in: udev is at work
	eagerFor  = 2 * time.Second
	udevGrace = time.Second // how long a device may be there before the right to open it is
)

// Await waits until it is worth trying again to open the port called name, which has just failed:
// its device appeared, or, where it was there all the time, half a second passed. So it may be
// called in a loop with Open. It finds a device at once where the kernel tells of it, else within
// half a second. A serial server announces nothing; for it Await is a pause. The error is that of
// ctx, or of ParseName.
func Await(ctx context.Context, name string) error { return host().await(ctx, name) }

func (sys system) await(ctx context.Context, name string) error {
	a, err := parseName(name)
	if err != nil {
		return err
	}
	w := sys.newWaiter(ctx, a)
	defer w.end()
	if sys.look(a) != absent {
		w.wait(sys.scan)
	}
	var plugged, denials time.Time
	for ctx.Err() == nil {
		now := time.Now()
		switch sys.look(a) {
		case ready:
			return nil
		case absent:
			denials = time.Time{}
		case denied:
			if denials.IsZero() {
				denials = now
			} else if now.Sub(denials) >= udevGrace {
				return nil // Open will say what is wrong
			}
		}
		pause := sys.scan
		if now.Sub(plugged) < eagerFor {
			pause = min(pause, eager)
		}
		if w.wait(pause) {
			plugged = time.Now()
		}
	}
	return fmt.Errorf("waiting for %s: %w", name, ctx.Err())
}

// waiter waits for events of devices or for time to pass, and no longer than ctx.
type waiter struct {
	ctx   context.Context
	watch *watch // nil: time alone
	stop  func() bool
	ended chan struct{}
}

func (sys system) newWaiter(ctx context.Context, a address) *waiter {
	w := &waiter{ctx: ctx}
	if a.server != "" {
		return w
	}
	watch, err := sys.newWatch()
	if err != nil {
		return w // no descriptors left, say: the scan remains
	}
	w.watch, w.ended = watch, make(chan struct{})
	w.stop = context.AfterFunc(ctx, func() {
		defer close(w.ended)
		watch.close()
	})
	return w
}

// wait waits for at most d and tells whether a tty came, went or changed meanwhile.
func (w *waiter) wait(d time.Duration) bool {
	if w.watch != nil {
		e, err := w.watch.next(d)
		return err == nil && e.action != ""
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.ctx.Done():
	}
	return false
}

func (w *waiter) end() {
	if w.watch == nil {
		return
	}
	if !w.stop() {
		<-w.ended
	}
	w.watch.close()
}
