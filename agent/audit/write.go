package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	"ferrule/internal/disk"
)

// never is a due time that does not come by itself.
const never = time.Duration(math.MaxInt64)

// segment is one file of the log.
type segment struct {
	number int64
	first  uint64 // the sequence number of its first line; 0: it has none
	size   int64
}

func (s segment) name() string { return fmt.Sprintf("%s%010d%s", prefix, s.number, suffix) }

// writer is the end of the log on disk. Nothing in it is safe for concurrent use.
type writer struct {
	o       Options
	loaded  bool
	pending []Event // what the recovery has to say, before anything else is written

	segments []segment // oldest first; the last is written to, where file is open
	file     disk.File // nil: the next line begins a segment
	last     uint64
	lastHash hash

	head      head // the signed one; zero: none
	headKey   string
	announced string // thumbprint of a key that the log has named
	unsigned  time.Time
	signedAt  time.Time
	refused   time.Time // when the key did not sign; zero: it did
	refusal   error
	begins    uint64 // where the log must begin, by the head
}

// write stores entries as lines, makes them durable, and returns how many it took: as many as one sync may cost. After
// an error it took none; the log goes on in a new segment, and says where the old one ends.
func (w *writer) write(batch []entry) (taken int, err error) {
	limit := w.o.Config.MaxBytes.Bytes() / segments
	var data []byte
	last, prev := w.last, w.lastHash
	for _, e := range batch {
		if taken > 0 && len(data)+MaxLine > int(min(maxBatch, limit)) && taken >= len(w.pending)+1 {
			break
		}
		start := len(data)
		last++
		data = appendLine(data, last, e.at, e.trusted, e.event, prev)
		prev = hashOf(data[start:])
		taken++
	}
	if w.file != nil && w.current().size > 0 && w.current().size+int64(len(data)) > limit {
		_ = w.closeFile()
	}
	if err := w.store(data); err != nil {
		return 0, err
	}
	if w.last == w.head.Seq {
		w.unsigned = time.Now()
	}
	if w.begins == 0 {
		w.begins = w.last + 1
	}
	w.last, w.lastHash = last, prev
	return taken, w.shrink()
}

func (w *writer) current() *segment { return &w.segments[len(w.segments)-1] }

// store appends data to the current segment, or to a new one.
func (w *writer) store(data []byte) error {
	if w.file == nil {
		if err := w.begin(); err != nil {
			return err
		}
	}
	s := w.current()
	_, err := w.file.WriteAt(data, s.size)
	if err == nil {
		err = w.file.Sync()
	}
	if err == nil && s.size == 0 {
		err = w.o.FS.SyncDir(w.o.Dir)
	}
	if err != nil {
		w.abandon()
		return fmt.Errorf("writing the audit log: %w", err)
	}
	if s.first == 0 {
		s.first = w.last + 1
	}
	s.size += int64(len(data))
	return nil
}

// abandon gives up the current segment: nobody knows what of the last write is on disk now, or will be after a
// power cut. One in which no line ever was makes room for the next try.
func (w *writer) abandon() {
	s := *w.current()
	_ = w.closeFile()
	if s.size == 0 && w.o.FS.Remove(filepath.Join(w.o.Dir, s.name())) == nil {
		w.segments = w.segments[:len(w.segments)-1]
		return
	}
	w.tear(s, s.size, -1, "")
}

// begin makes a new segment.
func (w *writer) begin() error {
	s := segment{number: 1}
	if n := len(w.segments); n > 0 {
		s.number = w.segments[n-1].number + 1
	}
	f, err := w.o.FS.OpenFile(filepath.Join(w.o.Dir, s.name()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		w.loaded = false // somebody else writes here; look again
	}
	if err != nil {
		return fmt.Errorf("writing the audit log: %w", err)
	}
	w.file, w.segments = f, append(w.segments, s)
	return nil
}

// tear notes that a segment ends at offset, whatever follows there. Bytes and digest are those of what follows, where
// that was read; -1 where nobody knows what will follow.
func (w *writer) tear(s segment, offset, bytes int64, digest string) {
	for _, e := range w.pending {
		if e.Name == eventTorn && e.Attrs[0].Value.String() == s.name() {
			return
		}
	}
	w.pending = append(w.pending, Event{Name: eventTorn, Attrs: []slog.Attr{
		slog.String("segment", s.name()), slog.Int64("offset", offset), slog.Int64("bytes", bytes), slog.String("sha256", digest),
	}})
}

// shrink removes the oldest segments beyond the bounds. The head says first where the log will begin, so that a
// segment that somebody else removed is missed; a key that cannot sign delays this by one segment.
func (w *writer) shrink() error {
	limit := w.o.Config.MaxBytes.Bytes()
	total, drop := int64(0), 0
	for _, s := range w.segments {
		total += s.size
	}
	size := total
	for ; drop < len(w.segments)-1 && (size > limit || len(w.segments)-drop > maxSegments); drop++ {
		size -= w.segments[drop].size
	}
	if drop == 0 {
		return nil
	}
	first := w.last
	for _, s := range w.segments[drop:] {
		if s.first != 0 {
			first = s.first
			break
		}
	}
	if key := w.o.Key(); key != nil {
		if err := w.signFrom(key, w.o.Device(), w.o.Clock, first); err != nil && total < limit+limit/segments && len(w.segments) <= maxSegments+1 {
			return err
		}
	}
	w.begins = first
	for range drop {
		if err := w.o.FS.Remove(filepath.Join(w.o.Dir, w.segments[0].name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the oldest part of the audit log: %w", err)
		}
		w.segments = w.segments[1:]
	}
	if err := w.o.FS.SyncDir(w.o.Dir); err != nil {
		return fmt.Errorf("removing the oldest part of the audit log: %w", err)
	}
	return nil
}

// first is where the log begins.
func (w *writer) first() uint64 {
	for _, s := range w.segments {
		if s.first != 0 {
			return s.first
		}
	}
	return 0
}

func (w *writer) closeFile() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

func (w *writer) status() Status {
	s := Status{First: w.first(), Last: w.last, Signed: w.head.Seq, Hash: w.head.Hash}
	if w.refusal != nil {
		s.Problem = w.refusal.Error()
	}
	return s
}
