package session

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"ferrule/agent/identity"

	"ferrule/agent/session/cause"

	"ferrule/agent/session/dial"
)

// runner is what one Run keeps from one link to the next.
type runner struct {
	*Session
	next         *dial.Conn      // proved, and waiting to take over
	settled      <-chan struct{} // what follows a CONNACK is done; nil: long ago
	stopCommands func()
	cancel       func()          // ends the command that is being executed
	idle         <-chan struct{} // no command is being executed, nor will be
	order        []dial.Broker   // of this round
	grace        context.Context // begins when Run is told to end
	endGrace     func()
}

func (s *Session) newRunner(ctx context.Context) *runner {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	quit, idle := make(chan struct{}), make(chan struct{})
	s.stale.Go(func() { s.budget.keep(work) })
	go func() { // end waits for it
		defer close(idle)
		s.execute(work, quit)
	}()
	return &runner{Session: s, stopCommands: sync.OnceFunc(func() { close(quit) }), cancel: cancel, idle: idle}
}

// beginGrace starts the time that is left.
func (r *runner) beginGrace() context.Context {
	if r.grace == nil {
		r.grace, r.endGrace = context.WithTimeout(context.Background(), r.Session.grace)
	}
	return r.grace
}

// end waits for everything that Run started. A command that is being executed has the grace.
func (r *runner) end() {
	defer r.begin(cause.StageStopped)
	r.stopCommands()
	select {
	case <-r.idle:
	case <-r.beginGrace().Done():
	}
	r.cancel()
	<-r.idle
	if r.next != nil {
		_ = r.next.Close()
	}
	r.stale.Wait()
	if r.endGrace != nil {
		r.endGrace()
	}
}

// connect makes one attempt: on the connection that was proved, or on a new one to the broker
// whose turn it is. A staged certificate that was not refused yet goes first.
func (r *runner) connect(ctx context.Context) (*link, error) {
	s := r.Session
	if !r.settle(ctx) {
		return nil, ctx.Err()
	}
	s.count(func(st *Status) { st.Attempts++ })
	sec := r.next
	r.next = nil
	credential, staged := s.choose()
	var err error
	if sec == nil {
		sec, err = r.dial(ctx, credential)
	} else {
		credential, staged = sec.Credential, true
	}
	var l *link
	if err == nil {
		l, err = s.open(ctx, sec)
	}
	if err != nil {
		s.meter.read()
		if ctx.Err() == nil && !errors.Is(err, errGaveWay) {
			s.notConnected(err, credential, staged)
		}
		return nil, err
	}
	r.settled = s.afterwards(l, staged)
	s.connected(l)
	return l, nil
}

// errGaveWay: the network came back while we knocked, and so it did for others.
var errGaveWay = errors.New("gave way to others")

// dial connects to the broker whose turn it is.
func (r *runner) dial(ctx context.Context, c *identity.Credential) (*dial.Conn, error) {
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var began time.Time
	sec, err := r.dialer.Dial(limited, r.broker(), c, func(stage cause.Stage) {
		r.begin(stage)
		if stage == cause.StageTCP {
			began = time.Now()
		} else if !began.IsZero() && r.tries.late(time.Since(began)) {
			cancel(errGaveWay)
		}
	})
	if err != nil && errors.Is(context.Cause(limited), errGaveWay) {
		return nil, errGaveWay
	}
	return sec, err
}

// broker returns the one whose turn it is. A round begins with the one that worked last.
func (r *runner) broker() dial.Broker {
	if r.tries.broker == 0 || len(r.order) == 0 {
		r.order = r.dialer.Order(r.brokers)
	}
	b := r.order[r.tries.broker%len(r.order)]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trying = b.String()
	return b
}

// afterwards does what follows a CONNACK and may wait for the disk, while readings and
// acknowledgements flow. What it returns is closed when that is done.
func (s *Session) afterwards(l *link, staged bool) <-chan struct{} {
	done := make(chan struct{})
	s.stale.Go(func() {
		defer close(done)
		if credential := l.secured.Credential; staged {
			s.identity.Promote(credential)
			s.count(func(st *Status) { st.Rotations++ })
			s.log.LogAttrs(context.Background(), slog.LevelInfo, "certificate took over", slog.String("leaf", credential.Fingerprint()))
		}
		if s.verified != nil {
			s.verified(l.secured.TLS.ConnectionState().VerifiedChains)
		}
		s.dialer.Worked(l.secured)
	})
	return done
}

// settle waits for what followed the last CONNACK: which certificate to show hangs on it.
func (r *runner) settle(ctx context.Context) bool {
	if r.settled == nil {
		return true
	}
	select {
	case <-r.settled:
		r.settled = nil
		return true
	case <-ctx.Done():
		return false
	}
}

// choose returns the certificate to show, and whether it is one that waits to be proved.
func (s *Session) choose() (c *identity.Credential, staged bool) {
	if c := s.identity.Staged(); c != nil && c.Fingerprint() != s.refused {
		return c, true
	}
	return s.identity.Current(), false
}

// notConnected notes why an attempt failed. A staged certificate and the one in use are shown
// by turns then.
func (s *Session) notConnected(err error, credential *identity.Credential, staged bool) {
	stage := cause.StageConnack
	if e, ok := errors.AsType[*cause.StageError](err); ok {
		stage = e.Stage
	}
	failure := cause.Classify(stage, err)
	if stage == cause.StageTLS || stage == cause.StageWebSocket || stage == cause.StageConnack {
		s.refused = "" // by turns: the one in use may be the one that no longer does
		if staged {
			s.refused = credential.Fingerprint()
			failure.Text = "with the new certificate: " + failure.Text
		}
	}
	s.tellRefused(credential, failure)
	s.note(failure)
}

// tellRefused says that the broker refuses a certificate of ours. TLS 1.2 has only "handshake
// failure" for many things: it counts where our clock explains it.
func (s *Session) tellRefused(c *identity.Credential, f cause.Failure) {
	switch f.Cause {
	case cause.CertificateExpired, cause.CertificateRevoked, cause.CertificateUnknownCA, cause.CertificateRefused, cause.CertificateNotAcceptable:
	case cause.Handshake:
		if !s.now().After(c.Leaf().NotAfter) {
			return
		}
	default:
		return
	}
	if s.refusal != nil {
		s.refusal(c.Fingerprint(), f)
	}
}

// serve runs a link until it is lost, ctx ends, or another certificate takes over; r.next is
// set then.
func (r *runner) serve(ctx context.Context, l *link) {
	s := r.Session
	w := l.start(ctx)
	defer s.stopped(ctx, l, w)
	var proofs chan proof
	defer func() { // end the proof that is under way, if any
		w.cancel()
		if proofs != nil {
			if p := <-proofs; p.err == nil {
				_ = p.secured.Close()
			}
		}
	}()
	for {
		rotations := s.rotations
		if proofs != nil || r.settled != nil {
			rotations = nil // one at a time; the wish is not lost
		}
		select {
		case <-l.lost:
			return
		case <-ctx.Done():
			r.finish(l, w)
			return
		case <-r.settled:
			r.settled = nil
		case <-s.wakes: // there is nothing to wake; the next pause is another matter
		case <-s.rechecks:
			if err := s.dialer.Recheck(l.secured); err != nil {
				l.conn.fail(err)
			}
		case <-rotations:
			s.refused = ""
			proofs = s.prove(w.ctx, l.secured.Broker)
		case p := <-proofs:
			proofs = nil
			if r.handover(l, w, p) {
				return
			}
		}
	}
}

// workers are the goroutines of a link.
type workers struct {
	ctx       context.Context
	cancel    context.CancelFunc
	stopFeed  context.CancelFunc
	stopWords context.CancelFunc // the announcer's
	reaped    chan struct{}
	announced chan struct{}
}

// start starts the goroutines of a link. They end with it.
func (l *link) start(ctx context.Context) *workers {
	s := l.session
	w := &workers{reaped: make(chan struct{}), announced: make(chan struct{})}
	w.ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
	feed, stopFeed := context.WithCancel(w.ctx)
	words, stopWords := context.WithCancel(w.ctx)
	w.stopFeed, w.stopWords = stopFeed, stopWords
	s.source.Rewind()
	if s.rival.watches() {
		l.witness = s.stand(ctx, l)
	}
	s.stale.Go(func() {
		<-l.lost
		w.cancel()
	})
	s.stale.Go(l.watch)
	s.stale.Go(l.subscribe)
	s.stale.Go(func() { l.feed(feed) })
	s.stale.Go(func() {
		defer close(w.reaped)
		l.reap()
	})
	s.stale.Go(func() {
		defer close(w.announced)
		if s.topics.status != "" {
			l.announce(words)
		}
	})
	return w
}

// stopped settles what a link owed when it ended.
func (s *Session) stopped(ctx context.Context, l *link, w *workers) {
	stood := time.Since(l.since)
	w.cancel()
	<-l.lost
	<-w.reaped
	s.meter.read()
	stage := cause.StageUp
	s.count(func(st *Status) {
		if s.link = nil; st.Stage == cause.StageSuback {
			stage = cause.StageSuback
		}
		st.Resent += uint64(l.owed.messages)
		st.Subscribed = false
	})
	if errors.Is(l.err, errDisconnected) {
		return
	}
	s.note(cause.Classify(stage, l.err))
	again, guilty := false, false
	if cause.IsClosed(l.err) {
		again, guilty = s.suspect.lost(l.owed)
	}
	if guilty {
		s.source.SetAside(l.owed.first, "it ended three connections")
		s.suspect.acked(1, []entryKey{l.owed.head})
		s.count(func(st *Status) { st.SetAside++ })
		s.note(cause.Classify(stage, cause.ErrEntry))
	}
	s.judgeRival(ctx, l, ending{
		worked: l.conn.acknowledged() && (len(s.filters()) == 0 || l.heard.Load()),
		closed: cause.IsClosed(l.err), poison: again, stood: stood, quiet: !l.fed.Load(),
	})
}

// judgeRival looks whether another client has thrown us out again and again; if so, the next
// attempt waits.
func (s *Session) judgeRival(ctx context.Context, l *link, e ending) {
	if l.witness != nil {
		<-l.witness.done
		e.witness, e.outlived = true, l.witness.outlived
	}
	if !s.rival.ended(e) || ctx.Err() != nil {
		return
	}
	closed := s.rival.closed
	s.rival.held()
	until := time.Now().Add(holdOff(s.random()))
	s.count(func(st *Status) {
		st.HeldOff = until
		st.Takeovers++
	})
	s.note(cause.Classify(cause.StageUp, errRival{s.clientID, closed}))
}

// finish ends a link in order, within the grace: what is in flight, then the command that is
// being executed, then the status, then DISCONNECT. What takes longer is cut off, and the will
// speaks for us.
func (r *runner) finish(l *link, w *workers) {
	s := r.Session
	s.begin(cause.StageStopping)
	grace := r.beginGrace()
	r.stopCommands()
	w.stopFeed()
	if !wait(grace, l, w.reaped) || !wait(grace, l, r.idle) || !s.farewell(grace, l, w) {
		l.conn.fail(errDisconnected)
		s.log.LogAttrs(grace, slog.LevelWarn, "session ended before everything was acknowledged")
	}
}

// farewell says that we go, and goes.
func (s *Session) farewell(ctx context.Context, l *link, w *workers) bool {
	w.stopWords()
	if !wait(ctx, l, w.announced) {
		return false
	}
	if s.topics.status != "" {
		if err := l.deliver(ctx, notice{s.topics.status, s.offline, 1, true}); err != nil {
			return false
		}
	}
	if l.will.topic != "" && l.will.topic != s.topics.status { // the format's, which DISCONNECT would suppress
		if err := l.deliver(ctx, l.will); err != nil {
			return false
		}
	}
	l.disconnect()
	return true
}

// wait waits for done. It answers false when ctx or the link has ended before.
func wait(ctx context.Context, l *link, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	case <-l.lost:
		return false
	}
}

// proof is the outcome of showing a staged certificate on a second connection.
type proof struct {
	credential *identity.Credential
	secured    *dial.Conn
	err        error
}

// prove shows the staged certificate to the broker on a second connection, up to the first
// read, while the first connection lives. CONNECT is not sent, since the same client id would
// throw out the first.
func (s *Session) prove(ctx context.Context, b dial.Broker) chan proof {
	staged := s.identity.Staged()
	if staged == nil {
		return nil
	}
	proofs := make(chan proof, 1)
	go func() { // ends within the timeouts of dial and prove; serve takes what it says
		sec, err := s.dialer.Dial(ctx, b, staged, func(cause.Stage) {})
		if err == nil {
			if err = sec.Prove(ctx); err != nil {
				_ = sec.Close()
			}
		}
		proofs <- proof{staged, sec, err}
	}()
	return proofs
}

// handover goes over to the connection that was proved. When it was not, the link stays.
func (r *runner) handover(l *link, w *workers, p proof) bool {
	s := r.Session
	if p.err != nil {
		if !l.over() {
			failure := cause.Classify(cause.StageRotate, p.err)
			failure.Text = "the new certificate was not accepted, the old one stays: " + failure.Text
			s.tellRefused(p.credential, failure)
			s.note(failure)
		}
		s.refused = p.credential.Fingerprint()
		return false
	}
	limit, cancel := context.WithTimeout(w.ctx, s.config.WriteTimeout.Std())
	defer cancel()
	w.stopFeed()
	if !wait(limit, l, w.reaped) || !s.farewell(limit, l, w) {
		l.conn.fail(errDisconnected) // the next connection sends again what was not acknowledged
	}
	r.next = p.secured
	return true
}

// connected notes a CONNACK.
func (s *Session) connected(l *link) {
	state := l.secured.TLS.ConnectionState()
	s.mu.Lock()
	s.link = l
	s.status.connected(l, state)
	s.mu.Unlock()
	s.begin(cause.StageSuback)
	s.log.LogAttrs(context.Background(), slog.LevelInfo, "session up",
		slog.String("broker", l.secured.Broker.String()), slog.String("address", s.Status().Address),
		slog.Bool("resumed", state.DidResume), slog.Duration("handshake", l.secured.Took.Round(time.Millisecond)))
}
