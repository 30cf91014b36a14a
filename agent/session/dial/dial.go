// Package dial makes a connection to a broker that MQTT can be spoken on. The trap is the timeout
// that covers everything: each stage has one of its own, so that a failure says where it was.
package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
)

// Timeouts bounds each stage by itself.
type Timeouts struct {
	DNS, TCP, TLS time.Duration
}

// DefaultTimeouts returns ten seconds for each stage.
func DefaultTimeouts() Timeouts {
	return Timeouts{DNS: 10 * time.Second, TCP: 10 * time.Second, TLS: 10 * time.Second}
}

// Options is what a dialer is made of.
type Options struct {
	Timeouts Timeouts
	Trust    Trust
}

// Dialer connects to brokers.
type Dialer struct {
	// Timeouts are not to be changed while Dial runs.
	Timeouts Timeouts
	trust    trust
}

// New returns a dialer. It opens nothing.
func New(o Options) *Dialer {
	return &Dialer{Timeouts: o.Timeouts, trust: trust{Trust: o.Trust, pool: o.Trust.Roots()}}
}

// Conn is a connection after its handshake, before CONNECT.
type Conn struct {
	net.Conn // what MQTT is spoken on
	TLS      *tls.Conn
	Broker   Broker
	// Credential is the one that was shown.
	Credential *identity.Credential
	// Took is how long the handshake took.
	Took time.Duration
}

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
	secure := tls.Client(raw, config)
	handshake, cancel := context.WithTimeout(ctx, d.Timeouts.TLS)
	defer cancel()
	if err := secure.HandshakeContext(handshake); err != nil {
		_ = raw.Close()
		if handshake.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w within %v: %w", cause.ErrStalled, d.Timeouts.TLS, err)
		}
		return nil, &cause.StageError{Stage: cause.StageTLS, Err: err}
	}
	return &Conn{Conn: secure, TLS: secure, Broker: b, Credential: credential, Took: time.Since(started)}, nil
}
