// Package enroll gets a certificate chain for a key and its evidence. The key never comes
// here: whoever enrolls hands in a function that makes a signed request for the name which
// the registrar gives.
package enroll

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"ferrule/agent/enroll/wire"
	"ferrule/internal/hint"
)

// The values of Config.Method.
const (
	MethodNone      = "none"
	MethodRegistrar = "registrar"
)

// Config is the [enroll] section.
type Config struct {
	// Who issues the certificate: registrar, or none where it is put in place by other means.
	Method string `toml:"method"`
	// Address of the registrar, an https URL.
	URL string `toml:"url"`
	// File with the root certificates, PEM, that the registrar's certificate and the one it
	// issues must chain to.
	Roots string `toml:"roots"`
}

// Default returns the section as it is when the file says nothing.
func Default() Config { return Config{Method: MethodNone} }

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch c.Method {
	case MethodNone:
		return nil
	case MethodRegistrar:
	default:
		return hint.With(fmt.Errorf("enroll.method %q is not known", c.Method), "it is registrar or none")
	}
	address, err := url.Parse(c.URL)
	if err != nil || address.Scheme != "https" || address.Host == "" {
		return hint.With(fmt.Errorf("enroll.url %q is no https address", c.URL), `write it as "https://registrar.example:8443"`)
	}
	if c.Roots == "" {
		return hint.With(errors.New("enroll.roots is missing"),
			"name the file with the factory's root certificate; without it anybody could pose as the registrar")
	}
	return nil
}

// ErrRefused says that the registrar answered no; the chain of the error has the reason.
var ErrRefused = errors.New("the registrar refused")

// ErrUnreachable says that no answer came from the registrar.
var ErrUnreachable = errors.New("the registrar cannot be reached")

// ErrUntrusted says that whoever answered could not prove to be the registrar. It was told
// nothing.
var ErrUntrusted = errors.New("this is not the registrar")

// Bounds of one enrollment.
const (
	attempts       = 4
	firstPause     = time.Second
	requestTimeout = 20 * time.Second
	maxRoots       = 1 << 20
)

// Request is what enrolls.
type Request struct {
	// Token is the one-time secret that entitles to one certificate.
	Token string
	// CSR makes a PKCS #10 request in DER whose only subject is the common name device. It
	// is called once.
	CSR func(device string) ([]byte, error)
	// Now is the time that the registrar's certificate is judged by.
	Now func() time.Time
}

// Result is what the registrar gave.
type Result struct {
	Device string
	Chain  []byte // PEM
}

// Enroll carries out one enrollment. Only what may be a passing fault of the network is
// tried again, with the same request, so that the registrar sees the same key.
func Enroll(ctx context.Context, c Config, r Request) (Result, error) {
	if c.Method != MethodRegistrar {
		return Result{}, hint.With(fmt.Errorf("enroll.method is %q", c.Method), `set [enroll] method = "registrar" with url and roots`)
	}
	if r.Token == "" {
		return Result{}, hint.With(fmt.Errorf("%w: no token was given", ErrRefused), "get one with: ferrule-factory token add")
	}
	client, err := newClient(c, r)
	if err != nil {
		return Result{}, err
	}
	defer client.http.CloseIdleConnections()
	for attempt, pause := 1, firstPause; ; attempt, pause = attempt+1, 2*pause {
		result, err := client.once(ctx)
		if err == nil || !errors.Is(err, ErrUnreachable) || attempt == attempts {
			return result, err
		}
		select {
		case <-ctx.Done():
			return Result{}, err
		case <-time.After(pause):
		}
	}
}

type client struct {
	base    *url.URL
	http    *http.Client
	request Request
	csr     []byte
	device  string // that csr was made for
}

func newClient(c Config, r Request) (*client, error) {
	base, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("reading enroll.url: %w", err)
	}
	roots, err := readRoots(c.Roots)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: requestTimeout}).DialContext,
		TLSHandshakeTimeout: requestTimeout,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Time: r.Now},
		ForceAttemptHTTP2:   true,
	}
	return &client{base: base, request: r, http: &http.Client{
		Transport: transport, Timeout: requestTimeout,
		// The token is for enroll.url alone, and a redirect may lead to a place without TLS.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func readRoots(path string) (*x509.CertPool, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading enroll.roots: %w", err)
	}
	defer file.Close()
	pem, err := io.ReadAll(io.LimitReader(file, maxRoots))
	if err != nil {
		return nil, fmt.Errorf("reading enroll.roots: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading enroll.roots: %s holds no certificate", path)
	}
	return pool, nil
}

// once is begin, evidence, finish.
func (c *client) once(ctx context.Context) (Result, error) {
	hostname, _ := os.Hostname()
	var begun wire.Begun
	err := c.post(ctx, wire.PathBegin, wire.Begin{
		Versions: []int{wire.Version}, Token: c.request.Token, Hint: wire.Hint{Hostname: hostname},
	}, &begun)
	if err != nil {
		return Result{}, fmt.Errorf("beginning the enrollment: %w", err)
	}
	evidence, err := c.evidence(begun)
	if err != nil {
		return Result{}, err
	}
	var challenged wire.Challenged
	if err := c.post(ctx, wire.PathEvidence, wire.Evidence{Session: begun.Session, Evidence: evidence}, &challenged); err != nil {
		return Result{}, fmt.Errorf("sending the evidence: %w", err)
	}
	if len(challenged.Challenges) > 0 {
		return Result{}, fmt.Errorf("%w: it asks for %q, which this version cannot answer", ErrRefused, challenged.Challenges[0].Kind)
	}
	var issued wire.Issued
	if err := c.post(ctx, wire.PathFinish, wire.Finish{Session: begun.Session, Answers: []wire.Item{}}, &issued); err != nil {
		return Result{}, fmt.Errorf("finishing the enrollment: %w", err)
	}
	return Result{Device: begun.Device, Chain: []byte(issued.Chain)}, nil
}

// evidence makes what the registrar requires, once for all attempts: the request costs a
// signature in the TPM.
func (c *client) evidence(begun wire.Begun) ([]wire.Item, error) {
	if begun.Version != wire.Version {
		return nil, fmt.Errorf("%w: it speaks version %d of the protocol, this device %d", ErrRefused, begun.Version, wire.Version)
	}
	for _, kind := range begun.Require {
		if kind != wire.KindCSR {
			return nil, fmt.Errorf("%w: it requires evidence of kind %q, which this version cannot give", ErrRefused, kind)
		}
	}
	if c.csr == nil || c.device != begun.Device {
		csr, err := c.request.CSR(begun.Device)
		if err != nil {
			return nil, fmt.Errorf("making the certificate request: %w", err)
		}
		c.csr, c.device = csr, begun.Device
	}
	return []wire.Item{{Kind: wire.KindCSR, Data: c.csr}}, nil
}

func (c *client) post(ctx context.Context, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base.JoinPath(path).String(), bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return unreachable(err)
	}
	defer response.Body.Close()
	text, err = io.ReadAll(io.LimitReader(response.Body, wire.MaxBody))
	if err != nil {
		return unreachable(err)
	}
	if response.StatusCode == http.StatusOK {
		if err := json.Unmarshal(text, answer); err != nil {
			return fmt.Errorf("reading the registrar's answer: %w", err)
		}
		return nil
	}
	return refusal(response, text)
}

// refusal turns an answer that is no success into an error. A gateway in between (502 to
// 504) may have no registrar behind it at the moment.
func refusal(response *http.Response, text []byte) error {
	if slices.Contains([]int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}, response.StatusCode) {
		return fmt.Errorf("%w: %s", ErrUnreachable, response.Status)
	}
	reason := &wire.Error{}
	if json.Unmarshal(text, reason) != nil || reason.Text == "" {
		return fmt.Errorf("%w: %s", ErrRefused, response.Status)
	}
	return hint.With(fmt.Errorf("%w: %w (%s)", ErrRefused, reason, reason.Code), reason.Hint)
}

// unreachable names why no answer came. A registrar that cannot prove who it is will not
// prove it at the next attempt either.
func unreachable(err error) error {
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return hint.With(fmt.Errorf("%w: %w", ErrUntrusted, bad.Err), distrust(bad.Err))
	}
	return hint.With(fmt.Errorf("%w: %w", ErrUnreachable, err), "check enroll.url, the network, and that the registrar runs")
}

// distrust says what to mend where the registrar's certificate is not believed.
func distrust(err error) string {
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "write enroll.url with a name that the registrar's certificate bears, or have one made for this name: ferrule-factory ca server"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "compare this machine's clock with the time; if it is right, the registrar needs a new certificate"
	}
	return "put the root of the registrar's certificate into the file of enroll.roots"
}

// Verify says whether a chain, the leaf first, is a client's and leads to the roots of c. How
// long it is valid is not judged beyond reason: the clock of a gateway may be behind.
func (c Config) Verify(chain []*x509.Certificate, now time.Time) error {
	roots, err := readRoots(c.Roots)
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		between.AddCert(certificate)
	}
	for _, certificate := range chain {
		if now.Before(certificate.NotBefore) {
			now = certificate.NotBefore
		}
	}
	if now.After(chain[0].NotAfter) {
		now = chain[0].NotAfter
	}
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return hint.With(fmt.Errorf("checking the certificate against enroll.roots: %w", err),
			"the registrar and the CA behind it do not belong to the roots in that file: put the CA's root there too")
	}
	return nil
}
