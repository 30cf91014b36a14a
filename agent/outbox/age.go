package outbox

import (
	"context"
	"log/slog"
	"time"
)

// stampFrom is the first stamp that is a time of day: Unix ms. A lower one counts ms from the start of its
// boot, for an entry that was taken while nobody vouched for the clock, and means nothing in any other
// boot; 0 is unknown.
const stampFrom = 1 << 39 // in 1987; and seventeen years of one boot

// moment is a time as the clocks say it.
type moment struct {
	mono time.Time // of this process
	wall uint64    // Unix ms; 0: nobody vouches for it
}

func (c *common) moment() moment {
	m := moment{mono: time.Now()}
	if c.clock == nil {
		m.wall = unixMilli(m.mono)
	} else if t, trusted := c.clock(); trusted {
		m.wall = unixMilli(t)
	}
	if m.wall < stampFrom {
		m.wall = 0
	}
	return m
}

// stamp is what the log says of when an entry was taken.
func (c *common) stamp(taken time.Time) uint64 {
	m := moment{wall: unixMilli(taken)}
	if c.clock != nil {
		m = c.moment()
	}
	if m.wall >= stampFrom {
		return m.wall
	}
	return uint64(max(0, taken.Sub(c.opened).Milliseconds())) + 1
}

// age is how long ago e was taken, if that is known.
func (c *common) age(e *entry, now moment) (age time.Duration, known bool) {
	switch {
	case !e.taken.IsZero():
		return now.mono.Sub(e.taken), true
	case e.stamp >= stampFrom:
		return time.Duration(int64(now.wall)-int64(e.stamp)) * time.Millisecond, now.wall != 0
	case e.stamp > 0 && e.boot == c.boot:
		return now.mono.Sub(c.opened) - time.Duration(e.stamp)*time.Millisecond, true
	}
	return 0, false
}

// stale reports whether an entry is too old to be sent.
func (c *common) stale(e *entry, now moment) bool {
	if e.policy == nil || e.policy.maxAge == 0 {
		return false
	}
	age, known := c.age(e, now)
	return known && age > e.policy.maxAge
}

// expire lets the stale ones go of the entries of front that are not in flight, if there are any among the
// first n. It reports whether it found any.
func (l *lane) expire(n int, now moment) (found bool) {
	for i := l.flight; i < l.front.n && i < l.flight+n && !found; i++ {
		found = l.stale(l.front.at(i), now)
	}
	if !found {
		return false
	}
	i := 0
	var gone []entry
	l.front.filter(func(e *entry) bool {
		i++
		if i <= l.flight || !l.stale(e, now) {
			return true
		}
		gone = append(gone, *e)
		return false
	})
	for _, e := range gone {
		l.leave(e)
		l.noteExpired(&e)
	}
	return true
}

// noteExpired counts a stale entry and names its number.
func (c *common) noteExpired(e *entry) {
	e.policy.expired++
	c.expired.add(Range{Boot: e.boot, From: e.seq, To: e.seq})
	c.expired.count++
	if suppressed, due := c.ageLog.due(time.Now()); due {
		c.log.LogAttrs(context.Background(), slog.LevelInfo, "entries let go for their age",
			slog.String("line", e.line), slog.Duration("max_age", e.policy.maxAge),
			slog.Uint64("expired", c.expired.count), slog.Int("events_not_logged", suppressed))
	}
}
