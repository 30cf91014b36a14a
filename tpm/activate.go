package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"ferrule/internal/hint"
	"ferrule/tpm/attest"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// maxChallenge bounds each part of a challenge; an RSA-2048 one has 256 bytes.
const maxChallenge = 1024

const hintChallenge = "the registrar checked the evidence of another TPM, or the challenge was damaged on its way; enroll again"

// Activate implements Attester.
func (k *Key) Activate(ctx context.Context, c attest.Challenge) ([]byte, error) {
	const doing = "opening the registrar's challenge"
	if len(c.Credential) > maxChallenge || len(c.Secret) > maxChallenge {
		return nil, fmt.Errorf("%s: it has more than %d bytes", doing, maxChallenge)
	}
	eks, err := k.d.knownEKs(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	if c.EK < 0 || c.EK >= len(eks) {
		return nil, fmt.Errorf("%s: it is for endorsement key %d of %d", doing, c.EK, len(eks))
	}
	var secret []byte
	err = again(func() error {
		secret, err = k.d.activate(ctx, &eks[c.EK], c)
		return err
	})
	if notForUs(err) {
		return nil, hint.With(fmt.Errorf("%s: it is not for this TPM: %w", doing, err), hintChallenge)
	}
	if err != nil {
		return nil, endorsementError(doing, err)
	}
	return secret, nil
}

// notForUs knows the answers to a challenge that was made for another key or is damaged.
func notForUs(err error) bool {
	return errors.Is(err, tpm2.TPMRCIntegrity) || errors.Is(err, tpm2.TPMRCSize) || errors.Is(err, tpm2.TPMRCInsufficient) ||
		errors.Is(err, tpm2.TPMRCValue) || errors.Is(err, tpm2.TPMRCECCPoint)
}

// knownEKs are those of the last evidence; another process may have made it.
func (d *Device) knownEKs(ctx context.Context) ([]endorsement, error) {
	d.eksMu.Lock()
	eks := d.eks
	d.eksMu.Unlock()
	if eks != nil {
		return eks, nil
	}
	return d.endorsements(ctx)
}

func (d *Device) activate(ctx context.Context, e *endorsement, challenge attest.Challenge) ([]byte, error) {
	c, release, err := d.hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	ek, err := d.createEK(c, e)
	if err != nil {
		return nil, err
	}
	defer d.flush(c, ek.ObjectHandle)
	if !bytes.Equal(ek.OutPublic.Bytes(), e.public) {
		d.eksMu.Lock()
		d.eks = nil
		d.eksMu.Unlock()
		return nil, hint.With(fmt.Errorf("%w: it derives another endorsement key than before", ErrOwnerChanged), hintOwner)
	}
	ak, err := d.createPrimary(c, tpm2.TPMRHEndorsement, akTemplate(), nil)
	if err != nil {
		return nil, err
	}
	defer d.flush(c, ak.ObjectHandle)
	return d.openCredential(c, ek, ak, challenge)
}

// openCredential is TPM2_ActivateCredential (Part 3, 12.5).
func (d *Device) openCredential(c *call, ek, ak *tpm2.CreatePrimaryResponse, challenge attest.Challenge) ([]byte, error) {
	public, err := ek.OutPublic.Contents()
	if err != nil {
		return nil, corrupt("an endorsement key's public area is malformed")
	}
	run := func() ([]byte, error) {
		session, drop := policySession(c, public)
		defer drop()
		rsp, err := tpm2.ActivateCredential{
			ActivateHandle: tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
			KeyHandle:      tpm2.AuthHandle{Handle: ek.ObjectHandle, Name: ek.Name, Auth: session},
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: challenge.Credential},
			Secret:         tpm2.TPM2BEncryptedSecret{Buffer: challenge.Secret},
		}.Execute(c)
		if err != nil {
			return nil, err
		}
		return rsp.CertInfo.Buffer, nil
	}
	secret, err := run()
	if errors.Is(err, tpm2.TPMRCSessionMemory) && !d.ResourceManager() {
		// Left by a process that was killed.
		if err := d.sweep(c); err != nil {
			return nil, err
		}
		return run()
	}
	return secret, err
}

// policySession opens the endorsement key by its policy, which no dictionary attack counts:
// PolicySecret of the endorsement hierarchy, and PolicyOR where the key allows another way
// too. The session is made with the command and ends with it; drop ends one that did not.
func policySession(c *call, ek *tpm2.TPMTPublic) (session tpm2.Session, drop func()) {
	var open tpm2.TPMHandle
	session = tpm2.Policy(ek.NameAlg, 16, func(_ transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		open = tpm2.TPMHandle(h.HandleValue())
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: h,
		}.Execute(c)
		if err != nil || bytes.Equal(ek.AuthPolicy.Buffer, policyA(ek.NameAlg)) {
			return err
		}
		_, err = tpm2.PolicyOr{PolicySession: h, PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{
			{Buffer: policyA(ek.NameAlg)}, {Buffer: policyC(ek.NameAlg)},
		}}}.Execute(c)
		return err
	})
	return session, func() {
		if open != 0 && session.Handle() == open {
			c.d.flush(c, open)
		}
	}
}
