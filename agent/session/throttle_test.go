package session

import (
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	at := time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name       string
		size       int64
		free       int           // packets in a row without a pause
		each       time.Duration // what every further one costs
		afterwards int           // free ones after a minute of rest
	}{
		{"small", 60, 2048, time.Second / 1024, 2048},
		{"of a configuration", 64 << 10, 32, time.Second / 16, 32},
		{"as large as they may be", 256 << 10, 8, time.Second / 4, 8},
		{"larger than a burst", 16 << 20, 0, longestPause, 0},
	} {
		var throttle throttle
		now := at
		for _, free := range []int{c.free, c.afterwards} {
			for n := range free {
				if pause := throttle.pause(c.size, now); pause != 0 {
					t.Fatalf("%s: a pause of %v behind packet %d", c.name, pause, n)
				}
			}
			for range 100 {
				if pause := throttle.pause(c.size, now); pause < c.each*9/10 || pause > c.each+time.Microsecond {
					t.Fatalf("%s: a pause of %v, want %v", c.name, pause, c.each)
				} else {
					now = now.Add(pause)
				}
			}
			now = now.Add(time.Hour)
		}
	}
}
