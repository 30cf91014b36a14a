// Package outbox is a bounded, crash-safe queue of entries waiting for the broker. An entry
// acknowledged before its sync is due never touches the flash: in a healthy session nothing is
// written at all. Its sync is due when it, or an entry before it, gets as old as Config.Sync, less the
// time a sync takes; all that waits is then written together.
//
// There are two lanes, of which the urgent one hands out first; it is there only where a line is urgent, or was
// and has left entries. Either has a folder, and goes on where a power cut left it. The numbers of entries rise
// over both. In a lane, entries stand in one order, in three places:
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

// LineConfig is what the outbox is told of one line. A line that it is not told of is not urgent, and its
// entries do not get stale.
type LineConfig struct {
	Name string
	// Urgent entries are handed out before all others.
	Urgent bool
	// MaxAge is how old an entry may be when its turn comes; an older one is let go and counted. 0:
	// any age.
	MaxAge time.Duration
}

// Options is what an Outbox is made of.
type Options struct {
	FS     disk.FS
	Dir    string // of the outbox; the urgent lane has a folder in it
	Config Config
	Lines  []LineConfig
	// Now is the time that ages are measured by across starts, and whether anybody vouches for it. It is
	// called under the outbox's lock, must be quick, and must not call the outbox. nil: time.Now, trusted.
	Now func() (t time.Time, trusted bool)
	Log *slog.Logger
}

// Want is what Next may hand out, and how long it may wait for more.
type Want struct {
	// Entries and Bytes of payload bound a run, which is one entry at least.
	Entries, Bytes int
	// MaxAge > 0: wait until the entry that has waited longest has waited for MaxAge, or BatchBytes of
	// payload have gathered (0: Bytes), or as many entries as are wanted. Urgent entries do not wait, nor
	// does a backlog. 0: hand out what there is.
	MaxAge     time.Duration
	BatchBytes int
	// Urgent hands out, and waits for, entries of urgent lines alone.
	Urgent bool
}

// Outbox is the queue: an urgent lane, where a line is urgent, and the normal one. It is safe for concurrent use.
type Outbox struct{ *common }

// urgentName is the folder of the urgent lane, in that of the outbox, which is the normal lane's.
const urgentName = "urgent"

// Open opens the outbox in o.Dir, whatever state it is in. A disk that cannot be used is no error: the
// outbox then works in memory, Status says so, and Run goes on trying.
func Open(o Options) (*Outbox, error) {
	if err := o.Config.Validate(); err != nil {
		return nil, err
	}
	policies, urgent, aging, err := newPolicies(o.Lines)
	if err != nil {
		return nil, err
	}
	c := &common{
		fsys: o.FS, config: o.Config, log: o.Log, clock: o.Now, opened: time.Now(),
		policies: policies, aging: aging,
		memoryLimit: min(o.Config.MaxBytes.Bytes(), memoryLimit),
		ready:       make(chan struct{}, 1),
		done:        make(chan struct{}),
	}
	c.openLanes(o.Dir, urgent)
	return &Outbox{c}, nil
}

// openLanes takes over what earlier starts left, and finds this one's number.
func (c *common) openLanes(dir string, urgent bool) {
	c.normal = c.newLane("normal", dir, true)
	highest, err := c.normal.recover()
	c.lanes = []*lane{c.normal}
	c.readLines()
	if urgent || c.left(filepath.Join(dir, urgentName)) {
		c.urgent = c.newLane(urgentName, filepath.Join(dir, urgentName), urgent)
		other, err := c.urgent.recover()
		c.urgent.refused(err)
		highest = max(highest, other)
		if c.lanes = []*lane{c.urgent, c.normal}; c.urgent.abandon() {
			c.lanes, c.urgent = []*lane{c.normal}, nil
		}
	}
	boot, bootErr := c.nextBoot(highest)
	c.boot = boot
	if err == nil {
		err = bootErr
	}
	c.normal.refused(err)
	entries, segments := 0, 0
	for _, l := range c.lanes {
		entries, segments = entries+l.unread, segments+len(l.segments)
	}
	c.log.LogAttrs(context.Background(), slog.LevelInfo, "outbox opened",
		slog.Uint64("boot", c.boot), slog.Int("entries", entries), slog.Int("segments", segments))
}

// Boot is the number of this start. No two starts have the same.
func (s *Outbox) Boot() uint64 { return s.boot }

// Append adds one entry. encode is called under the outbox's lock with the entry's number, to append
// the payload to dst; it must not keep dst if it appends nothing. With sync = "always" the entry is
// durable when Append returns, unless the disk fails, which Status tells.
// What when_full refuses is counted and named in Status, and is no error. The error is ErrClosed, or
// that of ctx where when_full = "block" has waited for room in vain.
func (s *Outbox) Append(ctx context.Context, line string, encode func(dst []byte, seq uint64) (topic string, payload []byte)) error {
	l, p := s.normal, s.policies[line]
	if p != nil && p.urgent {
		l = s.route(p)
	}
	return l.add(ctx, line, p, encode)
}

// Ack acknowledges id and everything handed out before it. What is not in flight stays: an
// acknowledgement that comes after Rewind is of a connection that has ended.
func (s *Outbox) Ack(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		l.acknowledge(id)
	}
	s.freed()
}

// Rewind says that the connection has ended: everything not acknowledged is handed out again, in
// order.
func (s *Outbox) Rewind() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		l.flight = 0
	}
	s.handed = 0
	signal(s.ready)
}

// Run writes and syncs what is due until ctx ends, and then what is left.
func (s *Outbox) Run(ctx context.Context) error {
	var others sync.WaitGroup
	defer others.Wait()
	if s.urgent != nil {
		others.Go(func() { s.urgent.run(ctx) })
	}
	s.normal.run(ctx)
	return nil
}

// Sync makes everything durable now.
func (s *Outbox) Sync() error {
	var errs []error
	for _, l := range s.lanes {
		errs = append(errs, l.sync())
	}
	return errors.Join(errs...)
}

// Close makes durable what is left and closes the files. The error says what could not be.
func (s *Outbox) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	s.mu.Unlock()
	var errs []error
	for _, l := range s.lanes {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}
