package hw

import (
	"cmp"
	"errors"
	"hash/fnv"
	"math"
	"slices"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/profile"
)

// A unit that missed missLimit polls in a row is degraded: it gets one probe without retry,
// after 1 s, 2 s, 4 s and so on up to a minute.
const (
	missLimit    = 3
	firstBackoff = time.Second
	lastBackoff  = time.Minute
)

// unit is one configured unit and what the line knows of it. It belongs to the goroutine of
// Line.Run.
type unit struct {
	name    string
	address byte
	timeout time.Duration
	points  []*pointState // in the order of the configuration
	classes []*class      // by period, the shortest first

	state   UnitState
	misses  int           // polls in a row without one valid answer
	first   int           // the request that a poll begins with, so that one mute span hides no other
	backoff time.Duration // between the last probe and the next
	probe   time.Time     // when the unit is probed; only while degraded
	round   uint64        // numbers the polls; see pointState.round

	// Counted under the line's mutex.
	polls       uint64
	errors      faults
	lastError   error
	lastErrorAt time.Time
}

// class is the points of a unit that share a period. Its slots are at
// base + phase + k × every, where base is when the line's port was opened.
type class struct {
	every, phase time.Duration
	due          time.Time
	begun        bool // the first poll, which comes at once, is over
	requests     []*request
}

// request is one transaction that reads some points.
type request struct {
	at     modbus.Address
	count  uint16
	points []*pointState

	failures int           // timeouts and damaged answers in a row
	backoff  time.Duration // the last one given
	hold     time.Time     // not asked before
	bad      string        // what its points carry until then
}

// pointState is one point, its last result, and what was reported of it.
type pointState struct {
	name       string
	at         modbus.Address
	codec      point.Codec
	every      time.Duration
	deadband   float64
	maxSilence time.Duration
	write      *profile.Write

	round uint64 // the poll that value and bad belong to
	value point.Value
	bad   string

	reported   bool // the three below were taken by the sink
	lastValue  point.Value
	lastBad    string
	lastReport time.Time
}

// schedule groups the points by period and spreads the periods over time. The phases come from
// a hash of the names: they are the same at every start, and differ from unit to unit.
func (u *unit) schedule(line string) {
	for _, p := range u.points {
		u.class(p.every)
	}
	if len(u.classes) == 0 {
		return
	}
	base := u.classes[0].every
	phase := spread(base, line, u.name)
	for _, c := range u.classes {
		c.phase = phase
		if c.every > base && c.every%base == 0 {
			// Slots of the slow class are slots of the fast one too, so that one poll has both.
			c.phase += spread(c.every, line, u.name, c.every.String()) / base * base
		}
		c.requests = merge(u.points, c.every)
	}
}

// class returns the class of a period, and makes it in its place.
func (u *unit) class(every time.Duration) *class {
	i, found := slices.BinarySearchFunc(u.classes, every, func(c *class, d time.Duration) int { return cmp.Compare(c.every, d) })
	if !found {
		u.classes = slices.Insert(u.classes, i, &class{every: every})
	}
	return u.classes[i]
}

// spread returns a duration from 0 to below period that depends on the words only.
func spread(period time.Duration, words ...string) time.Duration {
	h := fnv.New64a()
	for _, w := range words {
		h.Write([]byte(w))
		h.Write([]byte{0})
	}
	return time.Duration(h.Sum64() % uint64(period))
}

// restart forgets what was learned while the port was open and makes the unit due at base.
func (u *unit) restart(base time.Time) {
	u.state, u.misses, u.backoff = UnitNew, 0, 0
	u.dueAt(base)
	for _, c := range u.classes {
		for _, r := range c.requests {
			r.failures, r.backoff, r.hold = 0, 0, time.Time{}
		}
	}
}

// dueAt makes all classes due at t, out of turn.
func (u *unit) dueAt(t time.Time) {
	for _, c := range u.classes {
		c.due, c.begun = t, false
	}
}

// due returns when the unit wants the line next.
func (u *unit) due() time.Time {
	if u.state == UnitDegraded {
		return u.probe
	}
	next := u.classes[0].due
	for _, c := range u.classes[1:] {
		if c.due.Before(next) {
			next = c.due
		}
	}
	return next
}

// deadline orders those that are due: a poll should be over when the next is due; whoever
// does not answer comes after everybody else, unless the line has been full for a minute.
func (u *unit) deadline() time.Time {
	due := u.due()
	if u.silent() {
		return due.Add(lastBackoff)
	}
	patience := time.Duration(math.MaxInt64)
	for _, c := range u.classes {
		if !c.due.After(due) {
			patience = min(patience, c.every)
		}
	}
	return due.Add(patience)
}

// silent reports whether the unit did not answer when asked last.
func (u *unit) silent() bool { return u.misses > 0 }

// collect appends the requests that are due at now to dst, moves their classes to the next
// slot, and says how many slots passed unused.
func (u *unit) collect(base, now time.Time, dst []*request) (due []*request, missed uint64) {
	u.round++
	for _, c := range u.classes {
		if c.due.After(now) {
			continue
		}
		missed += c.advance(base, now)
		dst = append(dst, c.requests...)
		for _, r := range c.requests {
			for _, p := range r.points {
				p.round = u.round
			}
		}
	}
	if n := len(dst); n > 1 && u.first%n != 0 {
		rotate(dst, u.first%n)
	}
	return dst, missed
}

// rotate moves the first n requests to the end, in place.
func rotate(r []*request, n int) {
	slices.Reverse(r[:n])
	slices.Reverse(r[n:])
	slices.Reverse(r)
}

// advance moves the class to its first slot after now and returns how many slots were skipped.
// The first poll is out of turn, at once; the second comes half a period to one and a half
// periods later.
func (c *class) advance(base, now time.Time) (missed uint64) {
	from := now
	if earliest := c.due.Add(c.every / 2); !c.begun && earliest.After(now) {
		from = earliest
	}
	origin := base.Add(c.phase)
	k := from.Sub(origin) / c.every // towards zero: before the origin, slot 0 is next
	if !from.Before(origin) {
		k++
	}
	next := origin.Add(k * c.every)
	if c.begun {
		missed = uint64(next.Sub(c.due)/c.every) - 1
	}
	c.due, c.begun = next, true
	return missed
}

// probeRequest returns the request that a degraded unit is asked next.
func (u *unit) probeRequest() *request {
	n := 0
	for _, c := range u.classes {
		n += len(c.requests)
	}
	n = u.first % n
	for _, c := range u.classes {
		if n < len(c.requests) {
			return c.requests[n]
		}
		n -= len(c.requests)
	}
	return nil // not reached: n is below the number of requests
}

// decode reads the points of r from the answer and gives each its value or its reason.
func (r *request) decode(raw []byte) (failed int) {
	for _, p := range r.points {
		var err error
		at := int(p.at.Offset - r.at.Offset)
		if r.at.Table.Bits() {
			p.value = point.Bool(raw[at/8]>>(at%8)&1 == 1)
		} else {
			p.value, err = p.codec.Decode(raw[2*at:])
		}
		p.bad = badValue(err)
		if err != nil {
			failed++
		}
	}
	return failed
}

func badValue(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, point.ErrNaN):
		return "nan"
	}
	return "invalid"
}

// fail gives all points of r the reason.
func (r *request) fail(bad string) {
	for _, p := range r.points {
		p.value, p.bad = point.Value{}, bad
	}
}

// postpone holds the request back, twice as long as the time before.
func (r *request) postpone(now time.Time, bad string) {
	r.backoff = min(max(2*r.backoff, firstBackoff), lastBackoff)
	r.hold, r.bad = now.Add(r.backoff), bad
}

// wanted reports whether the result of p is to be reported: always without a deadband.
func (p *pointState) wanted(now time.Time) bool {
	switch {
	case !p.reported || p.deadband == 0 || p.bad != p.lastBad:
		return true
	case p.overdue(now):
		return true
	case p.bad != "":
		return false
	}
	value, ok1 := p.value.Float64()
	last, ok2 := p.lastValue.Float64()
	if ok1 && ok2 && p.codec.Type().Numeric() {
		return math.Abs(value-last) > p.deadband
	}
	return p.value != p.lastValue
}

// overdue reports whether max_silence would be over before the next poll.
func (p *pointState) overdue(now time.Time) bool {
	return p.maxSilence > 0 && now.Sub(p.lastReport)+p.every > p.maxSilence
}

// report remembers the result as reported, and returns it.
func (p *pointState) report(now time.Time) Reading {
	p.reported, p.lastValue, p.lastBad, p.lastReport = true, p.value, p.bad, now
	return Reading{Point: p.name, Value: p.value, Bad: p.bad}
}
