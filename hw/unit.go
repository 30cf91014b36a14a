package hw

import (
	"cmp"
	"hash/fnv"
	"math"
	"slices"
	"time"

	"ferrule/hw/mbus"
	"ferrule/hw/modbus"
	"ferrule/hw/port"
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
	config     UnitConfig
	line, name string
	address    byte          // Modbus and M-Bus
	meter      mbus.Address  // M-Bus: primary, or secondary where it has none of its own
	device     string        // dsmr as master: the address of the meter; "": the only one
	match      string        // streaming lines: the talkers that are this unit
	broadcast  bool          // every unit of the line at once: it is only written to
	settings   port.Settings // its own; the zero Settings: those of the line
	timeout    time.Duration // 0: learned
	turnaround time.Duration
	timing     modbus.Timing
	limits     modbus.Cost // what one request may ask of it
	learns     bool        // unused addresses that it refuses are remembered
	discovers  bool        // its points are not configured but found: SunSpec, M-Bus, talkers
	found      bool        // they are: SunSpec
	every      time.Duration
	uom        map[string]string      // of the configured points that have one; never changed
	points     []*pointState          // in the order of the configuration
	byKey      map[string]*pointState // by the name of the reading; lines that are not Modbus
	exponents  []*pointState          // registers that only scale others; they are not reported
	image      *image                 // what it holds, where it answers a master
	classes    []*class               // by period, the shortest first

	state   UnitState
	misses  int           // polls in a row without one valid answer
	first   int           // the request that a poll begins with, so that one mute span hides no other
	backoff time.Duration // between the last probe and the next
	probe   time.Time     // when the unit is probed; only while degraded
	round   uint64        // numbers the polls; see pointState.round
	waits   time.Duration // the timeout that was learned

	// Units that speak unasked.
	heard   time.Time // when it spoke last
	waiting bool      // what it said is not reported yet
	slot    time.Time // when it will be

	planned     time.Duration // how long it took to begin its answers when its requests were planned
	replanAfter time.Time

	// Counted under the line's mutex.
	polls  uint64
	errors faults
	wrong  wrong
}

// class is the points of a unit that share a period. Its slots are at
// base + phase + k × every, where base is when the line's port was opened.
type class struct {
	every, phase time.Duration
	due          time.Time
	begun        bool // the first poll, which comes at once, is over
	requests     []*request
}

// class returns the class of a period, and makes it in its place.
func (u *unit) class(every time.Duration) *class {
	i, found := slices.BinarySearchFunc(u.classes, every, func(c *class, d time.Duration) int { return cmp.Compare(c.every, d) })
	if !found {
		u.classes = slices.Insert(u.classes, i, &class{every: every, phase: u.phase(every)})
	}
	return u.classes[i]
}

// phase is where the slots of a period lie. It comes from a hash of the names: it is the same at
// every start, and differs from unit to unit. Slots of a slow class are slots of the fastest one too,
// so that one poll has both.
func (u *unit) phase(every time.Duration) time.Duration {
	base := every
	if len(u.classes) > 0 {
		base = min(every, u.classes[0].every)
	}
	phase := spread(base, u.line, u.name)
	if every > base && every%base == 0 {
		phase += spread(every, u.line, u.name, every.String()) / base * base
	}
	return phase
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
	u.state, u.misses, u.backoff, u.waits, u.waiting, u.slot = UnitNew, 0, 0, 0, false, time.Time{}
	u.round++ // nothing has a result yet
	u.dueAt(base)
	for _, p := range u.exponents { // that of a unit which was exchanged meanwhile is another
		p.fail("line")
	}
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
	for _, p := range u.points {
		p.due = t
	}
	for _, p := range u.exponents {
		p.due = t
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

// A unit whose timeout is learned gets four times what it usually takes, within these bounds;
// after silence, twice as long as before.
const (
	shortestPatience = 50 * time.Millisecond
	longestPatience  = time.Second
)

// patience is how long the unit may take to begin its answer.
func (u *unit) patience() time.Duration {
	switch {
	case u.timeout > 0:
		return u.timeout
	case u.waits > 0:
		return u.waits
	}
	return defaultTimeout
}

// learned is how long the unit may take from now on, after a transaction that ended so.
func (u *unit) learned(how outcome, response time.Duration) time.Duration {
	switch {
	case how == silence:
		return min(2*u.patience(), longestPatience)
	case how == answered && response > 0:
		return min(max(4*response, shortestPatience), longestPatience)
	}
	return u.waits
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
			r.turn(u.round, base, now)
		}
	}
	if n := len(dst); n > 1 && u.first%n != 0 {
		rotate(dst, u.first%n)
	}
	return dst, missed
}

// nextSlot returns the first base + k × every after now.
func nextSlot(base time.Time, every time.Duration, now time.Time) time.Time {
	return base.Add((now.Sub(base)/every + 1) * every)
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
	n = u.first % n // a unit that is scheduled has at least one
	for _, c := range u.classes {
		if n < len(c.requests) {
			return c.requests[n]
		}
		n -= len(c.requests)
	}
	return nil // not reached: n is below the number of requests
}
