package listener

import (
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

// class is what a connection is counted with.
type class uint8

const (
	handshaking class = iota
	stranger          // in, but nobody: no certificate was shown
	guest             // has a role
	classes
)

// Limits bound the connections, each kind in all and of one source (an IPv4 address, or a /64
// of IPv6). Nobody is turned away: a newer connection takes the place of the oldest of the
// source that holds the most, so that whoever floods pays for it.
type Limits struct {
	Handshaking, Strangers, Guests int
	PerSource                      int // of each kind
}

// The largest limits, and the share of this process's descriptors that each kind may have.
const (
	maxHandshaking = 64
	maxStrangers   = 64
	maxGuests      = 64
	maxPerSource   = 40
)

func (l Limits) orDefault() Limits {
	if l != (Limits{}) {
		return l
	}
	files := 1024
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil && uint64(limit.Cur) < 1<<20 {
		files = int(limit.Cur)
	}
	return Limits{
		Handshaking: max(8, min(maxHandshaking, files/4)),
		Strangers:   max(4, min(maxStrangers, files/8)),
		Guests:      max(4, min(maxGuests, files/8)),
		PerSource:   maxPerSource,
	}
}

// table holds every connection, oldest first.
type table struct {
	limits Limits
	mu     sync.Mutex
	conns  [classes][]*Conn
	closed bool
}

func newTable(l Limits) *table { return &table{limits: l} }

func (t *table) limit(k class) int {
	return [...]int{handshaking: t.limits.Handshaking, stranger: t.limits.Strangers, guest: t.limits.Guests}[k]
}

// add counts a new connection. One that it displaces is closed.
func (t *table) add(c *Conn) {
	t.mu.Lock()
	victim := t.enter(c, handshaking)
	closed := t.closed
	t.mu.Unlock()
	if victim != nil {
		victim.evict()
	}
	if closed {
		c.evict()
	}
}

// move counts a connection with another kind.
func (t *table) move(c *Conn, to class) {
	t.mu.Lock()
	var victim *Conn
	if t.leave(c) {
		victim = t.enter(c, to)
	}
	t.mu.Unlock()
	if victim != nil {
		victim.evict()
	}
}

func (t *table) remove(c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leave(c)
}

// enter appends c and takes out whom it displaces. The table is locked.
func (t *table) enter(c *Conn, k class) (victim *Conn) {
	if victim = t.displaced(c, k); victim != nil {
		t.leave(victim)
	}
	c.class = k
	t.conns[k] = append(t.conns[k], c)
	return victim
}

func (t *table) leave(c *Conn) bool {
	list := t.conns[c.class]
	i := slices.Index(list, c)
	if i < 0 {
		return false
	}
	t.conns[c.class] = slices.Delete(list, i, i+1)
	return true
}

// displaced chooses who goes for c: nobody while there is room.
func (t *table) displaced(c *Conn, k class) *Conn {
	list := t.conns[k]
	if len(list) < min(t.limits.PerSource, t.limit(k)) {
		return nil
	}
	held := make(map[netip.Prefix]int)
	greediest := c.source
	for _, other := range list {
		held[other.source]++
	}
	switch {
	case held[c.source] >= t.limits.PerSource:
	case len(list) >= t.limit(k):
		for _, other := range list { // in order, so that of equals the oldest pays
			if held[other.source] > held[greediest] || held[greediest] == 0 {
				greediest = other.source
			}
		}
	default:
		return nil
	}
	for _, other := range list {
		if other.source == greediest {
			return other
		}
	}
	return nil
}

// evictStranger closes the oldest connection of somebody unknown; false: there is none.
func (t *table) evictStranger() bool {
	t.mu.Lock()
	var victim *Conn
	for _, k := range []class{handshaking, stranger} {
		if len(t.conns[k]) > 0 {
			victim = t.conns[k][0]
			t.leave(victim)
			break
		}
	}
	t.mu.Unlock()
	if victim == nil {
		return false
	}
	victim.evict()
	return true
}

// closeAll closes every connection, and those that come later.
func (t *table) closeAll() {
	t.mu.Lock()
	var all []*Conn
	for k := range t.conns {
		all = append(all, t.conns[k]...)
		t.conns[k] = nil
	}
	t.closed = true
	t.mu.Unlock()
	for _, c := range all {
		c.evict()
	}
}

func (t *table) counts() (shaking, strangers, guests int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns[handshaking]), len(t.conns[stranger]), len(t.conns[guest])
}
