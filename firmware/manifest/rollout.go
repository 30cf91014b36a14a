package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"time"
)

// Step lets a share of the fleet have the update from a time on.
type Step struct {
	Percent float64 // 0 to 100, in hundredths; not less than the step before
	From    time.Time
}

// Rollout says who gets the update when.
type Rollout struct {
	Seed   string // stirs the hash of the device id, so that not every update begins with the same devices
	Paused bool   // nobody more gets it
	Steps  []Step // in order of time; none: everybody at once
}

// groups is how finely a fleet can be divided: hundredths of a per cent.
const groups = 10_000

// Admits says whether the device may have the update at that time. One that was admitted stays so
// while time goes on and per cents rise: its group does not depend on them, and steps never
// fall.
func (r Rollout) Admits(device string, now time.Time) bool {
	return !r.Paused && float64(Group(r.Seed, device)) < math.Round(r.Share(now)*groups/100)
}

// Share is how many per cent of a fleet the steps have come to.
func (r Rollout) Share(now time.Time) float64 {
	if len(r.Steps) == 0 {
		return 100
	}
	share := 0.0
	for _, step := range r.Steps {
		if !now.Before(step.From) {
			share = max(share, step.Percent)
		}
	}
	return share
}

// Group is the number of a device, 0 to 9999, in the order of a rollout. A device gets an update when
// its share, in hundredths of a per cent, is above that.
func Group(seed, device string) int {
	sum := sha256.Sum256([]byte(seed + "\x00" + device))
	return int(binary.BigEndian.Uint64(sum[:8]) % groups)
}
