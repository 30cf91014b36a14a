package session

import (
	"net"
	"net/netip"
	"time"
)

// lookForWay is how often is looked whether there is a way again, and soonBound bounds the pause
// that is left when there is one.
const (
	lookForWay = time.Second
	soonBound  = 5 * time.Second
)

// ownChange says whether the address that a connection went out from is no longer one of ours: a
// modem that dialled in anew, or a cable that was pulled. No other device lost its connection with us
// then. It asks this machine alone.
func ownChange(local net.Addr) bool {
	tcp, ok := local.(*net.TCPAddr)
	if !ok || tcp.IP.IsLoopback() {
		return false
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addresses {
		if prefix, ok := a.(*net.IPNet); ok && prefix.IP.Equal(tcp.IP) {
			return false
		}
	}
	return true
}

// hasWay says whether this machine has a route to target, or to the internet at large where target
// is not an address. A UDP socket that is connected sends nothing: the routing table alone answers.
// So what no router far away knows, and what a whole fleet would see, counts as a way.
func hasWay(target string) bool {
	targets := []string{target}
	if a, err := netip.ParseAddrPort(target); err != nil || !a.IsValid() {
		targets = []string{"192.0.2.1:9", "[2001:db8::1]:9"} // RFC 5737, RFC 3849: of nobody
	}
	for _, t := range targets {
		if c, err := net.Dial("udp", t); err == nil {
			_ = c.Close()
			return true
		}
	}
	return false
}
