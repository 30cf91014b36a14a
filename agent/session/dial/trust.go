package dial

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"

	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
	"ferrule/internal/hint"
)

// Trust is how brokers are judged.
type Trust struct {
	// Roots returns the authorities that brokers are checked against. Another pool than the last
	// makes the TLS sessions of before be forgotten, which would show the chain of before.
	Roots func() *x509.CertPool
	// Verify judges a broker whose chain crypto/tls has verified, on every connection, also on a
	// resumed one. An error refuses it; one that has Revoked() bool says whether for that. nil:
	// everyone.
	Verify func(tls.ConnectionState) error
	// Identity has the credentials whose TLS sessions are forgotten when the roots change.
	Identity *identity.Identity
}

// trust is Trust with what it was at the last handshake.
type trust struct {
	Trust
	mu   sync.Mutex
	pool *x509.CertPool
}

// config is credential's for host, with the roots of now and the judgement of Verify.
func (t *trust) config(credential *identity.Credential, host string) *tls.Config {
	c := credential.TLS(t.current(credential), host)
	if t.Verify == nil {
		return c
	}
	count := c.VerifyConnection
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if err := t.Verify(state); err != nil {
			return &cause.Distrust{Err: err, Resumed: state.DidResume}
		}
		return count(state)
	}
	return c
}

// current returns the roots of now. Where they are others than before, no TLS session of
// before is resumed.
func (t *trust) current(credential *identity.Credential) *x509.CertPool {
	t.mu.Lock()
	defer t.mu.Unlock()
	pool := t.Roots()
	if pool == t.pool {
		return pool
	}
	t.pool = pool
	forget := []*identity.Credential{credential}
	if t.Identity != nil {
		forget = append(forget, t.Identity.Current(), t.Identity.Staged())
	}
	for _, c := range forget {
		if c != nil {
			c.Forget()
		}
	}
	return pool
}

// Recheck judges the broker of a connection that stands once more. The error is why a new
// connection to it would be refused.
func (d *Dialer) Recheck(c *Conn) error {
	state := c.TLS.ConnectionState()
	if err := rooted(state.VerifiedChains, d.trust.Roots()); err != nil {
		return err
	}
	if d.trust.Verify == nil {
		return nil
	}
	if err := d.trust.Verify(state); err != nil {
		return &cause.Distrust{Err: err, Resumed: state.DidResume}
	}
	return nil
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

// ReadRoots reads the authorities of brokers; an empty name means the system's.
func ReadRoots(name string) (*x509.CertPool, error) {
	if name == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(name)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading session.roots: %w", err),
			"name a file with the PEM certificate of the authority that signed the broker's certificate")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, hint.With(fmt.Errorf("reading session.roots: %s holds no certificate", name),
			"put PEM certificates (-----BEGIN CERTIFICATE-----) into it")
	}
	return pool, nil
}
