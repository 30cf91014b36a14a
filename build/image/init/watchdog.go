package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel's watchdog, softdog where the machine has none.
const (
	watchdogLimit = 60 * time.Second
	watchdogPause = 10 * time.Second
)

// feedWatchdog has the machine reset when this process hangs. At the end it is not disarmed: a
// shutdown that hangs is reset too.
func feedWatchdog(ctx context.Context, log *slog.Logger) {
	dog, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
	if err != nil {
		log.Warn("no watchdog", "err", err)
		return
	}
	// It stays open: closing it is what a driver may take for the end of its work.
	if err := unix.IoctlSetPointerInt(int(dog.Fd()), unix.WDIOC_SETTIMEOUT, ceilSeconds(watchdogLimit)); err != nil {
		log.Warn("watchdog keeps its own time", "err", err)
	}
	tick := time.NewTicker(watchdogPause)
	defer tick.Stop()
	for {
		if _, err := dog.Write([]byte{0}); err != nil {
			log.Error("watchdog not fed", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
