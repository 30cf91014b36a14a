package listener

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/agent/local/role"
)

// maxHandshake bounds what a client may send before it is known, in bytes: crypto/tls itself
// would take 256 KiB of certificates from each.
const maxHandshake = 24 << 10

var errTooMuch = errors.New("more than 24 KiB in the handshake")

// Conn is one client's TCP connection with what is known of it.
type Conn struct {
	net.Conn
	listener *Listener
	source   netip.Prefix

	// Written by the handshake's goroutine alone, and read by others after it.
	grant    role.Grant
	asked    bool
	hello    bool // a ClientHello was read
	notAfter time.Time

	received atomic.Int64 // bytes
	reading  atomic.Int64 // how many more may come; negative: no bound
	evicted  atomic.Bool
	class    class // guarded by the table
	once     sync.Once
}

// Of returns what is known of a connection that a Listener gave, nil of any other.
func Of(conn net.Conn) *Conn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, _ := conn.(*Conn)
	return c
}

// Grant is what the client's certificate gives; its role is None where none was shown.
func (c *Conn) Grant() role.Grant { return c.grant }

// Asked says whether the client was asked for a certificate.
func (c *Conn) Asked() bool { return c.asked }

// NotAfter is when the client's certificate expires; zero where none was shown.
func (c *Conn) NotAfter() time.Time { return c.notAfter }

// Source is the client's address without its port.
func (c *Conn) Source() string { return host(c.RemoteAddr()) }

// Welcome makes a stranger a guest: it has shown something other than a certificate.
func (c *Conn) Welcome() { c.listener.table.move(c, guest) }

func (c *Conn) Read(b []byte) (int, error) {
	bound := c.reading.Load()
	if bound == 0 {
		return 0, errTooMuch
	}
	if bound > 0 && int64(len(b)) > bound {
		b = b[:bound]
	}
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	if bound > 0 {
		c.reading.Add(-int64(n))
	}
	return n, err
}

// Close closes the connection and forgets it.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.listener.table.remove(c)
		c.listener.reserve.refill()
	})
	return err
}

// evict takes the connection away from whoever uses it. That one closes it.
func (c *Conn) evict() {
	c.evicted.Store(true)
	_ = c.Conn.Close()
}

// sourceOf is what limits are counted by: an IPv4 address, or the /64 of an IPv6 address, since
// whoever has one address of it has them all.
func sourceOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	address, _ := netip.AddrFromSlice(tcp.IP)
	address = address.Unmap()
	bits := 32
	if address.Is6() {
		bits = 64
	}
	prefix, _ := address.Prefix(bits)
	return prefix
}

func host(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return ""
	}
	return tcp.IP.String()
}
