package audit

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	burst    = 32          // events of a name at once
	refill   = time.Minute // one more
	maxNames = 64          // names that are told apart; others share one limit
	// retryFirst and retryMost bound how long a disk that refused is left alone; the pause doubles.
	retryFirst = 5 * time.Second
	retryMost  = time.Minute
)

// Log is the log of one running agent. Append may be called from any goroutine and never waits for the disk: Run
// writes. One Log per folder.
type Log struct {
	o    Options
	wake chan struct{}

	mu         sync.Mutex
	closed     bool
	queue      []entry
	limits     map[string]*limit
	suppressed uint64
	lost       uint64 // ever
	untold     uint64 // of those: not in the log yet
	status     Status // as the writer left it

	writing sync.Mutex // guards all below
	w       writer
	retry   time.Duration
}

// entry is a line that waits for its number.
type entry struct {
	at      time.Time
	trusted bool
	event   []byte
}

// limit is the bucket of events of one name.
type limit struct {
	left       int
	since      time.Time // of the last refill
	suppressed uint64    // since the last line
}

// take says whether one more event may be written.
func (l *limit) take(now time.Time) bool {
	if n := int(now.Sub(l.since) / refill); n > 0 {
		l.left = min(burst, l.left+n)
		l.since = l.since.Add(time.Duration(n) * refill)
	}
	if l.left == 0 {
		l.suppressed++
		return false
	}
	l.left--
	return true
}

// Open finds the end of the log in whatever state it was left. A disk that cannot be read or written is not an
// error: Status tells, and the log is taken up as soon as it can be.
func Open(o Options) (*Log, error) {
	if err := o.Config.Validate(); err != nil {
		return nil, err
	}
	l := &Log{o: o, wake: make(chan struct{}, 1), limits: map[string]*limit{}}
	l.w = writer{o: o}
	l.writing.Lock()
	defer l.writing.Unlock()
	l.note(context.Background(), l.w.load())
	return l, nil
}

// Append takes an event. The error says that it will not be in the log: ErrFull, ErrClosed; an event beyond the limit of
// its name is no error, and counted in the next line of that name.
func (l *Log) Append(_ context.Context, e Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if !e.Essential {
		name := e.Name
		if _, known := l.limits[name]; !known && len(l.limits) >= maxNames {
			name = ""
		}
		bucket := l.limits[name]
		if bucket == nil {
			bucket = &limit{left: burst, since: time.Now()}
			l.limits[name] = bucket
		}
		if !bucket.take(time.Now()) {
			l.suppressed++
			return nil
		}
		if bucket.suppressed > 0 {
			e.Attrs = append([]slog.Attr{slog.Uint64("suppressed", bucket.suppressed)}, e.Attrs...)
			bucket.suppressed = 0
		}
	}
	if len(l.queue) >= maxQueue {
		l.lost++
		l.untold++
		return ErrFull
	}
	l.queue = append(l.queue, l.encode(e))
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

func (l *Log) encode(e Event) entry {
	return entry{at: l.o.Clock.Now(), trusted: l.o.Clock.Trusted(), event: appendEvent(nil, e)}
}

// Run writes what is appended and signs the head, until ctx is done. Close does the rest.
func (l *Log) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.wake:
		case <-timer.C:
		}
		wait, pause := l.work(ctx)
		if wait == never {
			timer.Stop()
		} else {
			timer.Reset(wait)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// work does what is due. It says when something will be due by itself, and how long to rest before anything else:
// a short breath, so that many events cost few syncs, and longer where the disk refuses.
func (l *Log) work(ctx context.Context) (wait, pause time.Duration) {
	l.writing.Lock()
	defer l.writing.Unlock()
	err := l.flush()
	if err != nil {
		l.note(ctx, err)
		l.retry = min(max(2*l.retry, retryFirst), retryMost)
		return l.retry, l.retry
	}
	l.retry = 0
	if wait = l.w.due(time.Now()); wait == 0 {
		err = l.sign()
		wait = l.w.due(time.Now())
	}
	l.note(ctx, err)
	return max(wait, syncPause), syncPause
}

// flush writes all that waits.
func (l *Log) flush() error {
	if err := l.w.load(); err != nil {
		return err
	}
	for {
		batch, lost := l.next()
		if len(batch) == 0 {
			return nil
		}
		n, err := l.w.write(batch)
		l.taken(n, lost)
		if err != nil {
			return err
		}
	}
}

// next returns what is written in one go: the recovery's own words, those about lost lines, then the queue.
func (l *Log) next() (batch []entry, lost uint64) {
	for _, e := range l.w.pending {
		batch = append(batch, l.encode(e))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if lost = l.untold; lost > 0 {
		batch = append(batch, l.encode(Event{Name: "audit.lost", Attrs: []slog.Attr{slog.Uint64("lines", lost)}}))
	}
	return append(batch, l.queue...), lost
}

// taken removes the first n entries of a batch from where they came. write takes all or nothing of what is not queued.
func (l *Log) taken(n int, lost uint64) {
	if n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	own := len(l.w.pending)
	if lost > 0 {
		own++
	}
	l.w.pending = nil
	l.untold -= lost
	l.queue = l.queue[min(len(l.queue), n-own):]
	if len(l.queue) == 0 {
		l.queue = nil // frees the array
	}
}

// sign signs the head. Where the key has changed without a word of the old one, the log says so first.
func (l *Log) sign() error {
	key := l.o.Key()
	if key == nil {
		return errors.New("signing the audit log: the device has no key")
	}
	if e := l.w.unannounced(key.Public()); e != nil {
		if _, err := l.w.write([]entry{l.encode(*e)}); err != nil {
			return err
		}
	}
	return l.w.sign(key, l.o.Device(), l.o.Clock)
}

// KeyChange records that the device's key will be next, in the words of the old key, which is about to go: whoever holds the
// old key's certificate alone can follow from it. And next signs the head, so that it can take over. Both keys sign once. It
// is called when the new key is staged, before the old one goes, and does nothing where it was called before; where it was not,
// the log says only that the key changed.
func (l *Log) KeyChange(ctx context.Context, old, next crypto.Signer) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	err := l.flush()
	if err == nil && l.w.knows(next.Public()) {
		return nil
	}
	if err == nil {
		var e Event
		if e, err = l.w.change(old, next.Public(), l.o.Device()); err == nil {
			_, err = l.w.write([]entry{l.encode(e)})
		}
	}
	if err == nil {
		_, err = l.w.storeHead(next, l.o.Device(), l.o.Clock, l.w.begins)
	}
	l.note(ctx, err)
	if err != nil {
		return fmt.Errorf("recording the change of key: %w", err)
	}
	return nil
}

// Close writes what waits, signs the head and closes the log. Run has ended.
func (l *Log) Close() error {
	l.mu.Lock()
	already := l.closed
	l.closed = true
	l.mu.Unlock()
	if already {
		return nil
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	err := l.flush()
	if err == nil && l.w.due(time.Now()) != never {
		err = l.sign()
	}
	l.note(context.Background(), err)
	return errors.Join(err, l.w.closeFile())
}

// note publishes the writer's state, and logs the beginning and the end of trouble.
func (l *Log) note(ctx context.Context, err error) {
	s := l.w.status()
	if err != nil {
		s.Problem = err.Error()
	}
	l.mu.Lock()
	was := l.status.Problem
	l.status = s
	l.mu.Unlock()
	switch {
	case s.Problem != "" && was == "":
		l.o.Log.LogAttrs(ctx, slog.LevelError, "audit log cannot be kept", slog.String("err", s.Problem))
	case s.Problem == "" && was != "":
		l.o.Log.LogAttrs(ctx, slog.LevelInfo, "audit log recovered")
	}
}

// Status returns the state of the log.
func (l *Log) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.Suppressed, s.Lost = l.suppressed, l.lost
	return s
}
