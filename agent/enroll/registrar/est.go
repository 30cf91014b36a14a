package registrar

import (
	"context"
	"crypto/tls"
	"crypto/x509"

	"ferrule/agent/enroll/est"
	"ferrule/agent/enroll/peer"
)

// EST has certificates issued by an EST server, for which the registrar is the registration
// authority: it shows its own certificate, or user and password, and hands on the device's request.
type EST struct {
	URL            string
	Roots          *x509.CertPool // of its own certificate
	Present        *tls.Certificate
	User, Password string
}

// Name is for records.
func (s *EST) Name() string { return "est" }

// Issue hands the request on.
func (s *EST) Issue(ctx context.Context, q Request) ([]*x509.Certificate, error) {
	client, err := est.New(s.URL, s.User, s.Password, peer.Options{Roots: s.Roots, Present: s.Present})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	issued, err := client.Enroll(ctx, q.CSR.Raw)
	return issued.Chain, err
}
