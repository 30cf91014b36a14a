package session

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// The fleet of these tests, and what one second may hold of it.
const (
	fleet      = 1000
	mostAtOnce = fleet / 20
	seeds      = 50
	mostInAMin = 12
)

// outage is how a fleet lost its broker, and what it met until it came back.
type outage struct {
	lasts  time.Duration
	frozen bool // the loss is found by silence, not by a close
	idle   bool // frozen: found by the keepalive, not under load
	down   string
	// brokers are the URLs that are configured; all lead to the one that is down.
	brokers int
}

func (o outage) String() string {
	return fmt.Sprintf("%v,frozen=%t,idle=%t,%s,%d", o.lasts, o.frozen, o.idle, o.down, o.brokers)
}

// dice is SplitMix64 (Steele, Lea, Flood 2014).
type dice uint64

// next returns a number in [0, 1).
func (d *dice) next() float64 {
	*d += 0x9e3779b97f4a7c15
	x := uint64(*d)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return float64((x^x>>31)>>11) / (1 << 53)
}

func (d *dice) upTo(most time.Duration) time.Duration {
	return time.Duration(d.next() * float64(most))
}

// lostAt is when an agent finds out.
func (o outage) lostAt(random *dice) time.Duration {
	jitter := random.upTo
	switch limit := Default().WriteTimeout.Std(); {
	case o.frozen && o.idle:
		return limit + jitter(Default().Keepalive.Std())
	case o.frozen:
		return limit + jitter(500*time.Millisecond) // the watch's tick
	}
	return jitter(50 * time.Millisecond)
}

// attempt says how long an attempt takes that begins at t, and whether TCP gets through. What the
// broker does not answer is answered when it is back and the kernel sends SYN once more.
func (o outage) attempt(t time.Duration, random *dice) (took time.Duration, ok bool) {
	const limit = 10 * time.Second // of dial's stages
	switch {
	case t >= o.lasts:
		return random.upTo(200 * time.Millisecond), true
	case o.down == "unreachable": // by the last router
		return random.upTo(3 * time.Second), false
	case o.down == "stalled":
		for _, again := range []time.Duration{time.Second, 3 * time.Second, 7 * time.Second} {
			if t+again >= o.lasts {
				return again, true
			}
		}
		return limit, false
	}
	return random.upTo(50 * time.Millisecond), false // refused, or closed in the handshake
}

// tally is what was seen, second by second, of the whole fleet.
type tally struct {
	attempts map[int]int // that began
	arrivals map[int]int // that the broker saw, once it was back
	firstMin int         // most attempts of one agent in its first minute
}

// Of a long outage the middle is cut out, the same time for each agent: pauses have long stopped to
// grow, and devices stand as they will stand. What is left are its first and last minutes.
const ends = 20 * time.Minute

// simulate has a fleet lose its broker.
func (o outage) simulate(seed uint64) tally {
	sum := tally{attempts: make(map[int]int), arrivals: make(map[int]int)}
	for agent := range uint64(fleet) {
		random := dice(seed<<32 | agent)
		tries := newTries(Default().ReconnectSpread.Std(), o.brokers)
		tries.pause(0) // the first connection
		tries.lost(time.Hour, true, false)
		t := o.lostAt(&random)
		lost, early := t, 0
		for {
			t += tries.pause(random.next())
			if t-lost < time.Minute {
				early++
			}
			if t > ends && t < o.lasts-ends {
				t += o.lasts - 2*ends
			}
			sum.attempts[int(t/time.Second)]++
			took, ok := o.attempt(t, &random)
			if t += took; ok && tries.late(took) {
				continue
			} else if ok {
				sum.arrivals[int(t/time.Second)]++
				break
			}
			tries.failed()
		}
		sum.firstMin = max(sum.firstMin, early)
	}
	return sum
}

func most(seconds map[int]int) (most int) {
	for _, n := range seconds {
		most = max(most, n)
	}
	return most
}

// A broker comes back to a fleet of 1,000, and no second holds more than a twentieth of it: not
// of the attempts while it is away, nor of the connections when it is back.
func TestFleetComesBack(t *testing.T) {
	var outages []outage
	for _, lasts := range []time.Duration{0, time.Second, 20 * time.Second, 5 * time.Minute, 7 * 24 * time.Hour} {
		for _, down := range []string{"refused", "unreachable", "stalled", "closed"} {
			outages = append(outages, outage{lasts: lasts, down: down, brokers: 1},
				outage{lasts: lasts, frozen: true, down: down, brokers: 1},
				outage{lasts: lasts, frozen: true, idle: true, down: down, brokers: 1})
		}
	}
	for _, o := range outages {
		t.Run(o.String(), func(t *testing.T) { o.check(t, seeds) })
	}
}

func (o outage) check(t *testing.T, seeds int) {
	var attempts, arrivals, early []int
	for seed := range uint64(seeds) {
		sum := o.simulate(seed)
		attempts, arrivals, early = append(attempts, most(sum.attempts)), append(arrivals, most(sum.arrivals)), append(early, sum.firstMin)
	}
	t.Logf("busiest second: %d attempts, %d connections; at most %d attempts of one agent in a minute",
		slices.Max(attempts), slices.Max(arrivals), slices.Max(early))
	if n := slices.Max(attempts); n > mostAtOnce*o.brokers {
		t.Errorf("%d attempts in one second", n)
	}
	limit := mostAtOnce
	if o.brokers > 1 && o.down == "unreachable" {
		limit *= 2 // those who are between two ways try the next one when the broker is back
	}
	if n := slices.Max(arrivals); n > limit {
		t.Errorf("%d connections in one second", n)
	}
	if n := slices.Max(early); n > mostInAMin {
		t.Errorf("%d attempts of one agent in its first minute", n)
	}
}

// With three ways to one broker a round has three attempts, and the broker that is back still sees
// one of each device.
func TestFleetWithThreeWays(t *testing.T) {
	for _, lasts := range []time.Duration{0, time.Second, 20 * time.Second, 5 * time.Minute, 7 * 24 * time.Hour} {
		for _, down := range []string{"refused", "unreachable", "closed"} {
			o := outage{lasts: lasts, down: down, brokers: 3}
			t.Run(o.String(), func(t *testing.T) { o.check(t, seeds) })
		}
	}
}
