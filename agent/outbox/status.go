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
	// Dropped counts entries lost to the bound; DroppedRanges names their numbers in at most 64 ranges, those of
	// a later boot last. DroppedRangesLeftOut ranges of older boots are not listed.
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
func (s *Outbox) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		Boot: s.boot, Seq: s.seq,
		Dropped: s.dropped.count, DroppedRanges: slices.Clone(s.dropped.ranges), DroppedRangesLeftOut: s.dropped.leftOut,
		Expired: s.expired.count, ExpiredRanges: slices.Clone(s.expired.ranges), ExpiredRangesLeftOut: s.expired.leftOut,
	}
	for name, p := range s.policies {
		if p.expired > 0 {
			if st.ExpiredLines == nil {
				st.ExpiredLines = map[string]uint64{}
			}
			st.ExpiredLines[name] = p.expired
		}
	}
	now := s.moment()
	var worst problemKind
	for _, l := range s.lanes {
		st.add(l, now)
		for kind, p := range l.problems {
			if p.err != nil && (st.Problem == "" || problemKind(kind) < worst) {
				st.Problem, st.ProblemSince, worst = p.err.Error(), p.since, problemKind(kind)
			}
		}
	}
	if len(s.lanes) == 1 {
		st.Lanes = nil
	}
	return st
}

// add counts a lane in.
func (s *Status) add(l *lane, now moment) {
	part := LaneStatus{
		Name: l.name, Depth: l.depth(), InFlight: l.flight, Bytes: l.onDisk + l.badBytes + l.unsaved,
		OldestAge: l.oldestAge(now).Seconds(),
	}
	s.Lanes = append(s.Lanes, part)
	s.Depth += part.Depth
	s.InFlight += part.InFlight
	s.Bytes += part.Bytes
	s.OldestAge = max(s.OldestAge, part.OldestAge)
	s.DiskBytes += l.onDisk + l.badBytes
	s.UnsavedBytes += l.unsaved
	s.Segments += len(l.segments)
	s.Appended += l.stats.Appended
	s.Acked += l.stats.Acked
	s.Resent += l.stats.Resent
	s.SetAside += l.stats.SetAside
	s.Damaged += l.stats.Damaged
	s.DamagedBytes += l.stats.DamagedBytes
	s.WrittenBytes += l.stats.WrittenBytes
	s.Fsyncs += l.stats.Fsyncs
}

// oldestAge is how long ago the first entry was taken. Where nobody knows it is reckoned from when its
// segment was made.
func (l *lane) oldestAge(now moment) time.Duration {
	var seg *segment
	switch {
	case l.front.n > 0:
		e := l.front.at(0)
		if age, known := l.age(e, now); known {
			return max(0, age)
		}
		seg = e.seg
	case l.unread > 0:
		seg = l.cursor.seg
	case l.tail.n > 0:
		return max(0, now.mono.Sub(l.tail.at(0).taken))
	}
	if seg == nil {
		return 0
	}
	return max(0, now.mono.Sub(seg.made))
}
