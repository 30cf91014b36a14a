package registrar

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk/disktest"
)

func TestWhatAnIssuerGivesIsChecked(t *testing.T) {
	other := deskOn(t, disktest.New(), caDir, Config{})
	for name, test := range map[string]struct {
		issue func(d *desk, q Request) ([]*x509.Certificate, error)
		says  string
	}{
		"another key": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			return d.CA.Device(ca.Leaf{Device: q.Device, Key: &k.PublicKey, Life: q.Life})
		}, "another key"},
		"another name": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			return d.CA.Device(ca.Leaf{Device: "gw-2", Key: q.CSR.PublicKey, Life: q.Life})
		}, `for "gw-2"`},
		"another CA": {func(_ *desk, q Request) ([]*x509.Certificate, error) {
			return other.CA.Device(ca.Leaf{Device: q.Device, Key: q.CSR.PublicKey, Life: q.Life})
		}, "does not lead to a trusted root"},
		"too short": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			return d.CA.Device(ca.Leaf{Device: q.Device, Key: q.CSR.PublicKey, Life: 10 * time.Minute})
		}, "in less than an hour"},
		"nothing": {func(*desk, Request) ([]*x509.Certificate, error) { return nil, nil }, "0 certificates"},
		"an endless": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			c, err := d.CA.Device(ca.Leaf{Device: q.Device, Key: q.CSR.PublicKey, Life: q.Life})
			return slices.Repeat(c, 9), err
		}, "18 certificates"},
		"broken chain": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			c, err := d.CA.Device(ca.Leaf{Device: q.Device, Key: q.CSR.PublicKey, Life: q.Life})
			return append(c, other.CA.Root()), err
		}, "did not sign the one before it"},
		"an authority": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			return []*x509.Certificate{selfSigned(t, q, true)}, nil
		}, "is an authority's"},
		"signed by itself": {func(d *desk, q Request) ([]*x509.Certificate, error) {
			return []*x509.Certificate{selfSigned(t, q, false)}, nil
		}, "another key"},
		"an error": {func(*desk, Request) ([]*x509.Certificate, error) { return nil, errors.New("it is asleep") }, "it is asleep"},
	} {
		t.Run(name, func(t *testing.T) {
			d, p := strict(t), newPretender(t, "one")
			d.Life = 24 * time.Hour
			d.Issuer = issuerFunc(func(q Request) ([]*x509.Certificate, error) { return test.issue(d, q) })
			token := d.token(t, "gw-1")
			refused := p.enroll(t, d, wire.Begin{Token: token})
			refuses(t, refused, wire.CodeBackend, "did not issue")
			if refused != nil && !strings.Contains(refused.Logged().Error(), test.says) {
				t.Errorf("the log says %v, want %q", refused.Logged(), test.says)
			}
			if _, err := d.Records.Device("gw-1"); !errors.Is(err, records.ErrUnknown) {
				t.Errorf("it is on record: %v", err)
			}
			d.Issuer = &local{d.CA} // mended: the token is not spent
			must(t, p.enroll(t, d, wire.Begin{Token: token}))
		})
	}
}

type issuerFunc func(Request) ([]*x509.Certificate, error)

func (f issuerFunc) Name() string { return "test" }
func (f issuerFunc) Issue(_ context.Context, q Request) ([]*x509.Certificate, error) {
	return f(q)
}

func selfSigned(t testing.TB, q Request, authority bool) *x509.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: q.Device}, IsCA: authority, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().Add(24 * time.Hour)}
	public := any(&k.PublicKey)
	if authority {
		public = q.CSR.PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, k)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
