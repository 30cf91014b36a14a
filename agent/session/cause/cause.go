// Package cause names why there is no connection: the stage it failed in, one word for what
// happened, who can repair it and how. The trap is that Go and TLS hide most of it: the alert of a
// refusal has no type, and with TLS 1.3 it comes at the first read, long after the handshake.
package cause

import (
	"errors"
	"fmt"
	"time"
)

// Failure says why there is no connection: where, what, on whose side, and what to do.
type Failure struct {
	Stage Stage `json:"stage"`
	Cause Cause `json:"cause"`
	// Side is who can repair it.
	Side Side   `json:"side"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
	// At is when it happened.
	At time.Time `json:"at,omitzero"`
}

// Side is who can repair a failure.
type Side string

// The sides.
const (
	SideDevice  Side = "device"
	SideBroker  Side = "broker"
	SideNetwork Side = "network"
)

// Cause is one word for what happened.
type Cause string

// The causes. Those of a TLS handshake, as Go and OpenSSL show them, were measured one by one;
// each has a test against a real server.
const (
	Name        Cause = "name"        // the broker's name has no address
	DNS         Cause = "dns"         // the name server gave no answer
	Refused     Cause = "refused"     // nothing listens
	Unreachable Cause = "unreachable" // no way there
	Stalled     Cause = "stalled"     // no answer in time
	Closed      Cause = "closed"      // ended without a word

	CertificateRequired      Cause = "certificate-required"       // TLS 1.3: the broker got no certificate
	Handshake                Cause = "handshake-refused"          // TLS 1.2 says no more than this
	CertificateNotAcceptable Cause = "certificate-not-acceptable" // ours is of no authority that the broker lists
	CertificateUnknownCA     Cause = "certificate-unknown-ca"     // the broker does not know who signed ours
	CertificateExpired       Cause = "certificate-expired"        // ours, by the broker's clock
	CertificateRevoked       Cause = "certificate-revoked"        // ours
	CertificateRefused       Cause = "certificate-refused"        // ours, for another reason
	Key                      Cause = "key"                        // our key did not sign

	BrokerUnknownCA Cause = "broker-unknown-ca" // we do not know who signed the broker's
	BrokerName      Cause = "broker-name"       // the broker's certificate is for another name
	BrokerExpired   Cause = "broker-expired"    // the broker's certificate
	BrokerInvalid   Cause = "broker-invalid"    // the broker's certificate, for another reason
	BrokerRevoked   Cause = "broker-revoked"    // the broker's certificate, or an authority's above it
	// nobody can tell whether the broker's certificate was revoked, and that is not accepted
	BrokerRevocationUnknown Cause = "broker-revocation-unknown"
	Clock                   Cause = "clock"       // ours is before the broker's certificate
	Version                 Cause = "tls-version" // no common version
	Plaintext               Cause = "plaintext"   // the port does not speak TLS
	TLS                     Cause = "tls"         // another alert or handshake error

	ProxyUnreachable Cause = "proxy-unreachable" // the proxy itself is not reached
	ProxyTLS         Cause = "proxy-tls"         // TLS to an https:// proxy
	ProxyAuth        Cause = "proxy-auth"        // it wants another login
	ProxyRefused     Cause = "proxy-refused"     // it does not let us through
	ProxyNoWay       Cause = "proxy-no-way"      // it does not reach the broker
	NotProxy         Cause = "not-a-proxy"       // something else answers there
	Inspection       Cause = "inspected"         // somebody in between opens TLS
	ALPN             Cause = "alpn"              // no common application protocol
	NotWebSocket     Cause = "not-websocket"     // HTTP, but no WebSocket of MQTT
	WebSocketRefused Cause = "websocket-refused" // 401 or 403
	WebSocketPath    Cause = "websocket-path"    // 404

	NotAuthorized Cause = "not-authorized"  // CONNACK 4 or 5
	ClientID      Cause = "client-id"       // CONNACK 2
	Unavailable   Cause = "unavailable"     // CONNACK 3, or 5xx before a WebSocket
	Protocol      Cause = "protocol"        // not MQTT 3.1.1
	TooLarge      Cause = "too-large"       // a packet above max_inbound
	Subscription  Cause = "subscription"    // SUBACK 0x80
	Frozen        Cause = "frozen"          // the link is up and nothing moves
	NoAck         Cause = "no-ack"          // the broker lives and acknowledges nothing
	Commands      Cause = "command-flood"   // more commands than are taken
	Entry         Cause = "entry-set-aside" // an entry that ended three connections
	Unknown       Cause = "unknown"
)

// Stage says how far the session is.
type Stage string

// The stages of a session. Each of dns to suback has a timeout of its own, and a failure names
// the stage that it happened in.
//
//	stopped ─► dns ─► tcp ─► proxy ─► tls ─► websocket ─► connack ─► suback ─► up ─► stopping ─► stopped
//	            ▲      any of them, on failure: waiting ─┐
//	            └────────────────────────────────────────┘
//
// There is a proxy where one is configured, and a WebSocket where the broker's URL says wss.
const (
	StageStopped   Stage = "stopped"   // Run does not run
	StageWaiting   Stage = "waiting"   // back-off before the next attempt
	StageDNS       Stage = "dns"       // looking up the broker's addresses
	StageTCP       Stage = "tcp"       // connecting to one of them
	StageProxy     Stage = "proxy"     // asking the proxy for the way to the broker
	StageTLS       Stage = "tls"       // handshake
	StageWebSocket Stage = "websocket" // asking the broker to speak MQTT over HTTP
	StageConnack   Stage = "connack"   // CONNECT is sent; TLS 1.3 tells only here that our certificate is refused
	StageSuback    Stage = "suback"    // readings flow; SUBSCRIBE is not answered yet
	StageUp        Stage = "up"        // readings flow; Subscribed tells whether commands are heard
	StageStopping  Stage = "stopping"  // emptying the window before DISCONNECT
	StageRotate    Stage = "rotate"    // only in failures: a staged certificate was not accepted
)

// What ends a connection on our side.
var (
	ErrFrozen       = errors.New("nothing moved on the link")
	ErrNoAck        = errors.New("no message was acknowledged")
	ErrSubscription = errors.New("the broker refused the subscription")
	ErrStalled      = errors.New("no answer")
	ErrFlood        = errors.New("too many commands at one time")
	ErrEntry        = errors.New("entry set aside")
	ErrTooLarge     = errors.New("packet above max_inbound")
	ErrProtocol     = errors.New("protocol violation") // what came is not MQTT 3.1.1 as we speak it
)

// StageError is an error with the stage that it happened in.
type StageError struct {
	Stage Stage
	Err   error
}

func (e *StageError) Error() string { return string(e.Stage) + ": " + e.Err.Error() }
func (e *StageError) Unwrap() error { return e.Err }

// Distrust is a broker that was refused for what is known of its certificate, beyond its chain.
type Distrust struct {
	Err     error
	Resumed bool // the TLS session was resumed
}

func (d *Distrust) Error() string { return d.Err.Error() }
func (d *Distrust) Unwrap() error { return d.Err }

// Revoked says whether the certificate is known to be revoked.
func (d *Distrust) Revoked() bool {
	var who interface{ Revoked() bool }
	return errors.As(d.Err, &who) && who.Revoked()
}

// Refusal is the return code of a CONNACK that is not 0 (MQTT 3.1.1, 3.2.2.3).
type Refusal byte

func (r Refusal) Error() string {
	texts := [...]string{"", "unacceptable protocol version", "identifier rejected", "server unavailable", "bad user name or password", "not authorized"}
	if int(r) < len(texts) && r > 0 {
		return "CONNACK: " + texts[r]
	}
	return fmt.Sprintf("CONNACK: return code %d", byte(r))
}
