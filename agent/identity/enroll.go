package identity

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"ferrule/agent/enroll"
	"ferrule/internal/atomicfile"
	"ferrule/internal/hint"
	"ferrule/tpm"
)

// Result is what an enrollment left on the disk.
type Result struct {
	Device   string
	Key      string // its URI
	Weak     bool
	NotAfter time.Time
	Issuer   string
	// Already says that the device had a good certificate and nothing was done.
	Already bool
}

// Enroll gets the first certificate. Its writes are ordered so that a power cut after any of
// them, and a second Enroll with the same token, end with one key and one certificate: the
// key is durable before any request signed by it leaves, the record before the certificate,
// whose presence alone means enrolled. With force a valid certificate is replaced, under
// the same key where that still works.
func Enroll(ctx context.Context, c Config, o Options, e enroll.Config, token string, force bool) (Result, error) {
	if !force {
		if result, done, err := alreadyEnrolled(ctx, c, o); done || err != nil {
			return result, err
		}
	}
	i := &Identity{config: c, o: o}
	defer func() { _ = i.Close() }()
	if err := i.openOrCreateKey(ctx, force); err != nil {
		return Result{}, err
	}
	enrolled, err := enroll.Enroll(ctx, e, enroll.Request{
		Token: token,
		Now:   o.Now,
		CSR:   func(device string) ([]byte, error) { return request(i.key, device) },
	})
	if err != nil {
		return Result{}, err
	}
	return i.store(ctx, e, enrolled)
}

// alreadyEnrolled opens what is there. A device without a certificate, or with an expired
// one, goes on to enroll; any other fault is for the user to see first.
func alreadyEnrolled(ctx context.Context, c Config, o Options) (Result, bool, error) {
	i, err := Open(ctx, c, o)
	if errors.Is(err, ErrNotEnrolled) {
		return Result{}, false, nil
	}
	if err != nil {
		return Result{}, false, err
	}
	defer i.Close()
	if o.Now().After(i.Current().leaf.NotAfter) {
		return Result{}, false, nil
	}
	result := i.result()
	result.Already = true
	return result, true, nil
}

// openOrCreateKey opens the key that an earlier attempt left, or makes it. force gives up a
// key that its TPM no longer knows; the file is kept beside the new one.
func (i *Identity) openOrCreateKey(ctx context.Context, force bool) (err error) {
	r, err := readRecord(i.o)
	if err != nil {
		return err
	}
	i.key, err = tpm.OpenKey(ctx, i.config.Key, i.keyOptions(r))
	if err == nil {
		return tpm.SettleKey(i.config.Key, i.keyOptions(r))
	}
	if lost := errors.Is(err, tpm.ErrOwnerChanged) || errors.Is(err, tpm.ErrKeyCorrupt); lost && force {
		if err = i.explain(ctx, r, err); errors.Is(err, ErrWrongTPM) {
			return err
		}
		// Forgotten first: a power cut before the new record would else leave the old owner's
		// name, by which the next attempt took the new key for a lost one.
		r.SRKName = nil
		if err = writeRecord(i.o, r); err != nil {
			return err
		}
		if err = tpm.SetAside(i.config.Key, i.keyOptions(r)); err != nil {
			return err
		}
		err = tpm.ErrNoKey
	}
	if errors.Is(err, tpm.ErrNoKey) {
		i.key, err = tpm.CreateKeyAt(ctx, i.config.Key, tpm.KeySpec{}, i.keyOptions(r))
	}
	if err != nil {
		return i.explain(ctx, r, err)
	}
	return nil
}

// request makes a PKCS #10 request for device; it costs one signature.
func request(key crypto.Signer, device string) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, key)
}

// store checks the chain against key, device and roots, and writes record and certificate, in
// that order.
func (i *Identity) store(ctx context.Context, e enroll.Config, enrolled enroll.Result) (Result, error) {
	chain, err := parseChain(enrolled.Chain)
	if err != nil {
		return Result{}, fmt.Errorf("reading the registrar's certificate: %w", err)
	}
	if i.current, err = newCredential(i.key, chain, i.o.Now, &i.counters); err != nil {
		return Result{}, err
	}
	if i.Device() != enrolled.Device {
		return Result{}, fmt.Errorf("the registrar promised a certificate for %q and gave one for %q", enrolled.Device, i.Device())
	}
	if err := e.Verify(chain, i.o.Now()); err != nil {
		return Result{}, err
	}
	r := record{Device: i.Device(), Enrolled: i.o.Now().UTC()}
	if i.device != nil {
		if r.SRKName, err = i.device.EnsureSRK(ctx, nil); err != nil {
			return Result{}, err
		}
		if r.EKName, err = i.device.EndorsementName(ctx); err != nil {
			return Result{}, err
		}
	}
	if err := writeRecord(i.o, r); err != nil {
		return Result{}, err
	}
	path := below(i.o, i.config.Certificate)
	err = i.o.FS.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = atomicfile.Write(i.o.FS, path, enrolled.Chain, 0o644)
	}
	if err != nil {
		return Result{}, hint.With(fmt.Errorf("writing the certificate: %w", err), "run it again with the same token: nothing is lost")
	}
	return i.result(), nil
}

func (i *Identity) result() Result {
	s := i.Status()
	return Result{Device: s.Device, Key: s.Key, Weak: s.Weak, NotAfter: s.NotAfter, Issuer: s.Issuer}
}
