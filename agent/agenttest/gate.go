package agenttest

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// gate is a listener whose network can be cut: open connections break, and as long as it is
// shut nobody listens. Accepting a connection only to break it would be another trouble:
// crypto/tls gives up its session ticket when a handshake ends like that.
type gate struct {
	address net.Addr
	tls     *tls.Config

	mu       sync.Mutex
	changed  sync.Cond    // listener, closed or unread
	listener net.Listener // nil: shut
	closed   bool
	live     map[*gateConn]struct{}
	unread   int // connections that the broker was given and has not read from
}

type gateConn struct {
	net.Conn
	gate  *gate
	begun sync.Once
}

func newGate(listener net.Listener, config *tls.Config) *gate {
	g := &gate{address: listener.Addr(), tls: config, listener: listener, live: make(map[*gateConn]struct{})}
	g.changed.L = &g.mu
	return g
}

// Addr is where the gate listens when it is open.
func (g *gate) Addr() net.Addr { return g.address }

// Accept returns the next connection, as a TLS server whose handshake is still to come.
func (g *gate) Accept() (net.Conn, error) {
	for {
		listener, err := g.open()
		if err != nil {
			return nil, err
		}
		raw, err := listener.Accept()
		if err == nil {
			conn := &gateConn{Conn: raw, gate: g}
			if g.enter(conn, listener) {
				return tls.Server(conn, g.tls), nil
			}
			reset(raw)
		} else if g.is(listener) {
			return nil, err
		}
	}
}

// open waits until the gate is.
func (g *gate) open() (net.Listener, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.listener == nil && !g.closed {
		g.changed.Wait()
	}
	if g.closed {
		return nil, net.ErrClosed
	}
	return g.listener, nil
}

// is reports whether listener is still the one to accept from.
func (g *gate) is(listener net.Listener) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.listener == listener
}

func (g *gate) enter(c *gateConn, listener net.Listener) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != listener {
		return false
	}
	g.live[c] = struct{}{}
	g.unread++
	return true
}

// shut ends listening and breaks every open connection.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != nil {
		_ = g.listener.Close()
		g.listener = nil
	}
	for c := range g.live {
		reset(c.Conn)
	}
	clear(g.live)
}

// reopenTime is how long another connection of this machine may happen to hold the port.
const reopenTime = 5 * time.Second

// reopen listens again, at the same address.
func (g *gate) reopen() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != nil || g.closed {
		return nil
	}
	var config net.ListenConfig
	until := time.Now().Add(reopenTime)
	for {
		listener, err := config.Listen(context.Background(), "tcp", g.address.String())
		if err == nil {
			g.listener = listener
			g.changed.Broadcast()
			return nil
		}
		if time.Now().After(until) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Close ends the gate, but not the connections.
func (g *gate) Close() (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != nil {
		err = g.listener.Close()
		g.listener = nil
	}
	g.closed = true
	g.changed.Broadcast()
	return err
}

// drain ends the gate and waits until the broker knows of every connection that it was given: mochi
// counts a client in its own time, which must not be while it waits for the last to go.
func (g *gate) drain() {
	_ = g.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.unread > 0 {
		g.changed.Wait()
	}
}

// reset ends a connection as a broken network does: without a farewell.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// Read is the first that the broker does with a client it has counted.
func (c *gateConn) Read(p []byte) (int, error) {
	c.begin()
	return c.Conn.Read(p)
}

func (c *gateConn) begin() {
	c.begun.Do(func() {
		c.gate.mu.Lock()
		defer c.gate.mu.Unlock()
		c.gate.unread--
		c.gate.changed.Broadcast()
	})
}

// Close forgets the connection.
func (c *gateConn) Close() error {
	c.begin()
	c.gate.mu.Lock()
	delete(c.gate.live, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}
