package port

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// slowScan is how often a watch looks for itself while the kernel tells it of devices: inside a
// container it may believe so in vain. With half a second until the return is seen, a line resumes
// within 2 s whatever was missed.
const slowScan = 1500 * time.Millisecond

// watch waits, without a thread, for the hangup of a port, for an event of the kernel, or for the
// time to look. It is an epoll set that Go's poller waits for.
type watch struct {
	epoll *os.File
	raw   syscall.RawConn
	buf   [maxUevent]byte
	fast  time.Duration
	trust func(from unix.Sockaddr) bool

	mu      sync.Mutex // guards netlink against use after close
	netlink int        // -1: none
}

func (sys system) newWatch() (*watch, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watching serial ports: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else os.NewFile keeps it from the poller
		unix.Close(fd)
		return nil, fmt.Errorf("watching serial ports: %w", err)
	}
	w := &watch{epoll: os.NewFile(uintptr(fd), "epoll"), fast: sys.scan, trust: sys.trust, netlink: -1}
	if w.raw, err = w.epoll.SyscallConn(); err == nil {
		err = w.epoll.SetReadDeadline(time.Time{}) // fails where the poller did not take it
	}
	if err != nil {
		w.epoll.Close()
		return nil, fmt.Errorf("watching serial ports: %w", err)
	}
	if socket, err := sys.uevents(); err == nil {
		w.netlink = socket
		if w.add(socket, unix.EPOLLIN) != nil {
			w.deafen()
		}
	}
	return w, nil
}

// add puts a descriptor into the set; closing it takes it out again. With no events only a hangup is
// told, and of a tty not every one: unplugging wakes those who wait to read or write, so the event
// of the kernel and the look must find it. To wait for these, too, would wake us at every byte.
func (w *watch) add(fd int, events uint32) error {
	var result error
	err := w.raw.Control(func(epoll uintptr) {
		result = unix.EpollCtl(int(epoll), unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
	})
	if err == nil {
		err = result
	}
	return err
}

// interval is how long to wait for events before looking.
func (w *watch) interval() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.netlink < 0 {
		return w.fast
	}
	return max(slowScan, w.fast)
}

// next waits for the next event, at most for wait. After close it fails with os.ErrClosed.
func (w *watch) next(wait time.Duration) (event, error) {
	if w.epoll.SetReadDeadline(time.Now().Add(wait)) != nil {
		return event{}, os.ErrClosed
	}
	var e event
	err := w.raw.Read(func(epoll uintptr) (happened bool) {
		e, happened = w.poll(int(epoll))
		return happened
	})
	switch {
	case err == nil:
		return e, nil
	case os.IsTimeout(err):
		return event{scan: true}, nil
	}
	return event{}, os.ErrClosed
}

// poll tells what has happened already.
func (w *watch) poll(epoll int) (event, bool) {
	var ready [2]unix.EpollEvent
	n, err := unix.EpollWait(epoll, ready[:], 0)
	if err == unix.EINTR {
		return event{scan: true}, true
	}
	for _, r := range ready[:max(n, 0)] {
		w.mu.Lock()
		ours := int(r.Fd) == w.netlink
		w.mu.Unlock()
		if !ours {
			return event{hangup: true}, true
		}
	}
	if n > 0 {
		return w.receive()
	}
	return event{}, false
}

// receive returns the next event of a tty that has come, if any has. Whatever else is plugged in
// is passed over, but not for ever.
func (w *watch) receive() (event, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range 64 {
		if w.netlink < 0 {
			return event{}, false
		}
		n, _, flags, from, err := unix.Recvmsg(w.netlink, w.buf[:], nil, 0)
		switch {
		case err == unix.EAGAIN:
			return event{}, false
		case err == unix.EINTR:
			continue
		case err == unix.ENOBUFS: // events came faster than we read
			return event{scan: true}, true
		case err != nil:
			w.deafenLocked()
			return event{scan: true}, true
		case flags&unix.MSG_TRUNC != 0 || !w.trust(from):
			continue
		}
		if e, ok := parseUevent(w.buf[:n]); ok {
			return e, true
		}
	}
	return event{scan: true}, true
}

// deafen gives the kernel's events up; the scan remains.
func (w *watch) deafen() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deafenLocked()
}

func (w *watch) deafenLocked() {
	if w.netlink >= 0 {
		unix.Close(w.netlink)
		w.netlink = -1
	}
}

// close frees next and the descriptors.
func (w *watch) close() {
	w.epoll.Close()
	w.deafen()
}
