// Package session keeps one mutually authenticated MQTT session: it dials, drains the outbox
// and takes commands. The trap is the token that ends without an acknowledgement: paho's own
// reconnect completes the tokens of a lost connection without error, so its reconnect is off,
// every connection has a client of its own, and the outbox alone knows what is owed.
package session

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"ferrule/agent/encode"
	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
	"ferrule/agent/session/dial"
	"ferrule/internal/disk"
)

// Options is what a session is made of.
type Options struct {
	Config
	// Identity shows the certificate and signs with the device's key.
	Identity *identity.Identity
	// Source holds what is owed to the broker.
	Source Source
	// Format makes messages of entries; nil: every entry is a message as it is.
	Format Format
	// Batch says how long entries wait to be joined.
	Batch Batch
	// State is where is kept what a start wants to know of the one before: which way to the broker
	// worked, and what the day has cost. The zero State keeps nothing.
	State State
	// Handle executes a command and returns its id, for the reply's topic, and the reply; an
	// empty id means that there is none to give. It may take its time, and ends with ctx. A
	// command whose reply was not acknowledged comes again. nil: no commands are taken.
	Handle func(ctx context.Context, c Command) (id string, reply []byte)
	// Online returns the retained status message; nil: none is published, nor a will.
	Online func() []byte
	// Announced is told of every status message that the broker has acknowledged; nil: nobody is. It
	// must not wait.
	Announced func(message []byte)
	// Roots returns the authorities that brokers are checked against. Another pool than the
	// last makes the session forget its TLS sessions, which would show the chain of before.
	// nil: those of Config.Roots.
	Roots func() *x509.CertPool
	// Verify judges a broker whose chain crypto/tls has verified, on every connection, also on
	// a resumed one. An error refuses it; one that has Revoked() bool says whether for that.
	// nil: everyone.
	Verify func(tls.ConnectionState) error
	// Verified is told of the chains of every connection that got its CONNACK, in order.
	Verified func(chains [][]*x509.Certificate)
	// Refused is told when the broker refuses a certificate of ours, by its fingerprint: one in
	// use, or one that was to be proved. It must not wait. Up to TLS 1.2 a refusal is not
	// authenticated, so it is a reason to try the way back, and never one to drop anything.
	Refused func(fingerprint string, f cause.Failure)
	// Now is the time that our certificate is judged by, and that days are told by; nil: time.Now.
	Now func() time.Time
	// Trusted says whether anybody vouches for Now; nil: somebody does.
	Trusted func() bool
	// ShutdownGrace bounds what Run does after its context ended.
	ShutdownGrace time.Duration
	Log           *slog.Logger
}

// State is a folder that exists.
type State struct {
	FS  disk.FS
	Dir string
}

// Command is a message from the cloud.
type Command struct {
	Name    string
	Payload []byte
	// Retained says that the broker had kept the message: it is old, and will come again.
	Retained bool
	// Duplicate says that the broker may have delivered the message before.
	Duplicate bool
}

// Session is one MQTT session over any number of connections.
type Session struct {
	config   Config
	timeouts timeouts
	dialer   *dial.Dialer
	identity *identity.Identity
	source   Source
	format   Format // nil: every entry is a message as it is
	batch    Batch
	handle   func(ctx context.Context, c Command) (string, []byte)
	online   func() []byte
	heardOf  func(message []byte) // what the broker acknowledged of it
	grace    time.Duration
	log      *slog.Logger
	random   func() float64 // for the back-off

	verified func([][]*x509.Certificate)
	refusal  func(fingerprint string, f cause.Failure)
	now      func() time.Time
	brokers  []dial.Broker
	device   string
	clientID string
	filter   string // of commands
	// hostFilter is the format's subscription.
	hostFilter string
	topics     struct{ status string }
	offline    []byte // the will

	rotations     chan struct{} // asked by Rotate
	announcements chan struct{} // asked by Announce
	rechecks      chan struct{} // asked by Recheck
	wakes         chan struct{} // asked by Wake
	inbox         inbox
	suspect       suspect
	tries         tries
	rival         rival
	quarantine    *quarantine
	meter         meter
	budget        *budget
	refused       string         // fingerprint of a staged certificate that was not accepted
	stale         sync.WaitGroup // goroutines of links that have ended

	mu      sync.Mutex
	status  Status
	history history
	trying  string // broker
	kept    string // host of the broker that keeps our session
	link    *link  // that is up
	logged  struct {
		stage cause.Stage
		cause cause.Cause
		times int
	}
}

// New checks the options and reads the authorities of the brokers.
func New(o Options) (*Session, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Identity == nil || o.Source == nil || o.Log == nil {
		return nil, errors.New("a session needs an identity, an outbox and a logger")
	}
	s := &Session{
		config: o.Config, timeouts: stageTimeouts, verified: o.Verified, refusal: o.Refused, now: o.Now, identity: o.Identity, source: o.Source,
		format: o.Format, batch: o.Batch, handle: o.Handle, online: o.Online, heardOf: o.Announced, grace: o.ShutdownGrace, log: o.Log, random: jitter,
		device:        o.Identity.Device(),
		rotations:     make(chan struct{}, 1),
		announcements: make(chan struct{}, 1),
		rechecks:      make(chan struct{}, 1),
		wakes:         make(chan struct{}, 1),
		quarantine:    newQuarantine(),
		inbox:         inbox{queue: make(chan delivery, inboxCommands)},
		status:        Status{Stage: cause.StageStopped},
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.batch.MaxBytes <= 0 {
		s.batch.MaxBytes = joinBytes
	}
	s.openBudget(o)
	roots := o.Roots
	if roots == nil {
		pool, err := dial.ReadRoots(o.Config.Roots)
		if err != nil {
			return nil, err
		}
		roots = func() *x509.CertPool { return pool }
	}
	dialer, err := dial.Open(dial.Options{Config: o.Config.Config, Timeouts: dial.DefaultTimeouts(), Now: s.now, State: o.pathState(), Log: o.Log,
		Trust: dial.Trust{Roots: roots, Verify: o.Verify, Identity: o.Identity}})
	if err != nil {
		return nil, err
	}
	s.dialer, s.meter.dialer = dialer, dialer
	for _, text := range o.Brokers {
		b, err := dial.ParseBroker(text)
		if err != nil {
			return nil, fmt.Errorf("session.brokers: %q: %w", dial.Shown(text), err)
		}
		s.brokers = append(s.brokers, b)
	}
	s.tries = newTries(o.ReconnectSpread.Std(), len(s.brokers))
	return s, s.expandTopics(o)
}

// openBudget reads what the day has cost so far.
func (s *Session) openBudget(o Options) {
	trusted := o.Trusted
	if trusted == nil {
		trusted = func() bool { return true }
	}
	s.budget = newBudget(o.DailyBytes.Bytes(), o.State.FS, filepath.Join(o.State.Dir, "budget"), s.now, trusted, o.Log)
	s.meter.budget = s.budget
}

// pathState is where dial keeps which way worked.
func (o Options) pathState() dial.State {
	if o.State.FS == nil {
		return dial.State{}
	}
	return dial.State{FS: o.State.FS, Path: filepath.Join(o.State.Dir, "way")}
}

// expandTopics makes what the broker is told of templates.
func (s *Session) expandTopics(o Options) (err error) {
	device := map[string]string{"device": s.device}
	if s.clientID, err = encode.ExpandTopic(o.ClientID, device); err != nil {
		return fmt.Errorf("session.client_id: %w", err)
	}
	if o.Topics.Command != "" && o.Handle != nil {
		s.filter = encode.Filter(o.Topics.Command, device)
	}
	if o.Format != nil {
		s.hostFilter = o.Format.Filter()
	}
	if o.Topics.Status != "" && o.Online != nil {
		s.topics.status, err = encode.ExpandTopic(o.Topics.Status, device)
		s.offline = append(strconv.AppendUint([]byte(`{"online":false,"boot":`), o.Source.Boot(), 10), '}')
	}
	return err
}

// Rotate asks to prove the identity's staged certificate, and to go over to it.
func (s *Session) Rotate() { ask(s.rotations) }

// Announce asks to publish the status again.
func (s *Session) Announce() { ask(s.announcements) }

// Recheck asks to judge the broker of the connection that stands once more, since the roots, or
// what is known of revocation, have changed. It ends the connection where a new one would be
// refused.
func (s *Session) Recheck() { ask(s.rechecks) }

// Wake ends the pause that is being made, if any: the next attempt to connect is made at once, also
// where the session stays away from another client with the same id.
func (s *Session) Wake() { ask(s.wakes) }

func ask(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// timeouts of the stages after those of dialling, how often the subscription is renewed, and how long
// a connection is watched without the suspect, and without any reading.
type timeouts struct {
	connack, suback, renewal time.Duration
	alone, quiet             time.Duration
}

// stageTimeouts bounds each stage by itself, so that a failure says where it was.
var stageTimeouts = timeouts{
	connack: 10 * time.Second, suback: 10 * time.Second, renewal: renewSubscription, alone: suspectQuiet, quiet: rivalQuiet,
}

// Run keeps the session up until ctx ends; then it takes no new entries, waits up to
// ShutdownGrace for what is in flight, and says good-bye. It returns nil.
func (s *Session) Run(ctx context.Context) error {
	r := s.newRunner(ctx)
	defer r.end()
	for {
		if r.next == nil && !s.pause(ctx) || ctx.Err() != nil {
			return nil
		}
		l, err := r.connect(ctx)
		if errors.Is(err, errGaveWay) {
			continue
		}
		if err != nil {
			s.tries.failed()
			s.rival.failed()
			continue
		}
		r.serve(ctx, l)
		s.tries.lost(time.Since(l.since), l.conn.acknowledged(), ownChange(l.conn.LocalAddr()))
	}
}

// pause waits as long as the next attempt has to. It answers false when ctx has ended.
func (s *Session) pause(ctx context.Context) bool {
	delay := s.tries.pause(s.random())
	held := s.Status().HeldOff
	if !held.IsZero() {
		delay = time.Until(held)
	}
	if delay <= 0 || ctx.Err() != nil {
		return ctx.Err() == nil
	}
	s.begin(cause.StageWaiting)
	s.count(func(st *Status) { st.NextAttempt = time.Now().Add(delay) })
	defer s.count(func(st *Status) { st.NextAttempt, st.HeldOff = time.Time{}, time.Time{} })
	return s.sleep(ctx, delay, held.IsZero())
}

// sleep waits for delay, or until there is reason to go on. Where this machine has no way at all,
// it goes on soon after there is one: that concerns nobody else.
func (s *Session) sleep(ctx context.Context, delay time.Duration, soon bool) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	var look <-chan time.Time
	if target := s.target(); soon && !hasWay(target) {
		ticker := time.NewTicker(lookForWay)
		defer ticker.Stop()
		look = ticker.C
	}
	until := time.Now().Add(delay)
	for {
		select {
		case <-timer.C:
			return true
		case <-s.wakes:
			return true
		case <-s.rotations: // another certificate may be what was missing
			return true
		case <-ctx.Done():
			return false
		case <-look:
			if !hasWay(s.target()) {
				continue
			}
			look = nil
			timer.Reset(min(time.Until(until), time.Duration(s.random()*float64(soonBound))))
		}
	}
}

// target is the address that a way is looked for to.
func (s *Session) target() string {
	if s.config.Proxy != "" {
		return ""
	}
	return s.brokers[0].Address()
}
