package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"ferrule/agent/enroll/est"
	"ferrule/agent/enroll/hook"
	"ferrule/agent/enroll/peer"
	"ferrule/agent/enroll/stepca"
	"ferrule/internal/hint"
)

// subject is who the certificate is for, and its request, which is made once.
type subject struct {
	request Request
	device  string
	made    []byte
}

// newSubject finds the id to ask for: what the device knows, what token says, what the
// certificate shown says, what the configuration says.
func newSubject(c Config, r Request, token string) (subject, error) {
	shown := ""
	if leaf, err := leafOf(r.Present); err == nil {
		shown = leaf.Subject.CommonName
	}
	for _, id := range []string{r.Device, token, shown, c.Device} {
		if id == "" {
			continue
		}
		if !ValidDevice(id) {
			return subject{}, hint.With(fmt.Errorf("%q is no id of a device", peer.Printable(id)), deviceHint)
		}
		if token != "" && id != token {
			return subject{}, hint.With(fmt.Errorf("%w: the token is for %q and this device is %q", ErrRefused, peer.Printable(token), id),
				"get a token for this device")
		}
		return subject{request: r, device: id}, nil
	}
	return subject{}, hint.With(errors.New("this device has no id to ask for"), "write enroll.device")
}

func (s *subject) csr() (_ []byte, err error) {
	if s.made == nil {
		if s.made, err = s.request.CSR(s.device); err != nil {
			return nil, fmt.Errorf("making the certificate request: %w", err)
		}
	}
	return s.made, nil
}

// csrLike makes the request with all the names of old, where the caller can.
func (s *subject) csrLike(old *x509.Certificate) (_ []byte, err error) {
	if s.request.CSRLike == nil {
		return s.csr()
	}
	if s.made == nil {
		if s.made, err = s.request.CSRLike(Template(old)); err != nil {
			return nil, fmt.Errorf("making the certificate request: %w", err)
		}
	}
	return s.made, nil
}

func (s *subject) result(issued peer.Issued) Result {
	return Result{Device: s.device, Chain: peer.PEM(issued.Chain), Roots: peer.PEM(issued.Roots)}
}

func leafOf(present *tls.Certificate) (*x509.Certificate, error) {
	switch {
	case present == nil || len(present.Certificate) == 0:
		return nil, errors.New("there is no certificate")
	case present.Leaf != nil:
		return present.Leaf, nil
	}
	return x509.ParseCertificate(present.Certificate[0])
}

// estServer: a user with a password or the factory certificate enrolls, the certificate renews
// itself.
type estServer struct {
	client  *est.Client
	subject subject
}

func openEST(c Config, r Request) (method, error) {
	if r.Token == "" && r.Present == nil {
		return nil, nothingEntitles(r, "give --token user:password, or get a factory certificate first")
	}
	user, password, paired := strings.Cut(r.Token, ":")
	if r.Token != "" && (!paired || user == "") {
		return nil, hint.With(fmt.Errorf("%w: the token is no user:password", ErrRefused), "EST takes a user and a password: --token user:password")
	}
	s, err := newSubject(c, r, "")
	if err != nil {
		return nil, err
	}
	o, err := options(c, r, "the EST server", r.Present)
	if err != nil {
		return nil, err
	}
	client, err := est.New(c.URL, user, password, o)
	if err != nil {
		return nil, fmt.Errorf("reading enroll.url: %w", err)
	}
	return &estServer{client: client, subject: s}, nil
}

func (e *estServer) close() { e.client.Close() }

func (e *estServer) try(ctx context.Context) (Result, error) {
	var issued peer.Issued
	if e.subject.request.Purpose == Renew {
		old, err := leafOf(e.subject.request.Present)
		if err != nil {
			return Result{}, fmt.Errorf("reading the certificate to be renewed: %w", err)
		}
		csr, err := e.subject.csrLike(old)
		if err != nil {
			return Result{}, err
		}
		if issued, err = e.client.Reenroll(ctx, csr, old); err != nil {
			return Result{}, fmt.Errorf("renewing: %w", err)
		}
		return e.subject.result(issued), nil
	}
	csr, err := e.subject.csr()
	if err != nil {
		return Result{}, err
	}
	if issued, err = e.client.Enroll(ctx, csr); err != nil {
		return Result{}, fmt.Errorf("enrolling: %w", err)
	}
	return e.subject.result(issued), nil
}

// stepCA: a one-time token or one signed by the factory key enrolls, the certificate renews
// itself.
type stepCA struct {
	client      *stepca.Client
	subject     subject
	provisioner string
	// lost says that a given token was sent and no answer came: step-ca may have taken it.
	lost bool
}

func openStep(c Config, r Request) (method, error) {
	if r.Token == "" && r.Present == nil {
		return nil, nothingEntitles(r, "get a token with: step ca token, or get a factory certificate first")
	}
	named := ""
	if r.Token != "" {
		var err error
		if named, err = stepca.Subject(r.Token); err != nil {
			return nil, hint.With(fmt.Errorf("%w: %w", ErrRefused, err), "get one with: step ca token")
		}
	} else if r.Purpose != Renew && c.Provisioner == "" {
		return nil, hint.With(errors.New("enroll.provisioner is missing"), "name the X5C provisioner of step-ca that trusts the factory certificates")
	}
	s, err := newSubject(c, r, named)
	if err != nil {
		return nil, err
	}
	present := r.Present
	if r.Purpose != Renew {
		present = nil // it signs a token instead
	}
	o, err := options(c, r, "step-ca", present)
	if err != nil {
		return nil, err
	}
	client, err := stepca.New(c.URL, o)
	if err != nil {
		return nil, fmt.Errorf("reading enroll.url: %w", err)
	}
	return &stepCA{client: client, subject: s, provisioner: c.Provisioner}, nil
}

func (s *stepCA) close() { s.client.Close() }

func (s *stepCA) try(ctx context.Context) (Result, error) {
	// First, as its answer tells the time that tokens are dated by.
	roots, err := s.client.Roots(ctx)
	if err != nil {
		return Result{}, err
	}
	issued, err := s.ask(ctx)
	if err != nil {
		return Result{}, err
	}
	issued.Roots = roots
	return s.subject.result(issued), nil
}

func (s *stepCA) ask(ctx context.Context) (peer.Issued, error) {
	r := s.subject.request
	if r.Purpose == Renew && r.SameKey {
		old, err := leafOf(r.Present)
		if err != nil {
			return peer.Issued{}, fmt.Errorf("reading the certificate to be renewed: %w", err)
		}
		return s.client.Renew(ctx, old)
	}
	csr, err := s.subject.csr()
	switch {
	case err != nil:
		return peer.Issued{}, err
	case r.Purpose == Renew:
		return s.client.Rekey(ctx, csr)
	case r.Token != "":
		return s.redeem(ctx, csr)
	}
	token, err := s.client.X5CToken(s.provisioner, r.Present, s.subject.device, csr)
	if err != nil {
		return peer.Issued{}, err
	}
	return s.client.Sign(ctx, csr, token)
}

func (s *stepCA) redeem(ctx context.Context, csr []byte) (peer.Issued, error) {
	issued, err := s.client.Sign(ctx, csr, s.subject.request.Token)
	if s.lost && errors.Is(err, ErrRefused) {
		return issued, hint.With(err, "the answer to the first attempt was lost, and step-ca takes a token once: get a new one with: step ca token")
	}
	s.lost = s.lost || errors.Is(err, ErrUnreachable)
	return issued, err
}

// program is a run of enroll.command.
type program struct {
	options hook.Options
	subject subject
}

func openExec(c Config, r Request) (method, error) {
	if len(c.Command) == 0 {
		return nil, c.validateSource("enroll")
	}
	s, err := newSubject(c, r, "")
	if err != nil {
		return nil, err
	}
	return &program{subject: s, options: hook.Options{
		Command: c.Command, Device: s.device, Purpose: r.Purpose.String(), Token: r.Token, Timeout: c.Timeout.Std(),
	}}, nil
}

func (p *program) close() {}

func (p *program) try(ctx context.Context) (Result, error) {
	csr, err := p.subject.csr()
	if err != nil {
		return Result{}, err
	}
	issued, err := hook.Run(ctx, p.options, csr)
	if err != nil {
		return Result{}, err
	}
	return p.subject.result(issued), nil
}
