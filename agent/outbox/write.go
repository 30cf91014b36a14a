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

// writer is what is guarded by lane.diskMu.
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
func (l *lane) flush() error {
	err := l.prepare()
	if err == nil && l == l.normal {
		err = l.keepLines()
	}
	if err == nil {
		l.sweepAll()
		wrote := false
		for more := true; more && err == nil; {
			if more, err = l.writeSome(); more {
				wrote = true
			}
		}
		if err == nil && !wrote && l.troubled() {
			err = l.probe()
		}
	}
	if err != nil {
		l.writer.pause = min(max(2*l.writer.pause, firstPause), longestPause)
		l.writer.retryAt = time.Now().Add(l.writer.pause)
		l.makeSpace(err)
	} else {
		l.writer.pause = 0
	}
	l.report(writing, err)
	return err
}

// makeSpace gives up the oldest segment where the disk is full before the outbox is, and memory fills up: with
// drop-oldest what is new goes before what is old. The next attempt has its room.
func (l *lane) makeSpace(err error) {
	if l.config.WhenFull != DropOldest || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unsaved <= l.unsavedLimit()/2 {
		return
	}
	for _, other := range []*lane{l.normal, l} { // the urgent lane's room is that of others first
		if s := other.oldestIdle(); s != nil {
			other.giveUp(s)
			return
		}
	}
}

// prepare makes the folder and finds out which segment numbers are taken.
func (l *lane) prepare() error {
	w := &l.writer
	if w.ready {
		return nil
	}
	if err := l.fsys.MkdirAll(l.dir, 0o700); err != nil {
		return fmt.Errorf("making the outbox's folder: %w", err)
	}
	for dir := l.dir; ; dir = filepath.Dir(dir) {
		if err := l.fsys.SyncDir(filepath.Dir(dir)); err != nil {
			return fmt.Errorf("syncing the folder above the outbox: %w", err)
		}
		if dir == l.normal.dir {
			break
		}
	}
	list, err := l.fsys.ReadDir(l.dir)
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
func (l *lane) troubled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.problems[writing].err != nil
}

// probe finds out whether a disk that failed can be written again, when nothing waits to be.
func (l *lane) probe() error {
	name := l.path(probeName)
	if err := atomicfile.Write(l.fsys, name, []byte("can this disk be written?\n"), 0o600); err != nil {
		return err
	}
	return l.fsys.Remove(name)
}

// writeSome writes and syncs one batch. more is false when there is nothing to write.
func (l *lane) writeSome() (more bool, err error) {
	w := &l.writer
	l.dropSource()
	if w.source != nil {
		return true, l.replace()
	}
	seg, full := l.collect()
	if len(w.batch) == 0 {
		return false, nil
	}
	start := time.Now()
	size, err := l.writeBatch(seg, full)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushing = 0
	if err != nil {
		l.active = nil
		return true, err
	}
	l.commit(seg, size, full)
	l.stats.Fsyncs++
	l.noteDuration(time.Since(start))
	return true, nil
}

// dropSource forgets a distrusted segment that owes nothing any more.
func (l *lane) dropSource() {
	w := &l.writer
	if w.source == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !w.source.owes() && slices.Contains(l.segments, w.source) {
		l.bury(w.source)
	}
	if !slices.Contains(l.segments, w.source) {
		w.source = nil
	}
}

// collect takes what fits into the active segment, or a new one, into w.batch, oldest first. full says
// that the segment takes nothing after it.
func (l *lane) collect() (seg *segment, full bool) {
	w := &l.writer
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(w.batch)
	w.batch = w.batch[:0]
	seg = l.active
	size, bytes := int64(headerRoom), 0
	if seg != nil {
		size = seg.size
	}
	take := func(e *entry) bool {
		if size+int64(e.size) > l.segmentLimit-footerSize && (len(w.batch) > 0 || seg != nil && seg.records > 0) {
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
		for i := l.front.n - l.waiting; goOn && i < l.front.n; i++ {
			goOn = take(l.front.at(i))
		}
		for i := 0; goOn && i < l.tail.n; i++ {
			goOn = take(l.tail.at(i))
		}
		// The first did not fit into what is left: a new segment has room for it.
		if pass = full && len(w.batch) == 0; pass {
			l.finishActive()
			seg, full, size = nil, false, headerRoom
		}
	}
	if n := len(w.batch); n > 0 {
		l.flushing = w.batch[n-1].seq
	}
	full = full || size > l.segmentLimit-l.segmentLimit/16
	return seg, full
}

// finishActive ends the active segment as it is.
func (l *lane) finishActive() {
	if s := l.active; s != nil && !s.owes() {
		l.bury(s)
	}
	l.active = nil
}

// headerRoom is what is reckoned for a segment's header, in bytes.
const headerRoom = 64

// writeBatch appends w.batch to seg, or to a new segment where seg is nil (it is then put
// into w.seg), and syncs. It returns the size the segment now has.
func (l *lane) writeBatch(seg *segment, full bool) (int64, error) {
	w := &l.writer
	w.buf = w.buf[:0]
	fresh := seg == nil
	if fresh {
		if err := l.create(0); err != nil {
			return 0, err
		}
		seg = w.seg
		w.buf = seg.appendHeader(w.buf, l.boot)
	}
	w.offs = w.offs[:0]
	for i := range w.batch {
		w.offs = append(w.offs, seg.size+int64(len(w.buf)))
		w.buf = seg.appendEntry(w.buf, &w.batch[i])
	}
	if full {
		w.buf = seg.appendFooter(w.buf, seg.records+len(w.batch))
	}
	return seg.size + int64(len(w.buf)), l.writeOut(seg, fresh)
}

// create opens the file of a new segment that copies so many entries of those it replaces.
func (l *lane) create(copied int) error {
	w := &l.writer
	if err := w.closeSegment(); err != nil {
		return fmt.Errorf("closing a segment: %w", err)
	}
	if err := l.removeAbandoned(); err != nil {
		return err
	}
	w.number++
	s := &segment{number: w.number, nonce: rand.Uint64(), made: time.Now(), lostFrom: -1, replaces: w.distrusted, copied: copied, stamped: true}
	s.path = l.path(segmentName(s.number, s.nonce))
	f, err := l.fsys.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making a segment: %w", err)
	}
	w.seg, w.file = s, f
	return nil
}

// writeOut appends w.buf to the file of seg and makes it durable, its name too where it is new.
// After an error the segment is distrusted.
func (l *lane) writeOut(seg *segment, fresh bool) (err error) {
	w := &l.writer
	defer func() {
		if err != nil {
			l.distrust(seg, fresh)
		}
	}()
	if w.seg != seg {
		return fmt.Errorf("writing %s: %w", seg.path, os.ErrClosed)
	}
	n, err := w.file.WriteAt(w.buf, seg.size)
	l.count(int64(n))
	if err != nil {
		return fmt.Errorf("writing a segment: %w", err)
	}
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("syncing a segment: %w", err)
	}
	if fresh {
		if err := l.fsys.SyncDir(l.dir); err != nil {
			return fmt.Errorf("syncing the outbox's folder: %w", err)
		}
	}
	if cap(w.buf) > 2*batchBytes {
		w.buf = nil
	}
	return nil
}

func (l *lane) count(written int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.WrittenBytes += written
}

// distrust gives up a segment after a failed write or sync.
func (l *lane) distrust(seg *segment, fresh bool) {
	w := &l.writer
	_ = w.closeSegment()
	if w.distrusted == 0 {
		w.distrusted = seg.number
	}
	if fresh {
		w.abandoned = append(w.abandoned, seg.path)
		_ = l.removeAbandoned()
		return
	}
	w.source = seg
}

// removeAbandoned must succeed before another segment is made, so that a disk that takes no
// more cannot be filled with attempts.
func (l *lane) removeAbandoned() error {
	w := &l.writer
	for len(w.abandoned) > 0 {
		err := l.fsys.Remove(w.abandoned[0])
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing a segment that could not be written: %w", err)
		}
		w.abandoned = slices.Delete(w.abandoned, 0, 1)
	}
	return nil
}

// commit puts what was written in its place: seg now has size synced bytes, and w.batch is in it.
// What had been handed out, or fits into front, stays loaded; the rest leaves memory.
func (l *lane) commit(seg *segment, size int64, full bool) {
	w := &l.writer
	if seg == nil { // new
		seg = w.seg
		l.segments = append(l.segments, seg)
		w.distrusted = 0
	} else {
		l.onDisk -= seg.alloc()
	}
	seg.size = size
	l.onDisk += seg.alloc()
	if seg.records == 0 {
		seg.from = w.batch[0].seq
	}
	seg.records += len(w.batch)
	seg.read += len(w.batch)
	if l.active = seg; full {
		l.active = nil
	}
	l.settleFront(seg)
	l.settleTail(seg)
	if full && !seg.owes() {
		l.bury(seg)
	}
	clear(w.batch)
	l.idle = time.Now()
	l.freed()
}

// settleFront marks the entries of front that are in w.batch as written.
func (l *lane) settleFront(seg *segment) {
	w := &l.writer
	for i, j := l.front.n-l.waiting, 0; i < l.front.n && j < len(w.batch); {
		e := l.front.at(i)
		if e.seq != w.batch[j].seq { // acknowledged or set aside meanwhile
			j++
			continue
		}
		e.seg, e.off = seg, w.offs[j]
		seg.loaded++
		l.waiting--
		l.unsaved -= int64(e.size)
		i++
	}
}

// settleTail takes the entries that are in w.batch out of tail.
func (l *lane) settleTail(seg *segment) {
	w := &l.writer
	loaded := 0
	for i := l.flight; i < l.front.n; i++ {
		loaded += l.front.at(i).size
	}
	for j := 0; l.tail.n > 0 && j < len(w.batch); j++ {
		if l.tail.at(0).seq != w.batch[j].seq {
			continue
		}
		e := l.tail.pop()
		l.unsaved -= int64(e.size)
		if loaded += e.size; l.unread == 0 && loaded <= l.preload {
			e.seg, e.off = seg, w.offs[j]
			seg.loaded++
			l.front.push(e)
			continue
		}
		if l.unread == 0 {
			l.cursor = position{seg: seg, off: w.offs[j]}
		}
		l.unread++
		seg.read--
	}
	if l.unread > 0 && l.waits.count[aBatch] > 0 {
		signal(l.ready) // a backlog does not wait to grow
	}
}

// noteDuration reckons how long before it is due an entry must be written.
func (l *lane) noteDuration(took time.Duration) {
	slow := max(2*took, l.lead-l.lead/8)
	l.lead = min(max(slow, l.shortestLead()), time.Duration(l.config.Sync)/2)
}

func (l *lane) shortestLead() time.Duration { return time.Duration(l.config.Sync) / 20 }

// report makes err the outbox's problem of that kind, or nil its end, and logs the change.
func (l *lane) report(kind problemKind, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.problems[kind]
	was := p.err
	switch p.err = err; {
	case err == nil && was == nil:
	case err == nil:
		l.log.LogAttrs(context.Background(), slog.LevelInfo, "outbox recovered",
			slog.String("lane", l.name), slog.String("kind", kind.String()), slog.Duration("after", time.Since(p.since)), slog.Int("attempts", p.count))
		*p = problem{}
	case was == nil || !sameCause(was, err):
		if was == nil {
			p.since = time.Now()
		}
		p.count++
		l.log.LogAttrs(context.Background(), slog.LevelError, "outbox has a problem",
			slog.String("lane", l.name), slog.String("kind", kind.String()), slog.Any("err", err))
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
