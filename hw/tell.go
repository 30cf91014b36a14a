package hw

import (
	"context"
	"fmt"
	"time"

	"ferrule/hw/point"
)

// Units that speak unasked: what they say is reported at once, or, with every, gathered and
// reported in slots.

// tell gives the readings of what u said to its points, and reports them when they are due.
func (l *Line) tell(ctx context.Context, u *unit, readings []point.Reading, now time.Time) {
	l.told(ctx, u, u.place(l, readings, now), now)
}

// told notes that u spoke, with so many points that had no value.
func (l *Line) told(ctx context.Context, u *unit, failed uint64, now time.Time) {
	l.count(func() {
		l.polls++
		u.polls++
		u.state = UnitOK
		u.heard = now
		l.errors[faultValue] += failed
		u.errors[faultValue] += failed
	})
	u.waiting = true
	l.reportTold(ctx, u, now)
}

// place gives the readings to the points that they belong to. Where none are configured, every
// reading is a point.
func (u *unit) place(l *Line, readings []point.Reading, now time.Time) (failed uint64) {
	for _, r := range readings {
		p := u.byKey[r.Point]
		if p == nil && u.discovers && len(u.points) < maxFound {
			p = l.find(u, r)
		}
		if p != nil && u.turnOf(l, p, now) && !p.take(r) {
			failed++
		}
	}
	return failed
}

// turnOf gives the round to a point, unless it is wanted less often than that.
func (u *unit) turnOf(l *Line, p *pointState, now time.Time) bool {
	if !u.wants(p, now) {
		return false
	}
	if p.every > u.every {
		p.due = nextSlot(l.schedule.base, p.every, now)
	}
	p.round = u.round
	return true
}

// wants tells whether the slot of a point has come.
func (u *unit) wants(p *pointState, now time.Time) bool {
	return p.every <= u.every || !now.Before(p.due)
}

// readOut gives the readings of a whole read-out, made now, to the points of u, and says how many of
// those that were due got no value from it.
func (u *unit) readOut(l *Line, readings []point.Reading) (failed int) {
	now := time.Now()
	wrong := u.place(l, readings, now)
	return int(wrong) + u.missing(l, now)
}

// missing fails the points of a read-out that were due and were not in it.
func (u *unit) missing(l *Line, now time.Time) (failed int) {
	for _, p := range u.points {
		if p.round != u.round && u.turnOf(l, p, now) {
			p.fail("missing")
			failed++
		}
	}
	return failed
}

// failAll gives every point of the unit the reason. All are due when it is over.
func (u *unit) failAll(bad string) {
	for _, p := range u.points {
		p.round, p.due = u.round, time.Time{}
		p.fail(bad)
	}
	for _, p := range u.exponents {
		p.fail(bad)
	}
}

// find makes a point of a reading that nobody configured.
func (l *Line) find(u *unit, r point.Reading) *pointState {
	p := &pointState{name: r.Point, key: r.Point, every: u.every, codec: l.plain, uom: r.Uom}
	l.count(func() {
		u.points = append(u.points, p)
		if u.byKey == nil {
			u.byKey = make(map[string]*pointState)
		}
		u.byKey[p.key] = p
	})
	return p
}

// reportTold reports what u said, unless its slot is still to come.
func (l *Line) reportTold(ctx context.Context, u *unit, now time.Time) {
	if !u.waiting || u.every > 0 && now.Before(u.slot) {
		return
	}
	if u.every > 0 {
		u.slot = nextSlot(l.schedule.base, u.every, now)
	}
	l.report(ctx, u, now)
	u.waiting = false
	u.round++
}

// remind reports what waited for its slot, and units that have been silent for too long.
func (l *Line) remind(ctx context.Context, now time.Time) {
	for _, u := range l.units {
		l.reportTold(ctx, u, now)
		if u.timeout > 0 && u.state != UnitMissed && !now.Before(l.silentAt(u)) {
			l.hushed(ctx, u, now)
		}
	}
}

// reminder returns when remind has something to do, if before latest.
func (l *Line) reminder(latest time.Time) time.Time {
	for _, u := range l.units {
		if u.waiting && u.slot.Before(latest) {
			latest = u.slot
		}
		if at := l.silentAt(u); u.timeout > 0 && u.state != UnitMissed && at.Before(latest) {
			latest = at
		}
	}
	return latest
}

// silentAt is when the silence of u has lasted too long.
func (l *Line) silentAt(u *unit) time.Time {
	from := u.heard
	if from.Before(l.schedule.base) {
		from = l.schedule.base
	}
	return from.Add(u.timeout)
}

// hushed reports the points of a unit that speaks no more.
func (l *Line) hushed(ctx context.Context, u *unit, now time.Time) {
	l.count(func() {
		u.state = UnitMissed
		l.errors[faultTimeout]++
		u.errors[faultTimeout]++
		u.wrong.note(fmt.Errorf("nothing was heard for %s", u.timeout), nil, now)
	})
	u.failAll("timeout")
	l.report(ctx, u, now)
	u.waiting = false
	u.round++
}
