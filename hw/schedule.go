package hw

import "time"

// Units that do not answer may take one part in silenceShare of the line's time from the
// others. Time that nobody else wants is free.
const silenceShare = 25

// afterSilence is the longest quiet that the master keeps after an answer that did not come.
const afterSilence = 250 * time.Millisecond

// schedule decides whose turn it is. It is pure: time is handed in.
type schedule struct {
	base  time.Time // when the port was opened; slots count from here
	units []*unit   // with at least one point
	// rationed is until when silent units wait, unless the line is idle long enough.
	rationed time.Time
}

// pick returns the unit whose turn it is at now, or nil: of those due, the one with the
// earliest deadline.
func (s *schedule) pick(now time.Time) *unit {
	var best *unit
	var earliest time.Time
	for _, u := range s.units {
		if u.due().After(now) || !s.mayWait(u, now) {
			continue
		}
		if d := u.deadline(); best == nil || d.Before(earliest) {
			best, earliest = u, d
		}
	}
	return best
}

// mayWait reports whether the line can afford to wait for an answer of u that may not come.
func (s *schedule) mayWait(u *unit, now time.Time) bool {
	if !u.silent() || !now.Before(s.rationed) {
		return true
	}
	until := now.Add(u.patience() + afterSilence)
	for _, other := range s.units {
		if !other.silent() && other.due().Before(until) {
			return false
		}
	}
	return true
}

// wake returns when pick may have a unit that it has not at now. It answers false where there
// are no units at all.
func (s *schedule) wake(now time.Time) (at time.Time, ok bool) {
	for _, u := range s.units {
		t := u.due()
		if !t.After(now) { // due, and yet not picked: rationed
			t = s.rationed
		}
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	return at, ok
}

// drained is how long the master keeps the line quiet after an answer that did not come, from a unit
// that takes so long to begin its answers.
func drained(response time.Duration) time.Duration { return min(4*response, afterSilence) }

// wasted rations silence after d of it ended at now.
func (s *schedule) wasted(d time.Duration, now time.Time) {
	if d > 0 {
		s.rationed = now.Add((silenceShare - 1) * d)
	}
}
