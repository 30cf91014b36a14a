package outbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"ferrule/internal/record"
)

// A segment file is a log of records (internal/record) seeded with a random number that is part of the
// file's name: a header, entries, and a footer once it takes no more. A block of a deleted
// segment that surfaces in a new one is therefore no entry. The first byte of a record's payload is
// its kind:
//
//	header 1: uvarint boot, made (Unix ms), replaces (segment number; 0: none), copied, version
//	entry  2: uvarint boot, seq, taken, len(line), line, len(topic), topic, payload
//	footer 3: uint32 entries
//
// The header of a segment of before there were lanes has no version, 0. What it calls taken is the time by a
// clock that nobody may have vouched for, and counts as unknown; from version 1 on it is a stamp, see
// stampFrom. A program of before reads such a segment well.
//
// A segment that replaces others holds all they still owed in its first copied entries. Only when
// all of these can be read do the others not count; see dropReplaced.
const (
	kindHeader = 1
	kindEntry  = 2
	kindFooter = 3

	stamped = 1 // the version from which entries have stamps

	footerSize = record.HeaderSize + 5
)

var errFormat = errors.New("record is not of a known form")

// segment is one file of the log. Its counters are guarded by lane.mu.
type segment struct {
	number, nonce uint64
	path          string
	made          time.Time

	size    int64 // synced bytes
	first   int64 // where entries begin, found by recover; 0: it has no header
	records int   // entries in them
	read    int   // of these, how many the cursor has passed
	loaded  int   // of those, how many are in lane.front
	damaged bool  // something in it could not be read: it is kept as .bad
	counted bool  // the damage has been counted
	// lostFrom is where entries begin that when_full gave up unread; -1: none.
	lostFrom int64
	// skip: entries up to this one are elsewhere too, and are not taken from here.
	skip skip
	// replaces and copied as in the header.
	replaces uint64
	copied   int
	stamped  bool
	// from is the number of its first entry, where this boot has written it; else 0.
	from uint64
}

// skip names the entries of one boot up to a seq.
type skip struct{ boot, seq uint64 }

func (s skip) covers(e *entry) bool { return e.boot == s.boot && e.seq <= s.seq }

func segmentName(number, nonce uint64) string {
	return fmt.Sprintf("%016x-%016x.log", number, nonce)
}

// parseSegmentName returns false for a file that is no segment.
func parseSegmentName(name string) (number, nonce uint64, ok bool) {
	n, err := fmt.Sscanf(name, "%016x-%016x.log", &number, &nonce)
	return number, nonce, err == nil && n == 2 && name == segmentName(number, nonce)
}

func (s *segment) seed() record.Seed { return record.NewSeed(s.nonce) }

// alloc is what the segment takes from the disk, in whole blocks.
func (s *segment) alloc() int64 { return blocks(s.size) }

// owes reports whether an entry of the segment is neither acknowledged nor given up.
func (s *segment) owes() bool { return s.read < s.records || s.loaded > 0 }

const block = 4096

func blocks(size int64) int64 { return (size + block - 1) / block * block }

func (s *segment) appendHeader(dst []byte, boot uint64) []byte {
	start := len(dst)
	dst = append(record.Begin(dst), kindHeader)
	dst = binary.AppendUvarint(dst, boot)
	dst = binary.AppendUvarint(dst, unixMilli(s.made))
	dst = binary.AppendUvarint(dst, s.replaces)
	dst = binary.AppendUvarint(dst, uint64(s.copied))
	dst = binary.AppendUvarint(dst, stamped)
	s.seed().Seal(dst, start)
	return dst
}

func (s *segment) parseHeader(payload []byte) (boot uint64, err error) {
	d := fields{b: payload[1:]}
	boot, made := d.uvarint(), d.uvarint()
	replaces, copied := d.uvarint(), d.uvarint()
	s.stamped = len(d.b) > 0 && d.uvarint() >= stamped
	if d.err != nil {
		return 0, d.err
	}
	s.made, s.replaces, s.copied = time.UnixMilli(int64(made)), replaces, int(copied)
	return boot, nil
}

func (s *segment) appendFooter(dst []byte, entries int) []byte {
	start := len(dst)
	dst = append(record.Begin(dst), kindFooter)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(entries))
	s.seed().Seal(dst, start)
	return dst
}

// parseFooter returns the number of entries, -1 where the record is no footer.
func parseFooter(payload []byte) int {
	if len(payload) != 5 || payload[0] != kindFooter {
		return -1
	}
	return int(binary.LittleEndian.Uint32(payload[1:]))
}

// appendEntry adds e to dst as a record of the segment.
func (s *segment) appendEntry(dst []byte, e *entry) []byte {
	start := len(dst)
	dst = append(record.Begin(dst), kindEntry)
	dst = binary.AppendUvarint(dst, e.boot)
	dst = binary.AppendUvarint(dst, e.seq)
	dst = binary.AppendUvarint(dst, e.stamp)
	dst = binary.AppendUvarint(dst, uint64(len(e.line)))
	dst = append(dst, e.line...)
	dst = binary.AppendUvarint(dst, uint64(len(e.topic)))
	dst = append(dst, e.topic...)
	dst = append(dst, e.payload...)
	s.seed().Seal(dst, start)
	return dst
}

// recordSize is the length of e as a record, in bytes.
func (e *entry) recordSize() int {
	return record.HeaderSize + 1 + uvarintLen(e.boot) + uvarintLen(e.seq) + uvarintLen(e.stamp) +
		uvarintLen(uint64(len(e.line))) + len(e.line) + uvarintLen(uint64(len(e.topic))) + len(e.topic) + len(e.payload)
}

// parseEntry decodes a record; topic and line come from names, the payload is not copied.
func parseEntry(payload []byte, names *intern) (entry, error) {
	d := fields{b: payload[1:]}
	e := entry{boot: d.uvarint(), seq: d.uvarint(), stamp: d.uvarint()}
	e.line, e.topic = names.string(d.bytes()), names.string(d.bytes())
	e.payload = d.b
	return e, d.err
}

// decoder turns the records of one segment into entries.
type decoder struct {
	names   intern
	last    skip
	stamped bool // as the segment is
}

// entry decodes a record; ok is false where it is another kind. A number that does not rise is of a
// block in the wrong place.
func (d *decoder) entry(rec record.Record) (e entry, ok bool, err error) {
	if rec.Payload[0] != kindEntry {
		return e, false, nil
	}
	if e, err = parseEntry(rec.Payload, &d.names); err != nil || d.last.covers(&e) {
		return e, false, errFormat
	}
	if !d.stamped {
		e.stamp = 0
	}
	d.last = skip{boot: e.boot, seq: e.seq}
	e.off, e.size = rec.Offset, int(rec.End()-rec.Offset)
	return e, true, nil
}

// fields takes apart a record's payload; the first thing missing makes err and empties the rest.
type fields struct {
	b   []byte
	err error
}

func (d *fields) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b, d.err = nil, errFormat
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *fields) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.b, d.err = nil, errFormat
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// unixMilli is 0 for times before 1970, which a gateway without a clock has.
func unixMilli(t time.Time) uint64 { return uint64(max(0, t.UnixMilli())) }

// intern gives equal strings one memory: there are as many topics as units, and millions of entries.
type intern struct{ known map[string]string }

func (n *intern) string(b []byte) string {
	if s, ok := n.known[string(b)]; ok {
		return s
	}
	if n.known == nil || len(n.known) >= 1024 {
		n.known = map[string]string{}
	}
	s := string(b)
	n.known[s] = s
	return s
}
