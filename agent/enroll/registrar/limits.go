package registrar

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Connections that are open at one time, of all and of one source: each costs some 40 KiB.
const (
	maxConns         = 1024
	maxConnsOfSource = 512
)

// limited accepts so many connections and no more: those above the bound wait in the kernel,
// and those of a source that has its share already are closed.
type limited struct {
	net.Listener
	open chan struct{}

	mu sync.Mutex
	of map[string]int
}

func limit(l net.Listener) *limited {
	return &limited{Listener: l, open: make(chan struct{}, maxConns), of: make(map[string]int)}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		l.open <- struct{}{}
		conn, err := l.Listener.Accept()
		if err != nil {
			<-l.open
			return nil, err
		}
		source := sourceOf(conn.RemoteAddr().String())
		if l.count(source, 1) {
			return &limitedConn{Conn: conn, done: sync.OnceFunc(func() { l.count(source, -1); <-l.open })}, nil
		}
		_ = conn.Close()
		<-l.open
	}
}

// count adds to the connections of a source, and reports whether it may have them.
func (l *limited) count(source string, n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[source]+n > maxConnsOfSource {
		return false
	}
	if l.of[source] += n; l.of[source] == 0 {
		delete(l.of, source)
	}
	return true
}

type limitedConn struct {
	net.Conn
	done func()
}

func (c *limitedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}

// sourceOf is who is counted: one address, or one network of IPv6, whose owner has all of it.
func sourceOf(remote string) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	address := ap.Addr().Unmap()
	if address.Is4() {
		return address.String()
	}
	network, err := address.WithZone("").Prefix(64)
	if err != nil {
		return address.String()
	}
	return network.String()
}

// rate lets every source begin burst enrollments at once, and perSecond after that.
type rate struct {
	sources map[string]allowance
}

type allowance struct {
	left float64
	at   time.Time
}

const (
	burst      = 512 // a whole line of gateways may come from one address
	perSecond  = 20
	maxSources = 16384
)

// allow takes one from a source's allowance. The caller holds the lock of sessions.
func (r *rate) allow(source string, now time.Time) bool {
	a, known := r.sources[source]
	if !known {
		if len(r.sources) >= maxSources {
			r.forget(now)
		}
		if len(r.sources) >= maxSources {
			return false
		}
		a = allowance{left: burst, at: now}
	}
	a.left = min(burst, a.left+perSecond*max(0, now.Sub(a.at).Seconds()))
	a.at = now
	ok := a.left >= 1
	if ok {
		a.left--
	}
	r.sources[source] = a
	return ok
}

// forget drops the sources whose allowance is whole again.
func (r *rate) forget(now time.Time) {
	for source, a := range r.sources {
		if a.left+perSecond*now.Sub(a.at).Seconds() >= burst {
			delete(r.sources, source)
		}
	}
}
