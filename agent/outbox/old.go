package outbox

import (
	"context"
	"log/slog"

	"ferrule/internal/disk"
)

// Outbox is Lanes that know nothing of lines, for callers of before there were lanes.
type Outbox struct{ *Lanes }

// Open opens the outbox in dir, as OpenLanes does.
func Open(fsys disk.FS, dir string, c Config, log *slog.Logger) (*Outbox, error) {
	lanes, err := OpenLanes(Options{FS: fsys, Dir: dir, Config: c, Log: log})
	if err != nil {
		return nil, err
	}
	return &Outbox{lanes}, nil
}

// Next is Lanes.Next, which hands out what there is.
func (o *Outbox) Next(ctx context.Context, maxEntries, maxBytes int) ([]Entry, error) {
	return o.Lanes.Next(ctx, Want{Entries: maxEntries, Bytes: maxBytes})
}
