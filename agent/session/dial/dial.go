// Package dial makes a connection to a broker that MQTT can be spoken on. The trap is the timeout
// that covers everything: each stage has one of its own, so that a failure says where it was.
package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
)

// Timeouts bounds each stage by itself.
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
	// Timeouts, where zero, are DefaultTimeouts.
	Timeouts Timeouts
	Trust    Trust
	// State is where is kept what worked.
	State State
	// Now dates what is kept, and judges an https:// proxy's certificate; nil: time.Now.
	Now func() time.Time
	Log *slog.Logger
	// Observe is told what happens; nil: nobody is.
	Observe *Observer
}

// Dialer connects to brokers. Its methods may be called at the same time, but for what an
// Observer makes of that.
type Dialer struct {
	// Timeouts are not to be changed while Dial runs.
	Timeouts Timeouts
	trust    trust
	proxy    proxy
	quantum  string // post_quantum
	memory   *memory
	observe  *Observer
	keyLog   io.Writer // nil, but in a build made for it
	now      func() time.Time
	all      counts

	resolver    *net.Resolver
	connect     func(ctx context.Context, address string) (net.Conn, error)
	environment func(*http.Request) (*url.URL, error) // gives the proxy of proxy = "env"
}

// Open reads the files that the options name, and what worked before.
func Open(o Options) (*Dialer, error) {
	if o.Timeouts == (Timeouts{}) {
		o.Timeouts = DefaultTimeouts()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p, err := parseProxy(o.Proxy)
	if err != nil {
		return nil, fmt.Errorf("session.proxy: %w", err)
	}
	if p.roots, err = readRoots("session.proxy_roots", o.ProxyRoots); err != nil {
		return nil, err
	}
	d := &Dialer{
		Timeouts: o.Timeouts, proxy: p, quantum: o.PostQuantum, observe: o.Observe, now: o.Now,
		trust:    trust{Trust: o.Trust, pool: o.Trust.Roots()},
		memory:   remember(o.State, o.Now, o.Log),
		resolver: net.DefaultResolver,
		connect: func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
		environment: http.ProxyFromEnvironment,
	}
	if d.trust.inspectors, err = readCertificates("session.inspection_roots", o.InspectionRoots); err != nil {
		return nil, err
	}
	d.keyLog, err = openKeyLog()
	return d, err
}

// Conn is a connection after its handshakes, before CONNECT.
type Conn struct {
	net.Conn // what MQTT is spoken on: TLS, or WebSocket on TLS
	TLS      *tls.Conn
	Broker   Broker
	// Credential is the one that was shown; nil: there was none.
	Credential *identity.Credential
	// Took is how long the TLS handshake took.
	Took time.Duration
	Path Path

	wire  *wire
	until atomic.Int64 // the deadline of writes in Unix nanoseconds; 0: none
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.limit(t)
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.limit(t)
	return c.Conn.SetWriteDeadline(t)
}

func (c *Conn) limit(t time.Time) {
	if t.IsZero() {
		c.until.Store(0)
		return
	}
	c.until.Store(t.UnixNano())
}

// Close implements net.Conn. Where the time for writing is over, TLS says no good-bye: it would
// wait five seconds more for that.
func (c *Conn) Close() error {
	if until := c.until.Load(); until != 0 && time.Now().UnixNano() >= until {
		_ = c.wire.Close()
	}
	return c.Conn.Close()
}

// Wire returns the bytes that went over all TCP connections, those that came to nothing among them.
func (d *Dialer) Wire() (sent, received uint64) { return d.all.sent.Load(), d.all.received.Load() }

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
func (c *Conn) Explain(err error) error {
	code, refused := errors.AsType[cause.Refusal](err)
	unanswered := cause.IsClosed(err) || cause.IsAlert(err) || errors.Is(err, cause.ErrProtocol)
	switch {
	case c.Path.Inspected != "" && (unanswered || refused && (code == 4 || code == 5)):
		return &cause.Inspected{Authority: c.Path.Inspected, Err: err}
	case c.Broker.alpn != "" && c.Path.ALPN == "" && unanswered && !cause.IsAlert(err):
		return fmt.Errorf("%w: %q was asked for, and not answered: %w", cause.ErrALPN, c.Broker.alpn, err)
	}
	return err
}

// Order returns the brokers in the order in which they are to be tried: first the one that
// worked last, then the others as they were configured.
func (d *Dialer) Order(brokers []Broker) []Broker { return d.memory.order(brokers) }

// Worked is told that the broker answered CONNECT on c, so that its way is gone first next time.
// It writes a file when that is news.
func (d *Dialer) Worked(c *Conn) { d.memory.worked(c.Broker, c.Path) }

// Dial connects to b and shows credential, or nothing where that is nil. begin is told of each
// stage. The error is a *cause.StageError. A broker that is refused on a resumed TLS session is
// asked once more, in a full handshake: what was wrong may be the proof that the session was made
// with. One whose certificate begins later than a clock that nobody vouches for is judged by the
// time at which it begins.
func (d *Dialer) Dial(ctx context.Context, b Broker, credential *identity.Credential, begin func(cause.Stage)) (*Conn, error) {
	a := attempt{Dialer: d, broker: b, credential: credential, begin: begin}
	c, err := a.run(ctx)
	if credential == nil {
		return c, err
	}
	for range chainMost {
		later, ok := credential.Later(a.at, err)
		if !ok {
			break
		}
		a.at = later
		c, err = a.run(ctx)
	}
	if refusal, ok := errors.AsType[*cause.Distrust](err); ok && refusal.Resumed {
		credential.Forget()
		c, err = a.run(ctx)
	}
	return c, err
}

// chainMost bounds how many certificates of one chain may be younger than the clock.
const chainMost = 4

// attempt is one way to one broker.
type attempt struct {
	*Dialer
	broker     Broker
	credential *identity.Credential
	begin      func(cause.Stage)
	at         time.Time // at which the broker's certificate is judged; zero: by the clock

	path      Path
	via       proxy
	addresses []netip.Addr
	wire      *wire
	tunnel    net.Conn // to the broker, through the proxy where there is one
	secure    *tls.Conn
	top       net.Conn // that MQTT is spoken on
	took      time.Duration
}

// run goes stage by stage. Nothing is left open when one fails.
func (a *attempt) run(ctx context.Context) (_ *Conn, err error) {
	a.path, a.wire, a.tunnel = Path{}, nil, nil
	defer func() {
		if err != nil && a.wire != nil {
			_ = a.wire.Close()
		}
	}()
	if err := a.stage(cause.StageDNS, func() error { return a.resolve(ctx) }); err != nil {
		return nil, err
	}
	if err := a.stage(cause.StageTCP, func() error { return a.race(ctx) }); err != nil {
		return nil, err
	}
	if !a.via.none() {
		if err := a.stage(cause.StageProxy, func() error { return a.pass(ctx) }); err != nil {
			return nil, err
		}
	}
	if err := a.stage(cause.StageTLS, func() error { return a.handshake(ctx) }); err != nil {
		return nil, err
	}
	if _, ok := a.broker.WebSocket(); ok {
		if err := a.stage(cause.StageWebSocket, func() error { return a.upgrade(ctx) }); err != nil {
			return nil, err
		}
	}
	return &Conn{Conn: a.top, TLS: a.secure, Broker: a.broker, Credential: a.credential, Took: a.took, Path: a.path, wire: a.wire}, nil
}

// stage tells of a stage, does it, and says where it failed.
func (a *attempt) stage(s cause.Stage, do func() error) error {
	a.begin(s)
	a.observe.begin(s)
	started := time.Now()
	err := do()
	a.observe.end(s, time.Since(started), err)
	if err != nil {
		return &cause.StageError{Stage: s, Err: err}
	}
	return nil
}

// resolve finds the addresses of the broker, or of the proxy on the way to it.
func (a *attempt) resolve(ctx context.Context) (err error) {
	if a.via, err = a.proxyFor(a.broker); err != nil {
		return err
	}
	host := a.broker.host
	if !a.via.none() {
		host, a.path.Proxy = a.via.host, a.via.String()
	}
	found, err := lookup(ctx, a.resolver, host, a.Timeouts.DNS)
	if err != nil {
		return a.toProxy(err)
	}
	a.addresses = interleave(found, a.memory.family(a.broker))
	a.observe.resolved(host, a.addresses)
	return nil
}

// race connects to the fastest of the addresses.
func (a *attempt) race(ctx context.Context) error {
	r := race{addresses: a.addresses, port: a.broker.port, limit: a.Timeouts.TCP, dial: a.connect}
	if !a.via.none() {
		r.port = a.via.port
	}
	err := r.run(ctx)
	a.path.Raced = r.attempts
	a.observe.tried(r.attempts)
	if err != nil {
		return a.toProxy(err)
	}
	a.wire = &wire{Conn: r.won, all: &a.Dialer.all}
	a.tunnel = a.wire
	a.path.Address, a.path.Family = net.JoinHostPort(r.winner.String(), r.port), family(r.winner)
	return nil
}

// toProxy says that err is about the proxy, where there is one.
func (a *attempt) toProxy(err error) error {
	if a.via.none() {
		return err
	}
	return &cause.AtProxy{Proxy: a.via.String(), Err: err}
}
