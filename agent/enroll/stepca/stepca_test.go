package stepca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/enroll/peer"
	"ferrule/internal/jws"
)

func client(t testing.TB) *Client {
	t.Helper()
	c, err := New("https://ca.example:9000/", peer.Options{Roots: x509.NewCertPool(), Now: func() time.Time { return time.Unix(1e9, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The tokens say what step-ca looks for, for one request, and never twice the same.
func TestTokens(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := agenttest.NewCA("factory")
	if err != nil {
		t.Fatal(err)
	}
	factory, err := ca.Device("gw-1")
	if err != nil {
		t.Fatal(err)
	}
	c, ids, csr := client(t), map[string]bool{}, []byte("the request")
	for range 2 {
		jwk, err := c.JWKToken("ferrule", "", key, "gw-1", csr)
		if err != nil {
			t.Fatal(err)
		}
		x5c, err := c.X5CToken("factory", &factory.TLS, "gw-1", csr)
		if err != nil {
			t.Fatal(err)
		}
		ids[check(t, jwk, &key.PublicKey, "ferrule", "https://ca.example:9000/1.0/sign", "")] = true
		ids[check(t, x5c, factory.Leaf.PublicKey, "factory", "https://ca.example:9000/1.0/sign#x5c/factory", string(factory.Leaf.Raw))] = true
	}
	if len(ids) != 4 {
		t.Errorf("4 tokens have %d ids", len(ids))
	}
	open, err := c.JWKToken("ferrule", "kid", key, "gw-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.Parse(open)
	if err != nil || token.Header().Kid != "kid" {
		t.Errorf("%+v, %v", token, err)
	}
	if name, err := Subject(open); err != nil || name != "gw-1" {
		t.Errorf("subject %q, %v", name, err)
	}
	if _, err := c.X5CToken("factory", &tls.Certificate{}, "gw-1", csr); err == nil {
		t.Error("a certificate without a key signed")
	}
}

// check returns the id of a token.
func check(t *testing.T, text string, key any, issuer, audience, shown string) string {
	t.Helper()
	token, err := jws.Parse(text)
	if err == nil {
		err = token.Verify(key)
	}
	var c claims
	if err == nil {
		err = token.Claims(&c)
	}
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("the request"))
	if c.Issuer != issuer || c.Subject != "gw-1" || len(c.Audience) != 1 || c.Audience[0] != audience || len(c.Names) != 1 || c.Names[0] != "gw-1" ||
		c.NotBefore != 1e9 || c.Expires-c.NotBefore > 300 || c.Confirmation.Request != base64.RawURLEncoding.EncodeToString(digest[:]) {
		t.Errorf("claims %+v", c)
	}
	if header := token.Header(); (len(header.X5C) > 0) != (shown != "") || shown != "" && string(header.X5C[0]) != shown || (shown == "") != (header.Kid != "") {
		t.Errorf("header %+v", header)
	}
	return c.ID
}

func TestSubjectOfRubbish(t *testing.T) {
	encoded := base64.RawURLEncoding.EncodeToString
	for _, token := range []string{
		"", "a.b", "a.b.c", "a." + encoded([]byte(`{}`)) + ".c", "a." + encoded([]byte(`{"sub":1}`)) + ".c",
		"a." + encoded([]byte(`{"sub":"`+strings.Repeat("x", jws.MaxSize)+`"}`)) + ".c",
	} {
		if name, err := Subject(token); err == nil {
			t.Errorf("%.40q is for %q", token, name)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	ca, err := agenttest.NewCA("step")
	if err != nil {
		f.Fatal(err)
	}
	device, err := ca.Device("gw-1")
	if err != nil {
		f.Fatal(err)
	}
	for _, v := range []any{
		map[string]any{"crt": string(device.ChainPEM), "ca": string(ca.RootPEM())},
		map[string]any{"certChain": []string{string(device.ChainPEM)}, "crts": []string{string(ca.RootPEM())}},
		map[string]any{"status": 401, "message": "no"}, []int{1},
	} {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(201, text)
		f.Add(403, text)
	}
	c := client(f)
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		certificates, err := c.signed(peer.Answer{Status: status, Body: body})
		if err == nil && (len(certificates) == 0 || status != http.StatusOK && status != http.StatusCreated) {
			t.Errorf("status %d gave %d certificates", status, len(certificates))
		}
		if err != nil && (strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 2000) {
			t.Errorf("%q", err)
		}
		_, _ = c.roots(peer.Answer{Status: status, Body: body})
		_, _ = Subject(string(body))
	})
}
