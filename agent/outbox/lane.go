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

// common is what lanes share. mu guards all of it that is no constant, and what lane says.
type common struct {
	fsys   disk.FS
	config Config
	log    *slog.Logger
	boot   uint64
	clock  func() (time.Time, bool)
	opened time.Time // where the boot's own time begins
	// lanes are in the order in which they hand out; urgent is one of them or nil.
	lanes          []*lane
	urgent, normal *lane
	policies       map[string]*policy
	aging          bool // some line has a MaxAge
	memoryLimit    int64

	ready chan struct{} // there is something for Next
	done  chan struct{} // closed

	mu      sync.Mutex
	closed  bool
	seq     uint64 // given last
	id      uint64 // given last
	handed  uint64 // id handed out last since Rewind
	waits   waits
	dropped lost
	expired lost
	dropLog quiet
	ageLog  quiet
	anchors []anchor
	// unsettled: the file of lines does not say what policies do.
	unsettled bool
}

// lane is one queue in a folder of its own.
//
// diskMu is held while files are written, renamed or removed; readMu while the log is read back;
// common.mu guards the rest, and never while the disk is waited for. Order: the urgent lane's diskMu, the
// normal one's, or a readMu; then common.mu.
type lane struct {
	*common
	name string
	dir  string
	// wanted: it is the normal lane, or a line is urgent.
	wanted                   bool
	segmentLimit, entryLimit int64
	preload                  int // how much of the backlog is kept loaded in front, in bytes

	turn chan struct{} // when_full = block: appenders wait for room one after the other
	room chan struct{} // and the one whose turn it is hears of it here
	kick chan struct{} // there is something for Run

	diskMu gate
	writer writer

	readMu gate
	reader reader

	spare    []byte // room for payloads; of this lane alone, or a few that stay would keep many in memory
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
	blind    bool   // what the log holds could not be found out
	armed    bool   // Run looks again before a new entry can be due
	seen     uint64 // stats.Appended when it last looked
	idle     time.Time
	lead     time.Duration // how long before it is due an entry is written
	stats    Status
	problems [problemKinds]problem
}

// position is a place in the log.
type position struct {
	seg *segment
	off int64
}

// newLane makes a lane that nothing was read of.
func (c *common) newLane(name, dir string, wanted bool) *lane {
	l := &lane{
		common: c, name: name, dir: dir, wanted: wanted,
		segmentLimit: min(max(c.config.MaxBytes.Bytes()/64, block), 1<<20),
		entryLimit:   min(c.config.MaxBytes.Bytes()/8, 4<<20),
		turn:         make(chan struct{}, 1),
		room:         make(chan struct{}, 1),
		kick:         make(chan struct{}, 1),
		diskMu:       make(gate, 1),
		readMu:       make(gate, 1),
	}
	l.preload = int(l.segmentLimit / 4)
	l.lead = l.shortestLead()
	return l
}

// add appends one entry of a line.
func (l *lane) add(ctx context.Context, line string, p *policy, encode func(dst []byte, seq uint64) (string, []byte)) error {
	if l.config.WhenFull == Block {
		select {
		case l.turn <- struct{}{}:
			defer func() { <-l.turn }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l.relieve()
	seq, err := l.append(ctx, line, p, encode)
	if err == nil && l.config.Sync == Always {
		l.makeDurable(seq)
	}
	return err
}

func (l *lane) append(ctx context.Context, line string, p *policy, encode func(dst []byte, seq uint64) (string, []byte)) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, ErrClosed
	}
	l.seq++
	e := entry{boot: l.boot, seq: l.seq, line: line, policy: p, taken: time.Now()}
	e.stamp = l.stamp(e.seq, e.taken)
	e.topic, e.payload = l.encode(encode)
	e.size = e.recordSize()
	if l == l.normal && p != nil && p.urgent {
		l.stayNormal(p, e.seq)
	}
	admitted, err := l.admit(ctx, &e)
	if !admitted {
		l.lose(e.boot, e.seq)
		return e.seq, err
	}
	l.tail.push(e)
	l.unsaved += int64(e.size)
	l.stats.Appended++
	if !l.armed {
		l.armed = true
		signal(l.kick)
	}
	if l != l.normal || l.waits.over(len(e.payload)) {
		signal(l.ready)
	}
	return e.seq, nil
}

// encode has the payload written into spare. Its bytes are never used again, not even for an entry
// that is refused: whoever encoded it may have shown it to others.
func (l *lane) encode(encode func(dst []byte, seq uint64) (string, []byte)) (topic string, payload []byte) {
	dst := l.spare[len(l.spare):]
	topic, payload = encode(dst, l.seq)
	n := len(payload)
	if n == 0 {
		return topic, nil
	}
	if cap(dst) == 0 || &payload[0] != &dst[:1][0] { // outgrew the room, or is the caller's own
		if n > arena/4 {
			return topic, append(make([]byte, 0, n), payload...)
		}
		if n > cap(dst) {
			l.spare = make([]byte, 0, arena)
			dst = l.spare
		}
		payload = append(dst, payload...)
	}
	l.spare = l.spare[:len(l.spare)+n]
	return topic, payload[:n:n]
}

// acknowledge takes from front what was handed out up to id.
func (l *lane) acknowledge(id uint64) {
	for l.flight > 0 && l.front.at(0).id <= id {
		l.flight--
		l.leave(l.front.pop())
		l.stats.Acked++
	}
}

// leave settles what an entry that is no longer in front owed.
func (l *lane) leave(e entry) {
	if e.seg == nil {
		l.waiting--
		l.unsaved -= int64(e.size)
		return
	}
	e.seg.loaded--
	if e.seg != l.active && !e.seg.owes() {
		l.bury(e.seg)
	}
}

// bury puts a segment that owes nothing among those to be removed.
func (l *lane) bury(s *segment) {
	for i, other := range l.segments {
		if other != s {
			continue
		}
		if l.cursor.seg == s {
			l.cursor = position{}
			if i+1 < len(l.segments) {
				l.cursor.seg = l.segments[i+1]
			}
			l.readGen++
		}
		l.segments = append(l.segments[:i], l.segments[i+1:]...)
		l.onDisk -= s.alloc()
		break
	}
	if s == l.active {
		l.active = nil
	}
	l.dead = append(l.dead, s)
	signal(l.kick)
}

// depth counts the entries that are neither acknowledged, dropped nor set aside.
func (l *lane) depth() int { return l.front.n + l.unread + l.tail.n }

// empty reports whether the lane owes nothing and keeps nothing. diskMu is held.
func (l *lane) empty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.blind && l.depth() == 0 && len(l.segments)+len(l.dead) == 0 && l.badBytes == 0 && len(l.writer.abandoned) == 0
}

// run writes and syncs what is due until ctx ends, and then what is left.
func (l *lane) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			_ = l.settle() // Status tells
			return
		case <-l.done:
			return
		case <-l.kick:
		case <-timer.C:
		}
		timer.Reset(l.work())
	}
}

func (l *lane) sync() error {
	l.diskMu.Lock()
	defer l.diskMu.Unlock()
	return l.flush()
}

// close makes durable what is left and closes the files.
func (l *lane) close() error {
	err := l.settle()
	l.readMu.Lock()
	defer l.readMu.Unlock()
	l.reader.close()
	l.diskMu.Lock()
	defer l.diskMu.Unlock()
	err = errors.Join(err, l.writer.close())
	l.vacate()
	return err
}

// left reports whether an urgent lane has left its folder.
func (c *common) left(dir string) bool {
	_, err := c.fsys.ReadDir(dir)
	return err == nil
}

// abandon gives up an urgent lane that nobody wants and that owes nothing. It reports whether it did.
func (l *lane) abandon() bool {
	if l.wanted {
		return false
	}
	l.diskMu.Lock()
	defer l.diskMu.Unlock()
	l.sweep()
	l.vacate()
	return l.empty()
}

// vacate removes the folder of an urgent lane that nobody wants any more, once it is empty. diskMu is
// held.
func (l *lane) vacate() {
	if l.wanted || !l.empty() {
		return
	}
	_ = l.fsys.Remove(l.path(placeName))
	_ = l.fsys.Remove(l.dir) // what a power cut brings back of it is taken over again
}

func (l *lane) path(name string) string { return filepath.Join(l.dir, name) }

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
