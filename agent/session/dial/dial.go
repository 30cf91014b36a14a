// Package dial makes a connection to a broker that MQTT can be spoken on. The trap is the timeout
// that covers everything: each stage has one of its own, so that a failure says where it was.
package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
	"ferrule/internal/disk"
)

// Timeouts bounds each stage by itself. Zero means ten seconds.
type Timeouts struct {
	DNS, TCP, Proxy, TLS, WebSocket time.Duration
}

// DefaultTimeouts returns ten seconds for each stage.
func DefaultTimeouts() Timeouts {
	const each = 10 * time.Second
	return Timeouts{DNS: each, TCP: each, Proxy: each, TLS: each, WebSocket: each}
}

// Options is what a dialer is made of.
type Options struct {
	Config
	Timeouts Timeouts
	Trust    Trust
	// State is where is remembered what worked.
	State State
	// Now dates what is remembered; nil: time.Now.
	Now func() time.Time
	Log *slog.Logger
	// Observe is told what happens; nil: nobody is.
	Observe *Observer
}

// State is a file that is read once, and written when what worked changes. The zero State keeps nothing.
type State struct {
	FS   disk.FS
	Path string
}

// Dialer connects to brokers. Its methods may be called at the same time.
type Dialer struct {
	// Timeouts are not to be changed while Dial runs.
	Timeouts Timeouts
	trust    trust
	proxy    proxy
	observe  *Observer
}

// Open reads the files that the options name, and what worked before.
func Open(o Options) (*Dialer, error) {
	p, err := parseProxy(o.Proxy)
	if err != nil {
		return nil, fmt.Errorf("session.proxy: %w", err)
	}
	return &Dialer{Timeouts: o.Timeouts, proxy: p, observe: o.Observe, trust: trust{Trust: o.Trust, pool: o.Trust.Roots()}}, nil
}

// Conn is a connection after its handshakes, before CONNECT.
type Conn struct {
	net.Conn // what MQTT is spoken on: TLS, or WebSocket on TLS
	TLS      *tls.Conn
	Broker   Broker
	// Credential is the one that was shown; nil: none was there.
	Credential *identity.Credential
	// Took is how long the handshake took.
	Took time.Duration
	Path Path

	wire *wire
}

// Wire returns the bytes that went over the TCP connection, those of TLS, WebSocket and proxy included.
func (c *Conn) Wire() (sent, received uint64) {
	return c.wire.sent.Load(), c.wire.received.Load()
}

// TCP returns the connection beneath everything; nil: it is not TCP.
func (c *Conn) TCP() *net.TCPConn {
	tcp, _ := c.wire.Conn.(*net.TCPConn)
	return tcp
}

// Explain adds to the error that ended c, while CONNECT was not answered yet, what is known of
// the way and makes it likely: that somebody in between looks inside, or that the broker did not
// agree to the ALPN protocol.
func (c *Conn) Explain(err error) error { return err }

// Order returns the brokers in the order in which they are to be tried: first the one that
// worked last, then the others as they were configured.
func (d *Dialer) Order(brokers []Broker) []Broker { return brokers }

// Worked is told that the broker answered CONNECT on c, so that its way is gone first next time.
// It may write a file.
func (d *Dialer) Worked(c *Conn) {}

// Dial connects to b and shows credential. begin is told of each stage. The error is a
// *cause.StageError. A broker that is refused on a resumed TLS session is asked once more, in a full
// handshake: what was wrong may be the proof that the session was made with. One whose certificate
// begins later than a clock that nobody vouches for is judged by the time at which it begins.
func (d *Dialer) Dial(ctx context.Context, b Broker, credential *identity.Credential, begin func(cause.Stage)) (*Conn, error) {
	var at time.Time
	c, err := d.once(ctx, b, credential, at, begin)
	for range chainMost {
		later, ok := credential.Later(at, err)
		if !ok {
			break
		}
		at = later
		c, err = d.once(ctx, b, credential, at, begin)
	}
	if refusal, ok := errors.AsType[*cause.Distrust](err); ok && refusal.Resumed {
		credential.Forget()
		c, err = d.once(ctx, b, credential, at, begin)
	}
	return c, err
}

// chainMost bounds how many certificates of one chain may be younger than the clock.
const chainMost = 4

// once judges the broker's certificate at the time at; the zero time is the clock's.
func (d *Dialer) once(ctx context.Context, b Broker, credential *identity.Credential, at time.Time, begin func(cause.Stage)) (*Conn, error) {
	begin(cause.StageDNS)
	addresses, err := lookup(ctx, b.host, d.Timeouts.DNS)
	if err != nil {
		return nil, &cause.StageError{Stage: cause.StageDNS, Err: err}
	}
	begin(cause.StageTCP)
	raw, err := race(ctx, addresses, b.port, d.Timeouts.TCP)
	if err != nil {
		return nil, &cause.StageError{Stage: cause.StageTCP, Err: err}
	}
	begin(cause.StageTLS)
	started := time.Now()
	config := d.trust.config(credential, b.host)
	if !at.IsZero() {
		config.Time = func() time.Time { return at }
	}
	count := &wire{Conn: raw}
	secure := tls.Client(d.observe.wrap(count), config)
	handshake, cancel := context.WithTimeout(ctx, d.Timeouts.TLS)
	defer cancel()
	if err := secure.HandshakeContext(handshake); err != nil {
		_ = raw.Close()
		if handshake.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w within %v: %w", cause.ErrStalled, d.Timeouts.TLS, err)
		}
		return nil, &cause.StageError{Stage: cause.StageTLS, Err: err}
	}
	return &Conn{Conn: secure, TLS: secure, Broker: b, Credential: credential, Took: time.Since(started), wire: count}, nil
}
