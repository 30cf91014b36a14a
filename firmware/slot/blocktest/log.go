// Package blocktest is a block device in memory with a volatile write-back cache, and a reader of
// the logs of writes that dm-log-writes and QEMU's blklogwrites leave; both rebuild every disk
// that a power cut may leave. The trap: what a process wrote before it was killed is all there,
// so killing it says nothing about a power cut, which loses and tears what was not flushed.
package blocktest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
)

// Sector is what a medium writes wholly or not at all, in bytes.
const Sector = 512

// ErrFormat: a log is no log of dm-log-writes.
var ErrFormat = errors.New("not a log of dm-log-writes, version 1")

// entry is one request of a log. Sectors are of 512 bytes, whatever the log counts in.
type entry struct {
	sector, sectors int64
	flush           bool // what was written before is durable, before this is written
	fua             bool // durable when it is done
	zero            bool // discarded: reads as zeros
	lost            bool // a flush that failed came after it: no later one vouches for it
	mark            any
	off             int64  // of the data in the log
	data            []byte // instead of off, where the log is in memory
}

func (e *entry) end() int64 { return e.sector + e.sectors }

func (e *entry) String() string {
	switch {
	case e.mark != nil:
		return fmt.Sprintf("mark %v", e.mark)
	case e.sectors == 0:
		return "flush"
	}
	verb := "write"
	if e.zero {
		verb = "discard"
	}
	return fmt.Sprintf("%s of %d sectors at %d", verb, e.sectors, e.sector)
}

// Log is what was written to a disk, in order.
type Log struct {
	src     io.ReaderAt
	entries []*entry
}

// Entries is how many requests there are.
func (l *Log) Entries() int { return len(l.entries) }

// Written is how many sectors were written or discarded.
func (l *Log) Written() (sectors int64) {
	for _, e := range l.entries {
		sectors += e.sectors
	}
	return sectors
}

// Entry describes a request, counted from 0.
func (l *Log) Entry(i int) string { return l.entries[i].String() }

// The flags of an entry, and the first sector of a log: magic, version, number of entries and
// bytes of a sector (drivers/md/dm-log-writes.c).
const (
	magic       = 0x6a736677736872
	flagFlush   = 1
	flagFUA     = 2
	flagDiscard = 4
	flagMark    = 8
	maxEntries  = 1 << 24
)

// OpenLog reads the entries of a log; r must stay open while states are read. What was logged
// after the last flush may be missing: QEMU counts entries in the first sector only then.
func OpenLog(r io.ReaderAt) (*Log, error) {
	var head [28]byte
	if err := readFull(r, head[:], 0); err != nil {
		return nil, fmt.Errorf("reading the first sector of a log: %w", err)
	}
	word := binary.LittleEndian.Uint64
	unit := int64(binary.LittleEndian.Uint32(head[24:]))
	n := word(head[16:])
	if word(head[:]) != magic || word(head[8:]) != 1 || unit < Sector || unit > 1<<16 || unit%Sector != 0 || n > maxEntries {
		return nil, ErrFormat
	}
	l := &Log{src: r}
	at := unit
	for i := range n {
		e, size, err := readEntry(r, at, unit)
		if err != nil {
			return nil, fmt.Errorf("reading entry %d of %d of a log: %w", i, n, err)
		}
		l.entries = append(l.entries, e)
		at += size
	}
	return l, nil
}

// readEntry returns the entry at an offset, and how many bytes it takes up with its data.
func readEntry(r io.ReaderAt, at, unit int64) (*entry, int64, error) {
	var raw [32]byte
	if err := readFull(r, raw[:], at); err != nil {
		return nil, 0, err
	}
	word := binary.LittleEndian.Uint64
	sector, sectors, flags, length := word(raw[:]), word(raw[8:]), word(raw[16:]), word(raw[24:])
	if limit := uint64(1) << 40; sector > limit || sectors > limit || length > limit {
		return nil, 0, fmt.Errorf("%w: sector %d, %d sectors, %d bytes", ErrFormat, sector, sectors, length)
	}
	e := &entry{
		sector: int64(sector) * (unit / Sector), sectors: int64(sectors) * (unit / Sector), off: at + unit,
		flush: flags&flagFlush != 0, fua: flags&flagFUA != 0, zero: flags&flagDiscard != 0,
	}
	size := unit + (int64(length)+unit-1)/unit*unit
	switch {
	case flags&flagMark != 0:
		text := make([]byte, min(length, 256))
		if err := readFull(r, text, e.off); err != nil {
			return nil, 0, err
		}
		e.mark, e.sectors = string(text), 0
	case e.zero:
		size = unit // a discard says how much, and brings nothing
	case length != 0 && int64(length) != e.sectors*Sector:
		return nil, 0, fmt.Errorf("%w: %d sectors and %d bytes", ErrFormat, e.sectors, length)
	default:
		// The length is that of a mark; of a write, kernel and QEMU leave it 0.
		size = unit + e.sectors*Sector
		if e.sectors > 0 {
			if err := readFull(r, raw[:1], e.off+e.sectors*Sector-1); err != nil {
				return nil, 0, err
			}
		}
	}
	return e, size, nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Options bounds the states of each cut. The zero value of a bound is its default.
type Options struct {
	Base io.ReaderAt // the disk before the log; nil: zeros
	Size int64       // of the disk, in bytes
	From int         // the first request to cut at, counted from 0
	To   int         // the last but one; 0: all
	// Exhaustive: where no more sectors than this wait, every choice of them is a state (5).
	Exhaustive int
	Singles    int // how many of the writes that wait are left out, and kept, one at a time (6)
	Tears      int // at how many sectors the last write is torn (8)
	Mixtures   int // how many random choices of sectors (4)
}

func (o Options) filled(entries int) Options {
	set := func(n *int, to int) {
		if *n == 0 {
			*n = to
		}
	}
	set(&o.To, entries)
	set(&o.Exhaustive, 5)
	set(&o.Singles, 6)
	set(&o.Tears, 8)
	set(&o.Mixtures, 4)
	return o
}

// States yields every disk that a power cut may leave: after each request, with what was flushed,
// and of what was not: all, nothing, all but one, one, a torn last one, and mixtures by sectors.
// The same ones in every run. A choice without the last request was a state of an earlier cut, and does not
// come again. A State is good until the next one; Keep it for longer.
func (l *Log) States(o Options) iter.Seq[*State] {
	o = o.filled(len(l.entries))
	return func(yield func(*State) bool) {
		w := &walker{log: l, o: o, yield: yield, durable: make([]int32, (o.Size+Sector-1)/Sector)}
		if o.From == 0 && !w.emit(-1, "nothing written", nil) {
			return
		}
		for i := range l.entries {
			w.step(i)
			if i >= o.To || i >= o.From && !w.cut(i) {
				return
			}
		}
	}
}

// piece is a run of sectors of one request.
type piece struct {
	index    int // of the entry
	from, to int64
}

type walker struct {
	log     *Log
	o       Options
	yield   func(*State) bool
	durable []int32 // by sector: the request that it is of, counted from 1
	pending []piece // whole requests
	marks   []any
}

// step makes durable what request i flushes, and has the rest wait.
func (w *walker) step(i int) {
	e := w.log.entries[i]
	if e.flush {
		var lost []piece
		for _, p := range w.pending {
			if w.log.entries[p.index].lost {
				lost = append(lost, p)
				continue
			}
			overlay(w.durable, 0, p)
		}
		w.pending = lost
	}
	whole := piece{i, e.sector, min(e.end(), int64(len(w.durable)))}
	switch {
	case e.mark != nil:
		w.marks = append(w.marks, e.mark)
	case e.fua && e.sectors > 0:
		overlay(w.durable, 0, whole)
	case whole.from < whole.to:
		w.pending = append(w.pending, whole)
	}
}

// overlay puts a piece over what an older request wrote; owners[0] is of sector first.
func overlay(owners []int32, first int64, p piece) {
	for s := max(p.from, first); s < min(p.to, first+int64(len(owners))); s++ {
		owners[s-first] = max(owners[s-first], int32(p.index)+1)
	}
}

func (w *walker) emit(i int, how string, pieces []piece) bool {
	what := "before anything"
	if i >= 0 {
		what = fmt.Sprintf("after request %d (%v)", i, w.log.entries[i])
	}
	return w.yield(&State{log: w.log, o: w.o, cut: i, what: what + ": " + how, durable: w.durable, pieces: pieces, marks: w.marks})
}

func (w *walker) cut(i int) bool {
	e := w.log.entries[i]
	if e.fua || e.sectors == 0 {
		// The request left nothing behind that waits; what a mark promises must hold without the rest.
		return w.emit(i, "all written", w.pending) && (len(w.pending) == 0 ||
			w.emit(i, "nothing that waits", nil) && w.singles(i, nil, w.pending) && w.mixtures(i))
	}
	total := int64(0)
	for _, p := range w.pending {
		total += p.to - p.from
	}
	if n := len(w.pending); n == 0 || w.pending[n-1].index != i {
		return w.emit(i, "all written", w.pending)
	}
	if total <= int64(w.o.Exhaustive) {
		return w.subsets(i)
	}
	last, rest := w.pending[len(w.pending)-1], w.pending[:len(w.pending)-1]
	ok := w.emit(i, "all written", w.pending)
	if len(rest) > 0 {
		ok = ok && w.emit(i, "nothing else that waits", []piece{last}) && w.singles(i, []piece{last}, rest)
	}
	return ok && w.torn(i, last, rest) && w.mixtures(i)
}

// subsets is every choice of the sectors that wait, with at least one of the last request.
func (w *walker) subsets(i int) bool {
	var sectors []piece
	for _, p := range w.pending {
		for s := p.from; s < p.to; s++ {
			sectors = append(sectors, piece{p.index, s, s + 1})
		}
	}
	for mask := 1; mask < 1<<len(sectors); mask++ {
		var chosen []piece
		for bit, s := range sectors {
			if mask>>bit&1 == 1 {
				chosen = append(chosen, s)
			}
		}
		if chosen[len(chosen)-1].index == i && !w.emit(i, fmt.Sprintf("choice %b of %d sectors", mask, len(sectors)), chosen) {
			return false
		}
	}
	return true
}

// singles leaves one of the last requests out, and keeps one alone, each time with extra.
func (w *walker) singles(i int, extra, rest []piece) bool {
	for k := max(0, len(rest)-w.o.Singles); k < len(rest); k++ {
		without := append(append(append([]piece(nil), rest[:k]...), rest[k+1:]...), extra...)
		only := append([]piece{rest[k]}, extra...)
		name := w.log.entries[rest[k].index]
		if !w.emit(i, fmt.Sprintf("without the %v", name), without) {
			return false
		}
		if len(rest) > 1 && !w.emit(i, fmt.Sprintf("of the others only the %v", name), only) {
			return false
		}
	}
	return true
}

// torn writes the head, the tail, or all but one sector of the last request.
func (w *walker) torn(i int, last piece, rest []piece) bool {
	n := last.to - last.from
	step := max(1, (n+int64(w.o.Tears))/int64(w.o.Tears+1))
	for k := step; k < n; k += step {
		at := last.from + k
		head, tail := piece{i, last.from, at}, piece{i, at, last.to}
		hole := []piece{{i, last.from, at - 1}, tail}
		for j, pieces := range [][]piece{{head}, {tail}, hole} {
			how := fmt.Sprintf("torn after %d sectors: %s", k, [...]string{"head", "tail", "hole"}[j])
			if !w.emit(i, how, with(rest, pieces)) || len(rest) > 0 && !w.emit(i, how+", nothing else that waits", pieces) {
				return false
			}
		}
	}
	return true
}

func with(rest, more []piece) []piece {
	return append(append(make([]piece, 0, len(rest)+len(more)), rest...), more...)
}

// mixtures writes random runs of sectors of all that waits.
func (w *walker) mixtures(i int) bool {
	rng := rand.New(rand.NewPCG(uint64(i), 1))
	for k := range w.o.Mixtures {
		var chosen []piece
		for _, p := range w.pending {
			run := max(1, (p.to-p.from)/32) // long requests in 32 runs, short ones sector by sector
			for s := p.from; s < p.to; s += run {
				if rng.IntN(2) == 0 {
					chosen = append(chosen, piece{p.index, s, min(s+run, p.to)})
				}
			}
		}
		if !w.emit(i, fmt.Sprintf("mixture %d", k), chosen) {
			return false
		}
	}
	return true
}
