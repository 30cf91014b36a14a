package outbox

import (
	"slices"
	"time"
)

// Status is what the outbox says of itself. Counters count since Open.
type Status struct {
	Boot uint64 `json:"boot"`
	// Seq is the number given last in this boot.
	Seq uint64 `json:"seq"`
	// Depth counts entries neither acknowledged, dropped nor set aside; InFlight those handed out.
	Depth    int `json:"depth"`
	InFlight int `json:"in_flight"`
	// Bytes counts against max_bytes: DiskBytes, the files in whole blocks, and UnsavedBytes, entries on no disk.
	Bytes        int64 `json:"bytes"`
	DiskBytes    int64 `json:"disk_bytes"`
	UnsavedBytes int64 `json:"unsaved_bytes"`
	Segments     int   `json:"segments"`
	// Lanes tells the lanes apart, the urgent one first; none where there is only the normal one.
	Lanes []LaneStatus `json:"lanes,omitempty"`
	// OldestAge is how long the oldest entry has waited, in seconds.
	OldestAge float64 `json:"oldest_age_s"`

	Appended uint64 `json:"appended"`
	Acked    uint64 `json:"acked"`
	Resent   uint64 `json:"resent"`
	SetAside uint64 `json:"set_aside"`
	// Dropped counts entries lost to the bound; DroppedRanges names them, newest last, at most 64.
	// DroppedRangesLeftOut older ranges are not listed.
	Dropped              uint64  `json:"dropped"`
	DroppedRanges        []Range `json:"dropped_ranges,omitempty"`
	DroppedRangesLeftOut uint64  `json:"dropped_ranges_left_out,omitempty"`
	// Expired counts entries that were let go for their age, ExpiredLines by the name of the line;
	// ExpiredRanges names them as DroppedRanges does.
	Expired              uint64            `json:"expired"`
	ExpiredLines         map[string]uint64 `json:"expired_lines,omitempty"`
	ExpiredRanges        []Range           `json:"expired_ranges,omitempty"`
	ExpiredRangesLeftOut uint64            `json:"expired_ranges_left_out,omitempty"`
	// Damaged counts stretches of the log that could not be read, DamagedBytes their length. What a
	// power cut left of a write that had not been synced counts too.
	Damaged      uint64 `json:"damaged"`
	DamagedBytes int64  `json:"damaged_bytes"`

	WrittenBytes int64  `json:"written_bytes"`
	Fsyncs       uint64 `json:"fsyncs"`
	// Problem says what the disk refuses, "" when all is well. While it cannot be written, entries
	// wait in memory.
	Problem      string    `json:"problem,omitempty"`
	ProblemSince time.Time `json:"problem_since,omitzero"`
}

// LaneStatus is the part of the status that each lane has of its own.
type LaneStatus struct {
	Name      string  `json:"name"` // "urgent" or "normal"
	Depth     int     `json:"depth"`
	InFlight  int     `json:"in_flight"`
	Bytes     int64   `json:"bytes"`
	OldestAge float64 `json:"oldest_age_s"`
}

// Range is a run of sequence numbers of one boot, both ends included.
type Range struct {
	Boot uint64 `json:"boot"`
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
	// Count is how many of these numbers are meant, where it is not all of them: so close that they are
	// not listed one by one.
	Count uint64 `json:"count,omitempty"`
}

// problemKind is what the disk refuses, the worst first.
type problemKind int

const (
	writing problemKind = iota
	reading
	removing
	settingAside
	problemKinds
)

func (k problemKind) String() string {
	return [...]string{"writing", "reading", "removing", "setting aside"}[k]
}

type problem struct {
	err   error
	since time.Time
	count int
}

// Status returns the state of the outbox.
func (o *Outbox) Status() Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.stats
	s.DroppedRanges = slices.Clone(s.DroppedRanges)
	s.Boot, s.Seq = o.boot, o.seq
	s.Depth, s.InFlight = o.front.n+o.unread+o.tail.n, o.flight
	s.DiskBytes, s.UnsavedBytes = o.onDisk+o.badBytes, o.unsaved
	s.Bytes, s.Segments = s.DiskBytes+s.UnsavedBytes, len(o.segments)
	if t := o.oldest(); !t.IsZero() {
		s.OldestAge = max(0, time.Since(t).Seconds())
	}
	for _, p := range o.problems {
		if p.err != nil {
			s.Problem, s.ProblemSince = p.err.Error(), p.since
			break
		}
	}
	return s
}

// oldest returns when the first entry was taken; of a segment that is not loaded, when it was made.
func (o *Outbox) oldest() time.Time {
	switch {
	case o.front.n > 0:
		return o.front.at(0).taken
	case o.unread > 0:
		return o.cursor.seg.made
	case o.tail.n > 0:
		return o.tail.at(0).taken
	}
	return time.Time{}
}
