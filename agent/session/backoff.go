package session

import (
	"math/rand/v2"
	"time"
)

// The pause before an attempt is drawn evenly from 0 to a bound that doubles from firstBound
// to lastBound ("full jitter"), so that a fleet whose broker comes back spreads over it. Only
// the first attempt after the start is made at once. A connection that stood for steady
// begins again at firstBound; a shorter one on which the broker acknowledged something, and
// so is there, keeps the bound at 16 s at most.
const (
	firstBound = 2 * time.Second
	lastBound  = time.Minute
	steady     = time.Minute
	mostFor    = 4 // failures that count where the broker acknowledged
)

// failed returns the number of failures to go on with after a connection that stood so long.
func failed(failures int, stood time.Duration, acknowledged bool) int {
	switch {
	case stood >= steady:
		return 0
	case acknowledged:
		return min(failures+1, mostFor)
	}
	return failures + 1
}

// backoff returns the pause before attempt n, which counts from 0 after a steady connection.
// random is in [0, 1).
func backoff(n int, random float64) time.Duration {
	bound := lastBound
	if n < 8 {
		bound = min(firstBound<<n, lastBound)
	}
	return time.Duration(random * float64(bound))
}

func jitter() float64 { return rand.Float64() }
