package authorize

import (
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"ferrule/internal/jws"
)

// Grant is what an issuer authorises.
type Grant struct {
	Issuer string // iss; "": the thumbprint of the key
	Device string // aud: the device's id
	Key    string // cnf.jkt: the thumbprint of the device's key
	Scope  string
	Args   string        // Digest of the args; "": any args within the scope
	Life   time.Duration // at most MaxLife
}

// Claims are a token's, in the order in which people read them.
type Claims struct {
	Issuer   string       `json:"iss"`
	Audience string       `json:"aud"`
	Scope    string       `json:"scope"`
	IssuedAt int64        `json:"iat"`
	Expires  int64        `json:"exp"`
	ID       string       `json:"jti"`
	Binding  Confirmation `json:"cnf"`
	Args     string       `json:"args,omitempty"`
}

// Confirmation binds a token to a key (RFC 7800).
type Confirmation struct {
	Thumbprint string `json:"jkt"`
}

// Issue signs a token that this package's Check accepts. It is the issuer's side: a host, never a device.
func Issue(key crypto.Signer, g Grant, now time.Time) (token string, c Claims, err error) {
	kid, err := jws.Thumbprint(key.Public())
	if err != nil {
		return "", c, err
	}
	if g.Issuer == "" {
		g.Issuer = kid
	}
	scope, err := ParseScope(g.Scope)
	switch {
	case err != nil:
		return "", c, err
	case scope.Len() == 0:
		return "", c, fmt.Errorf("the scope %.200q grants nothing; its words are among %v", g.Scope, Commands())
	case g.Device == "" || len(g.Device) > maxString || len(g.Issuer) > maxString:
		return "", c, errors.New("the device's id or the issuer's name is empty or too long")
	case len(g.Key) != 43:
		return "", c, fmt.Errorf("%.60q is no thumbprint of a key: 43 characters of base64url", g.Key)
	case g.Life < time.Second || g.Life > MaxLife:
		return "", c, fmt.Errorf("a life of %v; from 1s to %v are allowed", g.Life, MaxLife)
	}
	c = Claims{
		Issuer: g.Issuer, Audience: g.Device, Scope: g.Scope, IssuedAt: now.Unix(), Expires: now.Unix() + int64(g.Life/time.Second),
		ID: rand.Text(), Binding: Confirmation{g.Key}, Args: g.Args,
	}
	token, err = jws.Sign(key, map[string]any{"typ": "JWT", "kid": kid}, c)
	if err == nil && len(token) > MaxToken {
		err = fmt.Errorf("the token has %d bytes, of which devices take %d; make its scope shorter", len(token), MaxToken)
	}
	return token, c, err
}
