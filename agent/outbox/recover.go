package outbox

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/record"
)

// recover takes over what earlier starts left in the lane, and returns the highest counter of boots seen.
// Nothing in the folder can make it fail: the error is the lane's first problem.
func (l *lane) recover() (highest uint64, err error) {
	if err = l.prepare(); err == nil {
		highest, err = l.openLog()
	}
	l.blind = err != nil
	return highest, err
}

// refused notes what recover met.
func (l *lane) refused(err error) {
	if err != nil {
		l.writer.retryAt = time.Now().Add(firstPause)
	}
	l.report(writing, err)
}

// openLog finds the segments and what they owe, and the highest counter of boots in them.
func (l *lane) openLog() (highest uint64, err error) {
	list, err := l.fsys.ReadDir(l.dir)
	if err != nil {
		return 0, fmt.Errorf("listing the outbox's folder: %w", err)
	}
	var log []*segment
	for _, f := range list {
		number, nonce, ok := parseSegmentName(f.Name())
		switch {
		case ok:
			s := &segment{number: number, nonce: nonce, path: l.path(f.Name()), lostFrom: -1, records: -1}
			if boot := l.inspect(s); boot < randomFrom {
				highest = max(highest, boot)
			}
			log = append(log, s)
		case strings.HasSuffix(f.Name(), badSuffix):
			b := badFile{path: l.path(f.Name())}
			if info, err := f.Info(); err == nil {
				b.size = blocks(info.Size())
			}
			l.writer.bad = append(l.writer.bad, b)
			l.badBytes += b.size
		case strings.HasSuffix(f.Name(), atomicfile.Suffix), f.Name() == probeName:
			_ = l.fsys.Remove(l.path(f.Name())) // left by a power cut
		}
	}
	slices.SortFunc(log, func(a, b *segment) int { return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.nonce, b.nonce)) })
	log = l.dropReplaced(log)
	log, from := l.dropAcked(log)
	l.adopt(log, from)
	return highest, nil
}

// inspect reads a segment's header, and its footer where it has one. It returns the boot in the header,
// 0 where there is none.
func (l *lane) inspect(s *segment) (boot uint64) {
	f, err := l.fsys.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return 0 // reading it will tell
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	s.size, s.made = info.Size(), info.ModTime()
	r := record.NewReader(f, 0, min(s.size, 2*headerRoom), s.seed(), headerRoom)
	if rec, err := r.Next(); err == nil && rec.Offset == 0 && rec.Payload[0] == kindHeader {
		boot, err = s.parseHeader(rec.Payload)
		if err == nil {
			s.first = rec.End()
		}
	}
	if s.size > footerSize {
		r := record.NewReader(f, s.size-footerSize, s.size, s.seed(), footerSize-record.HeaderSize)
		if rec, err := r.Next(); err == nil && rec.Damaged == 0 {
			if n := parseFooter(rec.Payload); n > 0 {
				s.records = n // none at all is not believed unread
			}
		}
	}
	return boot
}

// dropReplaced buries the segments that another has replaced. One whose copies are not all there was
// never completed: the originals are, and it counts only for what it has beyond them. So does one whose
// header is lost, which may have said that it replaces others.
func (l *lane) dropReplaced(log []*segment) []*segment {
	for _, s := range slices.Clone(log) {
		originals := func(other *segment) bool {
			return s.replaces != 0 && s.replaces <= other.number && other.number < s.number
		}
		if at := slices.Index(log, s); s.first == 0 && at > 0 {
			originals = func(other *segment) bool { return other == log[at-1] }
		}
		switch {
		case !slices.ContainsFunc(log, originals):
		case l.complete(s):
			log = slices.DeleteFunc(log, func(other *segment) bool {
				if originals(other) {
					l.dead = append(l.dead, other)
				}
				return originals(other)
			})
		default:
			s.skip = l.last(log, originals)
		}
	}
	return log
}

// last returns the last entry in some of the segments, or that they leave to those before them.
func (l *lane) last(log []*segment, which func(*segment) bool) (last skip) {
	for _, s := range log {
		if !which(s) {
			continue
		}
		if s.skip.seq > 0 && (s.skip.boot != last.boot || s.skip.seq > last.seq) {
			last = s.skip
		}
		entries, _ := l.scan(s, 0, s.size)
		for i := range entries {
			if e := &entries[i]; e.boot != last.boot || e.seq > last.seq {
				last = skip{boot: e.boot, seq: e.seq}
			}
		}
	}
	return last
}

// complete reports whether all entries that s says it copied are there.
func (l *lane) complete(s *segment) bool {
	if s.first == 0 {
		return false
	}
	entries, _ := l.scan(s, 0, s.size)
	if len(entries) < s.copied {
		return false
	}
	end := s.first
	for _, e := range entries[:s.copied] {
		if e.off != end {
			return false
		}
		end += int64(e.size)
	}
	return true
}

// dropAcked buries the segments before the place last saved. from is where the first that remains
// begins to owe.
func (l *lane) dropAcked(log []*segment) (rest []*segment, from int64) {
	for _, p := range l.readPlaces() {
		i := slices.IndexFunc(log, func(s *segment) bool { return s.number == p.number && s.nonce == p.nonce })
		if i < 0 || i == 0 && p.off < from {
			continue
		}
		l.dead = append(l.dead, log[:i]...)
		log, from = log[i:], p.off
	}
	return log, from
}

// adopt makes log the lane's, of whose first segment all before from is acknowledged.
func (l *lane) adopt(log []*segment, from int64) {
	l.cursor.off = from
	for i, s := range log {
		if i > 0 {
			from = 0
		}
		if s.records < 0 || from > 0 || s.skip.seq > 0 {
			l.countEntries(s, from)
		}
		if s.records <= 0 {
			l.dead = append(l.dead, s)
			if i == 0 {
				l.cursor.off = 0
			}
			continue
		}
		l.segments = append(l.segments, s)
		l.unread += s.records
		l.onDisk += s.alloc()
	}
	if len(l.segments) > 0 {
		l.cursor.seg = l.segments[0]
	}
}

// countEntries finds out what a segment owes that has no footer, or of which a part is acknowledged.
func (l *lane) countEntries(s *segment, from int64) {
	entries, d := l.scan(s, from, s.size)
	if d.err != nil && !errors.Is(d.err, fs.ErrNotExist) {
		s.records = max(1, len(entries)) // to be tried again when its turn comes
		return
	}
	s.records = 0
	for i := range entries {
		if !s.skip.covers(&entries[i]) {
			s.records++
		}
	}
	if d.bytes > 0 {
		l.noteDamage(s, d)
	}
	s.counted = true
}
