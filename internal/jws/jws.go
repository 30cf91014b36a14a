// Package jws signs and checks compact JSON Web Signatures (RFC 7515) with ES256 or EdDSA, and nothing else.
// The trap is leniency: the header is written by whoever sends the token, so it never chooses the key or
// the kind of key, and what two readers could understand in two ways is refused before its signature is looked at.
package jws

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
)

// The algorithms, as they stand in the header (RFC 7518, 3.1; RFC 8037, 3.1).
const (
	ES256 = "ES256" // ECDSA with P-256 and SHA-256; r‖s, 64 bytes
	EdDSA = "EdDSA" // Ed25519
)

// MaxSize is the longest token, in bytes: a header with a chain of certificates and a CSR's worth of claims.
const MaxSize = 32 << 10

var (
	// ErrMalformed: the token is not one compact JWS of unambiguous JSON objects.
	ErrMalformed = errors.New("token is malformed")
	// ErrAlgorithm: the header asks for another algorithm than ES256 or EdDSA.
	ErrAlgorithm = errors.New("token is not signed with ES256 or EdDSA")
	// ErrCritical: the header has "crit" or "b64"; no extension is known here (RFC 7515, 4.1.11; RFC 7797).
	ErrCritical = errors.New("token needs an extension that is not known here")
	// ErrKey: the key is not of the kind the algorithm takes.
	ErrKey = errors.New("key does not fit the token's algorithm")
	// ErrSignature: the signature is not the key's over this token.
	ErrSignature = errors.New("token's signature is wrong")
	// ErrUnverified: the claims were asked for before a signature was verified.
	ErrUnverified = errors.New("token's signature was not verified")
)

// strictly decodes base64url without padding and without stray bits; see decode for what Go still lets pass.
var strictly = base64.RawURLEncoding.Strict()

// Header is what a token says of itself: a hint at best. Names has every member, so that a caller can refuse
// what it does not expect (jwk, jku, x5u …). X5C are certificates as DER, the signer's first.
type Header struct {
	Alg, Kid, Typ string
	X5C           [][]byte
	Names         []string
}

// Token is a parsed token. It is safe for use by one goroutine.
type Token struct {
	header    Header
	signed    string // header and payload as they were signed
	payload   []byte
	signature []byte
	verified  bool
}

// Sign returns the claims as a compact token. The header's "alg" is set from the key, which is P-256 (in
// a TPM, or an *ecdsa.PrivateKey) or Ed25519; other members, such as "typ" and "kid", are the caller's.
func Sign(key crypto.Signer, header map[string]any, claims any) (string, error) {
	alg, err := algorithm(key.Public())
	if err != nil {
		return "", err
	}
	full := maps.Clone(header)
	if full == nil {
		full = map[string]any{}
	}
	full["alg"] = alg
	head, err := json.Marshal(full)
	if err != nil {
		return "", fmt.Errorf("encoding the token's header: %w", err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encoding the token's claims: %w", err)
	}
	signed := strictly.EncodeToString(head) + "." + strictly.EncodeToString(body)
	signature, err := sign(key, alg, []byte(signed))
	if err != nil {
		return "", fmt.Errorf("signing the token: %w", err)
	}
	token := signed + "." + strictly.EncodeToString(signature)
	if len(token) > MaxSize {
		return "", fmt.Errorf("signing the token: %w: %d bytes are more than %d", ErrMalformed, len(token), MaxSize)
	}
	return token, nil
}

// Usable says whether tokens can be signed and verified with keys of this kind: nil, or ErrKey.
func Usable(key crypto.PublicKey) error {
	_, err := algorithm(key)
	return err
}

func algorithm(key crypto.PublicKey) (string, error) {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key != nil && key.Curve == elliptic.P256() {
			return ES256, nil
		}
	case ed25519.PublicKey:
		if len(key) == ed25519.PublicKeySize {
			return EdDSA, nil
		}
	}
	return "", fmt.Errorf("%w: a key of type %T is neither P-256 nor Ed25519", ErrKey, key)
}

func sign(key crypto.Signer, alg string, message []byte) ([]byte, error) {
	if alg == EdDSA {
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	digest := sha256.Sum256(message)
	der, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var pair struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &pair)
	if err != nil {
		return nil, fmt.Errorf("reading the signature: %w", err)
	}
	if len(rest) > 0 || !scalar(pair.R) || !scalar(pair.S) {
		return nil, errors.New("reading the signature: it is none of P-256")
	}
	signature := make([]byte, 64)
	pair.R.FillBytes(signature[:32])
	pair.S.FillBytes(signature[32:])
	return signature, nil
}

// scalar says whether v may stand in a signature of P-256: 1 ≤ v < n.
func scalar(v *big.Int) bool { return v.Sign() > 0 && v.Cmp(elliptic.P256().Params().N) < 0 }

// Parse reads a compact token. Nothing is verified yet.
func Parse(token string) (*Token, error) {
	if len(token) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes are more than %d", ErrMalformed, len(token), MaxSize)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%w: it has %d parts instead of 3", ErrMalformed, len(parts))
	}
	var raw [3][]byte
	for i, name := range []string{"header", "payload", "signature"} {
		var err error
		if raw[i], err = decode(parts[i]); err != nil {
			return nil, fmt.Errorf("%w: reading its %s: %w", ErrMalformed, name, err)
		}
	}
	t := &Token{signed: token[:len(parts[0])+1+len(parts[1])], payload: raw[1], signature: raw[2]}
	var err error
	if t.header, err = readHeader(raw[0]); err != nil {
		return nil, err
	}
	if _, err := object(raw[1]); err != nil {
		return nil, fmt.Errorf("%w: reading its payload: %w", ErrMalformed, err)
	}
	if len(t.signature) != 64 { // both algorithms' length
		return nil, fmt.Errorf("%w: a signature of %d bytes instead of 64", ErrMalformed, len(t.signature))
	}
	return t, nil
}

// decode reads base64url; Go's decoder passes over line ends, which would give one token many spellings.
func decode(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("it contains a line end")
	}
	return strictly.DecodeString(text)
}

func readHeader(raw []byte) (Header, error) {
	members, err := object(raw)
	if err != nil {
		return Header{}, fmt.Errorf("%w: reading its header: %w", ErrMalformed, err)
	}
	h := Header{Names: slices.Sorted(maps.Keys(members))}
	for name, to := range map[string]any{"alg": &h.Alg, "kid": &h.Kid, "typ": &h.Typ, "x5c": &h.X5C} {
		// x5c is base64 with padding, as []byte is to Go (RFC 7515, 4.1.6).
		text, there := members[name]
		if !there {
			continue
		}
		if bytes.Equal(text, []byte("null")) {
			return Header{}, fmt.Errorf("%w: %q in its header is null", ErrMalformed, name)
		}
		if err := json.Unmarshal(text, to); err != nil {
			return Header{}, fmt.Errorf("%w: reading %q in its header: %w", ErrMalformed, name, err)
		}
	}
	for _, name := range []string{"crit", "b64"} {
		if _, there := members[name]; there {
			return Header{}, fmt.Errorf("%w: %q", ErrCritical, name)
		}
	}
	if h.Alg != ES256 && h.Alg != EdDSA {
		return Header{}, fmt.Errorf("%w: alg %.20q", ErrAlgorithm, h.Alg)
	}
	return h, nil
}

// Header returns what the token says of itself.
func (t *Token) Header() Header { return t.header }

// Verify checks the signature with a key that the caller trusts: a P-256 key for ES256, an Ed25519 key for
// EdDSA. An ECDSA signature (r, s) has a twin (r, n-s) that is as good, so a token is known by what it says
// (its jti), never by its bytes.
func (t *Token) Verify(key crypto.PublicKey) error {
	t.verified = false
	alg, err := algorithm(key)
	if err != nil {
		return err
	}
	if alg != t.header.Alg {
		return fmt.Errorf("%w: the key signs with %s, the token says %s", ErrKey, alg, t.header.Alg)
	}
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		digest := sha256.Sum256([]byte(t.signed))
		r, s := new(big.Int).SetBytes(t.signature[:32]), new(big.Int).SetBytes(t.signature[32:])
		t.verified = scalar(r) && scalar(s) && ecdsa.Verify(key, digest[:], r, s)
	case ed25519.PublicKey:
		t.verified = ed25519.Verify(key, []byte(t.signed), t.signature)
	}
	if !t.verified {
		return ErrSignature
	}
	return nil
}

// Claims decodes the payload of a verified token into v, as encoding/json does. No object in it has two members
// whose names are equal but for their case. A *map[string]json.RawMessage keeps names as they were spelt.
func (t *Token) Claims(v any) error {
	if !t.verified {
		return ErrUnverified
	}
	if err := json.Unmarshal(t.payload, v); err != nil {
		return fmt.Errorf("reading the token's claims: %w", err)
	}
	return nil
}
