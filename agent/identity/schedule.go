package identity

import (
	"errors"
	"time"

	"ferrule/agent/enroll"
)

// What a device does about its certificate.
type action int

const (
	nothing    action = iota
	renewal           // by the certificate that is to be renewed
	homecoming        // by the factory certificate or the endorsement key
)

func (a action) String() string { return [...]string{"", "renew", "return"}[a] }

// Bounds of the back-off. A short-lived certificate is renewed in smaller steps: firstStep and
// lastStep are a part of its life then, so that there are a dozen attempts before it expires.
const (
	firstStep    = time.Minute
	lastStep     = 6 * time.Hour
	firstPerLife = 120
	lastPerLife  = 24
	// laterMost bounds what a service may ask us to wait.
	laterMost = 24 * time.Hour
	// alarmPart of the life left without a new certificate is an alarm.
	alarmPart = 6
	// lookEvery is how often the clocks are looked at. It bounds the wake-ups of a device whose
	// clock jumps, and how late it notices that it did.
	lookEvery = time.Minute
)

// steps are the smallest and the largest step of the back-off for a certificate's life.
func steps(life time.Duration) (first, last time.Duration) {
	if life <= 0 {
		return firstStep, lastStep
	}
	last = max(min(lastStep, life/lastPerLife), time.Second)
	return max(min(firstStep, life/firstPerLife), time.Second), last
}

// backoff is the pause after that many failures in a row: anywhere (random is in [0,1)) between
// half of the first step and the step that doubles with every failure. So a fleet that failed
// together does not come back together.
func backoff(life time.Duration, failures int, random float64) time.Duration {
	first, last := steps(life)
	step := first
	for n := 1; n < failures && step < last; n++ {
		step *= 2
	}
	step = min(step, last)
	return first/2 + time.Duration(random*float64(step-first/2))
}

// term is what of a certificate the schedule goes by.
type term struct {
	notBefore, notAfter, due time.Time
}

func (t term) life() time.Duration      { return t.notAfter.Sub(t.notBefore) }
func (t term) alarmAt() time.Time       { return t.notAfter.Add(-t.life() / alarmPart) }
func (t term) expired(n time.Time) bool { return n.After(t.notAfter) }

// schedule says what to do about one device's certificate, and when. It knows no key and no
// network: two clocks are handed in. now is the time by which certificates are judged, which
// may jump; tick only ever goes on, and pauses are measured by it.
type schedule struct {
	random   func() float64
	failures int       // in a row
	next     time.Time // by tick: no attempt before
	refused  bool      // the broker does not take the certificate
	turn     action    // what a service refused last; the other way has its turn
	came     time.Time // by tick: when the last homecoming was tried
}

// wants says what is to be done now, pauses aside.
func (s *schedule) wants(now time.Time, t term) action {
	switch {
	case s.refused, t.expired(now), s.turn == renewal:
		return homecoming
	case s.turn == homecoming, !now.Before(t.due):
		return renewal
	}
	return nothing
}

// decide returns what to do at once, or how long to sleep before it is asked again: never more
// than lookEvery, and never less than a second.
func (s *schedule) decide(now, tick time.Time, t term) (action, time.Duration) {
	sleep := lookEvery
	if do := s.wants(now, t); do != nothing {
		if !tick.Before(s.next) {
			return do, 0
		}
		sleep = s.next.Sub(tick)
	} else {
		sleep = min(sleep, t.due.Sub(now))
	}
	if left := t.alarmAt().Sub(now); left > 0 {
		sleep = min(sleep, left)
	}
	return nothing, min(max(sleep, time.Second), lookEvery)
}

// failed notes that an attempt to do came to nothing.
func (s *schedule) failed(tick time.Time, t term, do action, err error) {
	s.failures++
	pause := backoff(t.life(), s.failures, s.random())
	first, last := steps(t.life())
	var later *enroll.ErrLater
	switch {
	case errors.As(err, &later):
		// A service that is busy says the same to everybody: spread what it said.
		after := min(max(later.After, first), laterMost)
		pause = after + time.Duration(s.random()*float64(after)/4)
		s.failures--
	case errors.Is(err, enroll.ErrRefused) && s.turn == nothing && do == renewal:
		s.turn = renewal // the other way is tried soon
	case errors.Is(err, enroll.ErrRefused), errors.Is(err, ErrNoWayBack):
		// Whoever said no to both ways says it again: ask seldom.
		s.turn = nothing
		pause = last/2 + time.Duration(s.random()*float64(last)/2)
	}
	s.next = tick.Add(pause)
}

// rejected notes that the broker does not take the certificate. The way back begins at once,
// but not again and again where a broker refuses whatever comes.
func (s *schedule) rejected(tick time.Time, t term) {
	s.refused = true
	_, last := steps(t.life())
	switch {
	case s.failures > 0: // it is under way
	case !s.came.IsZero() && tick.Sub(s.came) < last:
		s.failures++
		s.next = tick.Add(backoff(t.life(), s.failures, s.random()))
	default:
		s.next = time.Time{} // what spreads a fleet after a start is for renewals that can wait
	}
}

// staged notes that a new certificate is there. The count of failures stays until the broker
// took it.
func (s *schedule) staged(tick time.Time, t term) {
	s.turn, s.refused = nothing, false
	s.next = tick.Add(backoff(t.life(), s.failures+1, s.random()))
}

// promoted notes that the broker took a certificate.
func (s *schedule) promoted() {
	s.failures, s.refused, s.turn, s.next = 0, false, nothing, time.Time{}
}
