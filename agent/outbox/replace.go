package outbox

import (
	"errors"
	"io"
	"os"
	"slices"

	"ferrule/internal/record"
)

// replace copies what the distrusted source still owes into a new segment, which takes its
// place. What had been synced before the failure is probably sound, but a page it shares with
// what failed may not be.
func (l *lane) replace() error {
	w := &l.writer
	copies := l.owed(w.source)
	if err := l.create(len(copies)); err != nil {
		return err
	}
	seg := w.seg
	w.buf = seg.appendHeader(w.buf[:0], l.boot)
	offs := make([]int64, len(copies))
	for i := range copies {
		offs[i] = int64(len(w.buf))
		w.buf = seg.appendEntry(w.buf, &copies[i])
	}
	size := int64(len(w.buf))
	if err := l.writeOut(seg, true); err != nil {
		return err
	}
	l.mu.Lock()
	l.commitCopies(seg, size, copies, offs)
	l.mu.Unlock()
	l.sweep()
	// Where the source's name came back, its entries would be sent twice; no more than that.
	_ = l.fsys.SyncDir(l.dir)
	return nil
}

// owed returns the entries of s that are neither acknowledged nor given up, in order: those in
// memory from there, the others from its file.
func (l *lane) owed(s *segment) []entry {
	l.mu.Lock()
	var copies []entry
	for i := range l.front.n {
		if e := l.front.at(i); e.seg == s {
			copies = append(copies, *e)
		}
	}
	from, size := s.size, s.size
	if s.read < s.records {
		from = 0
		if l.cursor.seg == s {
			from = l.cursor.off
		}
	}
	l.mu.Unlock()
	rest, damage := l.scan(s, from, size)
	if damage.bytes > 0 {
		l.mu.Lock()
		l.noteDamage(s, damage)
		l.mu.Unlock()
	}
	return append(copies, rest...)
}

// damage is what of a segment could not be read.
type damage struct {
	stretches int
	bytes     int64
	err       error
}

// scan reads all entries of a segment between two offsets.
func (l *lane) scan(s *segment, from, to int64) (entries []entry, d damage) {
	if from >= to {
		return nil, d
	}
	f, err := l.fsys.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, damage{stretches: 1, bytes: to - from, err: err}
	}
	defer f.Close()
	dec := decoder{stamped: s.stamped}
	r := record.NewReader(f, from, to, s.seed(), maxRecord)
	for {
		rec, err := r.Next()
		d.add(rec.Damaged)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				d.err = err
				d.add(to - r.Offset())
			}
			return entries, d
		}
		switch e, ok, err := dec.entry(rec); {
		case err != nil:
			d.add(int64(len(rec.Payload)))
		case ok:
			entries = append(entries, e)
		}
	}
}

// maxRecord is the longest payload of a record that is believed, in bytes.
const maxRecord = 8 << 20

func (d *damage) add(bytes int64) {
	if bytes > 0 {
		d.stretches++
		d.bytes += bytes
	}
}

// commitCopies lets seg take the place of the source it was copied from. Meanwhile entries may have
// been acknowledged, loaded, or given up.
func (l *lane) commitCopies(seg *segment, size int64, copies []entry, offs []int64) {
	w, src := &l.writer, l.writer.source
	seg.size, seg.records, seg.read = size, len(copies), len(copies)
	if len(copies) > 0 {
		seg.from = copies[0].seq
	}
	l.segments = append(l.segments, seg)
	l.onDisk += seg.alloc()
	l.active = seg
	l.stats.Fsyncs++
	w.distrusted, w.source = 0, nil
	if !slices.Contains(l.segments, src) {
		return
	}
	for i := range l.front.n {
		if e := l.front.at(i); e.seg == src {
			at, _ := slices.BinarySearchFunc(copies, e.off, func(c entry, off int64) int { return int(c.off - off) })
			e.seg, e.off = seg, offs[at]
			seg.loaded++
		}
	}
	if src.read < src.records {
		first := 0 // of copies that is unread
		if l.cursor.seg == src {
			first, _ = slices.BinarySearchFunc(copies, l.cursor.off, func(c entry, off int64) int { return int(c.off - off) })
		}
		l.unread += len(copies) - first - (src.records - src.read)
		seg.read = first
		if l.cursor.seg == src && first < len(copies) {
			l.cursor = position{seg: seg, off: offs[first]}
		}
	}
	src.read, src.loaded = src.records, 0
	l.readGen++
	l.bury(src)
}
