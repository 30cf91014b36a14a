//go:build !linux

package modbus

import "time"

// sleepFor is how to wait on a line of such timing, and how much too long that may take.
func sleepFor(Timing) (sleep func(time.Duration), slack time.Duration) {
	return time.Sleep, 1200 * time.Microsecond
}
