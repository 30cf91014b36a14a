package session

import (
	"math/rand/v2"
	"time"
)

const (
	// lastBound is what the bound of the pauses grows to.
	lastBound = 2 * time.Minute
	// steady is how long a connection stands that had nothing wrong with it.
	steady = time.Minute
	// thereBound is the longest bound where the broker acknowledged something, and so is there.
	thereBound = 16 * time.Second
	// resent is how long connecting takes at least where SYN had to be sent again (RFC 6298, 2.1).
	resent = 900 * time.Millisecond
	// ownBound is the bound of the first pause where our own network had changed.
	ownBound = 2 * time.Second
)

// tries decides which broker comes next, and how long to wait before. It knows no clock and no
// network, so that a fleet of thousands can be simulated with it.
//
// Whatever ended a connection may have ended that of the whole fleet in the same moment. So the
// first pause is drawn evenly from 0 to spread: a second holds a spread-th of the fleet. Every
// further one is drawn from the upper half of a bound that doubles: it keeps apart who is apart, and
// is never so short that late ones of the first round meet early ones of the second. No pause is made
// between the brokers of one round, nor before the first attempt after the start.
type tries struct {
	spread  time.Duration
	brokers int

	broker int  // of the round, comes next
	rounds int  // pauses since the last connection that was worth it
	own    bool // our network changed: nobody else lost its connection with us
	free   bool // the next attempt needs no pause
	fleet  bool // whatever ended the last connection may have ended others; nobody gave way since
}

func newTries(spread time.Duration, brokers int) tries {
	return tries{spread: spread, brokers: brokers, free: true}
}

// failed is told that the attempt at broker failed.
func (t *tries) failed() {
	t.broker++
	t.free = t.broker < t.brokers
	t.broker %= t.brokers
}

// lost is told that a connection ended: how long it stood, whether the broker acknowledged
// anything on it, and whether our own network was gone from under it. A broker that acknowledged
// nothing gives way to the next one.
func (t *tries) lost(stood time.Duration, acknowledged, own bool) {
	t.free, t.own, t.fleet = false, own, !own
	switch {
	case stood >= steady:
		t.broker, t.rounds = 0, 0
	case acknowledged:
		t.broker = 0
		for t.rounds > 0 && t.bound(t.rounds) > max(thereBound, t.spread) {
			t.rounds--
		}
	default:
		t.broker = (t.broker + 1) % t.brokers
	}
}

// late is told how long TCP took to connect, and says whether to give way once more. While a network
// drops what is sent, all who knock wait, and the kernel knocks again for each: when the network is
// back, those of ten seconds would come in one.
func (t *tries) late(took time.Duration) bool {
	if !t.fleet || took < resent {
		return false
	}
	t.fleet, t.free, t.rounds = false, false, 0
	return true
}

// pause returns how long to wait before the next attempt. random is in [0, 1).
func (t *tries) pause(random float64) time.Duration {
	if t.free {
		t.free = false
		return 0
	}
	n := t.rounds
	t.rounds++
	bound := t.bound(n)
	if n > 0 {
		return time.Duration((1 + random) / 2 * float64(bound))
	}
	if t.own {
		t.own, t.rounds = false, 0
		bound = min(bound, ownBound)
	}
	return time.Duration(random * float64(bound))
}

// bound returns the longest pause number n, which counts from 0.
func (t *tries) bound(n int) time.Duration {
	bound := t.spread
	for ; n > 0 && bound < lastBound; n-- {
		bound *= 2
	}
	return min(bound, max(lastBound, t.spread))
}

func jitter() float64 { return rand.Float64() }
