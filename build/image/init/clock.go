package main

import (
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// setClock moves a clock that is behind what is known to be past already: the release's time, and
// when this machine was last taken down in good order. The agent knows better soon; but the first
// certificate it sees must not lie in the future.
func setClock(log *slog.Logger) {
	floor := releaseTime()
	if info, err := os.Stat(dataDir + "/clock"); err == nil && info.ModTime().After(floor) {
		floor = info.ModTime()
	}
	if now := time.Now(); now.Before(floor) {
		t := unix.NsecToTimeval(floor.UnixNano())
		if err := unix.Settimeofday(&t); err != nil {
			log.Error("clock not set", "err", err)
			return
		}
		log.Info("clock set", "from", now.UTC().Format(time.RFC3339), "to", floor.UTC().Format(time.RFC3339))
	}
}

// keepClock leaves the time for setClock of the next boot.
func keepClock() {
	_ = os.WriteFile(dataDir+"/clock", nil, 0o644) // the release's time is left
}

// release is what the slot says of itself: os-release(5).
func release(key string) string {
	text, _ := os.ReadFile(slotDir + "/etc/os-release") // where there is none, nothing is known
	for line := range strings.Lines(string(text)) {
		if k, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && k == key {
			return value
		}
	}
	return ""
}

func version() string { return release("IMAGE_VERSION") }

func releaseTime() time.Time {
	seconds, err := strconv.ParseInt(release("BUILD_EPOCH"), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}

// uptime is the time since the kernel started.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
