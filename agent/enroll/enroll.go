// Package enroll gets a certificate chain for a key and its evidence, from the service that the
// configuration names. The key never comes here: whoever enrolls hands in a function that makes
// a signed request for the name which the service gives. What comes back is not believed here;
// Config.Verify says whether it leads to the roots.
package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"ferrule/agent/enroll/peer"
	"ferrule/internal/hint"
)

// What an enrollment fails with; the chain of the error has the reason, internal/hint the
// repair. Whatever is none of these may be tried again, but not soon.
var (
	// ErrRefused: the service said no, and will say it again. Do not try again by yourself.
	ErrRefused = peer.ErrRefused
	// ErrUnreachable: no answer came.
	ErrUnreachable = peer.ErrUnreachable
	// ErrUntrusted: whoever answered could not prove to be the service. It was told nothing.
	ErrUntrusted = peer.ErrUntrusted
	// ErrAnswer: the answer makes no sense.
	ErrAnswer = peer.ErrAnswer
)

// ErrLater, by pointer, is the error of a service that cannot answer yet.
type ErrLater = peer.Later

// Purpose is why a certificate is asked for.
type Purpose int

// The purposes. What Request.Present must be depends on them.
const (
	// First is a device's first certificate, by Token or by the factory certificate, Present.
	First Purpose = iota
	// Renew replaces Present.
	Renew
	// Return gets a certificate for the device that this was before its certificate expired or
	// its TPM was cleared. Present is the factory certificate, or nil.
	Return
)

func (p Purpose) String() string {
	switch p {
	case First:
		return "first"
	case Renew:
		return "renew"
	case Return:
		return "return"
	}
	return "unknown"
}

// Request is what enrolls.
type Request struct {
	// Token is the secret of the first enrollment: the registrar's one-time token, "user:password"
	// of an EST server, a one-time token of step-ca. An exec program gets it as FERRULE_TOKEN.
	Token string
	// Device is the id that the device had before, or that of its factory certificate; "" where
	// it is not known. The registrar has the last word.
	Device string
	// CSR makes a PKCS #10 request in DER whose only subject is the common name device. It is
	// called once for each device id.
	CSR func(device string) ([]byte, error)
	// CSRLike makes a PKCS #10 request from template, which has the subject and the alternative
	// names of the certificate that is renewed: an EST server wants them unchanged (RFC 7030,
	// 4.2.2). nil: CSR is used, which is as good where the certificate has a common name alone.
	CSRLike func(template *x509.CertificateRequest) ([]byte, error)
	// SameKey says that the request is for the key of Present: a renewal without a new key.
	SameKey bool
	// Present is shown in TLS, or signs the token of step-ca's X5C provisioner; nil: none.
	Present *tls.Certificate
	Purpose Purpose
	// Attest proves that the key lies in a TPM; nil: it cannot be proved.
	Attest Attester
	// Roots are the authorities that the service must chain to; nil: Config.Roots.
	Roots *x509.CertPool
	// Verify judges a service whose chain crypto/tls has verified; nil: nobody does.
	Verify func(tls.ConnectionState) error
	// Now is the time that the service's certificate is judged by; nil: time.Now.
	Now func() time.Time
}

// Attester makes the TPM's half of an enrollment at the registrar. What it makes is opaque
// here (tpm/attest).
type Attester interface {
	// Evidence is the item "tpm": JSON, bound to nonce, device and csr.
	Evidence(ctx context.Context, nonce []byte, device string, csr []byte) ([]byte, error)
	// Answer is the item "tpm-activation" for the challenge to the Evidence made last.
	Answer(ctx context.Context, challenge []byte) ([]byte, error)
}

// Result is what the service gave.
type Result struct {
	// Device is the id that the certificate was asked for.
	Device string
	Chain  []byte // PEM, the leaf first
	// Roots are the roots that the service says are its own, PEM; nil where it does not say.
	// They came over a connection that the configured roots vouch for, and from nowhere else.
	Roots []byte
	// Unattested is why the TPM's evidence could not be given, where the registrar did not
	// require it: without it there is no way back should the TPM be cleared.
	Unattested error
}

// Bounds of one enrollment.
const (
	attempts   = 4
	firstPause = time.Second
	// patience is how long a service that says when to ask again is waited for, with the very
	// same request in hand (RFC 7030, 4.2.3).
	patience = 30 * time.Second
)

// method is one way to a certificate. try is called again after what may be a passing fault, and
// then asks with the same request, so that the service sees the same key.
type method interface {
	try(ctx context.Context) (Result, error)
	close()
}

// Enroll carries out one enrollment. It tries again by itself what may be a passing fault of the
// network, for some seconds, and waits up to half a minute in all for a service that says how long it
// will take.
func Enroll(ctx context.Context, c Config, r Request) (Result, error) {
	m, err := open(c, r)
	if err != nil {
		return Result{}, err
	}
	defer m.close()
	waited := time.Duration(0)
	for attempt, pause := 1, firstPause; ; {
		result, err := m.try(ctx)
		wait := time.Duration(0)
		later, postponed := errors.AsType[*ErrLater](err)
		switch {
		case err == nil:
			return result, nil
		case errors.Is(err, ErrUnreachable) && attempt < attempts:
			wait, pause, attempt = pause, 2*pause, attempt+1
		case postponed && later.After > 0 && waited+later.After <= patience:
			wait, waited = later.After, waited+later.After
		default:
			return result, err
		}
		select {
		case <-ctx.Done():
			return Result{}, err
		case <-time.After(wait):
		}
	}
}

func open(c Config, r Request) (method, error) {
	if r.Now == nil {
		r.Now = time.Now
	}
	if r.Device != "" && !ValidDevice(r.Device) {
		return nil, hint.With(fmt.Errorf("%q is no id of a device", r.Device), deviceHint)
	}
	if c.Method == MethodNone || c.Method == "" {
		return nil, hint.With(fmt.Errorf("enroll.method is %q", c.Method), `set [enroll] method = "registrar" with url and roots`)
	}
	if r.Purpose == Renew && r.Present == nil {
		return nil, errors.New("renewing a certificate: none is given")
	}
	switch c.Method {
	case MethodRegistrar:
		return openRegistrar(c, r)
	case MethodEST:
		return openEST(c, r)
	case MethodStep:
		return openStep(c, r)
	case MethodExec:
		return openExec(c, r)
	}
	return nil, hint.With(fmt.Errorf("enroll.method %q is not known", c.Method), "it is registrar, est, step, exec or none")
}

// options are those of a client for the service of c.
func options(c Config, r Request, service string, present *tls.Certificate) (peer.Options, error) {
	if r.Roots == nil {
		var err error
		if r.Roots, err = readRoots(c.Roots); err != nil {
			return peer.Options{}, err
		}
	}
	proxy, err := c.proxy()
	return peer.Options{
		Service: service, Roots: r.Roots, Present: present, Verify: r.Verify, Now: r.Now, Timeout: c.Timeout.Std(), Proxy: proxy,
	}, err
}

// nothingEntitles is for an enrollment that no service could say yes to.
func nothingEntitles(r Request, token string) error {
	if r.Purpose == Return {
		return hint.With(fmt.Errorf("%w: there is no factory certificate, which is the way back to this service", ErrRefused),
			"enroll anew with "+token)
	}
	return hint.With(fmt.Errorf("%w: no token was given, and there is no factory certificate", ErrRefused), token)
}

// Template is a request for the same subject and alternative names as old.
func Template(old *x509.Certificate) *x509.CertificateRequest {
	template := &x509.CertificateRequest{RawSubject: old.RawSubject}
	for _, extension := range old.Extensions {
		if extension.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) { // subjectAltName
			template.ExtraExtensions = append(template.ExtraExtensions, extension)
		}
	}
	return template
}
