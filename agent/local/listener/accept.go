package listener

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Pauses after accept failed.
const (
	firstPause = 5 * time.Millisecond
	longPause  = time.Second
	// evictPause bounds how fast strangers go when descriptors run short.
	evictPause = 2 * time.Millisecond
)

// accept takes clients until ctx is done. No error of a client ends it, and no error of the
// system makes it spin.
func (l *Listener) accept(ctx context.Context) error {
	pause := firstPause
	for {
		conn, err := l.tcp.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return ctx.Err()
		case err == nil:
			pause = firstPause
			l.take(conn)
		case errors.Is(err, net.ErrClosed) && l.isClosing(): // those who are in may finish
			<-ctx.Done()
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting local clients: %w", err)
		case l.makeRoom(ctx, err):
		default:
			l.refusals.acceptFailed(ctx, l.log, err)
			wait(ctx, pause)
			pause = min(2*pause, longPause)
		}
	}
}

// makeRoom frees a descriptor when that is what is missing: one of the reserve, else that of the
// oldest stranger. It is false where there is nothing to give, or something else is wrong.
func (l *Listener) makeRoom(ctx context.Context, err error) bool {
	if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
		return false
	}
	if l.reserve.lend() {
		l.refusals.acceptFailed(ctx, l.log, err)
		return true
	}
	if !l.table.evictStranger() {
		return false
	}
	l.refusals.acceptFailed(ctx, l.log, err)
	wait(ctx, evictPause)
	return true
}

func (l *Listener) isClosing() bool {
	select {
	case <-l.closing:
		return true
	default:
		return false
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// take starts the handshake with one client.
func (l *Listener) take(tcp net.Conn) {
	l.accepted.Add(1)
	c := &Conn{Conn: tcp, listener: l, source: sourceOf(tcp.RemoteAddr())}
	c.reading.Store(maxHandshake)
	l.table.add(c)
	l.working.Go(func() { l.shake(c) })
}

// reserveSize is how many clients can be served when this process has no descriptor left.
const reserveSize = 8

// reserve holds descriptors for nothing but being given away: Linux refuses accept itself when
// none is left, and whoever waits would wait until one is.
type reserve struct {
	mu     sync.Mutex
	files  []*os.File
	closed bool
}

func openReserve() *reserve {
	r := &reserve{}
	r.refill()
	return r
}

// lend gives one descriptor back to the system; false: all are lent.
func (r *reserve) lend() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.files) == 0 {
		return false
	}
	last := len(r.files) - 1
	_ = r.files[last].Close()
	r.files = r.files[:last]
	return true
}

// refill takes back what was lent, as far as there is any.
func (r *reserve) refill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.closed && len(r.files) < reserveSize {
		file, err := os.Open(os.DevNull)
		if err != nil {
			return
		}
		r.files = append(r.files, file)
	}
}

func (r *reserve) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, file := range r.files {
		_ = file.Close()
	}
	r.files, r.closed = nil, true
}
