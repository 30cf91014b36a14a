package session

import (
	"testing"
	"time"
)

const spread = 45 * time.Second

func TestPausesGrowUnlessTheBrokerIsThere(t *testing.T) {
	longest := func(spread time.Duration, after func(t *tries)) time.Duration {
		tries := newTries(spread, 1)
		tries.pause(0) // before the first attempt
		for range 20 {
			after(&tries)
			tries.pause(0)
		}
		after(&tries)
		return tries.pause(1)
	}
	refused := func(t *tries) { t.failed() }
	flapping := func(t *tries) { t.lost(time.Second, true, false) }
	mute := func(t *tries) { t.lost(time.Second, false, false) }
	stable := func(t *tries) { t.lost(steady, true, false) }
	moved := func(t *tries) { t.lost(time.Second, true, true) }
	for name, test := range map[string]struct {
		spread time.Duration
		after  func(*tries)
		want   time.Duration
	}{
		"refused":           {spread, refused, lastBound},
		"accepted and lost": {spread, mute, lastBound},
		"worked and lost":   {spread, flapping, spread},
		"steady":            {spread, stable, spread},
		"our own doing":     {spread, moved, ownBound},
		"few, refused":      {2 * time.Second, refused, lastBound},
		"few, flapping":     {2 * time.Second, flapping, 16 * time.Second},
		"few, steady":       {2 * time.Second, stable, 2 * time.Second},
		"many, refused":     {10 * time.Minute, refused, 10 * time.Minute},
	} {
		if got := longest(test.spread, test.after); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

// All brokers of a round are tried before a pause; one that accepted and acknowledged nothing gives
// way to the next.
func TestRounds(t *testing.T) {
	tries := newTries(spread, 3)
	if tries.pause(1) != 0 || tries.broker != 0 {
		t.Error("the first attempt waits")
	}
	for want := 1; want < 3; want++ {
		if tries.failed(); tries.pause(1) != 0 || tries.broker != want {
			t.Errorf("broker %d is not next at once", want)
		}
	}
	if tries.failed(); tries.pause(1) != spread || tries.broker != 0 {
		t.Errorf("after a round: broker %d", tries.broker)
	}
	if tries.lost(time.Second, false, false); tries.broker != 1 {
		t.Errorf("after a broker that accepts and hangs up: broker %d", tries.broker)
	}
	if tries.lost(steady, true, false); tries.broker != 0 || tries.pause(1) != spread {
		t.Errorf("after a steady connection: broker %d", tries.broker)
	}
}

func TestPausesAreDrawnFromTheirBounds(t *testing.T) {
	for n, want := range [][2]time.Duration{{0, spread}, {spread, 2 * spread}, {time.Minute, lastBound}, {time.Minute, lastBound}} {
		var at [2]time.Duration
		for i := range at {
			tries := newTries(spread, 1)
			tries.pause(0)
			for range n + 1 {
				tries.failed()
				at[i] = tries.pause(float64(i))
			}
		}
		if at != want {
			t.Errorf("pause %d is between %v, want %v", n, at, want)
		}
	}
}
