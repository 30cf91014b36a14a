package outbox

import (
	"context"
	"log/slog"
	"slices"
	"time"
)

// admit makes room for an entry as when_full says. It reports whether there is room; l.mu is
// released while it waits for some.
func (l *lane) admit(ctx context.Context, e *entry) (bool, error) {
	if int64(e.size) > l.entryLimit {
		l.log.LogAttrs(ctx, slog.LevelWarn, "entry is larger than the outbox takes",
			slog.String("topic", e.topic), slog.Int("bytes", e.size), slog.Int64("limit", l.entryLimit))
		return false, nil
	}
	for !l.fits(e.size) {
		switch {
		case l.retireActive() || l.normal.retireActive():
		case l.config.WhenFull == Block:
			if err := l.waitForRoom(ctx); err != nil {
				return false, err
			}
		case l.config.WhenFull == DropNewest || !l.makeRoom(e.size):
			return false, nil
		}
	}
	return true, nil
}

// Config.MaxBytes bounds both lanes together. A quarter of it, 32 KiB at least, is the urgent lane's share, and
// it never has more. With drop-oldest the normal lane may fill what the urgent one does not use, and gives it
// back; otherwise that share is kept free where a line is urgent, or an alarm might find the outbox full.

// urgentShare is the share of n, in bytes.
func urgentShare(n int64) int64 { return max(n/4, 8*block) }

// keeps is how much of n the normal lane leaves alone, in bytes.
func (c *common) keeps(n int64) int64 {
	if c.urgent == nil || !c.urgent.wanted || c.config.WhenFull == DropOldest {
		return 0
	}
	return urgentShare(n)
}

// limit is what the lane may occupy.
func (l *lane) limit() int64 {
	n := l.config.MaxBytes.Bytes()
	if l == l.urgent {
		return urgentShare(n)
	}
	return n - l.keeps(n)
}

// unsavedLimit bounds the lane's entries that are on no disk.
func (l *lane) unsavedLimit() int64 {
	if l == l.urgent {
		return urgentShare(l.memoryLimit)
	}
	return l.memoryLimit - l.keeps(l.memoryLimit)
}

// occupied is what the lane takes of its limit. It keeps two segments' worth in hand for headers, footers and
// half-filled blocks.
func (l *lane) occupied() int64 { return l.onDisk + l.unsaved + l.badBytes + 2*l.segmentLimit }

// fits reports whether there is room for so many bytes more.
func (l *lane) fits(size int) bool {
	more := int64(size)
	if !l.fitsShare(more) || l.memoryShort(more) {
		return false
	}
	for _, other := range l.lanes {
		more += other.occupied()
	}
	return more <= l.config.MaxBytes.Bytes()
}

// fitsShare leaves the other lane out of account.
func (l *lane) fitsShare(more int64) bool {
	return l.unsaved+more <= l.unsavedLimit() && l.occupied()+more <= l.limit()
}

// memoryShort reports whether it is memory that has no room for so many bytes more.
func (l *lane) memoryShort(more int64) bool {
	if l.unsaved+more > l.unsavedLimit() {
		return true
	}
	for _, other := range l.lanes {
		more += other.unsaved
	}
	return more > l.memoryLimit
}

// makeRoom drops what is oldest: for an urgent entry in the normal lane, as long as the urgent one keeps to
// its share. It reports whether it found any.
func (l *lane) makeRoom(size int) bool {
	more := int64(size)
	if l != l.normal && l.fitsShare(more) && l.normal.dropOldest(l.memoryShort(more)) {
		return true
	}
	return l.dropOldest(l.memoryShort(more))
}

// retireActive gives up the segment being written where it owes nothing but its room.
func (l *lane) retireActive() bool {
	if l.active == nil || l.active.owes() || l.flushing != 0 {
		return false
	}
	l.bury(l.active)
	return true
}

// freed wakes the appenders that wait for room.
func (c *common) freed() {
	for _, l := range c.lanes {
		signal(l.room)
	}
}

func (l *lane) waitForRoom(ctx context.Context) error {
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-l.room:
		return nil
	case <-l.done:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dropOldest gives up the oldest entries that are not in flight: a whole segment, since less frees
// nothing, or one entry where it is memory that is short. It reports whether it found any.
func (l *lane) dropOldest(memoryShort bool) bool {
	if !memoryShort {
		if s := l.oldestIdle(); s != nil {
			l.giveUp(s)
			return true
		}
	}
	return l.dropUnsaved()
}

// oldestIdle returns the first segment after those that entries in flight are in.
func (l *lane) oldestIdle() *segment {
	first := 0
	if l.flight > 0 {
		last := l.front.at(l.flight - 1).seg
		if last == nil {
			return nil // the whole log is in flight
		}
		first = slices.Index(l.segments, last) + 1
	}
	for _, s := range l.segments[first:] {
		if s != l.active || l.flushing == 0 {
			return s
		}
	}
	return nil
}

// giveUp drops all that a segment owes. What is in it unread is named when it is removed.
func (l *lane) giveUp(s *segment) {
	l.front.filter(func(e *entry) bool {
		if e.seg == s {
			l.lose(e.boot, e.seq)
		}
		return e.seg != s
	})
	s.loaded = 0
	if unread := s.records - s.read; unread > 0 {
		s.lostFrom = 0
		if l.cursor.seg == s {
			s.lostFrom = l.cursor.off
		}
		l.unread -= unread
		l.countLost(unread)
		s.read = s.records
	}
	l.bury(s)
}

// dropUnsaved drops the oldest entry that is neither on disk nor on its way there nor in flight.
func (l *lane) dropUnsaved() bool {
	for i := max(l.flight, l.front.n-l.waiting); i < l.front.n; i++ {
		if l.front.at(i).seq > l.flushing {
			e := l.front.remove(i)
			l.waiting--
			l.forget(&e)
			return true
		}
	}
	if l.tail.n == 0 || l.tail.at(0).seq <= l.flushing {
		return false
	}
	e := l.tail.pop()
	l.forget(&e)
	return true
}

func (l *lane) forget(e *entry) {
	l.unsaved -= int64(e.size)
	l.lose(e.boot, e.seq)
}

// lose counts an entry as dropped and names its number.
func (c *common) lose(boot, seq uint64) {
	c.dropped.add(Range{Boot: boot, From: seq, To: seq})
	c.countLost(1)
}

func (c *common) countLost(n int) {
	c.dropped.count += uint64(n)
	if suppressed, due := c.dropLog.due(time.Now()); due {
		c.log.LogAttrs(context.Background(), slog.LevelWarn, "outbox is full; entries dropped",
			slog.String("when_full", c.config.WhenFull), slog.Uint64("dropped", c.dropped.count),
			slog.Int("events_not_logged", suppressed))
	}
}

// quiet lets one of many equal log lines through per minute.
type quiet struct {
	last       time.Time
	suppressed int
}

func (q *quiet) due(now time.Time) (suppressed int, due bool) {
	if !q.last.IsZero() && now.Sub(q.last) < time.Minute {
		q.suppressed++
		return 0, false
	}
	suppressed, q.last, q.suppressed = q.suppressed, now, 0
	return suppressed, true
}
