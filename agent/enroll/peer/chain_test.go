package peer_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll/peer"
)

// authority makes certificates for tests of chains.
type authority struct {
	t    testing.TB
	name string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB, name string, issuer *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, name: name, key: key}
	if issuer == nil {
		issuer = a
	}
	a.cert = issuer.sign(name, key.Public(), true, 0)
	return a
}

func (a *authority) sign(name string, key crypto.PublicKey, ca bool, age time.Duration) *x509.Certificate {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: ca, BasicConstraintsValid: true,
		NotBefore: now.Add(-age), NotAfter: now.Add(time.Hour),
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{Subject: pkix.Name{CommonName: a.name}}, key, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

func names(chain []*x509.Certificate) string {
	var all []string
	for _, c := range chain {
		all = append(all, c.Subject.CommonName)
	}
	return strings.Join(all, " ")
}

func TestChain(t *testing.T) {
	root := newAuthority(t, "root", nil)
	upper := newAuthority(t, "upper", root)
	lower := newAuthority(t, "lower", upper)
	impostor := newAuthority(t, "lower", newAuthority(t, "upper", nil)) // the same name, another key
	next := newAuthority(t, "root", nil)
	bridge := next.sign("root", root.key.Public(), true, 0) // the old root, signed by the new one
	device := newAuthority(t, "gw-1", lower)
	leaf, older := lower.sign("gw-1", device.key.Public(), false, 0), lower.sign("gw-1", device.key.Public(), false, time.Hour)
	loopA, loopB := newAuthority(t, "a", nil), newAuthority(t, "b", nil)
	ab, ba := loopA.sign("b", loopB.key.Public(), true, 0), loopB.sign("a", loopA.key.Public(), true, 0)
	looped := loopA.sign("gw-1", device.key.Public(), false, 0)

	type bag = []*x509.Certificate
	for name, test := range map[string]struct {
		bag  bag
		want string
	}{
		"in order":         {bag{leaf, lower.cert, upper.cert, root.cert}, "gw-1 lower upper"},
		"in disorder":      {bag{root.cert, upper.cert, leaf, lower.cert}, "gw-1 lower upper"},
		"alone":            {bag{leaf}, "gw-1"},
		"with a gap":       {bag{leaf, upper.cert, root.cert}, "gw-1"},
		"twice":            {bag{leaf, leaf, lower.cert, lower.cert}, "gw-1 lower"},
		"others with it":   {bag{impostor.cert, leaf, impostor.cert, lower.cert, upper.cert}, "gw-1 lower upper"},
		"the newest":       {bag{older, leaf, lower.cert}, "gw-1 lower"},
		"a change of root": {bag{leaf, lower.cert, upper.cert, root.cert, next.cert, bridge}, "gw-1 lower upper root"},
	} {
		got, err := peer.Chain(device.key.Public(), test.bag)
		if err != nil || names(got) != test.want || got[0] != leaf {
			t.Errorf("%s: %q, %v", name, names(got), err)
		}
	}
	if got, err := peer.Chain(device.key.Public(), bag{looped, ab, ba}); err != nil || len(got) > 8 {
		t.Errorf("a loop: %q, %v", names(got), err)
	}
	for name, given := range map[string]bag{"none": nil, "others": {lower.cert, root.cert}} {
		if _, err := peer.Chain(device.key.Public(), given); !errors.Is(err, peer.ErrForeignKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !peer.SelfSigned(root.cert) || peer.SelfSigned(bridge) || peer.SelfSigned(upper.cert) {
		t.Error("roots are not told from others")
	}
}

func TestParsePEM(t *testing.T) {
	root := newAuthority(t, "root", nil)
	text := peer.PEM([]*x509.Certificate{root.cert, root.cert})
	if got, err := peer.ParsePEM(append([]byte("subject=x\n"), text...)); err != nil || len(got) != 2 {
		t.Errorf("%d, %v", len(got), err)
	}
	for name, bad := range map[string][]byte{
		"none":     []byte("nothing"),
		"a key":    []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"too many": bytes.Repeat(text, 17),
		"rubbish":  []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
	} {
		if got, err := peer.ParsePEM(bad); err == nil || got != nil {
			t.Errorf("%s: %d, %v", name, len(got), err)
		}
	}
	if peer.PEM(nil) != nil {
		t.Error("no certificates are some text")
	}
}

func FuzzParsePEM(f *testing.F) {
	root := newAuthority(f, "root", nil)
	f.Add(peer.PEM([]*x509.Certificate{root.cert}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := peer.ParsePEM(text)
		if err != nil {
			return
		}
		again, err := peer.ParsePEM(peer.PEM(got))
		if err != nil || len(again) != len(got) || len(got) > 32 {
			t.Errorf("%d, then %d, %v", len(got), len(again), err)
		}
		_, _ = peer.Chain(got[0].PublicKey, got)
	})
}
