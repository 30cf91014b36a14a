package modbus

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleepFor is how to wait on a line of such timing, and how much too long that may take. From
// about 57,600 baud on, the timers of the Go runtime, which wake up to a millisecond late, would cost
// several per cent of the line.
func sleepFor(t Timing) (sleep func(time.Duration), slack time.Duration) {
	if t.Char > 250*time.Microsecond {
		return time.Sleep, 1200 * time.Microsecond
	}
	return nanosleep, 60 * time.Microsecond
}

// nanosleep blocks its thread, which is why long waits go to the runtime's timers all the same.
func nanosleep(d time.Duration) {
	if d > 5*time.Millisecond {
		end := time.Now().Add(d)
		time.Sleep(d - 2*time.Millisecond)
		d = time.Until(end)
	}
	for left := unix.NsecToTimespec(int64(d)); d > 0; {
		rest := unix.Timespec{}
		if unix.Nanosleep(&left, &rest) != unix.EINTR {
			return
		}
		left = rest
	}
}
