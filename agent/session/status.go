package session

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/bits"
	"time"

	"ferrule/agent/session/cause"
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
	// Commands taken, and those not taken because too many waited.
	Commands        uint64 `json:"commands"`
	CommandsDropped uint64 `json:"commands_dropped"`
	// SetAside counts entries that ended three connections each.
	SetAside uint64 `json:"set_aside"`
	// Rotations counts certificates that took over.
	Rotations uint64 `json:"rotations"`
}

// connected takes over what a new connection is.
func (st *Status) connected(l *link, state tls.ConnectionState) {
	st.Broker = l.secured.Broker.String()
	st.Address = l.conn.RemoteAddr().String()
	st.TLSVersion = tls.VersionName(state.Version)
	st.Cipher = tls.CipherSuiteName(state.CipherSuite)
	st.Leaf = l.secured.Credential.Fingerprint()
	st.Attempts = 0
	st.Connects++
	if state.DidResume {
		st.Resumed++
	}
}

// Status returns how the session is.
func (s *Session) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status
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
	if s.status.Stage != stage {
		s.status.Stage, s.status.Since = stage, time.Now()
	}
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
	if s.status.Stage == cause.StageSuback {
		s.status.Stage, s.status.Since = cause.StageUp, time.Now()
	}
}

// note keeps and logs a failure. One that repeats is logged the first, second, fourth, eighth …
// time, with its count.
func (s *Session) note(f cause.Failure) {
	f.At = time.Now()
	s.mu.Lock()
	s.status.LastFailure = &f
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
