package outbox

import (
	"context"
	"log/slog"
	"time"

	"ferrule/internal/disk"
)

// LineConfig is what the outbox is told of one line. A line that it is not told of is not urgent,
// and its entries do not get stale.
type LineConfig struct {
	Name string
	// Urgent entries are handed out before all others.
	Urgent bool
	// MaxAge is how old an entry may be when its turn comes; an older one is let go and counted. 0:
	// any age.
	MaxAge time.Duration
}

// Options is what Lanes are made of.
type Options struct {
	FS     disk.FS
	Dir    string // of the outbox; the urgent lane has a folder in it
	Config Config
	Lines  []LineConfig
	// Now is the time that ages are measured by across starts, and whether anybody vouches for it.
	// It is called under the outbox's lock, must be quick, and must not call the outbox. nil: time.Now,
	// trusted.
	Now func() (t time.Time, trusted bool)
	Log *slog.Logger
}

// Want is what Next may hand out, and how long it may wait for more.
type Want struct {
	// Entries and Bytes of payload bound a run, which is one entry at least.
	Entries, Bytes int
	// MaxAge > 0: wait until the entry that has waited longest has waited for MaxAge, or BatchBytes of
	// payload have gathered, or as many entries as are wanted. Urgent entries do not wait, nor does
	// a backlog. 0: hand out what there is.
	MaxAge     time.Duration
	BatchBytes int
}

// Lanes is the outbox: an urgent lane, where a line is urgent, and the normal one. It is safe for
// concurrent use.
type Lanes struct{ *Outbox }

// OpenLanes opens the outbox in o.Dir, whatever state it is in. A disk that cannot be used is no
// error: the outbox then works in memory, Status says so, and Run goes on trying.
func OpenLanes(o Options) (*Lanes, error) {
	box, err := Open(o.FS, o.Dir, o.Config, o.Log)
	if err != nil {
		return nil, err
	}
	return &Lanes{box}, nil
}

// Next hands out the next entries, the urgent ones first, and waits for the first. They are in flight
// until Ack, SetAside or Rewind; Next may be called again before. The error is ErrClosed or that of
// ctx.
func (l *Lanes) Next(ctx context.Context, w Want) ([]Entry, error) {
	return l.Outbox.Next(ctx, w.Entries, w.Bytes)
}
