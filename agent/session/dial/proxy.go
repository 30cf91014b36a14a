package dial

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"ferrule/agent/session/cause"
	"ferrule/internal/hint"
)

// proxy is who is asked for the way to the broker. Its String holds no password.
type proxy struct {
	env    bool // the environment says which, for each broker
	secure bool // TLS to the proxy
	host   string
	port   string
	user   *url.Userinfo
	roots  *x509.CertPool // that it is checked against
}

// none says that there is no proxy.
func (p proxy) none() bool { return p.host == "" }

// String returns the proxy's URL without user and password.
func (p proxy) String() string {
	switch {
	case p.none():
		return ""
	case p.secure:
		return "https://" + net.JoinHostPort(p.host, p.port)
	}
	return "http://" + net.JoinHostPort(p.host, p.port)
}

// parseProxy reads session.proxy. Its errors hold nothing of text, which may hold a password.
func parseProxy(text string) (proxy, error) {
	switch {
	case text == "":
		return proxy{}, nil
	case text == "env":
		return proxy{env: true}, nil
	case len(text) > maxURL:
		return proxy{}, fmt.Errorf("longer than %d bytes", maxURL)
	}
	u, err := url.Parse(text)
	if err != nil {
		return proxy{}, errors.New("not a URL")
	}
	return proxyOf(u)
}

func proxyOf(u *url.URL) (p proxy, err error) {
	p = proxy{port: u.Port(), user: u.User}
	usual := "80"
	switch u.Scheme {
	case "http":
	case "https":
		p.secure, usual = true, "443"
	default:
		return proxy{}, errors.New("the scheme must be http or https")
	}
	if p.port == "" {
		p.port = usual
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return proxy{}, errors.New("there is something behind the port")
	}
	if n, err := strconv.Atoi(p.port); err != nil || n < 1 || n > 65535 {
		return proxy{}, errors.New("that is not a port")
	}
	if p.host, err = parseHost(u.Hostname()); err != nil {
		return proxy{}, errors.New("that is not a host")
	}
	return p, nil
}

// proxyFor returns the proxy on the way to b.
func (d *Dialer) proxyFor(b Broker) (proxy, error) {
	if !d.proxy.env {
		return d.proxy, nil
	}
	// What the environment says of https, and of what is not to go through a proxy, holds.
	u, err := d.environment(&http.Request{URL: &url.URL{Scheme: "https", Host: b.Address()}})
	if err != nil { // it quotes the URL, with the password
		return proxy{}, fmt.Errorf("%w: HTTPS_PROXY cannot be read", cause.ErrNotProxy)
	}
	if u == nil {
		return proxy{}, nil
	}
	p, err := proxyOf(u)
	if err != nil {
		return proxy{}, fmt.Errorf("%w: HTTPS_PROXY: %w", cause.ErrNotProxy, err)
	}
	p.roots = d.proxy.roots
	return p, nil
}

// The first byte of a TLS alert and of a handshake message (RFC 8446, 5.1).
const recordAlert, recordHandshake = 21, 22

// maxAnswer bounds the header that a proxy answers CONNECT with.
const maxAnswer = 16 << 10

// pass asks the proxy for a tunnel to the broker (RFC 9110, 9.3.6).
func (a *attempt) pass(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, a.Timeouts.Proxy)
	defer cancel()
	if a.via.secure {
		secure := tls.Client(a.wire, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: a.via.serverName(), RootCAs: a.via.roots, Time: a.now})
		if err := secure.HandshakeContext(limited); err != nil {
			return a.toProxy(a.timely(ctx, limited, err, a.Timeouts.Proxy))
		}
		a.tunnel = secure
	}
	stop := context.AfterFunc(limited, func() { _ = a.tunnel.SetDeadline(time.Unix(1, 0)) })
	err := a.ask()
	if !stop() && err == nil {
		err = limited.Err()
	}
	return a.timely(ctx, limited, err, a.Timeouts.Proxy)
}

// timely says which of the two contexts, if any, ended what ended with err.
func (a *attempt) timely(ctx, limited context.Context, err error, limit time.Duration) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		return fmt.Errorf("%w within %v: %w", cause.ErrStalled, limit, err)
	}
	return err
}

// ask sends CONNECT and reads the answer.
func (a *attempt) ask() error {
	if strings.Contains(a.broker.host, "%") {
		return fmt.Errorf("%w: no proxy reaches an address with a zone", cause.ErrNotProxy)
	}
	if _, err := io.WriteString(a.tunnel, a.via.request(a.broker.Address())); err != nil {
		return err
	}
	head := &io.LimitedReader{R: a.tunnel, N: maxAnswer}
	r := bufio.NewReaderSize(head, 1<<10)
	if first, err := r.Peek(1); err == nil && (first[0] == recordAlert || first[0] == recordHandshake) {
		return hint.With(fmt.Errorf("%w: it answers in TLS", cause.ErrNotProxy), "write session.proxy with https:// instead of http://")
	}
	answer, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	switch {
	case err != nil && head.N <= 0:
		return fmt.Errorf("%w: its answer is longer than %d bytes", cause.ErrNotProxy, maxAnswer)
	case err != nil && (cause.IsTimeout(err) || cause.IsClosed(err)):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", cause.ErrNotProxy, err)
	}
	a.observe.answered(cause.StageProxy, answer.Header)
	// There is no body behind 2xx, whatever the header says, and another is of no use.
	switch {
	case answer.StatusCode/100 != 2:
		schemes := strings.Join(answer.Header.Values("Proxy-Authenticate"), ", ")
		return &cause.ProxyAnswer{Code: answer.StatusCode, Status: clip(answer.Status), Schemes: clip(schemes)}
	case r.Buffered() > 0:
		return fmt.Errorf("%w: it spoke before TLS began", cause.ErrNotProxy)
	}
	return nil
}

// request is CONNECT to a host and port.
func (p proxy) request(address string) string {
	login := ""
	if p.user != nil {
		password, _ := p.user.Password()
		login = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(p.user.Username()+":"+password)) + "\r\n"
	}
	return "CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\nUser-Agent: ferrule\r\n" + login + "\r\n"
}

func (p proxy) serverName() string { return Broker{host: p.host}.ServerName() }

// clip shortens what a stranger says.
func clip(text string) string {
	if len(text) > 100 {
		return strings.ToValidUTF8(text[:100], "") + "…"
	}
	return text
}
