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

// sweep removes the segments that owe nothing; a damaged one is set aside.
func (o *Outbox) sweep() {
	o.mu.Lock()
	dead := o.dead
	o.dead = nil
	trouble := o.problems[removing].err != nil
	o.mu.Unlock()
	if len(dead) == 0 && !trouble {
		return
	}
	var failed error
	for i, s := range dead {
		if err := o.dispose(s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = fmt.Errorf("removing a segment: %w", err)
			o.mu.Lock()
			o.dead = append(o.dead, dead[i:]...)
			o.mu.Unlock()
			break
		}
	}
	o.report(removing, failed)
}

func (o *Outbox) dispose(s *segment) error {
	if o.writer.seg == s {
		_ = o.writer.closeSegment()
	}
	if s.lostFrom >= 0 {
		o.nameLost(s)
	}
	if !s.damaged {
		return o.fsys.Remove(s.path)
	}
	err := o.setBad(s)
	if err == nil {
		o.report(reading, nil) // it is no longer in the way
	}
	return err
}

// nameLost finds out which numbers were in a segment that was given up unread.
func (o *Outbox) nameLost(s *segment) {
	entries, _ := o.scan(s, s.lostFrom, s.size)
	s.lostFrom = -1
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := 0; i < len(entries); {
		r := Range{Boot: entries[i].boot, From: entries[i].seq, To: entries[i].seq}
		for i++; i < len(entries) && entries[i].boot == r.Boot && entries[i].seq == r.To+1; i++ {
			r.To++
		}
		o.name(r)
	}
}

// setBad keeps a damaged segment, the newest four segments' worth.
func (o *Outbox) setBad(s *segment) error {
	w, limit := &o.writer, 4*o.segmentLimit
	if s.alloc() > limit {
		return o.fsys.Remove(s.path)
	}
	if err := o.fsys.Rename(s.path, s.path+badSuffix); err != nil {
		return err
	}
	w.bad = append(w.bad, badFile{path: s.path + badSuffix, size: s.alloc()})
	return o.trimBad(limit)
}

func (o *Outbox) trimBad(limit int64) error {
	w := &o.writer
	var total int64
	for _, b := range w.bad {
		total += b.size
	}
	var err error
	for len(w.bad) > 0 && total > limit && err == nil {
		if err = o.fsys.Remove(w.bad[0].path); err == nil || errors.Is(err, fs.ErrNotExist) {
			total -= w.bad[0].size
			w.bad, err = w.bad[1:], nil
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.badBytes = total
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
func (o *Outbox) acked() (p position, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case len(o.segments) == 0:
		return p, false
	case o.front.n > 0 && o.front.at(0).seg != nil:
		e := o.front.at(0)
		return position{seg: e.seg, off: e.off}, true
	case o.unread > 0:
		return o.cursor, true
	}
	last := o.segments[len(o.segments)-1]
	return position{seg: last, off: last.size}, true
}

func (o *Outbox) savePlace(now bool) {
	w := &o.writer
	p, ok := o.acked()
	if !ok || p == w.place.saved || p.off <= headerRoom && p.seg != w.place.saved.seg || !now && time.Since(w.place.at) < tick {
		return
	}
	if w.place.file == nil {
		f, err := o.fsys.OpenFile(o.path(placeName), os.O_RDWR|os.O_CREATE, 0o600)
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
	o.count(int64(n))
	w.place.slot ^= 1
	w.place.saved, w.place.at = p, time.Now()
}

// savedPlace is what a slot says.
type savedPlace struct {
	number, nonce uint64
	off           int64
}

// readPlaces returns what the slots say that can be read.
func (o *Outbox) readPlaces() (places []savedPlace) {
	data, err := disk.ReadFile(o.fsys, o.path(placeName), 2*placeSlot)
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
