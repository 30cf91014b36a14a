package tpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A descriptor is an open TPM character device: one write is one command, one read one
// response.
type descriptor interface {
	// Poll waits until the descriptor can be read, at most d; false without error means
	// that time is up.
	Poll(d time.Duration) (bool, error)
	io.ReadWriteCloser
}

// deviceConn speaks to the kernel. Every exchange runs on a goroutine of its own, because
// poll(2) on a TPM may block inside the kernel for as long as the driver waits for the chip,
// whatever timeout it was given.
type deviceConn struct {
	fd   descriptor
	late <-chan struct{} // closed when an exchange that was given up has ended
}

func openDevice(path string) (conn, error) {
	for {
		// O_NONBLOCK makes write return at once and the wait happen in poll (Linux 4.20;
		// older kernels ignore it).
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			return &deviceConn{fd: charDevice(fd)}, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

func (c *deviceConn) exchange(ctx context.Context, cmd []byte, deadline time.Time) ([]byte, error) {
	var rsp []byte
	var err error
	done := make(chan struct{})
	go func() { // ends with the deadline, or when the kernel's own timeout does
		defer close(done)
		rsp, err = c.roundTrip(cmd, deadline)
	}()
	// The grace lets an exchange that ends in time tell its own story.
	timer := time.NewTimer(time.Until(deadline) + 100*time.Millisecond)
	defer timer.Stop()
	select {
	case <-done:
		return rsp, err
	case <-ctx.Done():
		c.late = done
		return nil, context.Cause(ctx)
	case <-timer.C:
		c.late = done
		return nil, os.ErrDeadlineExceeded
	}
}

func (c *deviceConn) close() <-chan struct{} {
	if c.late == nil {
		_ = c.fd.Close()
		return nil
	}
	closed := make(chan struct{})
	go func() { // ends with the late exchange; Device.Close waits for it
		defer close(closed)
		<-c.late
		_ = c.fd.Close()
	}()
	return closed
}

func (c *deviceConn) roundTrip(cmd []byte, deadline time.Time) ([]byte, error) {
	if err := c.write(cmd, deadline); err != nil {
		return nil, err
	}
	var buf [maxResponse]byte
	have := 0
	for {
		n, err := c.read(buf[have:], deadline)
		if err != nil {
			return nil, err
		}
		if have += n; have < headerSize {
			continue
		}
		size, err := responseSize(buf[:headerSize])
		if err != nil {
			return nil, err
		}
		if have > size {
			return nil, fmt.Errorf("%w: %d bytes where its header announces %d", errFraming, have, size)
		}
		if have == size {
			return append([]byte(nil), buf[:have]...), nil
		}
	}
}

// write hands the command over. EBUSY means that the response of an earlier command, given
// up or interrupted, lies unread in the descriptor: it is read and thrown away.
func (c *deviceConn) write(cmd []byte, deadline time.Time) error {
	for {
		n, err := c.fd.Write(cmd)
		switch {
		case err == nil && n == len(cmd):
			return nil
		case err == nil:
			return fmt.Errorf("writing a TPM command: %w", io.ErrShortWrite)
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EBUSY):
			var stale [maxResponse]byte
			if _, err := c.read(stale[:], deadline); err != nil {
				return fmt.Errorf("draining an unread TPM response: %w", err)
			}
		default:
			return fmt.Errorf("writing a TPM command: %w", err)
		}
	}
}

// read returns at least one byte. Between the end of poll and the response becoming
// readable some kernels answer 0 bytes, which is no end of file here.
func (c *deviceConn) read(p []byte, deadline time.Time) (int, error) {
	if len(p) == 0 {
		return 0, fmt.Errorf("%w: more than %d bytes", errFraming, maxResponse)
	}
	for empty := 0; ; {
		left := time.Until(deadline)
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		ready, err := c.fd.Poll(left)
		if errors.Is(err, syscall.EINTR) || err == nil && !ready {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("waiting for the TPM: %w", err)
		}
		n, err := c.fd.Read(p)
		switch {
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN):
		case err != nil:
			return 0, fmt.Errorf("reading a TPM response: %w", err)
		case n > 0:
			return n, nil
		default:
			if empty++; empty > maxEmptyReads {
				return 0, fmt.Errorf("reading a TPM response: %w", io.ErrUnexpectedEOF)
			}
		}
	}
}

// maxEmptyReads tells the kernel's brief race from a descriptor at its end.
const maxEmptyReads = 16

// charDevice is the descriptor of a real character device.
type charDevice int

func (fd charDevice) Poll(d time.Duration) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	// Rounded up, so that the last partial millisecond does not spin.
	n, err := unix.Poll(fds, int((d+time.Millisecond-1)/time.Millisecond))
	if err != nil || n == 0 {
		return false, err
	}
	if fds[0].Revents&unix.POLLIN == 0 {
		return false, fmt.Errorf("device is gone (poll events %#x): %w", fds[0].Revents, syscall.ENODEV)
	}
	return true, nil
}

func (fd charDevice) Read(p []byte) (int, error)  { return unix.Read(int(fd), p) }
func (fd charDevice) Write(p []byte) (int, error) { return unix.Write(int(fd), p) }
func (fd charDevice) Close() error                { return unix.Close(int(fd)) }
