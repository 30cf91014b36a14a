// Package manifest is the signed description of one update: what it is for, what it is made of,
// how its health is judged and who gets it when. The trap: a manifest is only as good as the
// signatures above it, so one is made of a target that the repository's roles have signed, and
// in no other way.
package manifest

import "time"

// SegmentSize is how many bytes of a part one hash covers, and one segment of a patch makes; the
// last one of a part may be shorter.
const SegmentSize = 1 << 20

// Digest is a SHA-256.
type Digest [32]byte

// Manifest is a checked manifest.
type Manifest struct {
	raw []byte
	d   document
}

// Part is one thing that is written: a whole slot's partition, or the agent's program.
type Part struct {
	Name     string // [a-z0-9-]{1,32}, such as rootfs, boot, agent
	Size     int64  // in bytes
	SHA256   Digest
	Segments []Digest // of each SegmentSize bytes
	Full     Object   // makes the part of nothing
	Deltas   []Delta  // make it of what a slot holds
}

// Object is a file of the repository in the format of package patch.
type Object struct {
	Path   string // below targets/, as it lies on the server: slash-separated, no . or ..
	Size   int64  // in bytes
	SHA256 Digest
}

// Delta is an object that needs an old part.
type Delta struct {
	From     Digest
	FromSize int64 // in bytes
	Object   Object
}

// Health is what a trial must show before it is committed.
type Health struct {
	// Session: a session stands, and the broker has acknowledged the report of this boot.
	Session bool
	// Lines: every unit of every configured line answers that answered before the update.
	Lines bool
	// Within is how long anything but the network may take from the start of the trial; then it
	// is rolled back.
	Within time.Duration
	// NetworkGrace is how long the network itself may be out; then it is rolled back.
	NetworkGrace time.Duration
}

// Step lets a share of the fleet have the update from a time on.
type Step struct {
	Percent float64
	From    time.Time
}

// Rollout says who gets the update when.
type Rollout struct {
	Seed   string // stirs the hash of the device id, so that not every update begins with the same devices
	Paused bool
	Steps  []Step // none: everybody at once
}

// document is the JSON, "schema": 1 (docs/updates.md).
type document struct{}

var _ = Manifest{raw: nil, d: document{}}
