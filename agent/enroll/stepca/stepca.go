// Package stepca is a client of step-ca's API: sign, renew, rekey and roots. The trap is the
// clock: step-ca believes a token for minutes by its own clock, and a gateway without a battery
// has none worth trusting, so tokens are dated by what step-ca's last answer said.
package stepca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"

	"ferrule/agent/enroll/peer"
)

// Client asks one step-ca. It is for one goroutine at a time.
type Client struct{ peer *peer.Client }

// New makes a client for the step-ca at address, an https URL. It asks nothing yet. The
// certificate in o is for Renew and Rekey alone: step-ca ends the handshake where it does not
// know the authority, as of a factory certificate. o.Service may be empty.
func New(address string, o peer.Options) (*Client, error) {
	if o.Service == "" {
		o.Service = "step-ca"
	}
	client, err := peer.New(address, o)
	if err != nil {
		return nil, err
	}
	return &Client{peer: client}, nil
}

// Close gives back the connections.
func (c *Client) Close() { c.peer.Close() }

// Roots asks for the root certificates.
func (c *Client) Roots(ctx context.Context) ([]*x509.Certificate, error) {
	answer, err := c.peer.Ask(ctx, peer.Question{Method: http.MethodGet, Path: "roots"})
	if err != nil {
		return nil, fmt.Errorf("asking for the roots: %w", err)
	}
	roots, err := c.roots(answer)
	if err != nil {
		return nil, fmt.Errorf("asking for the roots: %w", err)
	}
	return roots, nil
}

func (c *Client) roots(answer peer.Answer) ([]*x509.Certificate, error) {
	var body struct {
		Certificates []string `json:"crts"`
	}
	if err := c.read(answer, &body); err != nil {
		return nil, err
	}
	return c.parse(body.Certificates)
}

// Sign asks for a certificate by a one-time token: one that was given, a JWKToken or an
// X5CToken. csr is PKCS #10 in DER. step-ca takes a token once, whether or not its answer
// arrives.
func (c *Client) Sign(ctx context.Context, csr []byte, token string) (peer.Issued, error) {
	request, err := peer.KeyOf(csr)
	if err != nil {
		return peer.Issued{}, err
	}
	return c.ask(ctx, "1.0/sign", map[string]string{"csr": encode(csr), "ott": token}, request.PublicKey)
}

// Renew asks for a certificate like the one shown in TLS, old, for the same key.
func (c *Client) Renew(ctx context.Context, old *x509.Certificate) (peer.Issued, error) {
	return c.ask(ctx, "1.0/renew", nil, old.PublicKey)
}

// Rekey asks for a certificate like the one shown in TLS, for the key of csr.
func (c *Client) Rekey(ctx context.Context, csr []byte) (peer.Issued, error) {
	request, err := peer.KeyOf(csr)
	if err != nil {
		return peer.Issued{}, err
	}
	return c.ask(ctx, "1.0/rekey", map[string]string{"csr": encode(csr)}, request.PublicKey)
}

func (c *Client) ask(ctx context.Context, path string, body map[string]string, key crypto.PublicKey) (peer.Issued, error) {
	text := []byte{}
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return peer.Issued{}, err
		}
	}
	answer, err := c.peer.Ask(ctx, peer.Question{Path: path, Body: text, Header: map[string]string{"Content-Type": "application/json"}})
	if err != nil {
		return peer.Issued{}, fmt.Errorf("asking for a certificate: %w", err)
	}
	certificates, err := c.signed(answer)
	if err != nil {
		return peer.Issued{}, fmt.Errorf("asking for a certificate: %w", err)
	}
	chain, err := peer.Chain(key, certificates)
	if err != nil {
		return peer.Issued{}, fmt.Errorf("asking for a certificate: %w", c.peer.Senseless(err))
	}
	return peer.Issued{Chain: chain}, nil
}

func (c *Client) signed(answer peer.Answer) ([]*x509.Certificate, error) {
	var body struct {
		Certificate string   `json:"crt"`
		Issuer      string   `json:"ca"`
		Chain       []string `json:"certChain"`
	}
	if err := c.read(answer, &body); err != nil {
		return nil, err
	}
	if len(body.Chain) == 0 { // older than certChain
		body.Chain = []string{body.Certificate, body.Issuer}
	}
	return c.parse(body.Chain)
}

// read decodes an answer that is a success, and makes an error of any other.
func (c *Client) read(answer peer.Answer, v any) error {
	if answer.Status != http.StatusOK && answer.Status != http.StatusCreated {
		return c.peer.No(answer, reason(answer.Body))
	}
	if answer.Cut {
		return c.peer.Senseless(errors.New("it does not end"))
	}
	if err := json.Unmarshal(answer.Body, v); err != nil {
		return c.peer.Senseless(err)
	}
	return nil
}

func reason(body []byte) string {
	var said struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(body, &said)
	return said.Message
}

// parse reads one certificate from each text, as step-ca writes them.
func (c *Client) parse(texts []string) ([]*x509.Certificate, error) {
	if len(texts) > maxCertificates {
		return nil, c.peer.Senseless(fmt.Errorf("it holds more than %d certificates", maxCertificates))
	}
	var all []*x509.Certificate
	for _, text := range texts {
		if text == "" {
			continue
		}
		some, err := peer.ParsePEM([]byte(text))
		if err != nil {
			return nil, c.peer.Senseless(err)
		}
		all = append(all, some...)
	}
	if len(all) == 0 {
		return nil, c.peer.Senseless(errors.New("it holds no certificate"))
	}
	return all, nil
}

const maxCertificates = 32

func encode(csr []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
}
