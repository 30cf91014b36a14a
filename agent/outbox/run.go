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
func (o *Outbox) work() time.Duration {
	o.diskMu.Lock()
	defer o.diskMu.Unlock()
	o.sweep()
	if wait := o.plan(); wait > 0 {
		o.savePlace(false)
		return wait
	}
	_ = o.flush() // Status tells
	o.savePlace(false)
	return max(o.plan(), time.Millisecond)
}

// plan returns how long until something is due; 0: now.
func (o *Outbox) plan() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	wait := rest
	fresh := o.seq != o.seen
	o.seen = o.seq
	switch taken, ok := o.oldestUnsaved(); {
	case o.problems[writing].err != nil:
		wait = time.Until(o.writer.retryAt)
	case ok && (o.unsaved > o.memoryLimit/2 || o.writer.source != nil):
		wait = 0
	case ok:
		wait = time.Until(taken.Add(time.Duration(o.config.Sync) - o.lead))
	case fresh:
		// An entry that comes while Run sleeps cannot be due before it wakes: no need to be woken by it.
		wait = max(time.Duration(o.config.Sync)-o.lead, tick)
	default:
		o.armed = false
	}
	if len(o.segments) > 0 || len(o.dead) > 0 {
		wait = min(wait, tick)
		if o.active != nil && time.Since(o.idle) >= linger && o.unsaved == 0 && o.retireActive() {
			wait = min(wait, time.Millisecond)
		}
	}
	return max(wait, 0)
}

func (o *Outbox) oldestUnsaved() (taken time.Time, ok bool) {
	switch {
	case o.waiting > 0:
		return o.front.at(o.front.n - o.waiting).taken, true
	case o.tail.n > 0:
		return o.tail.at(0).taken, true
	}
	return time.Time{}, false
}

// makeDurable returns when the entry seq is on disk, acknowledged or lost. One appender writes for all
// that wait with it.
func (o *Outbox) makeDurable(seq uint64) {
	o.diskMu.Lock()
	defer o.diskMu.Unlock()
	if o.owesSync(seq) {
		_ = o.flush() // Status tells
	}
}

// owesSync reports whether seq, or an entry before it, is in memory only, and the disk may be asked.
func (o *Outbox) owesSync(seq uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.problems[writing].err != nil && time.Until(o.writer.retryAt) > 0 {
		return false
	}
	return o.waiting > 0 && o.front.at(o.front.n-o.waiting).seq <= seq || o.tail.n > 0 && o.tail.at(0).seq <= seq
}

// relieve lets the appender that fills the memory write it out, so that a burst is slowed down to what
// the disk can take.
func (o *Outbox) relieve() {
	o.mu.Lock()
	press := o.unsaved > o.memoryLimit/2 && o.problems[writing].err == nil && !o.closed
	o.mu.Unlock()
	if !press {
		return
	}
	o.diskMu.Lock()
	defer o.diskMu.Unlock()
	_ = o.flush() // Status tells
}

// settle makes durable what is left, and leaves a log that is opened quickly.
func (o *Outbox) settle() error {
	o.diskMu.Lock()
	defer o.diskMu.Unlock()
	err := o.flush()
	if err == nil {
		o.seal()
	} else {
		o.mu.Lock()
		lost := o.waiting + o.tail.n
		o.mu.Unlock()
		if lost == 0 {
			err = nil // nothing had to be written
		} else {
			o.log.LogAttrs(context.Background(), slog.LevelError, "outbox ends with entries in memory only",
				slog.Int("entries", lost), slog.Any("err", err))
		}
	}
	o.savePlace(true)
	o.sweep()
	return err
}

// seal ends the active segment: with a footer, so that the next Open need not read it, or by
// removing it where it owes nothing.
func (o *Outbox) seal() {
	o.mu.Lock()
	seg := o.active
	if seg == nil || o.retireActive() {
		o.mu.Unlock()
		return
	}
	o.active = nil // whatever comes goes to the next
	entries := seg.records
	o.mu.Unlock()
	w := &o.writer
	footer := seg.appendFooter(nil, entries)
	// Whether it gets there does not matter: a footer that cannot be read is as none.
	if n, err := w.file.WriteAt(footer, seg.size); err == nil && w.file.Sync() == nil {
		o.mu.Lock()
		o.onDisk -= seg.alloc()
		seg.size += int64(n)
		o.onDisk += seg.alloc()
		o.stats.WrittenBytes += int64(n)
		o.stats.Fsyncs++
		o.mu.Unlock()
	}
	_ = w.closeSegment()
}
