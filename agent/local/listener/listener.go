// Package listener accepts TLS clients whom nobody knows yet, says who each is, and hands over
// those who may come in. The trap: every client that has not finished its handshake is a
// stranger who may be silent, slow, broken or one of a thousand, and none of that may end the
// accept loop, spin it, or keep the next client waiting. So everything that a stranger holds is
// counted, has a deadline, and goes to a newer one when it runs short.
package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/agent/local/role"
)

// Auth says whether clients are asked for a certificate.
type Auth uint8

const (
	// Required refuses who shows none. It is the zero value.
	Required Auth = iota
	// Optional asks, and takes who shows none as a stranger.
	Optional
	// Never asks nobody.
	Never
)

// Deadlines of one client.
const (
	patience = 8 * time.Second
	// lingerTimeout is how long a refused client may take to read why.
	lingerTimeout = time.Second
	// refreshEvery is how often the files of certificates are looked at again.
	refreshEvery = time.Minute
)

// Options is what a listener needs.
type Options struct {
	Address string // host:port; an empty host is every address
	Auth    Auth
	// AskWebSocket asks clients too that offer HTTP/1.1 alone, as browsers do for a WebSocket.
	AskWebSocket bool
	// Policy reads the rules with the files of their CAs: at the start and every minute.
	Policy func() (*role.Policy, error)
	Source Source
	// Verify refuses clients with a certificate beyond what Policy says; nil: none.
	Verify func(tls.ConnectionState) error
	Now    func() time.Time // for certificates; nil: time.Now
	// Patience is how long a handshake may take, however its bytes drip; 0: 8 seconds.
	Patience time.Duration
	// Limits; a zero value is as many as the descriptors of this process allow.
	Limits Limits
	Log    *slog.Logger
}

// Listener accepts clients. It is a net.Listener of those whose handshake is over; each is a
// *tls.Conn, and Of tells who it is.
type Listener struct {
	options  Options
	log      *slog.Logger
	tcp      net.Listener
	base     *tls.Config
	policy   atomic.Pointer[role.Policy]
	identity *identity
	table    *table
	reserve  *reserve
	refusals refusals
	ready    chan net.Conn
	closing  chan struct{}
	once     sync.Once
	working  sync.WaitGroup // the handshakes
	accepted atomic.Uint64
	problem  atomic.Pointer[string]
}

// Open reads the certificates and listens. Nobody is accepted before Run.
func Open(ctx context.Context, o Options) (*Listener, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Patience <= 0 {
		o.Patience = patience
	}
	policy, err := o.Policy()
	if err != nil {
		return nil, err
	}
	identity, err := openIdentity(o)
	if err != nil {
		return nil, err
	}
	var config net.ListenConfig
	tcp, err := config.Listen(ctx, "tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("opening the local TLS listener: %w", err)
	}
	l := &Listener{
		options: o, log: o.Log, tcp: tcp, identity: identity,
		table: newTable(o.Limits.orDefault()), reserve: openReserve(),
		ready: make(chan net.Conn), closing: make(chan struct{}),
	}
	l.policy.Store(policy)
	l.base = l.baseConfig()
	return l, nil
}

// Run accepts until ctx is done, then closes every connection. It returns another error only
// when the listening socket itself was lost.
func (l *Listener) Run(ctx context.Context) error {
	var around sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	around.Go(func() {
		<-ctx.Done()
		_ = l.Close()
	})
	around.Go(func() { l.refresh(ctx) })
	err := l.accept(ctx)
	cancel()
	l.table.closeAll()
	l.working.Wait()
	around.Wait()
	l.reserve.close()
	return err
}

// Accept returns the next client that is through its handshake. It is for http.Server.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.ready:
		return conn, nil
	case <-l.closing:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and closes the listening socket.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closing) })
	return l.tcp.Close()
}

// Addr is where the listener listens.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// refresh looks at the files of certificates again, so that a CA taken away or a certificate
// renewed needs no restart.
func (l *Listener) refresh(ctx context.Context) {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.Refresh()
	}
}

// Refresh looks at the files of certificates now. What cannot be read stays as it was, and the
// status says so.
func (l *Listener) Refresh() {
	l.reserve.refill()
	policy, err := l.options.Policy()
	if err == nil {
		l.policy.Store(policy)
	}
	l.report(errors.Join(err, l.identity.refresh()))
}

// report logs a problem when it is a new one.
func (l *Listener) report(err error) {
	var text string
	if err != nil {
		text = err.Error()
	}
	if old := l.problem.Swap(&text); text != "" && (old == nil || *old != text) {
		l.log.LogAttrs(context.Background(), slog.LevelWarn, "certificates of the local listener", slog.Any("err", err))
	}
}

// Status is what the listener is doing.
type Status struct {
	Address     string            `json:"address"`
	Certificate CertificateStatus `json:"certificate"`
	// Handshaking, Strangers and Guests count connections: before the end of their handshake,
	// without a role by certificate or ticket, and with one.
	Handshaking int `json:"handshaking"`
	Strangers   int `json:"strangers"`
	Guests      int `json:"guests"`
	// Accepted counts connections, Refused those of them that did not come in, by cause.
	Accepted    uint64            `json:"accepted"`
	Refused     map[string]uint64 `json:"refused,omitempty"`
	LastRefusal *Refusal          `json:"last_refusal,omitempty"`
	// AcceptErrors counts errors of accept itself, such as too many open files.
	AcceptErrors uint64 `json:"accept_errors,omitempty"`
	Problem      string `json:"problem,omitempty"`
}

// Status returns a snapshot.
func (l *Listener) Status() Status {
	s := Status{Address: l.Addr().String(), Certificate: l.identity.status(), Accepted: l.accepted.Load()}
	s.Handshaking, s.Strangers, s.Guests = l.table.counts()
	s.Refused, s.LastRefusal, s.AcceptErrors = l.refusals.snapshot()
	if problem := l.problem.Load(); problem != nil {
		s.Problem = *problem
	}
	return s
}
