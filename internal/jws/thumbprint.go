package jws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/big"
)

// Thumbprint returns the key's name by RFC 7638: base64url (43 characters) of the SHA-256 over the required members of its
// JWK. Beside the keys that sign tokens here it takes those that others use: P-384, P-521 and RSA.
func Thumbprint(key crypto.PublicKey) (string, error) {
	// encoding/json writes the members of a map in the order of their names, without spaces, as section 3.3 asks.
	members := map[string]string{}
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		point, err := key.Bytes() // uncompressed: 4, x, y
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrKey, err)
		}
		half := len(point) / 2
		members["kty"], members["crv"] = "EC", key.Curve.Params().Name
		members["x"], members["y"] = strictly.EncodeToString(point[1:1+half]), strictly.EncodeToString(point[1+half:])
	case ed25519.PublicKey:
		if len(key) != ed25519.PublicKeySize {
			return "", fmt.Errorf("%w: an Ed25519 key of %d bytes", ErrKey, len(key))
		}
		members["kty"], members["crv"], members["x"] = "OKP", "Ed25519", strictly.EncodeToString(key)
	case *rsa.PublicKey:
		members["kty"], members["n"] = "RSA", strictly.EncodeToString(key.N.Bytes())
		members["e"] = strictly.EncodeToString(big.NewInt(int64(key.E)).Bytes())
	default:
		return "", fmt.Errorf("%w: a key of type %T has no thumbprint here", ErrKey, key)
	}
	text, err := json.Marshal(members)
	if err != nil {
		return "", fmt.Errorf("encoding the key: %w", err)
	}
	sum := sha256.Sum256(text)
	return strictly.EncodeToString(sum[:]), nil
}
