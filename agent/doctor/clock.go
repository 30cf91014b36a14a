package doctor

import (
	"fmt"
	"time"

	"ferrule/agent/identity"
)

func clockFacts(c identity.Clock) ClockFacts {
	if c == nil {
		return ClockFacts{}
	}
	return ClockFacts{Now: c.Now().UTC(), Floor: c.Floor().UTC(), Trusted: c.Trusted()}
}

const setClock = "set the clock, and let a time server keep it right: timedatectl set-ntp true"

// checkClock looks at the system's clock beside what is known of the time. A wrong one is no failure:
// the agent goes on by the earliest time that it can be, as far as that leads.
func checkClock(c identity.Clock) Result {
	system, floor := time.Now(), c.Floor()
	r := Result{Layer: Clock, Saw: []string{
		"the system's clock says " + stamp(system),
		"it is certainly later than " + stamp(floor),
	}}
	switch {
	case system.Before(floor):
		r.Cause, r.Side = "clock-behind", "device"
		r.Warn(fmt.Sprintf("the clock stands %s before a time that is past; %s is used in its stead",
			roughly(floor.Sub(system)), stamp(c.Now())), setClock)
	case !c.Trusted():
		r.Cause, r.Side = "clock-untrusted", "device"
		r.Warn("nobody vouches for the clock: the kernel does not call it synchronised, and readings are marked unsynced", setClock)
	default:
		r.Saw = append(r.Saw, "the kernel calls it synchronised")
	}
	return r.settled()
}

// clockSlack is how far two clocks that are right may be apart, in what a server writes.
const clockSlack = 2 * time.Minute

// compareClocks lays our clock beside those of others, once they were heard.
func (r *Report) compareClocks() {
	for i := range r.Checks {
		clock := &r.Checks[i]
		if clock.Layer != Clock || clock.State == NotNeeded || clock.State == NotReached {
			continue
		}
		for _, p := range r.Facts.Brokers {
			if p.Date.IsZero() {
				continue
			}
			off := p.Judged.Sub(p.Date)
			clock.Saw = append(clock.Saw, fmt.Sprintf("on the way to %s somebody's says %s", p.Broker, stamp(p.Date)))
			if off.Abs() > clockSlack {
				where := "ahead of"
				if off < 0 {
					where = "behind"
				}
				clock.Warn(fmt.Sprintf("our clock is %s %s that of the other side", roughly(off.Abs()), where), setClock)
			}
		}
		*clock = clock.settled()
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// roughly is a duration as people say it.
func roughly(d time.Duration) string {
	const day, year = 24 * time.Hour, 365 * 24 * time.Hour
	switch {
	case d >= 2*year:
		return fmt.Sprintf("%d years", d/year)
	case d >= 2*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	return d.Round(time.Second).String()
}

// short is how long something took, as exactly as matters.
func short(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	if d < 100*time.Millisecond {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}
