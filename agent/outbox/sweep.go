package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/record"
)

// badSuffix ends the name of a segment that is kept because something in it could not be read.
const badSuffix = ".bad"

type badFile struct {
	path string
	size int64
}

// sweepAll removes before something is written what made room for it, in the other lane too.
func (l *lane) sweepAll() {
	l.sweep()
	if l == l.normal {
		return
	}
	l.mu.Lock()
	owed := len(l.normal.dead) > 0
	l.mu.Unlock()
	if owed {
		l.normal.diskMu.Lock()
		defer l.normal.diskMu.Unlock()
		l.normal.sweep()
	}
}

// sweep removes the segments that owe nothing; a damaged one is set aside.
func (l *lane) sweep() {
	l.mu.Lock()
	dead := l.dead
	l.dead = nil
	trouble := l.problems[removing].err != nil
	l.mu.Unlock()
	if len(dead) == 0 && !trouble {
		return
	}
	var failed error
	for i, s := range dead {
		if err := l.dispose(s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = fmt.Errorf("removing a segment: %w", err)
			l.mu.Lock()
			l.dead = append(l.dead, dead[i:]...)
			l.mu.Unlock()
			break
		}
	}
	l.report(removing, failed)
}

func (l *lane) dispose(s *segment) error {
	if l.writer.seg == s {
		_ = l.writer.closeSegment()
	}
	if s.lostFrom >= 0 {
		l.nameLost(s)
	}
	if !s.damaged {
		return l.fsys.Remove(s.path)
	}
	err := l.setBad(s)
	if err == nil {
		l.report(reading, nil) // it is no longer in the way
	}
	return err
}

// nameLost finds out which numbers were in a segment that was given up unread.
func (l *lane) nameLost(s *segment) {
	entries, _ := l.scan(s, s.lostFrom, s.size)
	s.lostFrom = -1
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := 0; i < len(entries); {
		r := Range{Boot: entries[i].boot, From: entries[i].seq, To: entries[i].seq}
		for i++; i < len(entries) && entries[i].boot == r.Boot && entries[i].seq == r.To+1; i++ {
			r.To++
		}
		l.dropped.add(r)
	}
}

// setBad keeps a damaged segment, the newest four segments' worth.
func (l *lane) setBad(s *segment) error {
	w, limit := &l.writer, 4*l.segmentLimit
	if s.alloc() > limit {
		return l.fsys.Remove(s.path)
	}
	if err := l.fsys.Rename(s.path, s.path+badSuffix); err != nil {
		return err
	}
	w.bad = append(w.bad, badFile{path: s.path + badSuffix, size: s.alloc()})
	return l.trimBad(limit)
}

func (l *lane) trimBad(limit int64) error {
	w := &l.writer
	var total int64
	for _, b := range w.bad {
		total += b.size
	}
	var err error
	for len(w.bad) > 0 && total > limit && err == nil {
		if err = l.fsys.Remove(w.bad[0].path); err == nil || errors.Is(err, fs.ErrNotExist) {
			total -= w.bad[0].size
			w.bad, err = w.bad[1:], nil
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.badBytes = total
	return err
}

// place is the file that says up to where the log is acknowledged, so that a restart sends little
// again. It is written at most every tick, and never synced: what a power cut makes of it costs duplicates
// only. It names a segment by its random number, so an old place never covers a new segment. Two
// slots are written in turn; of those that can be read and name a segment, the later holds.
type place struct {
	file  disk.File
	slot  int64
	saved position
	at    time.Time
}

const (
	placeName  = "acked"
	placeSlot  = 512
	placeBytes = 1 + 3*8
	kindPlace  = 4
)

var placeSeed = record.NewSeed(kindPlace)

func (p *place) close() error {
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}

// acked returns up to where everything on disk is acknowledged.
func (l *lane) acked() (p position, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(l.segments) == 0:
		return p, false
	case l.front.n > 0 && l.front.at(0).seg != nil:
		e := l.front.at(0)
		return position{seg: e.seg, off: e.off}, true
	case l.unread > 0:
		return l.cursor, true
	}
	last := l.segments[len(l.segments)-1]
	return position{seg: last, off: last.size}, true
}

func (l *lane) savePlace(now bool) {
	w := &l.writer
	p, ok := l.acked()
	if !ok || p == w.place.saved || p.off <= headerRoom && p.seg != w.place.saved.seg || !now && time.Since(w.place.at) < tick {
		return
	}
	if w.place.file == nil {
		f, err := l.fsys.OpenFile(l.path(placeName), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return // costs duplicates; the disk's trouble shows elsewhere
		}
		w.place.file = f
	}
	payload := append(make([]byte, 0, placeBytes), kindPlace)
	for _, v := range []uint64{p.seg.number, p.seg.nonce, uint64(p.off)} {
		payload = binary.LittleEndian.AppendUint64(payload, v)
	}
	n, _ := w.place.file.WriteAt(placeSeed.Append(nil, payload), w.place.slot*placeSlot)
	l.count(int64(n))
	w.place.slot ^= 1
	w.place.saved, w.place.at = p, time.Now()
}

// savedPlace is what a slot says.
type savedPlace struct {
	number, nonce uint64
	off           int64
}

// readPlaces returns what the slots say that can be read.
func (l *lane) readPlaces() (places []savedPlace) {
	data, err := disk.ReadFile(l.fsys, l.path(placeName), 2*placeSlot)
	if err != nil {
		return nil
	}
	for _, slot := range [...]int{0, placeSlot} {
		end := slot + record.HeaderSize + placeBytes
		if end > len(data) {
			break
		}
		rec, err := record.NewReader(bytes.NewReader(data), int64(slot), int64(end), placeSeed, placeBytes).Next()
		if err != nil || rec.Damaged != 0 || len(rec.Payload) != placeBytes || rec.Payload[0] != kindPlace {
			continue
		}
		v := rec.Payload[1:]
		places = append(places, savedPlace{
			number: binary.LittleEndian.Uint64(v), nonce: binary.LittleEndian.Uint64(v[8:]),
			off: int64(binary.LittleEndian.Uint64(v[16:])),
		})
	}
	return places
}
