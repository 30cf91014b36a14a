package port

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tty is the data path of a serial port: a non-blocking descriptor that waits by ppoll, outside of
// Go's poller. There every few bytes that an UART hands over would wake threads, read or
// not: half of the processor time of a poll at 9600 baud. It behaves as an *os.File does: Close
// frees Read and Write, and no call reaches a descriptor that took its number.
type tty struct {
	name   string
	base   time.Time
	closed atomic.Bool
	in     side
	out    side

	use sync.RWMutex // held for reading while a descriptor is used
	fd  int
}

// side is one direction of a tty. One goroutine at a time uses it; any may change its deadline.
type side struct {
	wake     int          // an eventfd that ends a wait
	waiting  atomic.Bool  // somebody waits, or is about to
	deadline atomic.Int64 // nanoseconds after base; 0: none

	fds  [2]unix.PollFd // the arguments of ppoll, so that a wait allocates nothing
	left unix.Timespec
}

// openTTY opens a serial port's device. It is non-blocking from the start, else opening waits for a
// carrier.
func openTTY(path string) (*tty, error) {
	t := &tty{name: path, base: time.Now().Add(-time.Second)}
	var err error
	for {
		t.fd, err = unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if t.in.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(t.fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	if t.out.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(t.fd)
		unix.Close(t.in.wake)
		return nil, os.NewSyscallError("eventfd", err)
	}
	return t, nil
}

func (t *tty) Read(b []byte) (int, error) {
	t.use.RLock()
	defer t.use.RUnlock()
	for {
		if err := t.over(&t.in); err != nil {
			return 0, err
		}
		n, err := unix.Read(t.fd, b)
		switch {
		case err == unix.EAGAIN:
			t.wait(&t.in, unix.POLLIN)
		case err == unix.EINTR:
		case err != nil:
			return 0, &os.PathError{Op: "read", Path: t.name, Err: err}
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (t *tty) Write(b []byte) (n int, err error) {
	t.use.RLock()
	defer t.use.RUnlock()
	for {
		if err := t.over(&t.out); err != nil {
			return n, err
		}
		if n == len(b) {
			return n, nil
		}
		m, err := unix.Write(t.fd, b[n:])
		switch {
		case err == unix.EAGAIN:
			t.wait(&t.out, unix.POLLOUT)
		case err == unix.EINTR:
		case err != nil:
			return n, &os.PathError{Op: "write", Path: t.name, Err: err}
		default:
			if n += m; n == len(b) {
				return n, nil
			}
		}
	}
}

// over is why a side is not to be used any more.
func (t *tty) over(s *side) error {
	if t.closed.Load() {
		return os.ErrClosed
	}
	if d := s.deadline.Load(); d != 0 && int64(time.Since(t.base)) >= d {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// wait returns when the descriptor may be ready, at the deadline, or when the side is woken.
func (t *tty) wait(s *side, events int16) {
	s.waiting.Store(true) // before the deadline is looked at: who changes it looks here afterwards
	defer s.waiting.Store(false)
	if t.closed.Load() {
		return
	}
	var timeout *unix.Timespec
	if d := s.deadline.Load(); d != 0 {
		s.left = unix.NsecToTimespec(max(d-int64(time.Since(t.base)), 0))
		timeout = &s.left
	}
	s.fds = [...]unix.PollFd{{Fd: int32(t.fd), Events: events}, {Fd: int32(s.wake), Events: unix.POLLIN}}
	unix.Ppoll(s.fds[:], timeout, nil) // whatever ends it, the caller looks again
	if s.fds[1].Revents != 0 {
		var count [8]byte
		unix.Read(s.wake, count[:])
	}
}

// interrupt ends the wait of a side, if there is any.
func (s *side) interrupt() {
	if s.waiting.Load() {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		unix.Write(s.wake, one[:])
	}
}

func (t *tty) SetReadDeadline(d time.Time) error  { return t.setDeadline(&t.in, d) }
func (t *tty) SetWriteDeadline(d time.Time) error { return t.setDeadline(&t.out, d) }

func (t *tty) setDeadline(s *side, d time.Time) error {
	t.use.RLock()
	defer t.use.RUnlock()
	if t.closed.Load() {
		return os.ErrClosed
	}
	after := int64(0)
	if !d.IsZero() {
		after = max(int64(d.Sub(t.base)), 1)
	}
	s.deadline.Store(after)
	s.interrupt()
	return nil
}

// Close frees Read and Write and waits until they have returned.
func (t *tty) Close() error {
	if t.closed.Swap(true) {
		return os.ErrClosed
	}
	t.in.interrupt()
	t.out.interrupt()
	t.use.Lock()
	defer t.use.Unlock()
	unix.Close(t.in.wake)
	unix.Close(t.out.wake)
	return unix.Close(t.fd)
}

// SyscallConn gives access to the descriptor by Control alone.
func (t *tty) SyscallConn() (syscall.RawConn, error) { return ttyControl{t}, nil }

type ttyControl struct{ t *tty }

// Control calls f with the descriptor, which stays open meanwhile.
func (c ttyControl) Control(f func(fd uintptr)) error {
	c.t.use.RLock()
	defer c.t.use.RUnlock()
	if c.t.closed.Load() {
		return os.ErrClosed
	}
	f(uintptr(c.t.fd))
	return nil
}

func (ttyControl) Read(func(fd uintptr) bool) error  { return errors.ErrUnsupported }
func (ttyControl) Write(func(fd uintptr) bool) error { return errors.ErrUnsupported }
