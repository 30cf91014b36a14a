package outbox

import (
	"context"
	"log/slog"
	"time"
)

const (
	// tick is how often what is not urgent is done, while there is any.
	tick = time.Second
	// linger is how long an empty segment is kept for what may come next.
	linger = 5 * time.Second
	// rest is how long Run sleeps when nothing can become due.
	rest = time.Hour
)

// work does what is due and returns how long Run may sleep.
func (l *lane) work() time.Duration {
	l.diskMu.Lock()
	defer l.diskMu.Unlock()
	l.sweep()
	if wait := l.plan(); wait > 0 {
		l.savePlace(false)
		return wait
	}
	_ = l.flush() // Status tells
	l.savePlace(false)
	return max(l.plan(), time.Millisecond)
}

// plan returns how long until something is due; 0: now.
func (l *lane) plan() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := rest
	fresh := l.stats.Appended != l.seen
	l.seen = l.stats.Appended
	switch taken, ok := l.oldestUnsaved(); {
	case l.problems[writing].err != nil:
		wait = time.Until(l.writer.retryAt)
	case ok && (l.unsaved > l.unsavedLimit()/2 || l.writer.source != nil):
		wait = 0
	case ok:
		wait = time.Until(taken.Add(time.Duration(l.config.Sync) - l.lead))
	case fresh:
		// An entry that comes while Run sleeps cannot be due before it wakes: no need to be woken by it.
		wait = max(time.Duration(l.config.Sync)-l.lead, tick)
	default:
		l.armed = false
	}
	if len(l.segments) > 0 || len(l.dead) > 0 {
		wait = min(wait, tick)
		if l.active != nil && time.Since(l.idle) >= linger && l.unsaved == 0 && l.retireActive() {
			wait = min(wait, time.Millisecond)
		}
	}
	return max(wait, 0)
}

func (l *lane) oldestUnsaved() (taken time.Time, ok bool) {
	switch {
	case l.waiting > 0:
		return l.front.at(l.front.n - l.waiting).taken, true
	case l.tail.n > 0:
		return l.tail.at(0).taken, true
	}
	return time.Time{}, false
}

// makeDurable returns when the entry seq is on disk, acknowledged or lost. One appender writes for all
// that wait with it.
func (l *lane) makeDurable(seq uint64) {
	l.diskMu.Lock()
	defer l.diskMu.Unlock()
	if l.owesSync(seq) {
		_ = l.flush() // Status tells
	}
}

// owesSync reports whether seq, or an entry before it, is in memory only, and the disk may be asked.
func (l *lane) owesSync(seq uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.problems[writing].err != nil && time.Until(l.writer.retryAt) > 0 {
		return false
	}
	return l.waiting > 0 && l.front.at(l.front.n-l.waiting).seq <= seq || l.tail.n > 0 && l.tail.at(0).seq <= seq
}

// relieve lets the appender that fills the memory write it out, so that a burst is slowed down to what
// the disk can take.
func (l *lane) relieve() {
	l.mu.Lock()
	press := l.unsaved > l.unsavedLimit()/2 && l.problems[writing].err == nil && !l.closed
	l.mu.Unlock()
	if !press {
		return
	}
	l.diskMu.Lock()
	defer l.diskMu.Unlock()
	_ = l.flush() // Status tells
}

// settle makes durable what is left, and leaves a log that is opened quickly.
func (l *lane) settle() error {
	l.diskMu.Lock()
	defer l.diskMu.Unlock()
	err := l.flush()
	if err == nil {
		l.seal()
	} else {
		l.mu.Lock()
		lost := l.waiting + l.tail.n
		l.mu.Unlock()
		if lost == 0 {
			err = nil // nothing had to be written
		} else {
			l.log.LogAttrs(context.Background(), slog.LevelError, "outbox ends with entries in memory only",
				slog.Int("entries", lost), slog.Any("err", err))
		}
	}
	l.savePlace(true)
	l.sweep()
	return err
}

// seal ends the active segment: with a footer, so that the next Open need not read it, or by
// removing it where it owes nothing.
func (l *lane) seal() {
	l.mu.Lock()
	seg := l.active
	if seg == nil || l.retireActive() {
		l.mu.Unlock()
		return
	}
	l.active = nil // whatever comes goes to the next
	entries := seg.records
	l.mu.Unlock()
	w := &l.writer
	footer := seg.appendFooter(nil, entries)
	// Whether it gets there does not matter: a footer that cannot be read is as none.
	if n, err := w.file.WriteAt(footer, seg.size); err == nil && w.file.Sync() == nil {
		l.mu.Lock()
		l.onDisk -= seg.alloc()
		seg.size += int64(n)
		l.onDisk += seg.alloc()
		l.stats.WrittenBytes += int64(n)
		l.stats.Fsyncs++
		l.mu.Unlock()
	}
	_ = w.closeSegment()
}
