package agenttest

import (
	"crypto/tls"
	"net"
	"sync"
)

// gate is a listener whose network can be cut: open connections break and new ones are
// closed at once, as long as it is shut.
type gate struct {
	net.Listener
	tls *tls.Config

	mu   sync.Mutex
	shut bool
	live map[*gateConn]struct{}
}

type gateConn struct {
	net.Conn
	gate *gate
}

func newGate(listener net.Listener, config *tls.Config) *gate {
	return &gate{Listener: listener, tls: config, live: make(map[*gateConn]struct{})}
}

// Accept returns the next connection, as a TLS server whose handshake is still to come.
func (g *gate) Accept() (net.Conn, error) {
	for {
		raw, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		conn := &gateConn{Conn: raw, gate: g}
		if g.enter(conn) {
			return tls.Server(conn, g.tls), nil
		}
		reset(raw)
	}
}

func (g *gate) enter(c *gateConn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.shut {
		g.live[c] = struct{}{}
	}
	return !g.shut
}

// set shuts or opens the gate. Shutting it breaks every open connection.
func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	if !shut {
		return
	}
	for c := range g.live {
		reset(c.Conn)
	}
	clear(g.live)
}

// reset ends a connection as a broken network does: without a farewell.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// Close forgets the connection.
func (c *gateConn) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.live, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}
