package modbus

import (
	"context"
	"io"
	"time"
)

// Port is what the client needs of a serial port. A Read returns at least one byte or an error;
// past its deadline Read and Write fail with os.ErrDeadlineExceeded.
//
// A port that also has TryRead(p []byte) (int, error), which returns what has arrived without
// waiting (0, nil if nothing has), is spared timers between two polls.
type Port interface {
	io.ReadWriter
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// ClientConfig says how a client treats its line.
type ClientConfig struct {
	// Timing is that of the line.
	Timing Timing
	// Timeout is the longest wait for the first byte of an answer, from the last byte of the request.
	Timeout time.Duration
	// Echo tells that the adapter returns what is sent. The client finds out by itself too.
	Echo bool
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Sleep waits; nil: time.Sleep, or on fast lines a more exact wait.
	Sleep func(time.Duration)
}

// Stats counts what a client saw since it was made.
type Stats struct {
	Requests   uint64        `json:"requests"`   // sent, barriers included
	Responses  uint64        `json:"responses"`  // accepted, exceptions included
	Exceptions uint64        `json:"exceptions"` // refusals among them
	Timeouts   uint64        `json:"timeouts"`
	CRCErrors  uint64        `json:"crc_errors"` // frames that looked like the answer but for the checksum
	Mismatches uint64        `json:"mismatches"` // sound frames of the unit that answer nothing it was asked
	Foreign    uint64        `json:"foreign"`    // sound frames of other units
	Late       uint64        `json:"late"`       // sound answers dropped because their request was given up
	Barriers   uint64        `json:"barriers"`   // requests sent only to make sure that no late answer is under way
	Echoes     uint64        `json:"echoes"`     // own requests heard
	Garbage    uint64        `json:"garbage"`    // bytes that belong to no frame
	WireTime   time.Duration `json:"wire_time"`  // the line was busy with our requests and their answers
}

var _ context.Context
