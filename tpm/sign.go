package tpm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.SHA256.New in the self-test
	_ "crypto/sha512"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

var errSelfTest = errors.New("the TPM's signature does not verify")

// usable reports what is wrong with a key that others made: warnings for what costs safety,
// an error for what keeps it from signing in a TLS handshake.
func usable(p *tpm2.TPMTPublic) (warnings []string, err error) {
	a := p.ObjectAttributes
	switch {
	case !a.SignEncrypt:
		return nil, unsupported("a key without the sign attribute")
	case a.Restricted:
		return nil, unsupported("a restricted key signs only what the TPM itself hashed, so no TLS handshake")
	case !a.UserWithAuth:
		return nil, unsupported("a key that only a policy opens")
	}
	if !a.NoDA {
		warnings = append(warnings, "the key lacks noDA: some power cuts while it is in use lock it out (TPM_RC_LOCKOUT); create a new one")
	}
	if !a.FixedTPM || !a.FixedParent {
		warnings = append(warnings, "the key may be duplicated to another TPM")
	}
	if !a.SensitiveDataOrigin {
		warnings = append(warnings, "the key was made outside the TPM, which cannot tell who else has it")
	}
	if scheme, hash := fixedScheme(p); scheme != tpm2.TPMAlgNull {
		warnings = append(warnings, fmt.Sprintf("the key signs %v digests only; a server that offers none of that refuses it", hash))
	}
	return warnings, nil
}

// fixedScheme returns the signing scheme and hash that a key is bound to; TPMAlgNull for a
// key that takes any.
func fixedScheme(p *tpm2.TPMTPublic) (tpm2.TPMAlgID, crypto.Hash) {
	var id tpm2.TPMAlgID
	var details tpm2.TPMUAsymScheme
	if ecc, err := p.Parameters.ECCDetail(); err == nil {
		id, details = ecc.Scheme.Scheme, ecc.Scheme.Details
	} else if r, err := p.Parameters.RSADetail(); err == nil {
		id, details = r.Scheme.Scheme, r.Scheme.Details
	}
	var hash tpm2.TPMIAlgHash
	if s, err := details.ECDSA(); err == nil {
		hash = s.HashAlg
	} else if s, err := details.RSASSA(); err == nil {
		hash = s.HashAlg
	} else if s, err := details.RSAPSS(); err == nil {
		hash = s.HashAlg
	}
	if id == 0 {
		id = tpm2.TPMAlgNull
	}
	h, err := hash.Hash()
	if err != nil {
		h = 0
	}
	return id, h
}

// scheme says how the TPM is to sign digest for opts.
func (k *Key) scheme(digest []byte, opts crypto.SignerOpts) (tpm2.TPMTSigScheme, error) {
	var none tpm2.TPMTSigScheme
	hash := opts.HashFunc()
	alg, ok := map[crypto.Hash]tpm2.TPMIAlgHash{
		crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384, crypto.SHA512: tpm2.TPMAlgSHA512,
	}[hash]
	if !ok {
		return none, unsupported("signing %v digests; only SHA-256, SHA-384 and SHA-512", hash)
	}
	if len(digest) != hash.Size() {
		return none, fmt.Errorf("signing with the device key: %d bytes are no %v digest", len(digest), hash)
	}
	id := k.schemeID(opts)
	if pss, ok := opts.(*rsa.PSSOptions); ok && id == tpm2.TPMAlgRSAPSS {
		if s := pss.SaltLength; s != rsa.PSSSaltLengthEqualsHash && s != rsa.PSSSaltLengthAuto && s != hash.Size() {
			return none, unsupported("RSA-PSS with %d bytes of salt; the TPM takes as many as the digest has", s)
		}
	}
	if fixed, only := fixedScheme(k.public); fixed != tpm2.TPMAlgNull && (fixed != id || only != hash) {
		return none, unsupported("the key is bound to scheme %#x with %v and cannot sign a %v digest with %#x",
			uint16(fixed), only, hash, uint16(id))
	}
	return tpm2.TPMTSigScheme{
		Scheme:  id,
		Details: tpm2.NewTPMUSigScheme(id, &tpm2.TPMSSchemeHash{HashAlg: alg}),
	}, nil
}

func (k *Key) schemeID(opts crypto.SignerOpts) tpm2.TPMAlgID {
	if k.public.Type == tpm2.TPMAlgECC {
		return tpm2.TPMAlgECDSA
	}
	if _, ok := opts.(*rsa.PSSOptions); ok {
		return tpm2.TPMAlgRSAPSS
	}
	return tpm2.TPMAlgRSASSA
}

// encodeSignature gives the TPM's signature the form crypto.Signer promises: ASN.1 for
// ECDSA (SEC 1, C.5), the plain number for RSA.
func encodeSignature(s tpm2.TPMTSignature) ([]byte, error) {
	switch s.SigAlg {
	case tpm2.TPMAlgECDSA:
		ec, err := s.Signature.ECDSA()
		if err != nil {
			return nil, fmt.Errorf("reading the TPM's signature: %w", err)
		}
		return asn1.Marshal(struct{ R, S *big.Int }{
			new(big.Int).SetBytes(ec.SignatureR.Buffer), new(big.Int).SetBytes(ec.SignatureS.Buffer),
		})
	case tpm2.TPMAlgRSASSA:
		r, err := s.Signature.RSASSA()
		if err != nil {
			return nil, fmt.Errorf("reading the TPM's signature: %w", err)
		}
		return r.Sig.Buffer, nil
	case tpm2.TPMAlgRSAPSS:
		r, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, fmt.Errorf("reading the TPM's signature: %w", err)
		}
		return r.Sig.Buffer, nil
	}
	return nil, fmt.Errorf("reading the TPM's signature: algorithm %#x was not asked for", uint16(s.SigAlg))
}

// selfTest signs and verifies once, with each scheme that TLS may ask the key for.
func (k *Key) selfTest(ctx context.Context) error {
	_, hash := fixedScheme(k.public)
	if hash == 0 {
		hash = crypto.SHA256
	}
	h := hash.New()
	if _, err := h.Write([]byte(rand.Text())); err != nil {
		return err
	}
	digest := h.Sum(nil)
	if public, ok := k.key.(*ecdsa.PublicKey); ok {
		signature, err := k.sign(ctx, digest, hash)
		if err == nil && !ecdsa.VerifyASN1(public, digest, signature) {
			err = errSelfTest
		}
		return err
	}
	public, _ := k.key.(*rsa.PublicKey)
	pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	signature, err := k.sign(ctx, digest, pss)
	if err != nil {
		return err
	}
	if err := rsa.VerifyPSS(public, hash, digest, signature, pss); err != nil {
		return fmt.Errorf("%w: %w", errSelfTest, err)
	}
	return nil
}
