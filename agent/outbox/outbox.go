// Package outbox is a bounded, crash-safe queue of entries waiting for the broker. An entry
// acknowledged before its sync is due never touches the flash: in a healthy session nothing is
// written at all. Its sync is due when it, or an entry before it, gets as old as Config.Sync, less the
// time a sync takes; all that waits is then written together.
//
// Entries stand in one order, in three places:
//
//	front: in memory, handed out or next to be │ log: on disk only │ tail: in memory only, not handed out
//
// Acknowledgements take from front; what is due goes from tail (and from the end of front, where it
// stays loaded) to the log; Next loads front from the log, or from tail where the log is empty.
package outbox

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"ferrule/internal/disk"
)

// ErrClosed: the outbox was closed.
var ErrClosed = errors.New("outbox is closed")

const (
	// memoryLimit bounds the entries that are on no disk, in bytes.
	memoryLimit = 16 << 20
	// arena is how much room for payloads is made at a time, in bytes.
	arena = 16 << 10
)

// Entry is one poll of one unit, encoded. Payload is never changed.
type Entry struct {
	// ID is for Ack and SetAside. It rises in the order of handing out; an entry that is handed out again
	// after a Rewind has another one where an urgent entry has overtaken it. Boot and Seq stay.
	ID        uint64
	Boot, Seq uint64
	Line      string
	Topic     string
	Payload   []byte
}

// Outbox is the queue. It is safe for concurrent use.
//
// diskMu is held while files are written, renamed or removed; readMu while the log is read back; mu
// guards the rest, and never while the disk is waited for. Order: diskMu or readMu, then mu.
type Outbox struct {
	fsys   disk.FS
	dir    string
	config Config
	log    *slog.Logger
	boot   uint64

	segmentLimit, entryLimit, memoryLimit int64
	// preload is how much of the backlog is kept loaded in front, in bytes.
	preload int

	turn  chan struct{} // when_full = block: appenders wait for room one after the other
	room  chan struct{} // and the one whose turn it is hears of it here
	ready chan struct{} // there is something for Next
	kick  chan struct{} // there is something for Run
	done  chan struct{} // closed

	diskMu gate
	writer writer

	readMu gate
	reader reader

	mu       sync.Mutex
	closed   bool
	seq, id  uint64
	spare    []byte // room for payloads
	front    queue
	flight   int // how many of front, from its start, are handed out
	waiting  int // how many of front, from its end, are not on disk
	tail     queue
	unsaved  int64      // bytes of entries not on disk
	segments []*segment // in order; the writer's is the last
	active   *segment   // takes what is written next; nil: none
	dead     []*segment // owe nothing and are to be removed
	unread   int        // entries of the log
	cursor   position   // where they begin, if there are any
	readGen  uint64     // counts what makes a load under way worthless
	flushing uint64     // highest seq being written
	onDisk   int64      // allocated bytes of segments
	badBytes int64
	armed    bool   // Run looks again before a new entry can be due
	seen     uint64 // seq when it last looked
	idle     time.Time
	lead     time.Duration // how long before it is due an entry is written
	stats    Status
	problems [problemKinds]problem
	dropLog  quiet
}

// position is a place in the log.
type position struct {
	seg *segment
	off int64
}

// Open opens the outbox in dir, whatever state it is in. A disk that cannot be used is no error: the
// outbox then works in memory, Status says so, and Run goes on trying.
func Open(fsys disk.FS, dir string, c Config, log *slog.Logger) (*Outbox, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	o := &Outbox{
		fsys: fsys, dir: dir, config: c, log: log,
		segmentLimit: min(max(c.MaxBytes.Bytes()/64, block), 1<<20),
		entryLimit:   min(c.MaxBytes.Bytes()/8, 4<<20),
		memoryLimit:  min(c.MaxBytes.Bytes(), memoryLimit),
		turn:         make(chan struct{}, 1),
		room:         make(chan struct{}, 1),
		ready:        make(chan struct{}, 1),
		kick:         make(chan struct{}, 1),
		done:         make(chan struct{}),
		diskMu:       make(gate, 1),
		readMu:       make(gate, 1),
	}
	o.preload = int(o.segmentLimit / 4)
	o.lead = o.shortestLead()
	o.recover()
	return o, nil
}

// Boot is the number of this start. No two starts have the same.
func (o *Outbox) Boot() uint64 { return o.boot }

// Append adds one entry. encode is called under the outbox's lock with the entry's number, to append
// the payload to dst; it must not keep dst if it appends nothing. With sync = "always" the entry is
// durable when Append returns, unless the disk fails, which Status tells.
// What when_full refuses is counted and named in Status, and is no error. The error is ErrClosed, or
// that of ctx where when_full = "block" has waited for room in vain.
func (o *Outbox) Append(ctx context.Context, line string, encode func(dst []byte, seq uint64) (topic string, payload []byte)) error {
	if o.config.WhenFull == Block {
		select {
		case o.turn <- struct{}{}:
			defer func() { <-o.turn }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	o.relieve()
	seq, err := o.append(ctx, line, encode)
	if err == nil && o.config.Sync == Always {
		o.makeDurable(seq)
	}
	return err
}

func (o *Outbox) append(ctx context.Context, line string, encode func(dst []byte, seq uint64) (string, []byte)) (uint64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, ErrClosed
	}
	o.seq++
	e := entry{boot: o.boot, seq: o.seq, line: line, taken: time.Now()}
	e.topic, e.payload = o.encode(encode)
	e.size = e.recordSize()
	admitted, err := o.admit(ctx, &e)
	if !admitted {
		o.lose(e.boot, e.seq)
		return e.seq, err
	}
	o.tail.push(e)
	o.unsaved += int64(e.size)
	o.stats.Appended++
	if !o.armed {
		o.armed = true
		signal(o.kick)
	}
	signal(o.ready)
	return e.seq, nil
}

// encode has the payload written into spare. Its bytes are never used again, not even for an entry
// that is refused: whoever encoded it may have shown it to others.
func (o *Outbox) encode(encode func(dst []byte, seq uint64) (string, []byte)) (topic string, payload []byte) {
	dst := o.spare[len(o.spare):]
	topic, payload = encode(dst, o.seq)
	n := len(payload)
	if n == 0 {
		return topic, nil
	}
	if cap(dst) == 0 || &payload[0] != &dst[:1][0] { // outgrew the room, or is the caller's own
		if n > arena/4 {
			return topic, append(make([]byte, 0, n), payload...)
		}
		if n > cap(dst) {
			o.spare = make([]byte, 0, arena)
			dst = o.spare
		}
		payload = append(dst, payload...)
	}
	o.spare = o.spare[:len(o.spare)+n]
	return topic, payload[:n:n]
}

// Next hands out the next entries in order, at most maxEntries with at most maxBytes of payload
// together, but always one; it waits for the first. They are in flight until Ack, SetAside or Rewind;
// Next may be called again before. The error is ErrClosed or that of ctx.
func (o *Outbox) Next(ctx context.Context, maxEntries, maxBytes int) ([]Entry, error) {
	for {
		if err := ctx.Err(); err != nil {
			signal(o.ready) // for another, if it was taken from there
			return nil, err
		}
		run, load, err := o.handOut(maxEntries, maxBytes)
		if len(run) > 0 || err != nil {
			return run, err
		}
		if load {
			if err := o.load(ctx); err != nil {
				return nil, err
			}
			continue
		}
		select {
		case <-o.ready:
		case <-o.done:
		case <-ctx.Done():
		}
	}
}

// handOut returns a run of front, or whether front must be loaded from the log first.
func (o *Outbox) handOut(maxEntries, maxBytes int) (run []Entry, load bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, false, ErrClosed
	}
	for o.unread == 0 && o.tail.n > 0 && o.front.n-o.flight < maxEntries {
		o.enter(o.tail.pop())
		o.waiting++
	}
	n, bytes := 0, 0
	for ; o.flight+n < o.front.n && (n == 0 || n < maxEntries); n++ {
		if bytes += len(o.front.at(o.flight + n).payload); n > 0 && bytes > maxBytes {
			break
		}
	}
	more := o.unread > 0 && o.flight+n == o.front.n && n < maxEntries && bytes < maxBytes
	if more && (n == 0 || o.problems[reading].err == nil) {
		return nil, true, nil
	}
	if n == 0 {
		return nil, false, nil
	}
	run = make([]Entry, n)
	for i := range run {
		e := o.front.at(o.flight + i)
		run[i] = Entry{ID: e.id, Boot: e.boot, Seq: e.seq, Line: e.line, Topic: e.topic, Payload: e.payload}
		if e.sent {
			o.stats.Resent++
		}
		e.sent = true
	}
	o.flight += n
	if o.flight < o.front.n || o.unread > 0 || o.tail.n > 0 {
		signal(o.ready) // for another Next
	}
	return run, false, nil
}

// enter puts an entry at the end of front.
func (o *Outbox) enter(e entry) {
	o.id++
	e.id = o.id
	o.front.push(e)
}

// Ack acknowledges id and everything handed out before it. What is not in flight stays: an
// acknowledgement that comes after Rewind is of a connection that has ended.
func (o *Outbox) Ack(id uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.flight > 0 && o.front.at(0).id <= id {
		o.flight--
		o.leave(o.front.pop())
		o.stats.Acked++
	}
	signal(o.room)
}

// leave settles what an entry that is no longer in front owed.
func (o *Outbox) leave(e entry) {
	if e.seg == nil {
		o.waiting--
		o.unsaved -= int64(e.size)
		return
	}
	e.seg.loaded--
	if e.seg != o.active && !e.seg.owes() {
		o.bury(e.seg)
	}
}

// bury puts a segment that owes nothing among those to be removed.
func (o *Outbox) bury(s *segment) {
	for i, other := range o.segments {
		if other != s {
			continue
		}
		if o.cursor.seg == s {
			o.cursor = position{}
			if i+1 < len(o.segments) {
				o.cursor.seg = o.segments[i+1]
			}
			o.readGen++
		}
		o.segments = append(o.segments[:i], o.segments[i+1:]...)
		o.onDisk -= s.alloc()
		break
	}
	if s == o.active {
		o.active = nil
	}
	o.dead = append(o.dead, s)
	signal(o.kick)
}

// Rewind says that the connection has ended: everything not acknowledged is handed out again, in
// order.
func (o *Outbox) Rewind() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flight = 0
	signal(o.ready)
}

// Run writes and syncs what is due until ctx ends, and then what is left.
func (o *Outbox) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			o.settle()
			return nil
		case <-o.done:
			return nil
		case <-o.kick:
		case <-timer.C:
		}
		timer.Reset(o.work())
	}
}

// Sync makes everything durable now.
func (o *Outbox) Sync() error {
	o.diskMu.Lock()
	defer o.diskMu.Unlock()
	return o.flush()
}

// Close makes durable what is left and closes the files. The error says what could not be.
func (o *Outbox) Close() error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return nil
	}
	o.closed = true
	close(o.done)
	o.mu.Unlock()
	err := o.settle()
	o.readMu.Lock()
	defer o.readMu.Unlock()
	o.reader.close()
	o.diskMu.Lock()
	defer o.diskMu.Unlock()
	return errors.Join(err, o.writer.close())
}

func (o *Outbox) path(name string) string { return filepath.Join(o.dir, name) }

// signal wakes whoever waits for c, or the next to wait.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// gate is a mutex that is held while something is waited for. In a test with synctest's clock, a
// goroutine that waits for a sync.Mutex would hold that clock up.
type gate chan struct{}

func (g gate) Lock()   { g <- struct{}{} }
func (g gate) Unlock() { <-g }
