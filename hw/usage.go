package hw

import (
	"slices"
	"time"
)

const window = 60 // seconds that usage looks back

// usage is how long the line was taken in each of the last seconds.
type usage struct {
	start  time.Time // of the first transaction
	taken  [window]time.Duration
	second int64 // of the newest slot, from start
}

// add notes that the line was taken for d until now.
func (u *usage) add(now time.Time, d time.Duration) {
	if u.start.IsZero() {
		u.start = now.Add(-d)
	}
	u.forward(now)
	u.taken[u.second%window] += d
}

// forward empties the slots that time has passed since the last call.
func (u *usage) forward(now time.Time) {
	second := int64(now.Sub(u.start) / time.Second)
	for n := 0; u.second < second && n < window; n++ {
		u.second++
		u.taken[u.second%window] = 0
	}
	u.second = max(u.second, second)
}

func (u *usage) percent(now time.Time) float64 {
	if u.start.IsZero() {
		return 0
	}
	u.forward(now)
	var sum time.Duration
	for _, d := range u.taken {
		sum += d
	}
	past := min(now.Sub(u.start), (window-1)*time.Second+now.Sub(u.start)%time.Second)
	if past <= 0 {
		return 0
	}
	return min(100, 100*float64(sum)/float64(past))
}

// latency is the last transactions that were answered.
type latency struct {
	took [256]time.Duration
	n    uint64
}

func (l *latency) add(d time.Duration) {
	l.took[l.n%uint64(len(l.took))] = d
	l.n++
}

// quantiles returns the median and the 95th percentile in milliseconds.
func (l *latency) quantiles() (p50, p95 float64) {
	n := int(min(l.n, uint64(len(l.took))))
	if n == 0 {
		return 0, 0
	}
	sorted := slices.Sorted(slices.Values(l.took[:n]))
	return milliseconds(sorted[n/2]), milliseconds(sorted[n*95/100])
}
