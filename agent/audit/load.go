package audit

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ferrule/internal/disk"
)

// parseName reads the number of a segment from its file's name.
func parseName(name string) (number int64, ok bool) {
	number, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(name, prefix), suffix), 10, 64)
	return number, err == nil && number > 0 && segment{number: number}.name() == name
}

// list returns the segments of a folder, oldest first.
func list(fsys disk.FS, dir string) ([]segment, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []segment
	for _, entry := range entries {
		if number, ok := parseName(entry.Name()); ok {
			found = append(found, segment{number: number})
		}
	}
	slices.SortFunc(found, func(a, b segment) int { return int(a.number - b.number) })
	return found, nil
}

// errTorn ends the whole lines of a segment: what follows is none.
var errTorn = errors.New("what follows is no line")

// scan reads the lines of a segment up to limit bytes (-1: all) and returns the offset behind the last whole one: nil
// at the end of the file or at limit, errTorn where more follows. Visit gets each line with its bytes, which are only its own
// until it returns, and may end the scan.
func scan(fsys disk.FS, path string, limit int64, visit func(l Line, raw []byte, offset int64) error) (end int64, err error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var src io.Reader = f
	if limit >= 0 {
		src = io.LimitReader(f, limit)
	}
	r := bufio.NewReaderSize(src, MaxLine)
	for {
		raw, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(raw) == 0:
			return end, nil
		case errors.Is(err, io.EOF), errors.Is(err, bufio.ErrBufferFull):
			return end, errTorn
		case err != nil:
			return end, err
		}
		l, err := parseLine(raw)
		if err != nil {
			return end, errTorn
		}
		if err := visit(l, raw, end); err != nil {
			return end, err
		}
		end += int64(len(raw))
	}
}

// load finds the end of the log, once. It reads the last segment that has a line, and the head.
func (w *writer) load() error {
	if w.loaded {
		return nil
	}
	segments, err := list(w.o.FS, w.o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = w.o.FS.MkdirAll(w.o.Dir, 0o700); err == nil {
			err = w.o.FS.SyncDir(filepath.Dir(w.o.Dir))
		}
	}
	if err != nil {
		return fmt.Errorf("opening the audit log: %w", err)
	}
	fresh := writer{o: w.o, segments: segments, headKey: w.headKey, announced: w.announced}
	if err := fresh.recover(); err != nil {
		_ = fresh.closeFile()
		return fmt.Errorf("opening the audit log: %w", err)
	}
	_ = w.closeFile()
	*w = fresh
	w.loaded = true
	return nil
}

// recover reads what the last run left. Only what is no line is torn; a line that does not follow the one before is
// left as it is, for Verify to find.
func (w *writer) recover() error {
	h, headErr := head{}, error(fs.ErrNotExist)
	if key := w.o.Key(); key != nil {
		h, headErr = readHead(w.o.FS, w.o.Dir, key.Public())
	} else if len(w.segments) > 0 {
		return errors.New("the device has no key to check it with")
	}
	proved, err := w.firsts(h)
	if err != nil {
		return err
	}
	found := false
	for i := len(w.segments) - 1; i >= 0 && !found; i-- {
		if found, err = w.readSegment(i); err != nil {
			return err
		}
	}
	if len(w.segments) > 0 { // what is taken over must not vanish later
		if err := w.o.FS.SyncDir(w.o.Dir); err != nil {
			return err
		}
	}
	return w.compare(h, headErr, found, proved)
}

// firsts finds where the segments begin, and whether the log has the line that the head proves.
func (w *writer) firsts(h head) (proved bool, err error) {
	with := -1 // the segment that should have it
	for i := range w.segments {
		s := &w.segments[i]
		path := filepath.Join(w.o.Dir, s.name())
		_, err := scan(w.o.FS, path, -1, func(l Line, _ []byte, _ int64) error {
			s.first = l.Seq
			return errTorn
		})
		if err != nil && !errors.Is(err, errTorn) {
			return false, err
		}
		if s.size, err = sizeOf(w.o.FS, path); err != nil {
			return false, err
		}
		if s.first != 0 && s.first <= h.Seq {
			with = i
		}
	}
	if with < 0 {
		return false, nil
	}
	_, err = scan(w.o.FS, filepath.Join(w.o.Dir, w.segments[with].name()), -1, func(l Line, raw []byte, _ int64) error {
		proved = proved || l.Seq == h.Seq && hashOf(raw).String() == h.Hash
		return nil
	})
	if errors.Is(err, errTorn) {
		err = nil
	}
	return proved, err
}

func sizeOf(fsys disk.FS, path string) (int64, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// readSegment reads segment i to its end, and notes what is torn there. It answers whether the segment has a line.
func (w *writer) readSegment(i int) (found bool, err error) {
	s := &w.segments[i]
	path := filepath.Join(w.o.Dir, s.name())
	end, err := scan(w.o.FS, path, -1, func(l Line, raw []byte, _ int64) error {
		w.last, w.lastHash = l.Seq, hashOf(raw)
		return nil
	})
	torn := errors.Is(err, errTorn)
	if err != nil && !torn {
		return false, err
	}
	s.size = end
	f, err := w.o.FS.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	if err := f.Sync(); err != nil { // a killed process may have left more than is durable
		return false, errors.Join(err, f.Close())
	}
	if torn || end == 0 {
		err := w.tornAt(*s, f, end)
		return end > 0, errors.Join(err, f.Close())
	}
	if i == len(w.segments)-1 {
		w.file = f
		return true, nil
	}
	return true, f.Close()
}

// compare holds the head against what was found, and says in the log itself what it does not prove.
func (w *writer) compare(h head, headErr error, found, proved bool) error {
	switch {
	case headErr == nil && (!proved || w.first() > h.First):
		w.pending = append(w.pending, Event{Name: eventMissing, Attrs: []slog.Attr{
			slog.Uint64("signed", h.Seq), slog.Uint64("last", w.last), slog.String("hash", w.lastHash.String()),
		}})
		if h.Seq > w.last { // no number comes twice
			_ = w.closeFile()
			w.last = h.Seq
			if _, err := hex.Decode(w.lastHash[:], []byte(h.Hash)); err != nil {
				return err
			}
		}
	case headErr != nil && found:
		why := headErr.Error()
		if errors.Is(headErr, fs.ErrNotExist) {
			why = "there is none by the device's key"
		}
		w.pending = append(w.pending, Event{Name: eventHeadLost, Attrs: []slog.Attr{slog.Uint64("last", w.last), slog.String("err", why)}})
	}
	if headErr == nil && proved && w.last > h.Seq {
		w.pending = append(w.pending, Event{Name: eventUnsigned, Attrs: []slog.Attr{slog.Uint64("from", h.Seq+1), slog.Uint64("to", w.last)}})
	}
	w.begins = w.first()
	if headErr == nil {
		w.begins = h.First
		w.head, w.headKey = h, thumbprintOf(w.o.Key().Public())
	}
	return nil
}

// tornAt notes what follows the last whole line of a segment.
func (w *writer) tornAt(s segment, f disk.File, end int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	digest := sha256.New()
	bytes, err := io.Copy(digest, io.NewSectionReader(f, end, max(0, info.Size()-end)))
	if err != nil {
		return err
	}
	w.tear(s, end, bytes, hex.EncodeToString(digest.Sum(nil)))
	return nil
}
