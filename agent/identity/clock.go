package identity

import (
	"crypto/x509"
	"errors"
	"time"
)

// Clock is what an identity needs to know of the time (agent/clock).
type Clock interface {
	// Now is the system's time, never before Floor.
	Now() time.Time
	// Floor is a time that has certainly passed.
	Floor() time.Time
	// Trusted says that somebody who should know has set the system's clock.
	Trusted() bool
}

// TrustedClock is a Clock that is right, for programs that need no other.
type TrustedClock func() time.Time

// Now implements Clock.
func (c TrustedClock) Now() time.Time { return c() }

// Floor implements Clock.
func (c TrustedClock) Floor() time.Time { return time.Unix(0, 0) }

// Trusted implements Clock.
func (c TrustedClock) Trusted() bool { return true }

// The clocks that Status names.
const (
	ClockTrusted   = "trusted"   // somebody who should know has set it
	ClockUntrusted = "untrusted" // it is believed as far as nothing speaks against it
	ClockFloor     = "floor"     // it says that our certificate has expired, and is not believed
)

// judge says what time it is, for one certificate of ours. A clock that nobody vouches for may
// stand in 1970 or ten years ahead. Below the floor it does not get (Clock.Now); where it says
// that our own certificate has expired, it is as likely that it is wrong, and the earliest time
// that is possible is used instead: the broker, who has a clock, has the last word.
type judge struct {
	clock  Clock
	opened time.Time // with a monotonic reading
	floor  time.Time // at that moment
}

func newJudge(c Clock) *judge {
	return &judge{clock: c, opened: time.Now(), floor: c.Floor()}
}

// earliest is the earliest time that it can be now: what had certainly passed at the start,
// and what has passed since on the monotonic clock, which no setting of the clock moves.
func (j *judge) earliest() time.Time {
	t := j.floor.Add(time.Since(j.opened))
	if floor := j.clock.Floor(); floor.After(t) {
		return floor
	}
	return t
}

// now is the time to judge by, and which clock it is.
func (j *judge) now(leaf *x509.Certificate) (time.Time, string) {
	now := j.clock.Now()
	if j.clock.Trusted() {
		return now, ClockTrusted
	}
	earliest := j.earliest()
	if leaf != nil && now.After(leaf.NotAfter) && !earliest.After(leaf.NotAfter) {
		return earliest, ClockFloor
	}
	if earliest.After(now) {
		now = earliest
	}
	return now, ClockUntrusted
}

// of returns now for leaf as crypto/tls wants it.
func (j *judge) of(leaf *x509.Certificate) func() time.Time {
	return func() time.Time {
		now, _ := j.now(leaf)
		return now
	}
}

// chainMost bounds how often a peer is asked again because a certificate of its chain begins later:
// leaf, two intermediate authorities, root.
const chainMost = 4

// begins is when the certificate begins that err calls not valid yet at a time of ours, which nobody
// vouches for: then it is only the earliest that it can be, and a certificate that was made since
// is as good. Everything else of its chain has to be valid at that time, too.
func (j *judge) begins(at time.Time, err error) (time.Time, bool) {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok || invalid.Reason != x509.Expired || invalid.Cert == nil || j.clock.Trusted() {
		return time.Time{}, false
	}
	return invalid.Cert.NotBefore, invalid.Cert.NotBefore.After(at)
}

// other is the time by the clock that now did not choose: whoever was not believed by the one
// may be believed by the other. Both are later than the floor.
func (j *judge) other(leaf *x509.Certificate) (time.Time, bool) {
	if now, which := j.now(leaf); which != ClockTrusted {
		if system := j.clock.Now(); which == ClockFloor {
			return system, true
		} else if earliest := j.earliest(); earliest.Before(now) {
			return earliest, true
		}
	}
	return time.Time{}, false
}
