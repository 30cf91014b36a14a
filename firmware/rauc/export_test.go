package rauc

import (
	"log/slog"
	"time"
)

// NewImpatient is a client that asks again soon.
func NewImpatient(address string) *Client {
	return New(Options{Address: address, Log: slog.New(slog.DiscardHandler), lookEvery: 10 * time.Millisecond})
}
