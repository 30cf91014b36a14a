// Package peer asks a service that issues certificates one question at a time, over TLS alone,
// and sorts its answers by what may be done next. What is worth another try matters more than
// what went wrong: a device that takes a passing fault for a no is stranded, one that takes a no
// for a passing fault never stops asking.
package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"ferrule/internal/hint"
)

// Bounds of one question.
const (
	// DefaultTimeout is how long one answer may take, the connection included.
	DefaultTimeout = 20 * time.Second
	// MaxBody bounds an answer, in bytes.
	MaxBody    = 256 << 10
	maxHeaders = 32 << 10
)

// Options say whom to ask, and as whom.
type Options struct {
	// Service is what errors call it: "the EST server".
	Service string
	// Roots are the authorities that its certificate must chain to; those of the system are
	// never asked.
	Roots *x509.CertPool
	// Present is the certificate shown in TLS; nil: none.
	Present *tls.Certificate
	// Verify judges it after crypto/tls has; nil: nobody does.
	Verify func(tls.ConnectionState) error
	// Now is the time that its certificate is judged by; nil: time.Now.
	Now func() time.Time
	// Timeout is that of one question; 0: DefaultTimeout.
	Timeout time.Duration
	// Proxy as in http.Transport; nil: none. Through it goes TLS, so that it can read nothing.
	Proxy func(*http.Request) (*url.URL, error)
	// MaxBody bounds an answer, in bytes; 0: MaxBody.
	MaxBody int64
}

// Client asks one service. It is for one goroutine at a time.
type Client struct {
	service string
	base    *url.URL
	http    *http.Client
	now     func() time.Time
	maxBody int64
	ahead   time.Duration // the service's clock less ours, as of its last answer
}

// New makes a client for the service at address, an https URL. It asks nothing yet.
func New(address string, o Options) (*Client, error) {
	base, err := ParseURL(address)
	if err != nil {
		return nil, err
	}
	if o.Roots == nil {
		return nil, fmt.Errorf("no roots are given to know %s by", o.Service)
	}
	c := &Client{service: o.Service, base: base, now: o.Now, maxBody: o.MaxBody}
	if c.now == nil {
		c.now = time.Now
	}
	if c.maxBody <= 0 {
		c.maxBody = MaxBody
	}
	timeout := o.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots, Time: o.Now, VerifyConnection: o.Verify}
	if o.Present != nil {
		// Always shown: Certificates would show none to a service that does not list our
		// authority, and the refusal would not say what was missing.
		settings.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.Present, nil }
	}
	c.http = &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			Proxy:                  o.Proxy,
			DialContext:            (&net.Dialer{Timeout: timeout}).DialContext,
			TLSHandshakeTimeout:    timeout,
			TLSClientConfig:        settings,
			MaxResponseHeaderBytes: maxHeaders,
			DisableCompression:     true, // what is bounded is what was sent
		},
		// Tokens and certificates are for this service alone, and a redirect may lead to a place
		// without TLS.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// ParseURL reads the address of a service.
func ParseURL(address string) (*url.URL, error) {
	base, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the address is no URL") // url.Error would print a password
	}
	switch {
	case base.Scheme != "https" || base.Host == "":
		return nil, fmt.Errorf("%q is no https address", base.Redacted())
	case base.User != nil:
		return nil, fmt.Errorf("%q holds a user, which would end in logs", base.Redacted())
	case base.RawQuery != "" || base.Fragment != "":
		return nil, fmt.Errorf("%q has more than a path", base.Redacted())
	}
	return base, nil
}

// Close gives back the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Base is the address of the service, without a slash at its end.
func (c *Client) Base() string { return strings.TrimRight(c.base.String(), "/") }

// ServiceTime is the time by the clock of the service, as far as an answer has told it; else
// ours. A service checks what we sign by its own clock, and a gateway without a battery has
// none worth trusting.
func (c *Client) ServiceTime() time.Time { return c.now().Add(c.ahead) }

// Question is one HTTP request.
type Question struct {
	Method string // "": POST
	Path   string // below the address
	Header map[string]string
	Body   []byte
	// User and Password go into HTTP basic authentication where User is not empty.
	User, Password string
}

// Answer is one HTTP response, whatever its status.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	// Cut says that there was more than was read.
	Cut bool
}

// Ask asks q and returns any complete answer; an error says that there is none, and is
// ErrUnreachable, ErrUntrusted or, where the service does not take our certificate, ErrRefused.
func (c *Client) Ask(ctx context.Context, q Question) (Answer, error) {
	if q.Method == "" {
		q.Method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(ctx, q.Method, c.base.JoinPath(q.Path).String(), bytes.NewReader(q.Body))
	if err != nil {
		return Answer{}, err
	}
	for name, value := range q.Header {
		request.Header.Set(name, value)
	}
	request.Header.Set("User-Agent", "ferrule")
	if q.User != "" {
		request.SetBasicAuth(q.User, q.Password)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return Answer{}, c.noAnswer(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, c.maxBody+1))
	if err != nil {
		return Answer{}, c.noAnswer(err)
	}
	c.learnTime(response.Header)
	answer := Answer{Status: response.StatusCode, Header: response.Header, Body: body}
	if int64(len(body)) > c.maxBody {
		answer.Body, answer.Cut = body[:c.maxBody], true
	}
	return answer, nil
}

func (c *Client) learnTime(header http.Header) {
	if at, err := http.ParseTime(header.Get("Date")); err == nil {
		c.ahead = at.Sub(c.now())
	}
}

// noAnswer names why no answer came. A service that cannot prove who it is will not prove it at
// the next attempt either, and one that does not take our certificate will not take it then.
func (c *Client) noAnswer(err error) error {
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return hint.With(c.fault(ErrUntrusted, "this is not %s", bad.Err), distrust(bad.Err))
	}
	// http.Client's error repeats the address with its path; the cause is enough.
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err
	}
	if _, plain := errors.AsType[tls.RecordHeaderError](err); plain || strings.Contains(err.Error(), "HTTP response to HTTPS client") { // net/http keeps that one to itself
		return hint.With(c.fault(ErrUntrusted, "this is not %s", errors.New("the port does not speak TLS")), "write enroll.url with the port that does")
	}
	if advice := alert(err); advice != "" {
		return hint.With(c.fault(ErrRefused, "%s refused the certificate that was shown", err), advice)
	}
	return hint.With(c.fault(ErrUnreachable, "%s cannot be reached", err), "check enroll.url, the network, and that "+c.service+" runs")
}

// alert gives the advice for the TLS alerts (RFC 8446, 6.2) that are about our certificate. Go
// keeps the alert unexported in a net.OpError (crypto/tls/alert.go), so its text is all there is.
func alert(err error) string {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" || op.Err == nil {
		return ""
	}
	switch strings.TrimPrefix(op.Err.Error(), "tls: ") {
	case "certificate required":
		return "it wants a certificate and got none: give the device a factory certificate, or a token"
	case "expired certificate":
		return "the certificate has expired by the service's clock; the way back is the factory certificate or the TPM: ferrule enroll"
	case "revoked certificate":
		return "the certificate is revoked; ask who runs the service"
	case "unknown certificate authority", "bad certificate", "unsupported certificate", "unknown certificate", "access denied":
		return "let the service trust the authority that issued the certificate shown"
	}
	return ""
}

// distrust says what to mend where the service's certificate is not believed.
func distrust(err error) string {
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "write enroll.url with a name that the service's certificate bears, or have one made for this name (ferrule-factory ca server makes the registrar's)"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "compare this machine's clock with the time; if it is right, the service needs a new certificate"
	}
	return "put the root of the service's certificate into the file of enroll.roots"
}
