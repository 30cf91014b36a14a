package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/record"
)

const (
	// A segment that cannot be read is tried so often, with pauses that double, and then counts as
	// damaged: it holds up whatever comes after it.
	readTries = 5
	readPause = 500 * time.Millisecond
)

// reader is what is guarded by lane.readMu.
type reader struct {
	seg   *segment
	file  disk.File
	log   *record.Reader
	dec   decoder
	tries int
}

func (r *reader) close() {
	if r.file != nil {
		_ = r.file.Close()
	}
	r.seg, r.file, r.log = nil, nil, nil
}

// open goes to a position of the log, of which end is where the segment ends.
func (r *reader) open(fsys disk.FS, p position, end int64) error {
	if r.seg == p.seg && r.log.Offset() == p.off {
		r.log.Extend(end)
		return nil
	}
	if r.seg != p.seg {
		r.close()
		f, err := fsys.OpenFile(p.seg.path, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		r.seg, r.file = p.seg, f
	}
	r.dec.last, r.dec.stamped = skip{}, p.seg.stamped
	r.log = record.NewReader(r.file, p.off, end, p.seg.seed(), maxRecord)
	return nil
}

// load brings the next part of the log into front. It may bring nothing. The error is that of ctx.
func (l *lane) load(ctx context.Context) error {
	l.readMu.Lock()
	defer l.readMu.Unlock()
	l.mu.Lock()
	at, gen := l.cursor, l.readGen
	if l.unread == 0 || l.closed {
		l.mu.Unlock()
		return nil
	}
	end, elsewhere := at.seg.size, at.seg.skip
	l.mu.Unlock()

	r := &l.reader
	entries, dam, err := r.read(l.fsys, at, end, elsewhere, int64(l.preload/4))
	if err != nil && !errors.Is(err, io.EOF) {
		if r.tries++; r.tries < readTries {
			l.report(reading, fmt.Errorf("reading a segment: %w", err))
			return pause(ctx, readPause<<(r.tries-1))
		}
		dam.add(end - max(at.off, r.offset()))
		dam.err, err = err, io.EOF
		r.close()
	}
	r.tries = 0
	l.report(reading, dam.err)
	l.mu.Lock()
	defer l.mu.Unlock()
	if gen != l.readGen {
		r.close() // what was read is no longer wanted, or is elsewhere
		return nil
	}
	l.takeIn(at.seg, entries)
	if dam.bytes > 0 {
		l.noteDamage(at.seg, dam)
	}
	l.cursor.off = end
	if err == nil {
		l.cursor.off = r.offset()
	} else if end == at.seg.size {
		l.endOfSegment(at.seg)
	}
	if at.seg != l.active && !at.seg.owes() && slices.Contains(l.segments, at.seg) {
		l.bury(at.seg) // nothing in the rest of it was worth keeping
	}
	return nil
}

func (r *reader) offset() int64 {
	if r.log == nil {
		return 0
	}
	return r.log.Offset()
}

// read returns enough bytes of entries from a position on; with io.EOF, the last before end.
func (r *reader) read(fsys disk.FS, at position, end int64, elsewhere skip, enough int64) (entries []entry, d damage, err error) {
	if err := r.open(fsys, at, end); err != nil {
		return nil, d, err
	}
	for n := int64(0); n < enough; {
		rec, err := r.log.Next()
		d.add(rec.Damaged)
		if err != nil {
			return entries, d, err
		}
		n += rec.End() - rec.Offset
		switch e, ok, err := r.dec.entry(rec); {
		case err != nil:
			d.add(int64(len(rec.Payload)))
		case ok && !elsewhere.covers(&e):
			entries = append(entries, e)
		}
	}
	return entries, d, nil
}

// takeIn puts entries read from s into front, but for those that are stale.
func (l *lane) takeIn(s *segment, entries []entry) {
	var now moment
	if l.aging {
		now = l.moment()
	}
	gone := 0
	for _, e := range entries {
		if s.read == s.records { // more than was counted
			s.records++
			l.unread++
		}
		s.read++
		l.unread--
		if e.policy = l.policies[e.line]; l.stale(&e, now) {
			l.noteExpired(&e)
			gone++
			continue
		}
		s.loaded++
		e.seg = s
		l.front.push(e)
	}
	for i := l.front.n - len(entries) + gone; i < l.front.n && 2*gone > len(entries); i++ {
		l.front.at(i).detach()
	}
}

// endOfSegment moves the cursor on; what was counted in s and not found is lost.
func (l *lane) endOfSegment(s *segment) {
	l.unread -= s.records - s.read
	s.records = s.read
	for i, other := range l.segments {
		if other == s && i+1 < len(l.segments) {
			l.cursor = position{seg: l.segments[i+1]}
		}
	}
	if s != l.active && !s.owes() {
		l.bury(s)
	}
}

// noteDamage counts what could not be read, once for each segment that was counted when it was opened.
func (l *lane) noteDamage(s *segment, d damage) {
	s.damaged = true
	if s.counted {
		return
	}
	l.stats.Damaged += uint64(d.stretches)
	l.stats.DamagedBytes += d.bytes
	l.log.LogAttrs(context.Background(), slog.LevelWarn, "part of a segment cannot be read",
		slog.String("file", s.path), slog.Int64("bytes", d.bytes), slog.Any("err", d.err))
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
