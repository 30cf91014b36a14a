package port

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

const (
	dialTimeout = 5 * time.Second
	// A connection on which nothing comes back for this long is gone.
	tcpPatience = 20 * time.Second
	maxFlush    = 64 << 10 // bytes: a server that sends without end is not flushed without end
)

// tcpPort is a connection to a serial server.
type tcpPort struct {
	*stream
	flushing sync.Mutex
}

func (sys system) dial(ctx context.Context, a address, o Options) (Port, error) {
	fail := func(err error) (Port, error) { return nil, fmt.Errorf("opening %s: %w", a.name, err) }
	d := net.Dialer{
		Timeout:         dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 2},
		Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				// Best effort: without it a lost peer is noticed later while something waits to be sent.
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(tcpPatience/time.Millisecond))
			})
		},
	}
	c, err := d.DialContext(ctx, "tcp", a.server) // with TCP_NODELAY, as all of Go's
	if err != nil {
		if ctx.Err() != nil {
			return fail(ctx.Err())
		}
		return fail(hint.With(fmt.Errorf("%w: %w", ErrNotFound, err), "is the serial server on, and does it listen on that port?"))
	}
	conn := c.(*net.TCPConn) // what dialing "tcp" gives
	p, err := sys.newTCP(a, conn, o)
	if err != nil {
		conn.Close()
		return fail(err)
	}
	return p, nil
}

func (sys system) newTCP(a address, conn *net.TCPConn, o Options) (Port, error) {
	s, err := newStream(a.name, o.Log, conn)
	if err != nil {
		return nil, err
	}
	sys.uevents = func() (int, error) { return -1, errors.ErrUnsupported }
	w, err := sys.newWatch()
	if err != nil {
		return nil, err
	}
	if err := s.control(func(fd uintptr) error { return w.add(int(fd), unix.EPOLLRDHUP) }); err != nil {
		w.close()
		return nil, fmt.Errorf("watching: %w", err)
	}
	s.watch = w
	// What the server said last may still be read, so the connection is left open.
	s.follow(func(event) bool { return false }, func() {})
	return &tcpPort{stream: s}, nil
}

func (p *tcpPort) Configure(Settings) error { return nil }

func (p *tcpPort) Drain() error { return p.alive("draining") }

// Flush throws away what has arrived.
func (p *tcpPort) Flush() error {
	p.flushing.Lock()
	defer p.flushing.Unlock()
	var b [4096]byte
	err := p.control(func(fd uintptr) error {
		for range maxFlush / len(b) {
			if n, err := unix.Read(int(fd), b[:]); n <= 0 && err != unix.EINTR {
				return nil // nothing more; if the server is gone, the next call tells
			}
		}
		return nil
	})
	if err != nil {
		return p.failure("flushing", err)
	}
	return nil
}

func (p *tcpPort) SetDTR(bool) error { return p.without("dtr") }

func (p *tcpPort) SetRTS(bool) error { return p.without("rts") }

func (p *tcpPort) without(modemLine string) error {
	if err := p.alive("setting a modem line of"); err != nil {
		return err
	}
	return p.optional(modemLine, errors.ErrUnsupported)
}

func (p *tcpPort) Counters() (Counters, error) {
	return Counters{}, fmt.Errorf("reading the counters of %s: %w", p.name, errors.ErrUnsupported)
}

// alive fails after Close.
func (p *tcpPort) alive(doing string) error {
	if p.closed.Load() {
		return p.failure(doing, ErrClosed)
	}
	return nil
}

func (p *tcpPort) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	err := p.file.Close()
	p.stopWatch()
	if err != nil {
		return fmt.Errorf("closing %s: %w", p.name, err)
	}
	return nil
}
