package stepca

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"ferrule/internal/jws"
)

// tokenLife is how long a token is valid: step-ca takes at most five minutes.
const tokenLife = 4 * time.Minute

// claims are those of a one-time token (step-ca, authority/provisioner/jwk.go and x5c.go).
type claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  []string `json:"aud"`
	ID        string   `json:"jti"`
	IssuedAt  int64    `json:"iat"`
	NotBefore int64    `json:"nbf"`
	Expires   int64    `json:"exp"`
	Names     []string `json:"sans"`
	// Confirmation ties the token to one request, so that whoever reads it on the way has no
	// use for it.
	Confirmation *confirmation `json:"cnf,omitempty"`
}

type confirmation struct {
	Request string `json:"x5rt#S256"` // base64url of the SHA-256 of the request
}

// JWKToken makes a token for Sign by the provisioner of type JWK with this name and key, a P-256
// or Ed25519 key; kid is the id of the key in ca.json, "" for its thumbprint (RFC 7638), which is
// what step gives it. Device becomes the common name and the only alternative name. The token is for
// csr alone; for any request where that is nil.
func (c *Client) JWKToken(provisioner, kid string, key crypto.Signer, device string, csr []byte) (string, error) {
	if kid == "" {
		var err error
		if kid, err = jws.Thumbprint(key.Public()); err != nil {
			return "", fmt.Errorf("naming the provisioner's key: %w", err)
		}
	}
	// No fragment in the audience: step-ca finds the provisioner by issuer and kid.
	return sign(key, map[string]any{"typ": "JWT", "kid": kid}, c.claims(provisioner, "", device, csr))
}

// X5CToken makes a token for Sign by the provisioner of type X5C with this name: present, whose
// key is P-256 or Ed25519, speaks for device.
func (c *Client) X5CToken(provisioner string, present *tls.Certificate, device string, csr []byte) (string, error) {
	key, ok := present.PrivateKey.(crypto.Signer)
	if !ok || len(present.Certificate) == 0 {
		return "", errors.New("signing a token: the factory certificate has no key that signs")
	}
	chain := make([]string, len(present.Certificate))
	for i, der := range present.Certificate {
		chain[i] = base64.StdEncoding.EncodeToString(der) // RFC 7515, 4.1.6
	}
	return sign(key, map[string]any{"typ": "JWT", "x5c": chain}, c.claims(provisioner, "#x5c/"+provisioner, device, csr))
}

func (c *Client) claims(provisioner, fragment, device string, csr []byte) claims {
	now := c.peer.ServiceTime()
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	made := claims{
		Issuer: provisioner, Subject: device, Names: []string{device},
		Audience: []string{c.peer.Base() + "/1.0/sign" + fragment}, ID: hex.EncodeToString(id),
		IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: now.Add(tokenLife).Unix(),
	}
	if csr != nil {
		digest := sha256.Sum256(csr)
		made.Confirmation = &confirmation{base64.RawURLEncoding.EncodeToString(digest[:])}
	}
	return made
}

func sign(key crypto.Signer, header map[string]any, c claims) (string, error) {
	token, err := jws.Sign(key, header, c)
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	return token, nil
}

// Subject is the device that a one-time token is for. Nothing is verified: step-ca does that.
func Subject(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(token) > jws.MaxSize || len(parts) != 3 {
		return "", errors.New("it is no one-time token of step-ca")
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", errors.New("it is no one-time token of step-ca")
	}
	var said struct {
		Subject string `json:"sub"`
	}
	if json.Unmarshal(text, &said) != nil || said.Subject == "" {
		return "", errors.New("the token names no subject")
	}
	return said.Subject, nil
}
