package dial

import (
	"net/netip"
	"time"
)

// Path is how a connection went.
type Path struct {
	// Address that TCP was connected to, the proxy's where there is one, and its family, ipv4 or ipv6.
	Address string `json:"address"`
	Family  string `json:"family"`
	// Proxy is scheme://host:port, without what it was told of us; empty: none.
	Proxy     string `json:"proxy,omitempty"`
	WebSocket bool   `json:"websocket,omitempty"`
	// ALPN is the protocol that both agreed on; empty: none.
	ALPN string `json:"alpn,omitempty"`
	// Group of the key exchange, and whether it withstands quantum computers.
	Group       string `json:"group,omitempty"`
	PostQuantum bool   `json:"post_quantum"`
	// ClassicUntil is set where the post-quantum share was given up for this broker, since
	// handshakes with it got no answer; it is tried again then.
	ClassicUntil time.Time `json:"classic_until,omitzero"`
	// Inspected is the authority that vouched for the broker in its stead; empty: nobody is in between.
	Inspected string `json:"inspected,omitempty"`
	// Raced are the attempts to connect, in the order in which they began.
	Raced []Attempt `json:"raced,omitempty"`
}

// Attempt is one address that was tried.
type Attempt struct {
	Address string `json:"address"` // host:port
	// Error is why it failed, or lost; empty: it won.
	Error string        `json:"error,omitempty"`
	Began time.Duration `json:"began_ns"` // after the first
	Took  time.Duration `json:"took_ns"`
}

// family names the family of an address.
func family(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "ipv4"
	}
	return "ipv6"
}
