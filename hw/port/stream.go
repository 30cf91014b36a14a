package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn is the data path: a *tty or a *net.TCPConn.
type conn interface {
	io.ReadWriteCloser
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	SyscallConn() (syscall.RawConn, error)
}

// stream is what a serial port and a connection have in common: bytes, deadlines and the end.
type stream struct {
	name string
	log  *slog.Logger
	file conn
	raw  syscall.RawConn

	try struct { // the arguments and results of TryRead, so that a call allocates nothing
		read func(fd uintptr)
		p    []byte
		n    int
		err  error
	}

	closed atomic.Bool // by Close
	gone   chan struct{}
	lose   sync.Once
	watch  *watch
	done   chan struct{} // the watching goroutine ended

	warned sync.Map // what the port lacks, said once
}

func newStream(name string, log *slog.Logger, file conn) (*stream, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &stream{name: name, log: log, file: file, raw: raw, gone: make(chan struct{}), done: make(chan struct{})}
	s.try.read = func(fd uintptr) { s.try.n, s.try.err = unix.Read(int(fd), s.try.p) }
	return s, nil
}

func (s *stream) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := s.file.Read(b)
	switch {
	case n > 0 || err == nil:
		return n, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, os.ErrDeadlineExceeded // bare, as it is no fault
	}
	return 0, s.failure("reading", err)
}

func (s *stream) TryRead(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	s.try.p = b
	err := s.raw.Control(s.try.read)
	s.try.p = nil
	switch {
	case err != nil: // Control itself fails on a closed file only
		return 0, s.failure("reading", ErrClosed)
	case s.try.err == unix.EAGAIN, s.try.err == unix.EINTR:
		return 0, nil
	case s.try.err != nil:
		return 0, s.failure("reading", s.try.err)
	case s.try.n == 0:
		return 0, s.failure("reading", io.EOF)
	}
	return s.try.n, nil
}

func (s *stream) Write(b []byte) (int, error) {
	n, err := s.file.Write(b)
	if err != nil {
		return n, s.failure("writing", err)
	}
	return n, nil
}

func (s *stream) SetReadDeadline(t time.Time) error { return s.deadline(s.file.SetReadDeadline(t)) }

func (s *stream) SetWriteDeadline(t time.Time) error { return s.deadline(s.file.SetWriteDeadline(t)) }

func (s *stream) deadline(err error) error {
	if err != nil { // the poller has an error of its own for a closed file, and fails for no other reason
		return s.failure("setting a deadline of", ErrClosed)
	}
	return nil
}

func (s *stream) Gone() <-chan struct{} { return s.gone }

// lost notes that the port is gone, and lets the watching goroutine know.
func (s *stream) lost() {
	s.lose.Do(func() {
		close(s.gone)
		if s.watch != nil { // nil while the port is being opened
			s.watch.close()
		}
	})
}

func (s *stream) isGone() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// failure gives an error its sentinel. A tty that was hung up or unplugged reads end of file, then
// EIO; one that we closed ourselves because it was gone is gone, not closed.
func (s *stream) failure(doing string, err error) error {
	over := errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed)
	switch {
	case over && s.isGone() && !s.closed.Load():
		err = ErrGone
	case over:
		err = ErrClosed
	case hungUp(err):
		s.lost()
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	return fmt.Errorf("%s %s: %w", doing, s.name, err)
}

// hungUp tells whether a descriptor that fails like this will never work again.
func hungUp(err error) bool {
	if err == io.EOF {
		return true
	}
	for _, e := range []error{unix.EIO, unix.ENXIO, unix.ENODEV, // a tty
		unix.ECONNRESET, unix.ECONNABORTED, unix.EPIPE, unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENETDOWN, unix.ENETRESET} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// control calls do with the descriptor, which stays open meanwhile.
func (s *stream) control(do func(fd uintptr) error) error {
	var result error
	if err := s.raw.Control(func(fd uintptr) { result = do(fd) }); err != nil {
		return ErrClosed
	}
	return result
}

// follow watches the port in a goroutine until it is gone, then does release; stopWatch ends it.
// missing tells whether an event means that the port is gone.
func (s *stream) follow(missing func(event) bool, release func()) {
	go func() {
		defer close(s.done)
		for {
			e, err := s.watch.next(s.watch.interval())
			if err == nil && !e.hangup && !missing(e) {
				continue
			}
			if err == nil {
				s.lost()
			}
			if s.isGone() {
				release()
			}
			return
		}
	}()
}

func (s *stream) stopWatch() {
	s.watch.close()
	<-s.done
}

// lacks tells whether err means that the port has no such feature.
func lacks(err error) bool {
	for _, e := range []error{unix.ENOTTY, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, errors.ErrUnsupported} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// optional turns the absence of a feature into one warning.
func (s *stream) optional(feature string, err error) error {
	if err == nil || !lacks(err) {
		return err
	}
	s.warn(feature, "serial port lacks a feature", slog.String("feature", feature), slog.Any("err", err))
	return nil
}

// warn warns of what, once.
func (s *stream) warn(what, message string, attrs ...slog.Attr) {
	if _, again := s.warned.LoadOrStore(what, true); !again {
		s.log.LogAttrs(context.Background(), slog.LevelWarn, message, append([]slog.Attr{slog.String("port", s.name)}, attrs...)...)
	}
}
