package registrar

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"sync"
	"time"

	"ferrule/agent/enroll/wire"
)

// Bounds of sessions.
const (
	sessionLife = 5 * time.Minute
	maxSessions = 4096
	maxOfSource = 1024
)

// session is one enrollment between its first and its last request:
//
//	begun ──evidence──▶ examining ──believed──▶ challenged ──finish──▶ finished, and gone
//	                        └──────refused──────────────────────────▶ gone
//
// Each step is taken once: there is one try at the evidence and one at the answer.
type session struct {
	entitlement
	nonce   []byte
	source  string
	peer    string // fingerprint of the certificate shown in TLS, "" none
	expires time.Time
	state   state
	request *examined
	answer  []byte // what the TPM answers; nil: no TPM
}

type state uint8

const (
	begun state = iota
	examining
	challenged
	finished
)

// sessions are those that are open.
type sessions struct {
	mu   sync.Mutex
	open map[string]*session
	rate rate
}

func newSessions() *sessions {
	return &sessions{open: make(map[string]*session), rate: rate{sources: make(map[string]allowance)}}
}

var errCrowded = errors.New("too many enrollments at once")

// allow says whether a source may begin an enrollment.
func (s *sessions) allow(source string) *wire.Error {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.rate.allow(source, now) || !s.room(source, now) {
		return &wire.Error{Code: wire.CodeBackend, Text: errCrowded.Error(), Hint: "wait a little, then try again", Cause: errCrowded}
	}
	return nil
}

// room forgets sessions that were given up, and reports whether there is space for one of a
// source. The caller holds mu.
func (s *sessions) room(source string, now time.Time) bool {
	own := 0
	for name, o := range s.open {
		switch {
		case now.After(o.expires):
			delete(s.open, name)
		case o.source == source:
			own++
		}
	}
	return len(s.open) < maxSessions && own < maxOfSource
}

// add opens a session and names it.
func (s *sessions) add(o *session) (string, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	name := base64.RawURLEncoding.EncodeToString(id)
	o.expires = time.Now().Add(sessionLife)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) >= maxSessions {
		return "", errCrowded
	}
	s.open[name] = o
	return name, nil
}

// step takes a session from one state to the next, for one request only.
func (s *sessions) step(name string, c caller, from, to state) (*session, *wire.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.open[name]
	switch {
	case !ok || time.Now().After(o.expires) || o.peer != fingerprintOf(c.chain):
		return nil, &wire.Error{Code: wire.CodeSession, Text: "this enrollment is not open (any more)", Hint: "begin again"}
	case o.state < from:
		return nil, &wire.Error{Code: wire.CodeEvidence, Text: "no evidence was given yet", Hint: "send the evidence first"}
	case o.state > from:
		return nil, &wire.Error{Code: wire.CodeSession, Text: "this step of the enrollment was taken already", Hint: "begin again"}
	}
	o.state = to
	return o, nil
}

// challenge notes what the next answer has to be.
func (s *sessions) challenge(o *session, request *examined, answer []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.state, o.request, o.answer = challenged, request, answer
}

func (s *sessions) drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, name)
}
