package tpm

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"ferrule/internal/hint"
	"ferrule/tpm/attest"

	"github.com/google/go-tpm/tpm2"
)

// patience is how many command timeouts a TPM may take to derive an RSA key: chips that keep
// none ready look for primes, for half a minute and more.
const patience = 12

const hintEndorsement = "remove the password (tpm2_changeauth -c e -p OLD), or enable the hierarchy in the firmware's setup"

// An endorsement is one endorsement key of this TPM.
type endorsement struct {
	kind     ekKind
	template tpm2.TPMTPublic
	public   []byte // TPMT_PUBLIC
	cert     []byte // DER; nil where there is none
	parsed   *x509.Certificate
	warning  string // why there is no certificate, or another than expected
}

// endorsements derives the endorsement keys: those with a certificate first, then P-256
// without, then those whose certificate is for another key.
func (d *Device) endorsements(ctx context.Context) ([]endorsement, error) {
	var all []endorsement
	err := again(func() error {
		candidates, err := d.candidates(ctx)
		if err != nil {
			return err
		}
		all = nil
		for _, e := range candidates {
			err := d.deriveEK(ctx, &e)
			var rc tpm2.TPMRC
			switch {
			case err == nil:
				all = append(all, e)
			case !errors.As(err, &rc) || forgotten(err) || endorsementClosed(err):
				return err
			}
			if err != nil || e.warning != "" {
				d.log.LogAttrs(ctx, slog.LevelWarn, "tpm endorsement key", slog.String("kind", e.kind.name),
					slog.String("warning", e.warning), slog.Any("err", err))
			}
		}
		return nil
	})
	if err != nil {
		return nil, endorsementError("reading the endorsement keys", err)
	}
	if len(all) == 0 {
		return nil, unsupported("this TPM derives none of the endorsement keys RSA-2048, P-256 and P-384")
	}
	rank := func(e endorsement) int {
		switch {
		case e.cert != nil:
			return 0
		case e.kind.certificate == ekKinds()[0].certificate:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(all, func(a, b endorsement) int { return cmp.Compare(rank(a), rank(b)) })
	d.eksMu.Lock()
	defer d.eksMu.Unlock()
	d.eks = all
	return all, nil
}

func endorsementClosed(err error) bool {
	return errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCHierarchy)
}

// endorsementError is commandError for commands that the endorsement hierarchy authorises.
func endorsementError(doing string, err error) error {
	if endorsementClosed(err) {
		return hint.With(fmt.Errorf("%s: %w: the endorsement hierarchy has a password, or is disabled: %w", doing, ErrUnsupported, err), hintEndorsement)
	}
	return commandError(doing, err)
}

// candidates reads what the manufacturer left in NV: the kinds with a certificate, and the
// P-256 key, which every TPM has that can serve here.
func (d *Device) candidates(ctx context.Context) ([]endorsement, error) {
	c := d.call(ctx)
	present, err := listHandles(c, firstNV)
	if err != nil {
		return nil, err
	}
	var all []endorsement
	for i, kind := range ekKinds() {
		e := endorsement{kind: kind, template: kind.template}
		if slices.Contains(present, kind.certificate) {
			if err := e.readCertificate(c); err != nil {
				return nil, err
			}
		} else if i > 0 {
			continue
		}
		if err := e.readTemplate(c, present); err != nil {
			return nil, err
		}
		if !bytes.Equal(blanked(e.template), blanked(kind.template)) {
			d.eksMu.Lock()
			d.odd = []tpm2.TPMTPublic{e.template}
			d.eksMu.Unlock()
		}
		all = append(all, e)
	}
	return all, nil
}

// spoilt reports whether err says that an index is of no use; other errors are the TPM's.
func spoilt(err error) bool {
	var rc tpm2.TPMRC
	return errors.Is(err, errIndex) || errors.Is(err, errTemplate) || errors.Is(err, errCertificate) ||
		errors.As(err, &rc) && !errors.Is(err, tpm2.TPMRCLockout)
}

func (e *endorsement) readCertificate(c *call) error {
	data, err := readIndex(c, e.kind.certificate)
	if err == nil {
		e.cert, err = trimCertificate(data)
	}
	if err == nil {
		_, e.parsed, err = certifiedKey(e.cert)
	}
	if err != nil {
		e.cert = nil
		return e.warn(e.kind.certificate, err)
	}
	return nil
}

// warn keeps what is wrong with an index, and passes on what is wrong with the TPM.
func (e *endorsement) warn(index tpm2.TPMHandle, err error) error {
	if !spoilt(err) {
		return err
	}
	e.warning = strings.TrimPrefix(fmt.Sprintf("%s; index %#x: %v", e.warning, uint32(index), err), "; ")
	return nil
}

func (e *endorsement) readTemplate(c *call, present []tpm2.TPMHandle) error {
	read := func(index tpm2.TPMHandle, use func([]byte) (tpm2.TPMTPublic, error)) error {
		data, err := readIndex(c, index)
		if err == nil {
			e.template, err = use(data)
		}
		if err != nil {
			return e.warn(index, err)
		}
		return nil
	}
	switch {
	case e.kind.whole != 0 && slices.Contains(present, e.kind.whole):
		return read(e.kind.whole, e.kind.parseTemplate)
	case e.kind.nonce != 0 && slices.Contains(present, e.kind.nonce):
		return read(e.kind.nonce, e.kind.withNonce)
	}
	return nil
}

// deriveEK finds out the key, and whether the certificate is for it.
func (d *Device) deriveEK(ctx context.Context, e *endorsement) error {
	c, release, err := d.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	ek, err := d.createEK(c, e)
	if err != nil {
		return err
	}
	d.flush(c, ek.ObjectHandle)
	e.public = ek.OutPublic.Bytes()
	if e.cert == nil {
		return nil
	}
	key, err := endorsedKey(ek.OutPublic)
	if err != nil {
		return err
	}
	if certified, _, err := certifiedKey(e.cert); err != nil || !sameKey(key, certified) {
		e.cert, e.parsed = nil, nil
		return e.warn(e.kind.certificate, fmt.Errorf("%w: it is for another key than this TPM derives", errCertificate))
	}
	return nil
}

func endorsedKey(pub tpm2.TPM2BPublic) (crypto.PublicKey, error) {
	p, err := pub.Contents()
	if err != nil {
		return nil, corrupt("an endorsement key's public area is malformed")
	}
	return publicKey(p)
}

func (d *Device) createEK(c *call, e *endorsement) (*tpm2.CreatePrimaryResponse, error) {
	if e.template.Type == tpm2.TPMAlgRSA {
		c.wait = patience * d.commandTimeout
		defer func() { c.wait = 0 }()
	}
	return d.createPrimary(c, tpm2.TPMRHEndorsement, e.template, nil)
}

// maxQualifying is what fits into TPM2B_DATA on every TPM: a hash with its number.
const maxQualifying = 2 + 32

// Attest implements Attester.
func (k *Key) Attest(ctx context.Context, qualifying []byte) (attest.Evidence, error) {
	var none attest.Evidence
	if len(qualifying) > maxQualifying {
		return none, fmt.Errorf("attesting the device key: %d bytes of qualifying data are more than %d", len(qualifying), maxQualifying)
	}
	eks, err := k.d.endorsements(ctx)
	if err != nil {
		return none, fmt.Errorf("attesting the device key: %w", err)
	}
	e := attest.Evidence{Key: tpm2.Marshal(k.public)}
	for _, ek := range eks {
		e.EKs = append(e.EKs, attest.Endorsement{Public: ek.public, Certificate: ek.cert})
	}
	err = again(func() error {
		return k.with(ctx, nil, func(c *call, h tpm2.TPMHandle) error { return k.certify(c, h, qualifying, &e) })
	})
	if err != nil {
		return none, endorsementError("attesting the device key", err)
	}
	return e, nil
}

// certify lets the attestation key vouch for the key at h (TPM2_Certify, Part 3, 18.2).
func (k *Key) certify(c *call, h tpm2.TPMHandle, qualifying []byte, e *attest.Evidence) error {
	ak, err := k.d.createPrimary(c, tpm2.TPMRHEndorsement, akTemplate(), k)
	if err != nil {
		return err
	}
	defer k.d.flush(c, ak.ObjectHandle)
	persistent := 0 // takes a slot for the command
	if k.file == nil {
		persistent = 1
	}
	var rsp *tpm2.CertifyResponse
	err = k.d.fit(c, persistent, k, func() (err error) {
		rsp, err = tpm2.Certify{
			ObjectHandle:   k.auth(h),
			SignHandle:     tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		}.Execute(c)
		return err
	})
	if err != nil {
		return err
	}
	e.AK = ak.OutPublic.Bytes()
	e.Certify = rsp.CertifyInfo.Bytes()
	e.Signature = tpm2.Marshal(rsp.Signature)
	return nil
}
