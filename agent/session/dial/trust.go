package dial

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
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
	inspectors []*x509.Certificate // authorities that may vouch for a broker in its stead

	mu   sync.Mutex
	pool *x509.CertPool
	with *x509.CertPool // pool and inspectors
}

// config is credential's for host, with the roots of now and the judgement of Verify. What
// inspected points to is, once the broker was verified, the inspector that vouched for it.
func (t *trust) config(credential *identity.Credential, host string) (_ *tls.Config, inspected *string) {
	pool, with := t.current(credential)
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: with, ServerName: host}
	if credential != nil {
		c = credential.TLS(with, host)
	}
	inspected = new(string)
	count := c.VerifyConnection
	c.VerifyConnection = func(state tls.ConnectionState) error {
		*inspected = t.inspector(state.VerifiedChains, pool)
		if t.Verify != nil {
			if err := t.Verify(state); err != nil {
				return &cause.Distrust{Err: err, Resumed: state.DidResume}
			}
		}
		if count == nil {
			return nil
		}
		return count(state)
	}
	return c, inspected
}

// inspector names the authority that vouches for a broker where none of pool does.
func (t *trust) inspector(chains [][]*x509.Certificate, pool *x509.CertPool) string {
	if len(t.inspectors) == 0 || len(chains) == 0 || rooted(chains, pool) == nil {
		return ""
	}
	return cause.Printable(chains[0][len(chains[0])-1].Subject.String())
}

// current returns the roots of now, and these with the inspectors. Where they are others than
// before, no TLS session of before is resumed.
func (t *trust) current(credential *identity.Credential) (pool, with *x509.CertPool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pool = t.Roots()
	if pool != t.pool {
		t.pool, t.with = pool, nil
		t.forget(credential)
	}
	return pool, t.widened(pool)
}

// forget drops the TLS sessions of every credential that may be shown.
func (t *trust) forget(credential *identity.Credential) {
	all := []*identity.Credential{credential}
	if t.Identity != nil {
		all = append(all, t.Identity.Current(), t.Identity.Staged())
	}
	for _, c := range all {
		if c != nil {
			c.Forget()
		}
	}
}

// widened returns pool with the inspectors. t.mu is held.
func (t *trust) widened(pool *x509.CertPool) *x509.CertPool {
	if len(t.inspectors) == 0 {
		return pool
	}
	if t.with != nil {
		return t.with
	}
	if pool != nil {
		t.with = pool.Clone()
	} else if system, err := x509.SystemCertPool(); err == nil {
		t.with = system
	} else {
		t.with = x509.NewCertPool()
	}
	for _, c := range t.inspectors {
		t.with.AddCert(c)
	}
	return t.with
}

// Recheck judges the broker of a connection that stands once more. The error is why a new
// connection to it would be refused.
func (d *Dialer) Recheck(c *Conn) error {
	state := c.TLS.ConnectionState()
	_, with := d.trust.current(c.Credential)
	if err := rooted(state.VerifiedChains, with); err != nil {
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
func ReadRoots(name string) (*x509.CertPool, error) { return readRoots("session.roots", name) }

// readRoots reads the authorities that key names; nil: the system's.
func readRoots(key, name string) (*x509.CertPool, error) {
	certificates, err := readCertificates(key, name)
	if len(certificates) == 0 {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool, nil
}

// readCertificates reads the PEM certificates of the file that key names. Blocks of other kinds
// are passed over, and so are certificates that cannot be read, as crypto/x509 does with roots.
func readCertificates(key, name string) (all []*x509.Certificate, err error) {
	if name == "" {
		return nil, nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading %s: %w", key, err), "name a file with the PEM certificates of authorities")
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" || len(block.Headers) != 0 {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil, hint.With(fmt.Errorf("reading %s: %s holds no certificate", key, name),
			"put PEM certificates (-----BEGIN CERTIFICATE-----) into it")
	}
	return all, nil
}
