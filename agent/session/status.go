package session

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/bits"
	"slices"
	"time"

	"ferrule/agent/session/cause"
	"ferrule/agent/session/dial"
)

// Status is what the session tells of itself.
type Status struct {
	Stage cause.Stage `json:"stage"`
	// Broker, address, TLS version and cipher of the connection, or of the last one there was.
	Broker     string `json:"broker,omitempty"`
	Address    string `json:"address,omitempty"`
	TLSVersion string `json:"tls_version,omitempty"`
	Cipher     string `json:"cipher,omitempty"`
	// Leaf is the SHA-256 of the certificate that we showed on it.
	Leaf string `json:"leaf,omitempty"`
	// Path is how the connection went: address, family, proxy, ALPN, key exchange.
	Path *dial.Path `json:"path,omitempty"`
	// Since is when Stage began.
	Since time.Time `json:"since,omitzero"`
	// LastFailure stays when the session is up again; its At tells how old it is.
	LastFailure *cause.Failure `json:"last_failure,omitempty"`
	// Attempts to connect since the last CONNACK.
	Attempts int `json:"attempts"`
	// NextAttempt is when the back-off ends.
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	// Messages handed to the broker, acknowledged by it, and unacknowledged when their
	// connection ended, so that they were sent again.
	Published uint64 `json:"published"`
	Acked     uint64 `json:"acked"`
	Resent    uint64 `json:"resent"`
	InFlight  int    `json:"in_flight"`
	// Connects counts CONNACKs; Resumed those behind a TLS handshake that needed no key.
	Connects uint64 `json:"connects"`
	Resumed  uint64 `json:"resumed"`
	// Subscribed tells whether commands are heard.
	Subscribed bool `json:"subscribed"`
	// SessionPresent tells whether the broker had kept our session, with the commands that came
	// while we were away; SessionsLost counts when it should have and had not.
	SessionPresent bool   `json:"session_present"`
	SessionsLost   uint64 `json:"sessions_lost"`
	// Commands taken, and those not taken because too many waited.
	Commands        uint64 `json:"commands"`
	CommandsDropped uint64 `json:"commands_dropped"`
	// SetAside counts entries that ended three connections each.
	SetAside uint64 `json:"set_aside"`
	// Rotations counts certificates that took over.
	Rotations uint64 `json:"rotations"`
	// Wire is what all connections cost.
	Wire Wire `json:"wire"`
	// Budget of the day, where there is one.
	Budget *Budget `json:"budget,omitempty"`
	// HeldOff is when we connect again after another client has thrown us out again and again
	// (LastFailure says duplicate-identity); Takeovers counts how often that was found.
	HeldOff   time.Time `json:"held_off,omitzero"`
	Takeovers uint64    `json:"takeovers"`
	// Quarantined are messages of the broker that ended three connections and are skipped. While
	// SubscribeHeld is not over, nothing is subscribed to because of one that is too large for that.
	Quarantined   []Quarantined `json:"quarantined,omitempty"`
	SubscribeHeld time.Time     `json:"subscribe_held,omitzero"`
	// History is the last changes of Stage, the oldest first.
	History []Change `json:"history,omitempty"`
}

// Change is one change of the stage, or a failure in it.
type Change struct {
	At     time.Time   `json:"at"`
	Stage  cause.Stage `json:"stage"`
	Broker string      `json:"broker,omitempty"`
	// Cause is what failed; empty: the stage began.
	Cause cause.Cause `json:"cause,omitempty"`
}

// mostChanges bounds the history.
const mostChanges = 64

// history is a ring of changes.
type history struct {
	ring [mostChanges]Change
	n    int // that there ever were
}

func (h *history) add(c Change) {
	h.ring[h.n%mostChanges] = c
	h.n++
}

// list returns the changes, the oldest first.
func (h *history) list() []Change {
	if h.n <= mostChanges {
		return slices.Clone(h.ring[:h.n])
	}
	at := h.n % mostChanges
	return slices.Concat(h.ring[at:], h.ring[:at])
}

// connected takes over what a new connection is.
func (st *Status) connected(l *link, state tls.ConnectionState) {
	st.Broker = l.secured.Broker.String()
	st.Address = l.conn.RemoteAddr().String()
	st.TLSVersion = tls.VersionName(state.Version)
	st.Cipher = tls.CipherSuiteName(state.CipherSuite)
	st.Leaf = l.secured.Credential.Fingerprint()
	path := l.secured.Path
	st.Path = &path
	st.Attempts = 0
	st.Connects++
	if state.DidResume {
		st.Resumed++
	}
}

// Status returns how the session is.
func (s *Session) Status() Status {
	wire, budget := s.meter.read(), s.budget.status()
	quarantined, held := s.quarantine.list(), s.quarantine.heldUntil(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status
	status.Wire, status.Budget, status.Quarantined, status.SubscribeHeld = wire, budget, quarantined, held
	status.History = s.history.list()
	if status.Path != nil {
		path := *status.Path
		path.Raced = slices.Clone(path.Raced)
		status.Path = &path
	}
	if s.link != nil {
		status.InFlight, _ = s.link.window.inFlight()
	}
	if f := status.LastFailure; f != nil {
		failure := *f
		status.LastFailure = &failure
	}
	return status
}

// begin notes that stage begins.
func (s *Session) begin(stage cause.Stage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter(stage)
}

// enter notes that stage begins; mu is held.
func (s *Session) enter(stage cause.Stage) {
	if s.status.Stage == stage {
		return
	}
	s.status.Stage, s.status.Since = stage, time.Now()
	s.history.add(Change{At: s.status.Since, Stage: stage, Broker: s.trying})
}

func (s *Session) count(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// answered notes that SUBSCRIBE was answered or not, if l is still the link.
func (s *Session) answered(l *link, subscribed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != l {
		return
	}
	s.status.Subscribed = subscribed
	l.heard.Store(subscribed)
	if s.status.Stage == cause.StageSuback {
		s.enter(cause.StageUp)
	}
}

// sessionPresent notes what CONNACK says of the session that the broker keeps.
func (s *Session) sessionPresent(l *link, present bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.SessionPresent = present
	if !present && s.kept == l.secured.Broker.Host() {
		s.status.SessionsLost++
	}
	if s.kept = l.secured.Broker.Host(); l.clean {
		s.kept = ""
	}
}

// note keeps and logs a failure. One that repeats is logged the first, second, fourth, eighth …
// time, with its count.
func (s *Session) note(f cause.Failure) {
	f.At = time.Now()
	s.mu.Lock()
	s.status.LastFailure = &f
	s.history.add(Change{At: f.At, Stage: f.Stage, Broker: s.trying, Cause: f.Cause})
	if s.logged.stage != f.Stage || s.logged.cause != f.Cause {
		s.logged.stage, s.logged.cause, s.logged.times = f.Stage, f.Cause, 0
	}
	s.logged.times++
	times := s.logged.times
	s.mu.Unlock()
	if bits.OnesCount(uint(times)) != 1 {
		return
	}
	s.log.LogAttrs(context.Background(), slog.LevelWarn, "session failed",
		slog.String("stage", string(f.Stage)), slog.String("cause", string(f.Cause)), slog.String("side", string(f.Side)),
		slog.String("text", f.Text), slog.String("hint", f.Hint), slog.Int("times", times))
}
