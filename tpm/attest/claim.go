package attest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// The labels keep the three uses of a claim apart: none can be taken for another.
const (
	labelQualify = "ferrule/attest/qualify/1"
	labelAnswer  = "ferrule/attest/answer/1"
	labelSeal    = "ferrule/attest/seal/1"
)

// SecretSize is the length of a Challenge's secret, in bytes.
const SecretSize = 32

// MaxSealed bounds what Unseal takes, in bytes.
const MaxSealed = 64 << 10

// ErrUnseal: what was sealed is damaged, or is for another TPM or another enrollment.
var ErrUnseal = errors.New("the seal does not open")

// Qualify is what the AK signs beside the Name of the key (the qualifying data of TPM2_Certify,
// Part 3, 18.2): SHA-256 over the label, Nonce, Device and CSR, each after its length.
func (c Claim) Qualify() []byte {
	sum := sha256.Sum256(c.transcript(labelQualify))
	return sum[:]
}

// Answer proves to whoever made the challenge that the TPM opened it, and for this claim and
// evidence: HMAC-SHA256 under secret over the label, the claim, and both items byte for byte as
// they were sent. Compare answers with hmac.Equal.
func (c Claim) Answer(secret, evidence, challenge []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write(c.transcript(labelAnswer, evidence, challenge))
	return mac.Sum(nil)
}

// Seal encrypts plain for the TPM that can open the challenge. It says who may read, not who
// wrote: anybody who knows the EK can make a challenge and seal under it.
func (c Claim) Seal(secret, evidence, challenge, plain []byte) ([]byte, error) {
	if len(plain) > MaxSealed-sealOverhead {
		return nil, fmt.Errorf("sealing: %d bytes are more than %d", len(plain), MaxSealed-sealOverhead)
	}
	aead, err := c.cipher(secret, evidence, challenge)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return aead.Seal(nil, nil, plain, nil), nil
}

// Unseal is the reverse of Seal. The error is ErrUnseal where anything differs.
func (c Claim) Unseal(secret, evidence, challenge, sealed []byte) ([]byte, error) {
	if len(sealed) > MaxSealed {
		return nil, fmt.Errorf("unsealing: %d bytes are more than %d", len(sealed), MaxSealed)
	}
	aead, err := c.cipher(secret, evidence, challenge)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	plain, err := aead.Open(nil, nil, sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", ErrUnseal)
	}
	return plain, nil
}

// sealOverhead is the GCM nonce before the ciphertext and the tag behind it.
const sealOverhead = 12 + 16

// cipher is AES-256-GCM under HKDF-SHA256 (RFC 5869) of the secret; the salt is the hash of the
// transcript. The nonce is random, because a batch that is issued again after a power cut seals
// another certificate under the same secret.
func (c Claim) cipher(secret, evidence, challenge []byte) (cipher.AEAD, error) {
	if len(secret) != SecretSize {
		return nil, fmt.Errorf("a secret of %d bytes is not one of %d", len(secret), SecretSize)
	}
	salt := sha256.Sum256(c.transcript(labelSeal, evidence, challenge))
	key, err := hkdf.Key(sha256.New, secret, salt[:], labelSeal, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// transcript is label, Nonce, Device, CSR and items, each after its length in four bytes,
// big-endian: so no byte can move from one field to the next.
func (c Claim) transcript(label string, items ...[]byte) []byte {
	fields := append([][]byte{[]byte(label), c.Nonce, []byte(c.Device), c.CSR}, items...)
	var b []byte
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}
