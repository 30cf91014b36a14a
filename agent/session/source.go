package session

import (
	"context"
	"time"

	"ferrule/agent/encode"
	"ferrule/agent/outbox"
)

// Source holds what is owed to the broker; outbox.Outbox implements it.
type Source interface {
	// Boot is the number of this start, for the status messages.
	Boot() uint64
	// Next hands out the next entries, and waits for the first. The error says that there will be none
	// any more, or is that of ctx.
	Next(ctx context.Context, w outbox.Want) ([]outbox.Entry, error)
	// Ack acknowledges id and everything handed out before it.
	Ack(id uint64)
	// Rewind has everything that was not acknowledged handed out again.
	Rewind()
	// SetAside takes one entry in flight out of the way, for good.
	SetAside(id uint64, reason string)
}

// Format makes messages of entries; encode.Encoder implements it. Its methods but Receive are
// called by one goroutine at a time.
type Format interface {
	// Will is asked before each CONNECT. An empty topic leaves the session its own will.
	Will() (topic string, payload []byte, qos byte, retained bool)
	// Births are what must be acknowledged before readings go: with connected right after CONNACK,
	// else before a run and whenever Join gave nothing. Usually nil.
	Births(connected bool) []encode.Message
	// Join appends one message of one topic's entries to dst, in order. Nothing: they cannot be one
	// message now; births are due, or the entries are too many.
	Join(dst []byte, topic string, entries [][]byte) []byte
	// Filter is a further subscription; empty: none.
	Filter() string
	// Receive is told what comes on it, and says whether Births has something to publish now. It
	// must not wait.
	Receive(topic string, payload []byte) (rebirth bool)
}

// Batch says how long entries wait to be joined, and how large a message of several gets.
type Batch struct {
	// MaxAge is how long an entry may wait for others; 0: none waits, but a backlog is joined.
	MaxAge time.Duration
	// MaxBytes is the size of a message before it is compressed; 0: 16 KiB.
	MaxBytes int
}
