package identity

import (
	"crypto/tls"
	"sync"
)

// sessionsKept is enough for several brokers; TLS 1.3 servers send two tickets each.
const sessionsKept = 16

// patience is how many handshakes in a row may fail before their ticket is the suspect.
const patience = 3

// patientSessions keeps a session ticket through failed handshakes. crypto/tls forgets it
// whenever a handshake fails that offered it (RFC 5077, 3.2), also when only the network
// broke in the middle, and the next connection would cost a signature of the TPM.
type patientSessions struct {
	cache tls.ClientSessionCache

	mu       sync.Mutex
	failures map[string]int
}

func newSessions() *patientSessions {
	s := &patientSessions{}
	s.forget()
	return s
}

// forget forgets every ticket.
func (s *patientSessions) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache, s.failures = tls.NewLRUClientSessionCache(sessionsKept), make(map[string]int)
}

// Get implements tls.ClientSessionCache.
func (s *patientSessions) Get(key string) (*tls.ClientSessionState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cache.Get(key)
}

// Put implements tls.ClientSessionCache: no state means that the ticket is to be forgotten.
func (s *patientSessions) Put(key string, state *tls.ClientSessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == nil {
		if s.failures[key]++; s.failures[key] < patience {
			return
		}
	}
	delete(s.failures, key)
	s.cache.Put(key, state)
}
