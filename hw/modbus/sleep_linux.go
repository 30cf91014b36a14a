package modbus

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleepFor is how to wait on a line of such timing, and how much too long that may take. The timers
// of the Go runtime wake up to a millisecond late, and wake two or three threads to do so: a thread
// that sleeps by itself costs a third of their processor time.
func sleepFor(t Timing) (sleep func(time.Duration), slack time.Duration) {
	if t.Char > 250*time.Microsecond {
		return nanosleep, 300 * time.Microsecond
	}
	return nanosleep, 150 * time.Microsecond
}

// nanosleep blocks its thread, so it is for waits that are bounded.
func nanosleep(d time.Duration) {
	for left := unix.NsecToTimespec(int64(d)); d > 0; {
		rest := unix.Timespec{}
		if unix.Nanosleep(&left, &rest) != unix.EINTR {
			return
		}
		left = rest
	}
}
