package session

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"ferrule/agent/identity"
)

// peers is how brokers are judged, and whom their judgement of us is told.
type peers struct {
	roots    func() *x509.CertPool
	verify   func(tls.ConnectionState) error
	verified func([][]*x509.Certificate)
	refused  func(string, Failure)
	now      func() time.Time

	mu   sync.Mutex
	pool *x509.CertPool // of the last handshake
}

// set takes the options over.
func (t *peers) set(o Options) error {
	t.roots, t.verify, t.verified, t.refused, t.now = o.Roots, o.Verify, o.Verified, o.Refused, o.Now
	if t.now == nil {
		t.now = time.Now
	}
	if t.roots == nil {
		pool, err := readRoots(o.Config.Roots)
		if err != nil {
			return err
		}
		t.roots = func() *x509.CertPool { return pool }
	}
	t.pool = t.roots()
	return nil
}

// distrust is a refusal by Options.Verify.
type distrust struct {
	err     error
	resumed bool // the TLS session was resumed
}

func (d *distrust) Error() string { return d.err.Error() }
func (d *distrust) Unwrap() error { return d.err }

func (d *distrust) revoked() bool {
	var who interface{ Revoked() bool }
	return errors.As(d.err, &who) && who.Revoked()
}

// config is credential's for host, with the roots of now and the judgement of Options.Verify.
func (t *peers) config(credential *identity.Credential, id *identity.Identity, host string) *tls.Config {
	c := credential.TLS(t.current(credential, id), host)
	if t.verify == nil {
		return c
	}
	count := c.VerifyConnection
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if err := t.verify(state); err != nil {
			return &distrust{err, state.DidResume}
		}
		return count(state)
	}
	return c
}

// current returns the roots of now. Where they are others than before, no TLS session of
// before is resumed.
func (t *peers) current(credential *identity.Credential, id *identity.Identity) *x509.CertPool {
	t.mu.Lock()
	defer t.mu.Unlock()
	pool := t.roots()
	if pool == t.pool {
		return pool
	}
	t.pool = pool
	for _, c := range []*identity.Credential{credential, id.Current(), id.Staged()} {
		if c != nil {
			c.Forget()
		}
	}
	return pool
}

// recheck ends a link whose broker would be refused now.
func (s *Session) recheck(l *link) {
	state := l.secured.tls.ConnectionState()
	if err := rooted(state.VerifiedChains, s.trust.roots()); err != nil {
		l.conn.fail(err)
		return
	}
	if s.trust.verify == nil {
		return
	}
	if err := s.trust.verify(state); err != nil {
		l.conn.fail(&distrust{err, state.DidResume})
	}
}

// rooted says whether a chain that was verified ends in pool, whatever the time is.
func rooted(chains [][]*x509.Certificate, pool *x509.CertPool) (err error) {
	for _, chain := range chains {
		root := chain[len(chain)-1]
		_, err = root.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: root.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err == nil {
			return nil
		}
	}
	return err
}
