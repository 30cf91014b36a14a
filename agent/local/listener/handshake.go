package listener

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"ferrule/agent/local/role"
)

// suites are those of TLS 1.2: authenticated encryption and forward secrecy (RFC 9325, 4.2). TLS
// 1.3 has no others.
var suites = [...]uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// http11 is what a client offers that wants HTTP/1.1 and nothing else, as a WebSocket does.
const http11 = "http/1.1"

// baseConfig is the part of the configuration that all clients share. Tickets are off: a
// resumed session skips the checks of its certificate that are not in its chain.
func (l *Listener) baseConfig() *tls.Config {
	return &tls.Config{ // no HTTP/2: its half a megabyte of code serves nobody here better
		MinVersion:             tls.VersionTLS12,
		CipherSuites:           suites[:],
		NextProtos:             []string{http11},
		SessionTicketsDisabled: true,
		Time:                   l.options.Now,
		GetCertificate:         l.identity.certificate,
		GetConfigForClient:     l.configFor,
	}
}

// configFor decides what one client is asked for, and judges what it shows.
func (l *Listener) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c := Of(hello.Conn)
	if c == nil {
		return nil, errors.New("a connection of somebody else")
	}
	c.hello = true
	policy := l.policy.Load()
	config := l.base.Clone()
	config.ClientAuth = l.ask(hello.SupportedProtos)
	c.asked = config.ClientAuth != tls.NoClientCert
	if c.asked {
		// Without any CA nobody is verified against those of the system.
		config.ClientCAs, _ = policy.Pool()
	}
	config.VerifyConnection = func(state tls.ConnectionState) error { return l.judge(c, policy, state) }
	return config, nil
}

// ask says whether a client that offers these protocols is asked for a certificate. Browsers
// cancel a WebSocket whose server asks for one, be it required or not.
func (l *Listener) ask(protocols []string) tls.ClientAuthType {
	socket := slices.Equal(protocols, []string{http11})
	switch {
	case l.options.Auth == Never, socket && !l.options.AskWebSocket:
		return tls.NoClientCert
	case l.options.Auth == Optional:
		return tls.VerifyClientCertIfGiven
	}
	return tls.RequireAndVerifyClientCert
}

// judge refuses certificates that verify and still may not come in. An error here is alert 42,
// bad certificate, for the client.
func (l *Listener) judge(c *Conn, policy *role.Policy, state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil // a stranger, as far as the mode allows
	}
	leaf := state.PeerCertificates[0]
	if len(state.VerifiedChains) == 0 {
		return errors.New("the certificate was not verified")
	}
	if why := weak(leaf); why != "" {
		return &weakError{text: why}
	}
	grant, err := policy.Decide(state.VerifiedChains)
	if err != nil {
		return err
	}
	if l.options.Verify != nil {
		if err := l.options.Verify(state); err != nil {
			return &verifyError{err: err}
		}
	}
	c.grant, c.notAfter = grant, leaf.NotAfter
	return nil
}

// weak says why a key is too small; crypto/x509 refuses weak signatures itself.
func weak(leaf *x509.Certificate) string {
	switch key := leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 {
			return fmt.Sprintf("RSA key of %d bits", bits)
		}
	case *ecdsa.PublicKey:
		if bits := key.Curve.Params().BitSize; bits < 256 {
			return fmt.Sprintf("ECDSA key of %d bits", bits)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Sprintf("key of type %T", key)
	}
	return ""
}

type weakError struct{ text string }

func (e *weakError) Error() string { return e.text }

type verifyError struct{ err error }

func (e *verifyError) Error() string { return e.err.Error() }
func (e *verifyError) Unwrap() error { return e.err }

// shake takes one client through its handshake and hands it over, or tells it why not.
func (l *Listener) shake(c *Conn) {
	_ = c.SetDeadline(time.Now().Add(l.options.Patience))
	t := tls.Server(c, l.base)
	if err := t.Handshake(); err != nil {
		l.refuse(c, err)
		return
	}
	c.reading.Store(-1)
	_ = c.SetDeadline(time.Time{})
	kind := stranger
	if c.grant.Role != role.None {
		kind = guest
	}
	l.table.move(c, kind)
	select {
	case l.ready <- t:
	case <-l.closing:
		_ = c.Close()
	}
}

// refuse notes why a client does not come in. crypto/tls has written the alert; the connection
// stays until the client had time to read it.
func (l *Listener) refuse(c *Conn, err error) {
	r := explain(err, c)
	l.refusals.note(l.log, c, r)
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok && looksLikeHTTP(header.RecordHeader) {
		_, _ = io.WriteString(c.Conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis port speaks HTTPS.\n")
	}
	if r.told {
		linger(c.Conn)
	}
	_ = c.Close()
}

// linger ends our side and reads on for a moment. Linux answers the close of a socket with
// unread bytes by a reset, and a reset takes the alert from a client that has not read it yet.
func linger(conn net.Conn) {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(lingerTimeout))
	_, _ = io.CopyN(io.Discard, conn, maxHandshake)
}
