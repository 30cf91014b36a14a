package outbox

import (
	"context"
	"log/slog"
	"slices"
	"time"
)

// maxRanges bounds Status.DroppedRanges.
const maxRanges = 64

// admit makes room for an entry as when_full says. It reports whether there is room; o.mu is
// released while it waits for some.
func (o *Outbox) admit(ctx context.Context, e *entry) (bool, error) {
	if int64(e.size) > o.entryLimit {
		o.log.LogAttrs(ctx, slog.LevelWarn, "entry is larger than the outbox takes",
			slog.String("topic", e.topic), slog.Int("bytes", e.size), slog.Int64("limit", o.entryLimit))
		return false, nil
	}
	for !o.fits(e.size) {
		switch {
		case o.retireActive():
		case o.config.WhenFull == Block:
			if err := o.waitForRoom(ctx); err != nil {
				return false, err
			}
		case o.config.WhenFull == DropNewest || !o.dropOldest(e.size):
			return false, nil
		}
	}
	return true, nil
}

// fits keeps two segments' worth in hand for headers, footers and half-filled blocks.
func (o *Outbox) fits(size int) bool {
	unsaved := o.unsaved + int64(size)
	return unsaved <= o.memoryLimit &&
		o.onDisk+unsaved+o.badBytes+2*o.segmentLimit <= o.config.MaxBytes.Bytes()
}

// retireActive gives up the segment being written where it owes nothing but its room.
func (o *Outbox) retireActive() bool {
	if o.active == nil || o.active.owes() || o.flushing != 0 {
		return false
	}
	o.bury(o.active)
	return true
}

func (o *Outbox) waitForRoom(ctx context.Context) error {
	o.mu.Unlock()
	defer o.mu.Lock()
	select {
	case <-o.room:
		return nil
	case <-o.done:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dropOldest gives up the oldest entries that are not in flight: a whole segment, since less frees
// nothing, or one entry where it is memory that is short. It reports whether it found any.
func (o *Outbox) dropOldest(size int) bool {
	if o.unsaved+int64(size) <= o.memoryLimit {
		if s := o.oldestIdle(); s != nil {
			o.giveUp(s)
			return true
		}
	}
	return o.dropUnsaved()
}

// oldestIdle returns the first segment after those that entries in flight are in.
func (o *Outbox) oldestIdle() *segment {
	first := 0
	if o.flight > 0 {
		last := o.front.at(o.flight - 1).seg
		if last == nil {
			return nil // the whole log is in flight
		}
		first = slices.Index(o.segments, last) + 1
	}
	for _, s := range o.segments[first:] {
		if s != o.active || o.flushing == 0 {
			return s
		}
	}
	return nil
}

// giveUp drops all that a segment owes. What is in it unread is named when it is removed.
func (o *Outbox) giveUp(s *segment) {
	o.front.filter(func(e *entry) bool {
		if e.seg == s {
			o.lose(e.boot, e.seq)
		}
		return e.seg != s
	})
	s.loaded = 0
	if unread := s.records - s.read; unread > 0 {
		s.lostFrom = 0
		if o.cursor.seg == s {
			s.lostFrom = o.cursor.off
		}
		o.unread -= unread
		o.countLost(unread)
		s.read = s.records
	}
	o.bury(s)
}

// dropUnsaved drops the oldest entry that is neither on disk nor on its way there nor in flight.
func (o *Outbox) dropUnsaved() bool {
	for i := max(o.flight, o.front.n-o.waiting); i < o.front.n; i++ {
		if o.front.at(i).seq > o.flushing {
			e := o.front.remove(i)
			o.waiting--
			o.forget(&e)
			return true
		}
	}
	if o.tail.n == 0 || o.tail.at(0).seq <= o.flushing {
		return false
	}
	e := o.tail.pop()
	o.forget(&e)
	return true
}

func (o *Outbox) forget(e *entry) {
	o.unsaved -= int64(e.size)
	o.lose(e.boot, e.seq)
}

// lose counts an entry as dropped and names its number.
func (o *Outbox) lose(boot, seq uint64) {
	o.name(Range{Boot: boot, From: seq, To: seq})
	o.countLost(1)
}

func (o *Outbox) countLost(n int) {
	o.stats.Dropped += uint64(n)
	if suppressed, due := o.dropLog.due(time.Now()); due {
		o.log.LogAttrs(context.Background(), slog.LevelWarn, "outbox is full; entries dropped",
			slog.String("when_full", o.config.WhenFull), slog.Uint64("dropped", o.stats.Dropped),
			slog.Int("events_not_logged", suppressed))
	}
}

// name adds numbers to the list of what was dropped.
func (o *Outbox) name(r Range) {
	ranges := o.stats.DroppedRanges
	for i := len(ranges) - 1; i >= 0; i-- {
		if old := &ranges[i]; old.Boot == r.Boot && r.From <= old.To+1 && old.From <= r.To+1 {
			old.From, old.To = min(old.From, r.From), max(old.To, r.To)
			if i+1 < len(ranges) && ranges[i+1].Boot == old.Boot && ranges[i+1].From <= old.To+1 && old.From <= ranges[i+1].To+1 {
				old.From, old.To = min(old.From, ranges[i+1].From), max(old.To, ranges[i+1].To)
				o.stats.DroppedRanges = slices.Delete(ranges, i+1, i+2)
			}
			return
		}
	}
	if len(ranges) == maxRanges {
		ranges = slices.Delete(ranges, 0, 1)
		o.stats.DroppedRangesLeftOut++
	}
	o.stats.DroppedRanges = append(ranges, r)
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
