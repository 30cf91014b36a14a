package hw

import (
	"errors"
	"slices"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
)

// request is one transaction that reads some points.
type request struct {
	at     modbus.Address
	count  uint16
	every  time.Duration
	points []*pointState
	holes  []modbus.Address // that are read although no point is there

	failures int           // timeouts and damaged answers in a row
	backoff  time.Duration // the last one given
	hold     time.Time     // not asked before
	bad      string        // what its points carry until then
}

// single tells whether all points of r are the same registers: no other request would tell them
// apart.
func (r *request) single() bool {
	return !slices.ContainsFunc(r.points, func(p *pointState) bool {
		return p.at != r.at || p.codec.Type().Registers() != int(r.count)
	})
}

// inherit takes over what was learned of a request for the same registers.
func (r *request) inherit(from *request) {
	r.failures, r.backoff, r.hold, r.bad = from.failures, from.backoff, from.hold, from.bad
}

// rotate moves the first n requests to the end, in place.
func rotate(r []*request, n int) {
	slices.Reverse(r[:n])
	slices.Reverse(r[n:])
	slices.Reverse(r)
}

// turn gives the round to the points of r whose own slot has come: those that are only read
// along with faster ones are not due each time.
func (r *request) turn(round uint64, base, now time.Time) {
	for _, p := range r.points {
		if p.every > r.every && p.due.After(now) {
			continue
		}
		p.due = nextSlot(base, p.every, now)
		p.round = round
	}
}

// decode reads the points of r that are due from the answer and gives each its value or its
// reason.
func (r *request) decode(round uint64, raw []byte) (failed int) {
	for _, p := range r.points {
		if p.round == round && !r.decodePoint(p, raw) {
			failed++
		}
	}
	return failed
}

// decodePoint reads one point from the answer to r.
func (r *request) decodePoint(p *pointState, raw []byte) (ok bool) {
	at := int(p.at.Offset - r.at.Offset)
	if r.at.Table.Bits() {
		return p.settle(p.codec.Decode([]byte{raw[at/8] >> (at % 8) & 1}))
	}
	return p.decode(raw[2*at:])
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

// fail gives the points of r whose turn it is the reason: the others keep what they have until
// it is theirs.
func (r *request) fail(round uint64, bad string) {
	for _, p := range r.points {
		if p.round == round {
			p.fail(bad)
		}
	}
}

// postpone holds the request back, twice as long as the time before.
func (r *request) postpone(now time.Time, bad string) {
	r.backoff = min(max(2*r.backoff, firstBackoff), lastBackoff)
	r.hold, r.bad = now.Add(r.backoff), bad
}
