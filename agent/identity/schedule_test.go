package identity

import (
	"container/heap"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"ferrule/agent/enroll"
)

var start = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)

func termOf(life time.Duration) term {
	return term{notBefore: start, notAfter: start.Add(life), due: start.Add(life * 2 / 3)}
}

func TestBackoffStaysWithinItsSteps(t *testing.T) {
	for _, life := range []time.Duration{0, time.Second, 5 * time.Minute, time.Hour, 24 * time.Hour, 90 * 24 * time.Hour, 20 * 365 * 24 * time.Hour} {
		first, last := steps(life)
		if first < time.Second || first > time.Minute || last < first || last > 6*time.Hour {
			t.Errorf("life %v: steps %v to %v", life, first, last)
		}
		for failures := range 80 {
			for _, random := range []float64{0, 0.5, 0.999999} {
				if d := backoff(life, failures, random); d < first/2 || d > last {
					t.Errorf("life %v, %d failures: %v", life, failures, d)
				}
			}
		}
		if life == 90*24*time.Hour && (first != time.Minute || last != 6*time.Hour) {
			t.Errorf("the usual steps are %v to %v", first, last)
		}
	}
}

// However short a certificate lives and however unlucky the dice, a service that fails is asked
// several times before the certificate expires, and then goes on being asked.
func TestSeveralAttemptsBeforeExpiry(t *testing.T) {
	for _, life := range []time.Duration{5 * time.Minute, time.Hour, 24 * time.Hour, 90 * 24 * time.Hour} {
		for _, random := range []float64{0, 0.5, 0.999} {
			s := &schedule{random: func() float64 { return random }}
			c := termOf(life)
			attempts, wakes, back := 0, 0, 0
			for now := c.due; now.Before(c.notAfter.Add(life)); wakes++ {
				do, sleep := s.decide(now, now, c)
				switch do {
				case renewal:
					attempts++
				case homecoming:
					back++
				}
				if do != nothing {
					s.failed(now, c, do, enroll.ErrUnreachable)
					continue
				}
				if sleep < time.Second || sleep > lookEvery {
					t.Fatalf("life %v: it sleeps %v", life, sleep)
				}
				now = now.Add(sleep)
			}
			if attempts < 7 || back < 20 {
				t.Errorf("life %v, dice %v: %d attempts before expiry, %d after", life, random, attempts, back)
			}
			if most := 2*int(2*life/3/lookEvery) + 3*(attempts+back); life >= time.Hour && wakes > most {
				t.Errorf("life %v: %d wake-ups; at most %d are in order", life, wakes, most)
			}
			t.Logf("life %v, dice %v: %d attempts before expiry, %d wake-ups", life, random, attempts, wakes)
		}
	}
}

// A service that says no is not hammered, and the other way is tried.
func TestRefusalTakesTurns(t *testing.T) {
	s := &schedule{random: func() float64 { return 0 }}
	c := termOf(90 * 24 * time.Hour)
	var ways []action
	var gaps []time.Duration
	last := c.due
	for now := c.due; len(ways) < 6; {
		do, sleep := s.decide(now, now, c)
		if do == nothing {
			now = now.Add(sleep)
			continue
		}
		ways, gaps, last = append(ways, do), append(gaps, now.Sub(last)), now
		s.failed(now, c, do, fmt.Errorf("no: %w", enroll.ErrRefused))
	}
	if want := []action{renewal, homecoming, renewal, homecoming, renewal, homecoming}; !slices.Equal(ways, want) {
		t.Errorf("ways %v", ways)
	}
	for n := 2; n < len(gaps); n += 2 {
		if gaps[n] < 3*time.Hour {
			t.Errorf("whoever refused both ways was asked again after %v", gaps[n])
		}
	}
}

func TestAServiceThatWantsToBeAskedLater(t *testing.T) {
	for _, after := range []time.Duration{0, 3 * time.Hour, 1000 * time.Hour} {
		s := &schedule{random: func() float64 { return 0.999 }}
		c := termOf(90 * 24 * time.Hour)
		s.failed(c.due, c, renewal, fmt.Errorf("busy: %w", &enroll.ErrLater{After: after}))
		got := s.next.Sub(c.due)
		if want := min(max(after, time.Minute), laterMost); got < want || got > want*5/4 || s.failures != 0 {
			t.Errorf("asked for %v: it waits %v, %d failures", after, got, s.failures)
		}
	}
}

// A broker that refuses whatever comes costs a certificate in a while, not in every minute.
func TestABrokerThatRefusesEverything(t *testing.T) {
	s := &schedule{random: func() float64 { return 0.5 }}
	c := termOf(90 * 24 * time.Hour)
	attempts := 0
	for now := start; now.Before(start.Add(24 * time.Hour)); {
		s.rejected(now, c)
		do, sleep := s.decide(now, now, c)
		if do == nothing {
			now = now.Add(sleep)
			continue
		}
		attempts++
		s.came = now
		s.staged(now, c)
		if attempts == 1 && now.Sub(start) != 0 {
			t.Error("the first time did not come at once")
		}
		now = now.Add(time.Second)
		s.failed(now, c, nothing, nil) // given up: the broker refused it too
	}
	if attempts < 4 || attempts > 30 {
		t.Errorf("%d certificates in a day", attempts)
	}
}

func TestUnluckyErrorsAreNoRefusals(t *testing.T) {
	s := &schedule{random: func() float64 { return 0 }}
	c := termOf(time.Hour)
	s.failed(c.due, c, renewal, errors.New("something else"))
	if s.turn != nothing || s.failures != 1 {
		t.Errorf("%+v", s)
	}
}

// fleet is a simulation of many devices, each with the schedule of the product and with
// enroll.Config.Due: no goroutines, no clocks but the one of the simulation, the same in every run.
type fleet struct {
	dice    *rand.Rand
	life    time.Duration
	devices []*simulated
	queue   wakes
	fails   func(now time.Time) bool
	// minutes counts requests at the service, by minutes since the start.
	minutes  []int
	renewals int
	expired  map[*simulated]bool // that were once without a valid certificate
}

type simulated struct {
	schedule
	term
	wake time.Time
}

type wakes []*simulated

func (w wakes) Len() int           { return len(w) }
func (w wakes) Less(i, j int) bool { return w[i].wake.Before(w[j].wake) }
func (w wakes) Swap(i, j int)      { w[i], w[j] = w[j], w[i] }
func (w *wakes) Push(x any)        { *w = append(*w, x.(*simulated)) }
func (w *wakes) Pop() any {
	old := *w
	d := old[len(old)-1]
	*w = old[:len(old)-1]
	return d
}

// newFleet enrolls n devices, one after the other within spread, as a factory does.
func newFleet(n int, life, spread time.Duration) *fleet {
	f := &fleet{dice: rand.New(rand.NewPCG(4, 2)), life: life, fails: func(time.Time) bool { return false }, expired: map[*simulated]bool{}}
	for i := range n {
		d := &simulated{}
		d.random = f.dice.Float64
		at := start.Add(spread * time.Duration(i) / time.Duration(n))
		f.issue(d, at)
		d.wake = at.Add(time.Duration(f.dice.Int64N(int64(lookEvery))))
		f.devices = append(f.devices, d)
	}
	f.queue = append(wakes(nil), f.devices...)
	heap.Init(&f.queue)
	return f
}

// issue gives d a certificate; what Due reads of it is real.
func (f *fleet) issue(d *simulated, now time.Time) {
	raw := binary.BigEndian.AppendUint64(nil, f.dice.Uint64())
	leaf := &x509.Certificate{Raw: raw, NotBefore: now, NotAfter: now.Add(f.life)}
	d.term = term{notBefore: leaf.NotBefore, notAfter: leaf.NotAfter, due: enroll.Default().Due(leaf)}
}

func (f *fleet) run(until time.Time) {
	for f.queue[0].wake.Before(until) {
		d := f.queue[0]
		now := d.wake
		if now.After(d.notAfter) {
			f.expired[d] = true
		}
		do, sleep := d.decide(now, now, d.term)
		if do != nothing {
			sleep = time.Second
			f.count(now)
			if f.fails(now) {
				d.failed(now, d.term, do, enroll.ErrUnreachable)
			} else {
				f.issue(d, now)
				f.renewals++
				d.staged(now, d.term)
				d.promoted()
			}
		}
		d.wake = now.Add(max(sleep, d.idle(now)))
		heap.Fix(&f.queue, 0)
	}
}

// idle is as many looks as bring nothing: the simulation skips them.
func (d *simulated) idle(now time.Time) time.Duration {
	until := d.due
	if d.wants(now, d.term) != nothing {
		until = d.next
	}
	return until.Sub(now).Truncate(lookEvery)
}

func (f *fleet) count(now time.Time) {
	minute := int(now.Sub(start) / time.Minute)
	for len(f.minutes) <= minute {
		f.minutes = append(f.minutes, 0)
	}
	f.minutes[minute]++
}

// busiest returns the mean and the largest number of requests in a minute of a window.
func (f *fleet) busiest(from, to time.Time) (mean float64, most int) {
	sum := 0
	window := f.minutes[int(from.Sub(start)/time.Minute):min(len(f.minutes), int(to.Sub(start)/time.Minute))]
	for _, n := range window {
		sum += n
		most = max(most, n)
	}
	return float64(sum) / float64(len(window)), most
}

const devices = 10_000

// Acceptance: 10,000 devices renew over their lives at a service that fails one request in twenty,
// and no minute has more than three times the mean.
func TestTenThousandDevicesSpreadTheirRenewals(t *testing.T) {
	const life = 24 * time.Hour
	f := newFleet(devices, life, life)
	f.fails = func(time.Time) bool { return f.dice.IntN(20) == 0 }
	from, end := start.Add(2*life), start.Add(30*life)
	f.run(end)
	mean, most := f.busiest(from, end)
	t.Logf("%d lives: %d renewals, %.1f requests in a minute, %d at most (%.2f times the mean), %d devices ever without a certificate",
		30, f.renewals, mean, most, float64(most)/mean, len(f.expired))
	if float64(most) > 3*mean || len(f.expired) > 0 {
		t.Errorf("the worst minute has %d requests, the mean is %.1f; %d devices expired", most, mean, len(f.expired))
	}
}

// A fleet whose certificates were all issued in one hour does not come back in one hour: the first
// wave lasts a tenth of a life, and every further one is flatter.
func TestAFleetThatWasEnrolledAtOnce(t *testing.T) {
	const life = 24 * time.Hour
	f := newFleet(devices, life, time.Hour)
	f.run(start.Add(40 * life))
	mean, most := f.busiest(start.Add(life*56/100), start.Add(life*66/100+time.Hour))
	t.Logf("first wave: %.1f in a minute, %d at most (%.2f times the mean)", mean, most, float64(most)/mean)
	later, top := f.busiest(start.Add(20*life), start.Add(40*life))
	t.Logf("lives 20 to 40: %.1f in a minute, %d at most (%.2f times the mean)", later, top, float64(top)/later)
	if float64(most) > 3*mean || float64(top) > 3*later || len(f.expired) > 0 {
		t.Errorf("%d devices expired", len(f.expired))
	}
}

// The service is away for a day: it is asked all the while, and the comeback is spread as well.
func TestTenThousandDevicesAfterAnOutage(t *testing.T) {
	for _, life := range []time.Duration{24 * time.Hour, 72 * time.Hour} {
		f := newFleet(devices, life, life)
		from := start.Add(4 * life)
		to := from.Add(24 * time.Hour)
		f.fails = func(now time.Time) bool { return now.After(from) && now.Before(to) }
		f.run(to)
		before := f.renewals
		asking, worst := f.busiest(from, to)
		_, last := steps(life)
		f.run(to.Add(last))
		mean, most := f.busiest(to, to.Add(last))
		late := 0
		for _, d := range f.devices {
			if d.expired(to.Add(last)) {
				late++
			}
		}
		t.Logf("life %v: while away %.1f in a minute, %d at most; back: %d certificates in %v, %.1f in a minute, %d at most (%.2f times the mean); %d of %d had expired, %d still have",
			life, asking, worst, f.renewals-before, last, mean, most, float64(most)/mean, len(f.expired), devices, late)
		if float64(most) > 3*mean || late > 0 {
			t.Errorf("life %v: %d in the worst minute, mean %.1f, %d late", life, most, mean, late)
		}
	}
}
