package agent

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"ferrule/agent/identity"
	"ferrule/agent/session/dial"
)

const (
	// connectPatience bounds dialling, the TLS handshake with its signature by the TPM, and waiting
	// for the head of an answer, each.
	connectPatience = 30 * time.Second
	headBytes       = 32 << 10
)

// updateTransport shows the repository's server the device's certificate: the one that is current
// when a connection is made. TLS sessions are resumed under one certificate alone, so a download
// that is cut again and again costs the TPM one signature.
type updateTransport struct {
	credential func() *identity.Credential
	roots      func() *x509.CertPool
	proxy      func(*http.Request) (*url.URL, error)

	mu    sync.Mutex
	shown *identity.Credential
	pool  *x509.CertPool
	under *http.Transport // of both
}

// openUpdateTransport reads the authorities of the repository's server.
func (a *agent) openUpdateTransport() (*updateTransport, error) {
	t := &updateTransport{credential: a.identity.Current, roots: a.trust.brokers.Pool}
	if file := a.config.Update.Roots; file != "" {
		pool, err := dial.ReadRoots(file)
		if err != nil {
			return nil, fmt.Errorf("update.roots: %w", err)
		}
		t.roots = func() *x509.CertPool { return pool }
	}
	switch text := a.config.Session.Proxy; text {
	case "":
	case "env":
		t.proxy = http.ProxyFromEnvironment
	default:
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("session.proxy is not a URL") //nolint:err113 // url.Error would print a password
		}
		t.proxy = http.ProxyURL(u)
	}
	return t, nil
}

// RoundTrip implements http.RoundTripper.
func (t *updateTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.now().RoundTrip(r)
}

// now is the transport of the certificate and the roots of now. Answers that are under way on the
// one of before are read to their end.
func (t *updateTransport) now() *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	credential, pool := t.credential(), t.roots()
	if t.under != nil && credential == t.shown && pool == t.pool {
		return t.under
	}
	if t.under != nil {
		t.under.CloseIdleConnections()
	}
	settings := credential.TLS(pool, "")
	settings.ClientSessionCache = tls.NewLRUClientSessionCache(1) // none of the broker's
	t.shown, t.pool = credential, pool
	t.under = &http.Transport{
		Proxy:                  t.proxy,
		DialContext:            (&net.Dialer{Timeout: connectPatience}).DialContext,
		TLSClientConfig:        settings,
		TLSHandshakeTimeout:    connectPatience,
		ResponseHeaderTimeout:  connectPatience,
		IdleConnTimeout:        connectPatience,
		MaxResponseHeaderBytes: headBytes,
		MaxConnsPerHost:        2,
		DisableCompression:     true, // what is bounded and hashed is what was sent
	}
	return t.under
}

func (t *updateTransport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.under != nil {
		t.under.CloseIdleConnections()
	}
}
