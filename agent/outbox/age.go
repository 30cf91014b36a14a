package outbox

import (
	"bytes"
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

// anchor says by how much stamps that are a time of day are ahead of the boot's own time, in ms, from the entry
// seq on: by it a step of the clock, or nobody vouching for it any more, ages no entry of this boot.
type anchor struct {
	seq   uint64
	ahead int64
}

const (
	maxAnchors = 64
	anchorSlip = 1000 // ms
)

// stamp is what the log says of when the entry seq was taken.
func (c *common) stamp(seq uint64, taken time.Time) uint64 {
	m := moment{wall: unixMilli(taken)}
	if c.clock != nil {
		m = c.moment()
	}
	uptime := max(0, taken.Sub(c.opened).Milliseconds())
	if m.wall < stampFrom {
		return uint64(uptime) + 1
	}
	ahead, n := int64(m.wall)-uptime, len(c.anchors)
	if n == 0 || ahead-c.anchors[n-1].ahead > anchorSlip || c.anchors[n-1].ahead-ahead > anchorSlip {
		if n == maxAnchors {
			c.anchors = append(c.anchors[:0], c.anchors[1:]...)
		}
		c.anchors = append(c.anchors, anchor{seq: seq, ahead: ahead})
	}
	return m.wall
}

// age is how long ago e was taken, if that is known.
func (c *common) age(e *entry, now moment) (age time.Duration, known bool) {
	const ms = time.Millisecond
	uptime := now.mono.Sub(c.opened)
	switch {
	case !e.taken.IsZero():
		return now.mono.Sub(e.taken), true
	case e.stamp < stampFrom:
		return uptime - time.Duration(e.stamp)*ms, e.stamp > 0 && e.boot == c.boot
	case e.boot == c.boot:
		for i := len(c.anchors) - 1; i >= 0; i-- {
			if a := c.anchors[i]; a.seq <= e.seq {
				return uptime - time.Duration(int64(e.stamp)-a.ahead)*ms, true
			}
		}
	}
	return time.Duration(int64(now.wall)-int64(e.stamp)) * ms, now.wall != 0
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
	for i := l.flight; i < l.front.n && 4*len(gone) > l.front.n-l.flight; i++ {
		l.front.at(i).detach()
	}
	return true
}

// detach gives a survivor memory of its own: else it keeps that of many that are gone.
func (e *entry) detach() { e.payload = bytes.Clone(e.payload) }

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
