// Package est is a client of Enrollment over Secure Transport (RFC 7030, with the corrections of
// RFC 8951). The trap is the answer: it holds the certificate alone, in any company and order, so
// that the chain has to be put together from what /cacerts says, and nothing in the protocol ties
// it to the key that was asked for. The attributes that a server would like to see in a request
// (/csrattrs) are not asked for: it knows the device better than we do.
package est

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"ferrule/agent/enroll/peer"
	"ferrule/internal/hint"
)

// wellKnown is where the operations are (RFC 7030, 3.2.2).
const wellKnown = "/.well-known/est"

// Client asks one EST server. It is for one goroutine at a time.
type Client struct {
	peer           *peer.Client
	user, password string
}

// New makes a client for the server at address, which may have a label
// (https://est.example/.well-known/est/gateways) or a prefix (https://vault.example/v1/pki). It asks
// nothing yet. The certificate in o is what entitles; so do user and password, where user is not
// empty. o.Service may be empty.
func New(address, user, password string, o peer.Options) (*Client, error) {
	if o.Service == "" {
		o.Service = "the EST server"
	}
	if !strings.Contains(address+"/", wellKnown+"/") {
		address = strings.TrimRight(address, "/") + wellKnown
	}
	client, err := peer.New(address, o)
	if err != nil {
		return nil, err
	}
	return &Client{peer: client, user: user, password: password}, nil
}

// Close gives back the connections.
func (c *Client) Close() { c.peer.Close() }

// CACerts asks for the certificates of the CA, the current one and those of a change of roots
// (RFC 7030, 4.1).
func (c *Client) CACerts(ctx context.Context) ([]*x509.Certificate, error) {
	answer, err := c.peer.Ask(ctx, peer.Question{Method: http.MethodGet, Path: "cacerts"})
	if err != nil {
		return nil, fmt.Errorf("asking for the CA's certificates: %w", err)
	}
	certificates, err := c.read(answer)
	if err != nil {
		return nil, fmt.Errorf("asking for the CA's certificates: %w", err)
	}
	return certificates, nil
}

// Enroll asks for a certificate (RFC 7030, 4.2.1). csr is PKCS #10 in DER. A *peer.Later says that
// the server wants to be asked again, with the same csr.
func (c *Client) Enroll(ctx context.Context, csr []byte) (peer.Issued, error) {
	request, err := peer.KeyOf(csr)
	if err != nil {
		return peer.Issued{}, err
	}
	return c.request(ctx, "simpleenroll", request)
}

// Reenroll renews old, with its key or a new one (RFC 7030, 4.2.2). The client shows old in TLS,
// and the subject of csr is that of old.
func (c *Client) Reenroll(ctx context.Context, csr []byte, old *x509.Certificate) (peer.Issued, error) {
	request, err := peer.KeyOf(csr)
	if err != nil {
		return peer.Issued{}, err
	}
	if have, want := request.Subject.String(), old.Subject.String(); have != want {
		return peer.Issued{}, hint.With(
			peer.Fault(peer.ErrRefused, fmt.Sprintf("the request is for %q and the certificate to be renewed for %q", have, want), nil),
			"EST renews a certificate only for the same subject; for another one enroll anew")
	}
	return c.request(ctx, "simplereenroll", request)
}

func (c *Client) request(ctx context.Context, operation string, request *x509.CertificateRequest) (peer.Issued, error) {
	authorities, err := c.CACerts(ctx)
	if err != nil {
		return peer.Issued{}, err
	}
	answer, err := c.peer.Ask(ctx, peer.Question{
		Path: operation, Body: lines(request.Raw), User: c.user, Password: c.password,
		Header: map[string]string{"Content-Type": "application/pkcs10", "Content-Transfer-Encoding": "base64"},
	})
	if err != nil {
		return peer.Issued{}, fmt.Errorf("asking for a certificate: %w", err)
	}
	certificates, err := c.read(answer)
	if err != nil {
		return peer.Issued{}, fmt.Errorf("asking for a certificate: %w", err)
	}
	chain, err := peer.Chain(request.PublicKey, append(certificates, authorities...))
	if err != nil {
		return peer.Issued{}, c.peer.Senseless(err)
	}
	issued := peer.Issued{Chain: chain}
	for _, authority := range authorities {
		if peer.SelfSigned(authority) {
			issued.Roots = append(issued.Roots, authority)
		}
	}
	return issued, nil
}

// lines is base64 in lines of 64: some servers read no longer ones.
func lines(der []byte) []byte {
	text := base64.StdEncoding.EncodeToString(der)
	var out strings.Builder
	for len(text) > 64 {
		out.WriteString(text[:64] + "\r\n")
		text = text[64:]
	}
	out.WriteString(text + "\r\n")
	return []byte(out.String())
}

func (c *Client) read(answer peer.Answer) ([]*x509.Certificate, error) {
	if answer.Status != http.StatusOK {
		return nil, c.peer.No(answer, reason(answer))
	}
	if answer.Cut {
		return nil, c.peer.Senseless(errors.New("it does not end"))
	}
	certificates, err := parseAnswer(answer.Body)
	if err != nil {
		return nil, c.peer.Senseless(err)
	}
	return certificates, nil
}

// reason is what a server says to people (RFC 7030, 4.2.3): plain text, and no pages of HTML.
func reason(answer peer.Answer) string {
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if kind != "text/plain" {
		return ""
	}
	return string(answer.Body)
}
