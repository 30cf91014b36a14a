// Package port opens, lists and watches serial ports on Linux and is the only importer of
// go.bug.st/serial. The trap is the descriptor: that library's Write after Close reaches whatever
// file took the number, its Read panics above 1023, its Write knows no deadline, and its descriptors
// leak into children. So bytes travel over a non-blocking descriptor of our own, and the library, opened
// second on the same port, only sets mode and modem lines. The second trap is the replug: a
// descriptor kept open makes the kernel give the adapter another number, so it goes at once.
package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"
)

// What callers branch on when opening a port.
var (
	ErrNotFound   = errors.New("no such serial port") // also a serial server that cannot be reached
	ErrPermission = errors.New("permission denied")
	ErrInUse      = errors.New("serial port in use")
)

// What callers branch on when a port is open.
var (
	ErrGone   = errors.New("serial port gone")
	ErrClosed = os.ErrClosed
)

// Port is an open serial port in raw mode, held for this process alone, or a connection to a serial
// server. Any method may be called from any goroutine, but Read and TryRead by one at a time. Every
// error is one of ErrGone, ErrClosed, os.ErrDeadlineExceeded, or the kernel's.
type Port interface {
	// Read reads what has arrived, and waits for at least one byte. Past the deadline it fails with
	// os.ErrDeadlineExceeded, after a hangup with ErrGone, after Close with ErrClosed.
	// Write writes all of it, or fails.
	// Close frees every call wherever it waits, and the port. What was not yet sent is thrown away.
	io.ReadWriteCloser
	// TryRead reads what has arrived and does not wait: 0, nil if nothing has.
	TryRead(p []byte) (int, error)
	// SetReadDeadline and SetWriteDeadline bound Read and Write; the zero time is no bound.
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	// Configure changes speed and form once what was written is sent; nothing where they are the
	// same already. A connection has none and ignores it.
	Configure(s Settings) error
	// Flush throws away what has arrived and not been read, and what was written and not sent.
	Flush() error
	// Drain waits until what was written is sent; os.ErrDeadlineExceeded, and it is thrown away, where
	// that takes 2 s longer than the wire needs.
	Drain() error
	// SetDTR and SetRTS set a modem line. A port without is warned of once and left alone.
	SetDTR(on bool) error
	SetRTS(on bool) error
	// Counters are the driver's own; errors.ErrUnsupported where it keeps none.
	Counters() (Counters, error)
	// Gone is closed as soon as the port is unplugged or hung up, also while nobody reads. A serial
	// port's descriptors are closed then, too; Close is still owed.
	Gone() <-chan struct{}
}

// Counters is what an UART saw go wrong since its driver was loaded; the kernel lets them wrap.
type Counters struct {
	Frame         uint32 `json:"frame"`          // characters without a stop bit: another speed, or noise
	Parity        uint32 `json:"parity"`         // characters of the wrong parity
	Overrun       uint32 `json:"overrun"`        // characters the UART lost, as nobody fetched them in time
	Break         uint32 `json:"break"`          // breaks
	BufferOverrun uint32 `json:"buffer_overrun"` // characters the kernel lost, as nobody read them in time
}

// Options says how a port is opened.
type Options struct {
	Settings Settings
	RS485    *RS485       // nil: the driver is not even asked, as some adapters do not survive it
	Log      *slog.Logger // nil: silent
}

// Open opens the port called name (see ParseName). A serial port is locked (flock; TIOCEXCL does not
// bind root), raw, empty of old input, and inherited by no child.
func Open(ctx context.Context, name string, o Options) (Port, error) {
	return host().open(ctx, name, o)
}

func (sys system) open(ctx context.Context, name string, o Options) (Port, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	a, err := parseName(name)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if a.server != "" {
		return sys.dial(ctx, a, o)
	}
	if err := o.Settings.Validate(); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	p, err := sys.openSerial(a, o)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	return p, nil
}
