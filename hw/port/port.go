// Package port opens and lists serial ports on Linux and is the only importer of
// go.bug.st/serial. The trap is the descriptor: that library's Write after Close reaches whatever
// file took the number, its Read panics above 1023, its Write knows no deadline, and its descriptors
// leak into children. So bytes travel over a non-blocking os.File of our own, and the library, opened
// second on the same port, only sets mode and modem lines.
package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

// What callers branch on when opening a port.
var (
	ErrNotFound   = errors.New("no such serial port")
	ErrPermission = errors.New("permission denied")
	ErrInUse      = errors.New("serial port in use")
)

// What callers branch on when a port is open.
var (
	ErrGone   = errors.New("serial port gone")
	ErrClosed = os.ErrClosed
)

// Port is an open serial port in raw mode, held for this process alone. Any method may be called
// from any goroutine, but Read and TryRead by one at a time.
type Port struct {
	name string
	log  *slog.Logger
	file *os.File
	raw  syscall.RawConn

	try struct { // the arguments and results of tryRead, so that a call allocates nothing
		read func(fd uintptr)
		p    []byte
		n    int
		err  error
	}

	mu     sync.RWMutex // guards mode against use after Close
	mode   serial.Port
	closed bool

	warned sync.Map // what the port lacks, said once
}

// Open opens the port called name: a path, by-id/NAME or by-path/NAME as below /dev/serial. The port
// is locked (flock; TIOCEXCL does not bind root), raw, empty of old input, and inherited by no child.
func Open(ctx context.Context, name string, s Settings, log *slog.Logger) (*Port, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	path, err := resolve("/dev", name)
	if err != nil {
		return nil, err
	}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	p := &Port{name: name, log: log}
	if err := p.open(path, s); err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	p.lowLatency("/sys", path)
	return p, nil
}

// resolve turns a configured name into a path.
func resolve(dev, name string) (string, error) {
	dir, rest, _ := strings.Cut(name, "/")
	switch {
	case filepath.IsAbs(name):
		return name, nil
	case (dir == "by-id" || dir == "by-path") && rest != "" && filepath.IsLocal(rest):
		return filepath.Join(dev, "serial", dir, rest), nil
	}
	return "", hint.With(fmt.Errorf("opening %s: not a name of a serial port", name),
		"write a path such as /dev/ttyUSB0, or by-id/NAME or by-path/NAME as listed by: ferrule ports")
}

func (p *Port) open(path string, s Settings) error {
	// Non-blocking from the start: else opening waits for a carrier, and Go's poller does not take it.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return openError(err)
	}
	if err := p.adopt(f); err != nil {
		f.Close()
		return err
	}
	p.mode, err = openMode(path, s)
	if err != nil {
		f.Close()
		return err
	}
	p.discard(unix.TCIOFLUSH)
	return nil
}

// adopt locks f and makes it the data path.
func (p *Port) adopt(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var tty, lock error
	err = raw.Control(func(fd uintptr) {
		_, tty = unix.IoctlGetTermios(int(fd), unix.TCGETS)
		lock = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB)
	})
	switch {
	case err != nil:
		return err
	case tty != nil:
		return fmt.Errorf("not a serial port: %w", tty)
	case errors.Is(lock, unix.EWOULDBLOCK):
		return inUse()
	case lock != nil:
		return fmt.Errorf("locking: %w", lock)
	}
	p.file, p.raw = f, raw
	p.try.read = func(fd uintptr) { p.try.n, p.try.err = unix.Read(int(fd), p.try.p) }
	return nil
}

func inUse() error {
	return hint.With(ErrInUse, "find the other program with: fuser -v PORT, or give each line a port of its own")
}

func openError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return hint.With(fmt.Errorf("%w: %w", ErrNotFound, err), "list the ports with: ferrule ports")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return hint.With(fmt.Errorf("%w: %w", ErrPermission, err), "add the service user to group dialout")
	case errors.Is(err, unix.EBUSY):
		return inUse()
	}
	return err
}

// Read reads what has arrived, and waits for at least one byte. Past the deadline it fails with
// os.ErrDeadlineExceeded, after a hangup with ErrGone, after Close with ErrClosed.
func (p *Port) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := p.file.Read(b)
	switch {
	case n > 0 || err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, os.ErrDeadlineExceeded // bare, as it is no fault
	}
	return 0, p.ioError("reading", err)
}

// TryRead reads what has arrived and does not wait: 0, nil if nothing has.
func (p *Port) TryRead(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	p.try.p = b
	err := p.raw.Control(p.try.read)
	p.try.p = nil
	switch {
	case err != nil: // Control itself fails on a closed file only
		return 0, p.ioError("reading", ErrClosed)
	case p.try.err == unix.EAGAIN, p.try.err == unix.EINTR:
		return 0, nil
	case p.try.err != nil:
		return 0, p.ioError("reading", p.try.err)
	case p.try.n == 0:
		return 0, p.ioError("reading", io.EOF)
	}
	return p.try.n, nil
}

// Write writes all of b, or fails; past the deadline with os.ErrDeadlineExceeded.
func (p *Port) Write(b []byte) (int, error) {
	n, err := p.file.Write(b)
	if err != nil {
		return n, p.ioError("writing", err)
	}
	return n, nil
}

// ioError gives an error of the data path its sentinel. A tty that was hung up or unplugged reads
// end of file, then EIO.
func (p *Port) ioError(doing string, err error) error {
	if err == io.EOF || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	return fmt.Errorf("%s %s: %w", doing, p.name, err)
}

// SetReadDeadline bounds Read; the zero time is no bound.
func (p *Port) SetReadDeadline(t time.Time) error { return p.deadline(p.file.SetReadDeadline(t)) }

// SetWriteDeadline bounds Write; the zero time is no bound.
func (p *Port) SetWriteDeadline(t time.Time) error { return p.deadline(p.file.SetWriteDeadline(t)) }

func (p *Port) deadline(err error) error {
	if err != nil { // the poller has an error of its own for a closed file, and fails for no other reason
		return p.ioError("setting a deadline of", ErrClosed)
	}
	return nil
}

// Flush throws away what has arrived and not been read, and what was written and not sent.
func (p *Port) Flush() error { return p.discard(unix.TCIOFLUSH) }

func (p *Port) discard(queues int) error {
	var result error
	if err := p.raw.Control(func(fd uintptr) { result = unix.IoctlSetInt(int(fd), unix.TCFLSH, queues) }); err != nil {
		return p.ioError("flushing", ErrClosed)
	}
	if result != nil {
		return p.ioError("flushing", result)
	}
	return nil
}

// Drain waits until what was written is sent. Close ends the wait.
func (p *Port) Drain() error {
	return p.withMode("draining", serial.Port.Drain)
}

// SetDTR sets the modem line DTR. A port without modem lines is warned of once and left alone.
func (p *Port) SetDTR(on bool) error {
	return p.optional("dtr", p.withMode("setting DTR of", func(m serial.Port) error { return m.SetDTR(on) }))
}

// SetRTS sets the modem line RTS. A port without modem lines is warned of once and left alone.
func (p *Port) SetRTS(on bool) error {
	return p.optional("rts", p.withMode("setting RTS of", func(m serial.Port) error { return m.SetRTS(on) }))
}

func (p *Port) withMode(doing string, do func(serial.Port) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return p.ioError(doing, ErrClosed)
	}
	if err := do(p.mode); err != nil {
		return p.ioError(doing, err)
	}
	return nil
}

// optional turns the absence of a feature into one warning.
func (p *Port) optional(feature string, err error) error {
	if !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if _, again := p.warned.LoadOrStore(feature, true); !again {
		p.log.LogAttrs(context.Background(), slog.LevelWarn, "serial port lacks a feature",
			slog.String("port", p.name), slog.String("feature", feature), slog.Any("err", err))
	}
	return nil
}

// Close frees Read, Write and Drain wherever they wait, and the port. Output not yet sent is
// thrown away, since the kernel would else wait for it, up to half a minute.
func (p *Port) Close() error {
	p.discard(unix.TCIOFLUSH) // fails on a port that is gone, which needs no flush
	err := p.file.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if e := p.mode.Close(); err == nil {
		err = e
	}
	if err != nil && !errors.Is(err, ErrClosed) {
		return fmt.Errorf("closing %s: %w", p.name, err)
	}
	return nil
}

// lowLatency asks a USB adapter that holds bytes back, as FTDI's do for 16 ms, to hold them 1 ms.
// That delay alone would cap the polls at about 60 a second.
func (p *Port) lowLatency(sys, path string) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	file := filepath.Join(sys, "class/tty", filepath.Base(path), "device/latency_timer")
	now, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(now)) == "1" {
		return
	}
	if err := os.WriteFile(file, []byte("1"), 0); err != nil {
		p.log.LogAttrs(context.Background(), slog.LevelWarn, "serial adapter holds bytes back",
			slog.String("port", p.name), slog.String("latency_ms", strings.TrimSpace(string(now))), slog.Any("err", err))
	}
}
