package hw

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
)

// retryRefused is how long a point rests whose function, address or value the unit refused:
// that is a mistake in the configuration, or waits for a new firmware in the unit.
const retryRefused = 10 * time.Minute

var noValue point.Value

// turn gives the line to one unit: a probe where it is degraded, else its poll. The error is
// that of the port.
func (l *Line) turn(ctx context.Context, u *unit, now time.Time) error {
	if u.state == UnitDegraded {
		return l.probe(ctx, u)
	}
	return l.poll(ctx, u, now)
}

// progress is what one poll has come to so far.
type progress struct {
	heard  bool          // a valid answer came, be it an exception
	asked  bool          // a transaction was tried
	gaveUp string        // why the rest of the poll is not tried
	wasted time.Duration // waited for answers that did not come
}

// poll asks for everything of u that is due, and reports it as one Poll.
func (l *Line) poll(ctx context.Context, u *unit, now time.Time) error {
	var missed uint64
	l.due, missed = u.collect(l.schedule.base, now, l.due[:0])
	if u.silent() {
		missed = 0 // it was kept waiting on purpose
	}
	var p progress
	for i := 0; i < len(l.due); i++ { // a split appends to l.due
		r := l.due[i]
		switch {
		case p.gaveUp != "":
			r.fail(p.gaveUp)
		case now.Before(r.hold):
			r.fail(r.bad)
		default:
			if err := l.ask(ctx, u, r, &p); err != nil {
				return err
			}
		}
	}
	end := time.Now()
	l.schedule.wasted(p.wasted, end)
	l.count(func() { l.polls++; l.missed += missed; u.polls++ })
	switch {
	case p.heard:
		l.heard(ctx, u)
	case p.asked:
		l.miss(ctx, u, end)
	}
	l.report(ctx, u, end)
	return nil
}

// ask does the transaction of r, again where that may help, and settles what its points carry.
func (l *Line) ask(ctx context.Context, u *unit, r *request, p *progress) error {
	raw, how, bad, err := l.try(ctx, u, r, p)
	if (how == silence || how == damaged) && l.mayRetry(u, how) {
		raw, how, bad, err = l.try(ctx, u, r, p)
	}
	now := time.Now()
	switch how {
	case broken:
		return err
	case answered:
		r.failures, r.backoff, r.hold = 0, 0, time.Time{}
		if failed := r.decode(raw); failed > 0 {
			l.count(func() { l.errors[faultValue] += uint64(failed); u.errors[faultValue] += uint64(failed) })
		}
		return nil
	case refused:
		l.refusal(ctx, u, r, err, bad, now)
	case damaged, silence:
		if r.failures++; !p.heard {
			p.gaveUp = bad
		} else if r.failures >= missLimit {
			r.postpone(now, bad)
		}
	}
	r.fail(bad)
	return nil
}

// try does the transaction of r once. Jobs go first.
func (l *Line) try(ctx context.Context, u *unit, r *request, p *progress) ([]byte, outcome, string, error) {
	if err := l.serveJobs(ctx); err != nil {
		return nil, broken, "line", err
	}
	l.master.SetTimeout(u.timeout)
	start := time.Now()
	raw, err := l.fetch(ctx, u.address, r.at, r.count)
	how, bad, fault := judge(err)
	took := l.account(ctx, u, start, how, fault, err)
	p.asked = true
	p.heard = p.heard || how == answered || how == refused
	if how == silence || how == damaged {
		p.wasted += took
	}
	return raw, how, bad, err
}

// fetch is the read itself. An answer of the wrong length is the client's mistake, and yet no
// reason to read past its end.
func (l *Line) fetch(ctx context.Context, address byte, at modbus.Address, n uint16) ([]byte, error) {
	raw, err := l.master.Read(ctx, address, at, n, l.answer[:0])
	if err == nil && len(raw) < dataBytes(at.Table, int(n)) {
		return nil, modbus.ErrMismatch
	}
	return raw, err
}

// mayRetry allows one more try to units that usually answer; after silence only when silence
// is not rationed.
func (l *Line) mayRetry(u *unit, how outcome) bool {
	switch {
	case u.silent():
		return false
	case how == damaged:
		return true
	}
	return u.state == UnitOK && !time.Now().Before(l.schedule.rationed)
}

// refusal treats an exception by its kind. Modbus Application Protocol V1.1b3, 7.
func (l *Line) refusal(ctx context.Context, u *unit, r *request, err error, bad string, now time.Time) {
	e, _ := errors.AsType[modbus.Exception](err)
	switch e {
	case illegalAddress, illegalValue:
		if len(r.points) > 1 {
			a, b := u.split(r)
			l.due = append(l.due, a, b)
			return
		}
		fallthrough
	case illegalFunction:
		if r.bad != bad {
			l.log.LogAttrs(ctx, slog.LevelWarn, "point refused", slog.String("unit", u.name),
				slog.String("point", r.points[0].name), slog.String("at", r.at.String()), slog.Any("err", err))
		}
		r.hold, r.bad = now.Add(retryRefused), bad
	case acknowledge, busy: // the next slot is later enough
	default:
		r.postpone(now, bad)
	}
}

// probe asks a degraded unit for one request, without retry. An answer makes the whole unit
// due at once.
func (l *Line) probe(ctx context.Context, u *unit) error {
	var p progress
	_, how, bad, err := l.try(ctx, u, u.probeRequest(), &p)
	now := time.Now()
	switch how {
	case broken:
		return err
	case answered, refused:
		l.heard(ctx, u)
		return nil
	}
	l.schedule.wasted(p.wasted, now)
	l.count(func() { l.polls++; u.polls++ })
	l.miss(ctx, u, now)
	u.round++
	for _, q := range u.points {
		q.round, q.value, q.bad = u.round, noValue, bad
	}
	l.report(ctx, u, now)
	return nil
}

// heard notes that u answered.
func (l *Line) heard(ctx context.Context, u *unit) {
	if u.state == UnitOK {
		return
	}
	if u.state == UnitDegraded {
		u.dueAt(time.Now())
		l.log.LogAttrs(ctx, slog.LevelInfo, "unit answers again", slog.String("unit", u.name))
	}
	l.count(func() { u.state, u.misses, u.backoff = UnitOK, 0, 0 })
}

// miss notes that u did not answer. The next poll begins with another request, so that a unit
// that is mute at one address only is not taken for dead.
func (l *Line) miss(ctx context.Context, u *unit, now time.Time) {
	degraded := u.misses+1 >= missLimit
	if degraded && u.state != UnitDegraded {
		l.log.LogAttrs(ctx, slog.LevelWarn, "unit degraded", slog.String("unit", u.name),
			slog.Int("address", int(u.address)), slog.Any("err", u.lastError))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u.misses++
	u.first++
	u.state = UnitMissed
	if degraded {
		u.state = UnitDegraded
		u.backoff = min(max(2*u.backoff, firstBackoff), lastBackoff)
		u.probe = now.Add(u.backoff)
	}
}

// report hands over those points of the poll that are to be reported.
func (l *Line) report(ctx context.Context, u *unit, now time.Time) {
	l.readings = l.readings[:0]
	for _, p := range u.points {
		if p.round == u.round && p.wanted(now) {
			l.readings = append(l.readings, p.report(now))
		}
	}
	l.deliver(ctx, u, now)
}

// deliver gives the readings to the sink. What it refuses counts as not reported.
func (l *Line) deliver(ctx context.Context, u *unit, now time.Time) {
	if len(l.readings) == 0 {
		return
	}
	err := l.sink(ctx, Poll{Line: l.config.Name, Unit: u.name, Time: now, Readings: l.readings})
	if err == nil {
		l.sinkFails = false
		return
	}
	for _, p := range u.points {
		if p.round == u.round {
			p.reported = false
		}
	}
	l.count(func() { l.errors[faultSink]++ })
	if !l.sinkFails && ctx.Err() == nil {
		l.sinkFails = true
		l.log.LogAttrs(ctx, slog.LevelError, "poll not taken over", slog.String("unit", u.name), slog.Any("err", err))
	}
}
