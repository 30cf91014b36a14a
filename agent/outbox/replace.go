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
func (o *Outbox) replace() error {
	w := &o.writer
	copies := o.owed(w.source)
	if err := o.create(len(copies)); err != nil {
		return err
	}
	seg := w.seg
	w.buf = seg.appendHeader(w.buf[:0], o.boot)
	offs := make([]int64, len(copies))
	for i := range copies {
		offs[i] = int64(len(w.buf))
		w.buf = seg.appendEntry(w.buf, &copies[i])
	}
	size := int64(len(w.buf))
	if err := o.writeOut(seg, true); err != nil {
		return err
	}
	o.mu.Lock()
	o.commitCopies(seg, size, copies, offs)
	o.mu.Unlock()
	o.sweep()
	// Where the source's name came back, its entries would be sent twice; no more than that.
	_ = o.fsys.SyncDir(o.dir)
	return nil
}

// owed returns the entries of s that are neither acknowledged nor given up, in order: those in
// memory from there, the others from its file.
func (o *Outbox) owed(s *segment) []entry {
	o.mu.Lock()
	var copies []entry
	for i := range o.front.n {
		if e := o.front.at(i); e.seg == s {
			copies = append(copies, *e)
		}
	}
	from, size := s.size, s.size
	if s.read < s.records {
		from = 0
		if o.cursor.seg == s {
			from = o.cursor.off
		}
	}
	o.mu.Unlock()
	rest, damage := o.scan(s, from, size)
	if damage.bytes > 0 {
		o.mu.Lock()
		o.noteDamage(s, damage)
		o.mu.Unlock()
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
func (o *Outbox) scan(s *segment, from, to int64) (entries []entry, d damage) {
	if from >= to {
		return nil, d
	}
	f, err := o.fsys.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, damage{stretches: 1, bytes: to - from, err: err}
	}
	defer f.Close()
	var dec decoder
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
func (o *Outbox) commitCopies(seg *segment, size int64, copies []entry, offs []int64) {
	w, src := &o.writer, o.writer.source
	seg.size, seg.records, seg.read = size, len(copies), len(copies)
	o.segments = append(o.segments, seg)
	o.onDisk += seg.alloc()
	o.active = seg
	o.stats.Fsyncs++
	w.distrusted, w.source = 0, nil
	if !slices.Contains(o.segments, src) {
		return
	}
	for i := range o.front.n {
		if e := o.front.at(i); e.seg == src {
			at, _ := slices.BinarySearchFunc(copies, e.off, func(c entry, off int64) int { return int(c.off - off) })
			e.seg, e.off = seg, offs[at]
			seg.loaded++
		}
	}
	if src.read < src.records {
		first := 0 // of copies that is unread
		if o.cursor.seg == src {
			first, _ = slices.BinarySearchFunc(copies, o.cursor.off, func(c entry, off int64) int { return int(c.off - off) })
		}
		o.unread += len(copies) - first - (src.records - src.read)
		seg.read = first
		if o.cursor.seg == src && first < len(copies) {
			o.cursor = position{seg: seg, off: offs[first]}
		}
	}
	src.read, src.loaded = src.records, 0
	o.readGen++
	o.bury(src)
}
