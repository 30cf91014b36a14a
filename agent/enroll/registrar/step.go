package registrar

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"

	"ferrule/agent/enroll/peer"
	"ferrule/agent/enroll/stepca"
)

// StepCA has certificates issued by step-ca, with one-time tokens that the registrar makes: by
// Key at a provisioner of type JWK, or by Present at one of type X5C.
type StepCA struct {
	URL         string
	Roots       *x509.CertPool // of its own certificate
	Provisioner string
	Key         crypto.Signer    // P-256 or Ed25519
	KeyID       string           // "": the key's thumbprint
	Present     *tls.Certificate // where Key is nil
}

// Name is for records.
func (s *StepCA) Name() string { return "step" }

// Issue signs a token for this one request and redeems it.
func (s *StepCA) Issue(ctx context.Context, q Request) ([]*x509.Certificate, error) {
	client, err := stepca.New(s.URL, peer.Options{Roots: s.Roots})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var token string
	if s.Key != nil {
		token, err = client.JWKToken(s.Provisioner, s.KeyID, s.Key, q.Device, q.CSR.Raw)
	} else {
		token, err = client.X5CToken(s.Provisioner, s.Present, q.Device, q.CSR.Raw)
	}
	if err != nil {
		return nil, err
	}
	issued, err := client.Sign(ctx, q.CSR.Raw, token)
	return issued.Chain, err
}
