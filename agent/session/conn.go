package session

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/agent/session/cause"
)

const (
	// flushAt is how many bytes are gathered for one write.
	flushAt = 16 << 10
	// keepBuffer is the largest write buffer that is kept for the next write.
	keepBuffer = 64 << 10
)

// pingreq is a PINGREQ packet (MQTT 3.1.1, 3.12).
var pingreq = [2]byte{12 << 4, 0}

// conn is the connection as paho sees it. Reading goes through the guard. Writing gathers the
// PUBLISH packets that were announced with expect, since paho writes, and TLS seals, each by
// itself; the last one announced, or any other packet, sends them all. Every write has a
// deadline of its own: paho sets none for its pings, and would wait for ever.
//
// A broken connection is made known with fail, never by closing it: paho takes "use of closed
// network connection" for its own doing and goes on as if it were connected.
type conn struct {
	inner        net.Conn
	writeTimeout time.Duration
	guard        *guard
	quickAck     quickAck
	start        time.Time

	lastIn  atomic.Int64  // when bytes came, in nanoseconds since start
	lastAck atomic.Int64  // when a PUBACK came, or could not
	acks    atomic.Uint64 // how many came
	ponged  chan struct{} // a PINGRESP came

	failMu  sync.Mutex
	failure error

	writeMu  sync.Mutex
	buf      []byte
	expected int // announced PUBLISH packets that were not written yet
}

// newConn wraps a connection of dial's, or anything else in a test.
func newConn(inner net.Conn, maxInbound int64, writeTimeout time.Duration) *conn {
	c := &conn{inner: inner, writeTimeout: writeTimeout, start: time.Now(), ponged: make(chan struct{}, 1)}
	if over, ok := inner.(interface{ TCP() *net.TCPConn }); ok && over.TCP() != nil {
		c.quickAck = newQuickAck(over.TCP())
	}
	c.guard = newGuard(readerFunc(c.receive), maxInbound, c.packet)
	var slow throttle
	c.guard.wait = func(size int64) {
		if pause := slow.pause(size, time.Now()); pause > 0 {
			time.Sleep(pause)
		}
	}
	return c
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// receive reads from the connection beneath and notes that it lives.
func (c *conn) receive(p []byte) (int, error) {
	n, err := c.inner.Read(p)
	if n > 0 {
		c.quickAck.now()
		c.lastIn.Store(int64(time.Since(c.start)))
	}
	return n, err
}

// watchPoison has judge asked about messages that cannot be passed on, and skipped told of those that
// were skipped. Their keys are made with seed.
func (c *conn) watchPoison(seed maphash.Seed, judge, skipped func(p poison) error) {
	var since time.Time
	c.guard.seed = seed
	c.guard.judge = func(p poison) error {
		since = time.Now()
		return judge(p)
	}
	c.guard.skipping = func() error {
		c.lastAck.Store(c.lastIn.Load()) // acknowledgements wait behind it
		if time.Since(since) > swallowFor {
			return fmt.Errorf("%w: it takes longer than %v to skip", cause.ErrTooLarge, swallowFor)
		}
		return nil
	}
	c.guard.skipped = skipped
}

// packet notes what the guard let pass.
func (c *conn) packet(kind byte) {
	switch kind {
	case packetPuback:
		c.lastAck.Store(c.lastIn.Load())
		c.acks.Add(1)
	case packetPingresp:
		select {
		case c.ponged <- struct{}{}:
		default:
		}
	}
}

// fail ends reading and writing with err. The first reason stays.
func (c *conn) fail(err error) {
	c.failMu.Lock()
	defer c.failMu.Unlock()
	if c.failure == nil {
		c.failure = err
		_ = c.inner.SetDeadline(time.Unix(1, 0))
	}
}

// failed returns the reason given to fail.
func (c *conn) failed() error {
	c.failMu.Lock()
	defer c.failMu.Unlock()
	return c.failure
}

// Read reads for paho. Its error is the connection's, before anything that follows from it.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.guard.Read(p)
	if err == nil || errors.Is(err, net.ErrClosed) {
		return n, err
	}
	c.fail(err)
	return n, c.failed()
}

// expect announces n PUBLISH packets that will be written without delay.
func (c *conn) expect(n int) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.expected += n
}

// Write takes one packet; paho writes each with one call.
func (c *conn) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := c.failed(); err != nil {
		return 0, err
	}
	c.buf = append(c.buf, p...)
	if len(p) > 0 && p[0]>>4 == packetPublish {
		c.expected = max(c.expected-1, 0)
		if c.expected > 0 && len(c.buf) < flushAt {
			return len(p), nil
		}
	}
	if err := c.flush(c.writeTimeout); err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush writes what was gathered, within limit. writeMu is held.
func (c *conn) flush(limit time.Duration) error {
	_ = c.inner.SetWriteDeadline(time.Now().Add(limit))
	if err := c.failed(); err != nil { // and its deadline was just overwritten
		return err
	}
	_, err := c.inner.Write(c.buf)
	c.buf = c.buf[:0]
	if cap(c.buf) > keepBuffer {
		c.buf = nil
	}
	if err != nil {
		err = c.explain(err)
		c.fail(err)
		return c.failed()
	}
	// TLS writes by itself while it reads, and must not find a deadline that has passed.
	return c.inner.SetWriteDeadline(time.Time{})
}

// explain looks whether the other side said why it stopped listening: an alert may lie in the
// receive buffer of a connection that can no longer be written to.
func (c *conn) explain(err error) error {
	if cause.IsTimeout(err) {
		return fmt.Errorf("%w for %v: %w", cause.ErrFrozen, c.writeTimeout, err)
	}
	if c.guard.connected.Load() {
		return err // paho's reader will meet the alert
	}
	_ = c.inner.SetReadDeadline(time.Now().Add(alertGrace))
	var b [1]byte
	if _, alert := c.inner.Read(b[:]); alert != nil && cause.IsAlert(alert) {
		return alert
	}
	return err
}

// alertGrace is how long the alert behind a failed write is waited for.
const alertGrace = 200 * time.Millisecond

// forgetPong forgets the PINGRESP that came.
func (c *conn) forgetPong() {
	select {
	case <-c.ponged:
	default:
	}
}

// ping sends a PINGREQ within limit, unless something is being written anyway.
func (c *conn) ping(limit time.Duration) {
	if !c.writeMu.TryLock() {
		return
	}
	defer c.writeMu.Unlock()
	if c.failed() == nil {
		c.buf = append(c.buf, pingreq[:]...)
		_ = c.flush(limit)
	}
}

// sinceIn returns how long nothing came, but no more than since t.
func (c *conn) sinceIn(t time.Time) time.Duration { return c.since(&c.lastIn, t) }

// sinceAck returns how long no PUBACK came, but no more than since t.
func (c *conn) sinceAck(t time.Time) time.Duration { return c.since(&c.lastAck, t) }

// acknowledged says whether any PUBACK came.
func (c *conn) acknowledged() bool { return c.acks.Load() > 0 }

func (c *conn) since(last *atomic.Int64, t time.Time) time.Duration {
	return min(time.Since(c.start)-time.Duration(last.Load()), time.Since(t))
}

// Close closes the connection; paho does, once it knows that the connection has ended.
func (c *conn) Close() error { return c.inner.Close() }

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.inner.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.inner.RemoteAddr() }

// SetDeadline bounds the wait for CONNACK: paho sets it before CONNECT and clears it after.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.failMu.Lock()
	defer c.failMu.Unlock()
	if c.failure != nil {
		return c.failure
	}
	return c.inner.SetReadDeadline(t)
}

// SetWriteDeadline does nothing: flush sets its own.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
