package hw

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
)

// retryRefused is how long a point rests whose function, address or value the unit refused:
// that is a mistake in the configuration, or waits for a new firmware in the unit.
const retryRefused = 10 * time.Minute

// Requests are planned anew when a unit takes longer or shorter by a quarter, at least by
// minChange, and at most once in replanPause.
const (
	minChange   = time.Millisecond
	replanPause = time.Minute
)

var noValue point.Value

// poll takes turns until the port is gone or ctx ends. Jobs are done when nothing is due, and
// before every transaction of a turn (Line.try).
func (l *Line) poll(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := time.Now()
		if u := l.schedule.pick(now); u != nil {
			if err := l.turn(ctx, u, now); err != nil {
				return err
			}
			continue
		}
		if at, ok := l.schedule.wake(now); ok {
			timer.Reset(at.Sub(now))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
		case <-timer.C:
		case j := <-l.jobs:
			if err := l.do(ctx, j); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// turn gives the line to one unit: a probe where it is degraded, else its poll. The error is
// that of the port.
func (l *Line) turn(ctx context.Context, u *unit, now time.Time) error {
	if u.state == UnitDegraded {
		return l.probe(ctx, u)
	}
	return l.pollUnit(ctx, u, now)
}

// progress is what one poll has come to so far.
type progress struct {
	heard  bool          // a valid answer came, be it an exception
	asked  bool          // a transaction was tried
	gaveUp string        // why the rest of the poll is not tried
	wasted time.Duration // waited for answers that did not come
}

// pollUnit asks for everything of u that is due, and reports it as one Poll.
func (l *Line) pollUnit(ctx context.Context, u *unit, now time.Time) error {
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
			u.failRequest(r, p.gaveUp)
		case now.Before(r.hold):
			u.failRequest(r, r.bad)
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
	if failed := u.scale(); failed > 0 {
		l.count(func() { l.errors[faultValue] += failed; u.errors[faultValue] += failed })
	}
	l.report(ctx, u, end)
	l.adapt(u, end)
	return nil
}

// scale gives their values to the points whose power of ten has been read by now.
func (u *unit) scale() (failed uint64) {
	for _, p := range u.points {
		if p.pending && p.round == u.round && !p.scale() {
			failed++
		}
	}
	return failed
}

// adapt plans the requests of u anew when it takes another time to answer than they were planned
// for: what a hole may cost depends on that. Modbus Application Protocol V1.1b3 has no such rule;
// it is the break-even of modbus.Plan.
func (l *Line) adapt(u *unit, now time.Time) {
	response := l.driver.response(u)
	change := max(response-u.planned, u.planned-response)
	if !l.protocol.registers || u.discovers && !u.found || change < minChange || change < u.planned/4 || now.Before(u.replanAfter) {
		return
	}
	u.planned, u.replanAfter = response, now.Add(replanPause)
	l.replan(u, now)
}

// ask does the transaction of r, again where that may help, and settles what its points carry.
func (l *Line) ask(ctx context.Context, u *unit, r *request, p *progress) error {
	t := l.try(ctx, u, r, p)
	if (t.how == silence || t.how == damaged) && l.mayRetry(u, t.how) {
		t = l.try(ctx, u, r, p)
	}
	now := time.Now()
	switch t.how {
	case broken:
		return t.err
	case answered:
		r.failures, r.backoff, r.hold, r.bad = 0, 0, time.Time{}, ""
		if t.failed > 0 {
			l.count(func() { l.errors[faultValue] += uint64(t.failed); u.errors[faultValue] += uint64(t.failed) })
		}
		return nil
	case refused:
		if l.refusal(ctx, u, r, t, now) {
			return nil
		}
	case damaged, silence:
		if r.failures++; !p.heard {
			p.gaveUp = t.bad
		} else if r.failures >= missLimit {
			r.postpone(now, t.bad)
		}
	}
	u.failRequest(r, t.bad)
	return nil
}

// failRequest gives the points of r the reason: all of the unit where a request is a read-out.
func (u *unit) failRequest(r *request, bad string) {
	if r.count == 0 {
		u.failAll(bad)
		return
	}
	r.fail(u.round, bad)
}

// transaction is how one went.
type transaction struct {
	how    outcome
	failed int    // points that got no value from the answer
	bad    string // what the points carry, where there is no answer
	err    error
}

// try does the transaction of r once. Jobs go first.
func (l *Line) try(ctx context.Context, u *unit, r *request, p *progress) (t transaction) {
	if t.err = l.serveJobs(ctx); t.err != nil {
		t.how, t.bad = broken, "line"
		return t
	}
	start := time.Now()
	t.failed, t.err = l.driver.ask(ctx, u, r)
	var kind fault
	t.how, t.bad, kind = judge(t.err)
	took := l.account(ctx, u, start, t.how, kind, t.err)
	p.asked = true
	p.heard = p.heard || t.how == answered || t.how == refused
	if t.how == silence || t.how == damaged {
		p.wasted += took + drained(l.driver.response(u))
	}
	if l.protocol.registers { // the others know what their standards grant a unit
		waits := u.learned(t.how, l.driver.response(u))
		l.count(func() { u.waits = waits })
	}
	return t
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

// refusal treats an exception by its kind: Modbus Application Protocol V1.1b3, 7. It reports
// whether the points of r are asked again, in other requests.
func (l *Line) refusal(ctx context.Context, u *unit, r *request, t transaction, now time.Time) (again bool) {
	e, _ := errors.AsType[modbus.Exception](t.err)
	if len(r.points) == 0 { // a read-out, or a unit that was asked what it has
		e = 0
	}
	switch e {
	case illegalAddress, illegalValue:
		if l.askAround(u, r, now) {
			return true
		}
		fallthrough
	case illegalFunction:
		if r.bad != t.bad {
			l.log.LogAttrs(ctx, slog.LevelWarn, "point refused", slog.String("unit", u.name),
				slog.String("point", r.points[0].name), slog.String("at", r.at.String()), slog.Any("err", t.err))
		}
		r.hold, r.bad = now.Add(retryRefused), t.bad
		l.isolate(u, r, now)
	case acknowledge, busy: // the next slot is later enough
	default:
		r.postpone(now, t.bad)
	}
	return false
}

// askAround asks for the points of a refused request in others: without the unused addresses
// between them, which the unit may not have; else in halves, until the one point is found that it
// has not.
func (l *Line) askAround(u *unit, r *request, now time.Time) bool {
	if len(r.holes) > 0 && u.learns {
		u.limits.Forbidden = append(u.limits.Forbidden, r.holes...)
		l.replan(u, now)
		l.due = append(l.due, u.requestsOf(r.points)...)
		return true
	}
	if r.single() {
		return false
	}
	a, b := u.split(r)
	l.due = append(l.due, a, b)
	return true
}

// isolate keeps the registers of a refused request out of all others from now on.
func (l *Line) isolate(u *unit, r *request, now time.Time) {
	forbidden := len(u.limits.Forbidden)
	for i := range r.count {
		a := modbus.Address{Table: r.at.Table, Offset: r.at.Offset + i}
		if r.single() && !slices.Contains(u.limits.Forbidden, a) {
			u.limits.Forbidden = append(u.limits.Forbidden, a)
		}
	}
	if len(u.limits.Forbidden) == forbidden {
		return
	}
	l.replan(u, now)
	for _, mine := range u.requestsOf(r.points) { // r may be of a plan before
		mine.inherit(r)
	}
}

// requestsOf returns the requests that read the points.
func (u *unit) requestsOf(points []*pointState) []*request {
	return slices.DeleteFunc(u.requests(), func(r *request) bool {
		return !slices.ContainsFunc(r.points, func(p *pointState) bool { return slices.Contains(points, p) })
	})
}

// probe asks a degraded unit for one request, without retry. An answer makes the whole unit
// due at once.
func (l *Line) probe(ctx context.Context, u *unit) error {
	var p progress
	t := l.try(ctx, u, u.probeRequest(), &p)
	now := time.Now()
	if t.how == broken {
		return t.err
	}
	l.count(func() { l.polls++; u.polls++ })
	if t.how == answered || t.how == refused {
		l.heard(ctx, u)
		return nil
	}
	l.schedule.wasted(p.wasted, now)
	l.miss(ctx, u, now)
	u.round++
	u.failAll(t.bad)
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
			slog.Int("address", int(u.address)), slog.Any("err", u.wrong.err))
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
	if len(l.readings) == 0 || l.sink == nil {
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
