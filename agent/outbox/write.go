package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

const (
	batchBytes = 256 << 10 // written at once, at most
	// After a failed write the disk is left alone for a pause that doubles up to the longest.
	firstPause   = time.Second
	longestPause = 30 * time.Second

	probeName = "probe"
)

// writer is what is guarded by Outbox.diskMu.
type writer struct {
	ready  bool      // the folder is there and its names are known
	number uint64    // of the next segment
	seg    *segment  // that file is of
	file   disk.File // nil: none is open
	buf    []byte
	batch  []entry
	offs   []int64 // where each of batch is in the segment

	// After a failed write or sync nobody knows what of a segment is on disk. It is not asked again: the
	// kernel may call lost pages clean and the next sync a success. The next segment says that it
	// replaces all from number distrusted on, after copying what source still owes.
	distrusted uint64
	source     *segment
	abandoned  []string // files of such segments, to be removed

	pause   time.Duration
	retryAt time.Time

	place place
	bad   []badFile
}

func (w *writer) close() error {
	err := errors.Join(w.closeSegment(), w.place.close())
	return err
}

func (w *writer) closeSegment() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file, w.seg = nil, nil
	return err
}

// flush makes everything durable, unless the disk fails. diskMu is held.
func (o *Outbox) flush() error {
	err := o.prepare()
	if err == nil {
		o.sweep()
		wrote := false
		for more := true; more && err == nil; {
			if more, err = o.writeSome(); more {
				wrote = true
			}
		}
		if err == nil && !wrote && o.troubled() {
			err = o.probe()
		}
	}
	if err != nil {
		o.writer.pause = min(max(2*o.writer.pause, firstPause), longestPause)
		o.writer.retryAt = time.Now().Add(o.writer.pause)
		o.makeSpace(err)
	} else {
		o.writer.pause = 0
	}
	o.report(writing, err)
	return err
}

// makeSpace gives up the oldest segment where the disk is full before the outbox is, and memory fills up: with
// drop-oldest what is new goes before what is old. The next attempt has its room.
func (o *Outbox) makeSpace(err error) {
	if o.config.WhenFull != DropOldest || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.unsaved <= o.memoryLimit/2 {
		return
	}
	if s := o.oldestIdle(); s != nil {
		o.giveUp(s)
	}
}

// prepare makes the folder and finds out which segment numbers are taken.
func (o *Outbox) prepare() error {
	w := &o.writer
	if w.ready {
		return nil
	}
	if err := o.fsys.MkdirAll(o.dir, 0o700); err != nil {
		return fmt.Errorf("making the outbox's folder: %w", err)
	}
	if err := o.fsys.SyncDir(filepath.Dir(o.dir)); err != nil {
		return fmt.Errorf("syncing the folder above the outbox: %w", err)
	}
	list, err := o.fsys.ReadDir(o.dir)
	if err != nil {
		return fmt.Errorf("listing the outbox's folder: %w", err)
	}
	// Segments found only now, by a disk that came late, are sent after the next start.
	for _, f := range list {
		if number, _, ok := parseSegmentName(f.Name()); ok {
			w.number = max(w.number, number)
		}
	}
	w.ready = true
	return nil
}

// troubled reports whether the last write failed.
func (o *Outbox) troubled() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.problems[writing].err != nil
}

// probe finds out whether a disk that failed can be written again, when nothing waits to be.
func (o *Outbox) probe() error {
	name := o.path(probeName)
	if err := atomicfile.Write(o.fsys, name, []byte("can this disk be written?\n"), 0o600); err != nil {
		return err
	}
	return o.fsys.Remove(name)
}

// writeSome writes and syncs one batch. more is false when there is nothing to write.
func (o *Outbox) writeSome() (more bool, err error) {
	w := &o.writer
	o.dropSource()
	if w.source != nil {
		return true, o.replace()
	}
	seg, full := o.collect()
	if len(w.batch) == 0 {
		return false, nil
	}
	start := time.Now()
	size, err := o.writeBatch(seg, full)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flushing = 0
	if err != nil {
		o.active = nil
		return true, err
	}
	o.commit(seg, size, full)
	o.stats.Fsyncs++
	o.noteDuration(time.Since(start))
	return true, nil
}

// dropSource forgets a distrusted segment that owes nothing any more.
func (o *Outbox) dropSource() {
	w := &o.writer
	if w.source == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !w.source.owes() && slices.Contains(o.segments, w.source) {
		o.bury(w.source)
	}
	if !slices.Contains(o.segments, w.source) {
		w.source = nil
	}
}

// collect takes what fits into the active segment, or a new one, into w.batch, oldest first. full says
// that the segment takes nothing after it.
func (o *Outbox) collect() (seg *segment, full bool) {
	w := &o.writer
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(w.batch)
	w.batch = w.batch[:0]
	seg = o.active
	size, bytes := int64(headerRoom), 0
	if seg != nil {
		size = seg.size
	}
	take := func(e *entry) bool {
		if size+int64(e.size) > o.segmentLimit-footerSize && (len(w.batch) > 0 || seg != nil && seg.records > 0) {
			full = true
			return false
		}
		w.batch = append(w.batch, *e)
		size += int64(e.size)
		bytes += e.size
		return bytes < batchBytes
	}
	for pass := true; pass; {
		goOn := true
		for i := o.front.n - o.waiting; goOn && i < o.front.n; i++ {
			goOn = take(o.front.at(i))
		}
		for i := 0; goOn && i < o.tail.n; i++ {
			goOn = take(o.tail.at(i))
		}
		// The first did not fit into what is left: a new segment has room for it.
		if pass = full && len(w.batch) == 0; pass {
			o.finishActive()
			seg, full, size = nil, false, headerRoom
		}
	}
	if n := len(w.batch); n > 0 {
		o.flushing = w.batch[n-1].seq
	}
	full = full || size > o.segmentLimit-o.segmentLimit/16
	return seg, full
}

// finishActive ends the active segment as it is.
func (o *Outbox) finishActive() {
	if s := o.active; s != nil && !s.owes() {
		o.bury(s)
	}
	o.active = nil
}

// headerRoom is what is reckoned for a segment's header, in bytes.
const headerRoom = 64

// writeBatch appends w.batch to seg, or to a new segment where seg is nil (it is then put
// into w.seg), and syncs. It returns the size the segment now has.
func (o *Outbox) writeBatch(seg *segment, full bool) (int64, error) {
	w := &o.writer
	w.buf = w.buf[:0]
	fresh := seg == nil
	if fresh {
		if err := o.create(0); err != nil {
			return 0, err
		}
		seg = w.seg
		w.buf = seg.appendHeader(w.buf, o.boot)
	}
	w.offs = w.offs[:0]
	for i := range w.batch {
		w.offs = append(w.offs, seg.size+int64(len(w.buf)))
		w.buf = seg.appendEntry(w.buf, &w.batch[i])
	}
	if full {
		w.buf = seg.appendFooter(w.buf, seg.records+len(w.batch))
	}
	return seg.size + int64(len(w.buf)), o.writeOut(seg, fresh)
}

// create opens the file of a new segment that copies so many entries of those it replaces.
func (o *Outbox) create(copied int) error {
	w := &o.writer
	if err := w.closeSegment(); err != nil {
		return fmt.Errorf("closing a segment: %w", err)
	}
	if err := o.removeAbandoned(); err != nil {
		return err
	}
	w.number++
	s := &segment{number: w.number, nonce: rand.Uint64(), made: time.Now(), lostFrom: -1, replaces: w.distrusted, copied: copied}
	s.path = o.path(segmentName(s.number, s.nonce))
	f, err := o.fsys.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making a segment: %w", err)
	}
	w.seg, w.file = s, f
	return nil
}

// writeOut appends w.buf to the file of seg and makes it durable, its name too where it is new.
// After an error the segment is distrusted.
func (o *Outbox) writeOut(seg *segment, fresh bool) (err error) {
	w := &o.writer
	defer func() {
		if err != nil {
			o.distrust(seg, fresh)
		}
	}()
	if w.seg != seg {
		return fmt.Errorf("writing %s: %w", seg.path, os.ErrClosed)
	}
	n, err := w.file.WriteAt(w.buf, seg.size)
	o.count(int64(n))
	if err != nil {
		return fmt.Errorf("writing a segment: %w", err)
	}
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("syncing a segment: %w", err)
	}
	if fresh {
		if err := o.fsys.SyncDir(o.dir); err != nil {
			return fmt.Errorf("syncing the outbox's folder: %w", err)
		}
	}
	if cap(w.buf) > 2*batchBytes {
		w.buf = nil
	}
	return nil
}

func (o *Outbox) count(written int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stats.WrittenBytes += written
}

// distrust gives up a segment after a failed write or sync.
func (o *Outbox) distrust(seg *segment, fresh bool) {
	w := &o.writer
	_ = w.closeSegment()
	if w.distrusted == 0 {
		w.distrusted = seg.number
	}
	if fresh {
		w.abandoned = append(w.abandoned, seg.path)
		_ = o.removeAbandoned()
		return
	}
	w.source = seg
}

// removeAbandoned must succeed before another segment is made, so that a disk that takes no
// more cannot be filled with attempts.
func (o *Outbox) removeAbandoned() error {
	w := &o.writer
	for len(w.abandoned) > 0 {
		err := o.fsys.Remove(w.abandoned[0])
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing a segment that could not be written: %w", err)
		}
		w.abandoned = slices.Delete(w.abandoned, 0, 1)
	}
	return nil
}

// commit puts what was written in its place: seg now has size synced bytes, and w.batch is in it.
// What had been handed out, or fits into front, stays loaded; the rest leaves memory.
func (o *Outbox) commit(seg *segment, size int64, full bool) {
	w := &o.writer
	if seg == nil { // new
		seg = w.seg
		o.segments = append(o.segments, seg)
		w.distrusted = 0
	} else {
		o.onDisk -= seg.alloc()
	}
	seg.size = size
	o.onDisk += seg.alloc()
	seg.records += len(w.batch)
	seg.read += len(w.batch)
	if o.active = seg; full {
		o.active = nil
	}
	o.settleFront(seg)
	o.settleTail(seg)
	if full && !seg.owes() {
		o.bury(seg)
	}
	clear(w.batch)
	o.idle = time.Now()
	signal(o.room)
}

// settleFront marks the entries of front that are in w.batch as written.
func (o *Outbox) settleFront(seg *segment) {
	w := &o.writer
	for i, j := o.front.n-o.waiting, 0; i < o.front.n && j < len(w.batch); {
		e := o.front.at(i)
		if e.seq != w.batch[j].seq { // acknowledged or set aside meanwhile
			j++
			continue
		}
		e.seg, e.off = seg, w.offs[j]
		seg.loaded++
		o.waiting--
		o.unsaved -= int64(e.size)
		i++
	}
}

// settleTail takes the entries that are in w.batch out of tail.
func (o *Outbox) settleTail(seg *segment) {
	w := &o.writer
	loaded := 0
	for i := o.flight; i < o.front.n; i++ {
		loaded += o.front.at(i).size
	}
	for j := 0; o.tail.n > 0 && j < len(w.batch); j++ {
		if o.tail.at(0).seq != w.batch[j].seq {
			continue
		}
		e := o.tail.pop()
		o.unsaved -= int64(e.size)
		if loaded += e.size; o.unread == 0 && loaded <= o.preload {
			e.seg, e.off = seg, w.offs[j]
			seg.loaded++
			o.enter(e)
			continue
		}
		if o.unread == 0 {
			o.cursor = position{seg: seg, off: w.offs[j]}
		}
		o.unread++
		seg.read--
	}
}

// noteDuration reckons how long before it is due an entry must be written.
func (o *Outbox) noteDuration(took time.Duration) {
	slow := max(2*took, o.lead-o.lead/8)
	o.lead = min(max(slow, o.shortestLead()), time.Duration(o.config.Sync)/2)
}

func (o *Outbox) shortestLead() time.Duration { return time.Duration(o.config.Sync) / 20 }

// report makes err the outbox's problem of that kind, or nil its end, and logs the change.
func (o *Outbox) report(kind problemKind, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := &o.problems[kind]
	was := p.err
	switch p.err = err; {
	case err == nil && was == nil:
	case err == nil:
		o.log.LogAttrs(context.Background(), slog.LevelInfo, "outbox recovered",
			slog.String("kind", kind.String()), slog.Duration("after", time.Since(p.since)), slog.Int("attempts", p.count))
		*p = problem{}
	case was == nil || !sameCause(was, err):
		if was == nil {
			p.since = time.Now()
		}
		p.count++
		o.log.LogAttrs(context.Background(), slog.LevelError, "outbox has a problem",
			slog.String("kind", kind.String()), slog.Any("err", err))
	default:
		p.count++
	}
}

// sameCause compares the errors beneath, since the file's name differs with every attempt.
func sameCause(a, b error) bool {
	x, _ := errors.AsType[syscall.Errno](a)
	y, _ := errors.AsType[syscall.Errno](b)
	return x == y
}
