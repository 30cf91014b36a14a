package identity

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"time"

	"ferrule/agent/enroll"
	"ferrule/internal/hint"
	"ferrule/tpm"
)

// order is one certificate that is to be had.
type order struct {
	purpose enroll.Purpose
	token   string
	device  string // the id it must bear; "": the service says
	key     tpm.DeviceKey
	present *Credential // what entitles to it; nil: a token, or the endorsement key
}

// earlyMost is how far in the future the validity of a certificate may begin by a trusted clock:
// the clock's floor follows it, and would stand there until then.
const earlyMost = 24 * time.Hour

// obtain asks for a certificate and checks what came against key, device and roots. It writes
// nothing. A service that is not believed by one clock is judged by the other, where there are
// two opinions (judge), and where its certificate is younger than ours and nobody vouches for the
// clock, by the time at which it begins.
func (i *Identity) obtain(ctx context.Context, e enroll.Config, r order) (*Credential, error) {
	leaf := i.judged(r)
	got, err := i.ask(ctx, e, r, i.judge.of(leaf))
	if errors.Is(err, enroll.ErrUntrusted) {
		if other, ok := i.judge.other(leaf); ok {
			if second, secondErr := i.ask(ctx, e, r, func() time.Time { return other }); secondErr == nil {
				got, err = second, nil
			}
		}
	}
	at, _ := i.judge.now(leaf)
	for range chainMost {
		begins, ok := i.judge.begins(at, err)
		if !ok || !errors.Is(err, enroll.ErrUntrusted) {
			break
		}
		at = begins
		got, err = i.ask(ctx, e, r, func() time.Time { return begins })
	}
	if err != nil {
		return nil, err
	}
	if got.Unattested != nil {
		i.o.Log.WarnContext(ctx, "enrolled without the TPM's evidence", "err", got.Unattested)
	}
	c, err := i.accept(e, r, got)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// judged is the certificate of ours by which a clock that is not trusted is judged.
func (i *Identity) judged(r order) *x509.Certificate {
	if r.present != nil {
		return r.present.leaf
	}
	if c := i.newest(); c != nil {
		return c.leaf
	}
	return nil
}

func (i *Identity) ask(ctx context.Context, e enroll.Config, r order, now func() time.Time) (enroll.Result, error) {
	request := enroll.Request{
		Token: r.token, Device: r.device, Purpose: r.purpose, Attest: attesterOf(r.key), Now: now, Verify: i.o.Verify,
		CSR: func(device string) ([]byte, error) { return request(r.key, device) },
		CSRLike: func(template *x509.CertificateRequest) ([]byte, error) {
			return x509.CreateCertificateRequest(rand.Reader, template, r.key)
		},
	}
	if r.present != nil {
		request.Present = &r.present.certificate
		request.SameKey = equalKeys(r.present.leaf.PublicKey, r.key.Public())
	}
	if i.o.Roots != nil {
		var err error
		if request.Roots, err = i.o.Roots(); err != nil {
			return enroll.Result{}, err
		}
	}
	return i.o.enroll(ctx, e, request)
}

// request makes a PKCS #10 request for device; it costs one signature.
func request(key tpm.DeviceKey, device string) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, key)
}

// accept takes what a service gave, or says what is wrong with it.
func (i *Identity) accept(e enroll.Config, r order, got enroll.Result) (*Credential, error) {
	chain, err := parseChain(got.Chain)
	if err != nil {
		return nil, fmt.Errorf("reading the new certificate: %w", err)
	}
	c, err := i.credential(r.key, chain, got.Chain)
	if err != nil {
		return nil, err
	}
	device := c.leaf.Subject.CommonName
	switch {
	case got.Device != "" && device != got.Device:
		return nil, fmt.Errorf("the service promised a certificate for %q and gave one for %q", got.Device, device)
	case r.device != "" && device != r.device:
		return nil, fmt.Errorf("the service gave a certificate for device %q, and this one is %q", device, r.device)
	}
	now, which := i.judge.now(nil)
	if which == ClockTrusted {
		if now.After(c.leaf.NotAfter) || c.leaf.NotBefore.After(now.Add(earlyMost)) {
			return nil, hint.With(fmt.Errorf("the service gave a certificate that is valid from %s to %s, and it is %s",
				stamp(c.leaf.NotBefore), stamp(c.leaf.NotAfter), stamp(now)), "compare the service's clock with this one's")
		}
	}
	return c, i.verify(e, chain, now)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// verify checks that the chain leads to the roots of the service.
func (i *Identity) verify(e enroll.Config, chain []*x509.Certificate, now time.Time) error {
	if i.o.Roots == nil {
		return e.Verify(chain, now)
	}
	roots, err := i.o.Roots()
	if err != nil {
		return err
	}
	chains, err := enroll.ChainsTo(roots, chain, now)
	if err == nil && i.o.Issued != nil {
		i.o.Issued(chains)
	}
	return err
}

// wayBack obtains a certificate for the device that this was, for key: by the factory
// certificate where there is one, and else, or where that is refused, by the endorsement key.
func (i *Identity) wayBack(ctx context.Context, e enroll.Config, device string, key tpm.DeviceKey) (*Credential, error) {
	r := order{purpose: enroll.Return, device: device, key: key}
	factory, err := i.openFactory(ctx)
	if err != nil {
		i.o.Log.WarnContext(ctx, "factory identity not usable", "err", err)
	}
	attested := attesterOf(key) != nil && e.Method == enroll.MethodRegistrar
	if factory != nil {
		defer factory.key.Close()
		r.present = factory
		c, err := i.obtain(ctx, e, r)
		if err == nil || !errors.Is(err, enroll.ErrRefused) || !attested {
			return c, err
		}
		r.present = nil
		c, ekErr := i.obtain(ctx, e, r)
		if ekErr != nil {
			return nil, errors.Join(fmt.Errorf("by the factory certificate: %w", err), fmt.Errorf("by the endorsement key: %w", ekErr))
		}
		return c, nil
	}
	if !attested {
		return nil, hint.With(fmt.Errorf("%w: there is no factory certificate, and method %s does not know this TPM", ErrNoWayBack, e.Method),
			"run: ferrule enroll --force --token T")
	}
	return i.obtain(ctx, e, r)
}

// openFactory opens the factory identity, or returns nil where there is none. The caller closes
// its key: the TPM has few slots, and it is needed seldom.
func (i *Identity) openFactory(ctx context.Context) (*Credential, error) {
	if i.factory == nil {
		return nil, nil
	}
	f := i.config.ForFactory()
	chain, text, err := readChain(i.o, f.Certificate)
	if err != nil {
		return nil, err
	}
	key, err := tpm.OpenKey(ctx, f.Key, i.keyOptions(record{}))
	if err != nil {
		return nil, err
	}
	c, err := i.credential(key, chain, text)
	if err != nil {
		return nil, errors.Join(err, key.Close())
	}
	return c, nil
}

func parseRequest(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	return csr, csr.CheckSignature()
}
