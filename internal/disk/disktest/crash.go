package disktest

import (
	"fmt"
	"hash/maphash"
	"iter"
	"math/rand/v2"
	"slices"
)

const (
	sector = 512
	// The most variants of one kind at one cut.
	singles, tears, mixtures = 6, 6, 4
)

// waiting is a change that no sync has made durable. After a failed sync it stays lost for
// ever: it may or may not be there, and no later sync vouches for it. One that is certain waits
// only for its turn behind such a change.
type waiting struct {
	*event
	certain, lost bool
}

// object is what a change belongs to: the inode whose content, or the folder whose names it changes.
func (w *waiting) object() int {
	if w.names() {
		return -w.dir
	}
	return w.node
}

func (w *waiting) names() bool { return w.kind != Write && w.kind != Truncate }

// CrashStates yields every disk that a power cut may leave, after every prefix of what was done
// since this disk was made, with a description of the cut. Bounded per cut, the same in every run,
// and no two with the same content and marks. Each state is a disk of its own.
func (d *Disk) CrashStates() iter.Seq2[string, *Disk] {
	history, base := d.recorded()
	return func(yield func(string, *Disk) bool) {
		c := &cutter{base: base.clone(), marks: slices.Clone(d.before), seen: map[[2]uint64]bool{}, seed: maphash.MakeSeed(), yield: yield}
		c.rng = rand.New(rand.NewPCG(1, uint64(len(history))))
		if !c.cut("before anything") {
			return
		}
		for i, e := range history {
			c.step(e)
			// What stands between two changes is cut before the first mark and after the last.
			if e.kind == mark && i+1 < len(history) && history[i+1].kind == mark {
				continue
			}
			if !c.cut(fmt.Sprintf("after step %d (%v)", i, e)) {
				return
			}
		}
	}
}

// PowerCut returns the barest disk that a power cut leaves now: only what was synced.
func (d *Disk) PowerCut() *Disk {
	history, base := d.recorded()
	c := &cutter{base: base}
	for _, e := range history {
		c.step(e)
	}
	for _, e := range c.choose(func(int, *waiting) bool { return false }) {
		base.apply(e)
	}
	return from(base, d.Marks())
}

func (d *Disk) recorded() ([]*event, *image) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.history), d.origin.clone()
}

// cutter walks a history, keeping what is durable apart from what waits.
type cutter struct {
	base    *image
	pending []*waiting
	marks   []any
	seen    map[[2]uint64]bool
	seed    maphash.Seed
	rng     *rand.Rand
	yield   func(string, *Disk) bool
}

func (c *cutter) step(e *event) {
	switch e.kind {
	case mark:
		c.marks = append(c.marks, e.mark)
	case Sync:
		c.sync(e, e.node)
	case SyncDir:
		c.sync(e, -e.node)
	default:
		c.pending = append(c.pending, &waiting{event: e})
	}
}

// sync settles the changes of one object, and folds into base what nothing uncertain precedes.
func (c *cutter) sync(e *event, object int) {
	uncertain := map[int]bool{}
	c.pending = slices.DeleteFunc(c.pending, func(w *waiting) bool {
		if w.object() == object || w.kind == Rename && -w.toDir == object {
			// Names are in the file system's own journal: a later sync can vouch for them.
			w.lost = w.lost || e.failed && !w.names()
			w.certain = w.certain || !w.lost && !e.failed
		}
		if !w.certain || uncertain[w.object()] {
			uncertain[w.object()] = true
			return false
		}
		c.base.apply(w.event)
		return true
	})
}

func (c *cutter) cut(where string) bool {
	for how, events := range c.variants() {
		im := c.base.clone()
		for _, e := range events {
			im.apply(e)
		}
		key := [2]uint64{im.sum(c.seed), uint64(len(c.marks))}
		if c.seen[key] {
			continue
		}
		c.seen[key] = true
		if !c.yield(where+", "+how, from(im, slices.Clone(c.marks))) {
			return false
		}
	}
	return true
}

// variants yields which of the waiting changes reached the disk.
func (c *cutter) variants() iter.Seq2[string, []*event] {
	return func(yield func(string, []*event) bool) {
		n := len(c.pending)
		pick := func(how string, keep func(i int, w *waiting) bool) bool {
			return yield(how, c.choose(keep))
		}
		ok := pick("all written", func(int, *waiting) bool { return true }) &&
			pick("nothing written", func(int, *waiting) bool { return false })
		if !ok || n == 0 {
			return
		}
		ok = pick("content without names", func(_ int, w *waiting) bool { return !w.names() }) &&
			pick("names without content", func(_ int, w *waiting) bool { return w.names() }) &&
			yield("sizes without content", c.filled(0)) &&
			yield("sizes with rubbish", c.filled(1))
		for i := max(0, n-singles); ok && i < n; i++ {
			ok = pick(fmt.Sprintf("without (%v)", c.pending[i]), func(j int, _ *waiting) bool { return j != i }) &&
				pick(fmt.Sprintf("only (%v)", c.pending[i]), func(j int, _ *waiting) bool { return j == i })
		}
		if !ok || !c.torn(yield) {
			return
		}
		for i := 0; ok && i < mixtures; i++ {
			ok = yield(fmt.Sprintf("mixture %d", i), c.mixture())
		}
	}
}

func (c *cutter) choose(keep func(i int, w *waiting) bool) []*event {
	var events []*event
	for i, w := range c.pending {
		if w.certain || keep(i, w) {
			events = append(events, w.event)
		}
	}
	return events
}

// filled keeps all names and sizes, with zeros or rubbish where the content should be.
func (c *cutter) filled(kind int) []*event {
	var events []*event
	for _, w := range c.pending {
		if w.kind == Write && !w.certain {
			e := *w.event
			e.data = make([]byte, len(w.data))
			for i := range e.data {
				e.data[i] = byte(kind * (i*i*31 + i*7 + 0x5A))
			}
			events = append(events, &e)
			continue
		}
		events = append(events, w.event)
	}
	return events
}

// torn cuts the last waiting write at sector borders: a prefix, a suffix, and a sector missing.
func (c *cutter) torn(yield func(string, []*event) bool) bool {
	last := -1
	for i, w := range c.pending {
		if w.kind == Write && !w.certain {
			last = i
		}
	}
	if last < 0 {
		return true
	}
	parts := sectors(c.pending[last].event)
	before := c.choose(func(i int, _ *waiting) bool { return i < last })
	step := max(1, len(parts)/tears)
	for i := step; i < len(parts); i += step {
		hole := slices.Delete(slices.Clone(parts), i-1, i)
		how := fmt.Sprintf("(%v) torn at %d: ", c.pending[last], parts[i].off)
		if !yield(how+"head", slices.Concat(before, parts[:i])) ||
			!yield(how+"tail", slices.Concat(before, parts[i:])) ||
			!yield(how+"hole", slices.Concat(before, hole)) {
			return false
		}
	}
	return true
}

// mixture keeps a random choice of changes and of sectors.
func (c *cutter) mixture() []*event {
	var events []*event
	for _, w := range c.pending {
		switch {
		case w.certain || w.kind != Write && c.rng.IntN(2) == 0:
			events = append(events, w.event)
		case w.kind == Write:
			for _, part := range sectors(w.event) {
				if c.rng.IntN(2) == 0 {
					events = append(events, part)
				}
			}
		}
	}
	return events
}

// sectors splits a write where a disk may.
func sectors(e *event) []*event {
	var parts []*event
	for off := e.off; off < e.off+int64(len(e.data)); {
		end := min(off-off%sector+sector, e.off+int64(len(e.data)))
		part := *e
		part.off, part.data = off, e.data[off-e.off:end-e.off]
		parts = append(parts, &part)
		off = end
	}
	return parts
}
