package outbox

import "time"

// Status is what the outbox says of itself. Counters count since Open.
type Status struct {
	Boot uint64 `json:"boot"`
	// Seq is the number given last in this boot.
	Seq uint64 `json:"seq"`
	// Depth counts entries neither acknowledged, dropped nor set aside; InFlight those handed out.
	Depth    int `json:"depth"`
	InFlight int `json:"in_flight"`
	// Bytes is what counts against max_bytes: DiskBytes in segments (in whole blocks), and entries not on disk.
	Bytes       int64 `json:"bytes"`
	DiskBytes   int64 `json:"disk_bytes"`
	MemoryBytes int64 `json:"memory_bytes"`
	Segments    int   `json:"segments"`
	// OldestAge is how long the oldest entry has waited, in seconds.
	OldestAge float64 `json:"oldest_age_s"`

	Appended uint64 `json:"appended"`
	Acked    uint64 `json:"acked"`
	Resent   uint64 `json:"resent"`
	SetAside uint64 `json:"set_aside"`
	// Dropped counts entries lost to the bound; DroppedRanges names them, newest last, at most 64.
	Dropped       uint64  `json:"dropped"`
	DroppedRanges []Range `json:"dropped_ranges,omitempty"`
	// Damaged counts stretches of the log that could not be read; DamagedBytes is their length.
	Damaged      uint64 `json:"damaged"`
	DamagedBytes int64  `json:"damaged_bytes"`

	WrittenBytes int64  `json:"written_bytes"`
	Fsyncs       uint64 `json:"fsyncs"`
	// Problem is why entries wait in memory only, "" when all is well.
	Problem      string    `json:"problem,omitempty"`
	ProblemSince time.Time `json:"problem_since,omitzero"`
}

// Range is a run of sequence numbers of one boot, both ends included.
type Range struct {
	Boot uint64 `json:"boot"`
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}
