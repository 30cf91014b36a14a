package dial

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// minted is a certificate with its key.
type minted struct {
	*x509.Certificate
	key crypto.Signer
}

// mint makes a certificate that parent signs, or itself where that is nil. It holds from an hour
// ago to a year from now, and what change makes of it.
func mint(t testing.TB, name string, parent *minted, change ...func(*x509.Certificate)) *minted {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return mintFor(t, name, parent, key, change...)
}

func mintFor(t testing.TB, name string, parent *minted, key crypto.Signer, change ...func(*x509.Certificate)) *minted {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: must[*big.Int](t)(rand.Int(rand.Reader, big.NewInt(1<<62))), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, f := range change {
		f(template)
	}
	above := &minted{template, key}
	if parent != nil {
		above = parent
	}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, above.Certificate, key.Public(), above.key))
	return &minted{must[*x509.Certificate](t)(x509.ParseCertificate(der)), key}
}

// authority lets a certificate sign others.
func authority(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid = true, true
	c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
}

// forServer makes a certificate a server's, of these names; none: of localhost.
func forServer(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtKeyUsage, c.DNSNames = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, names
		if len(names) == 0 {
			c.DNSNames = []string{"localhost"}
		}
	}
}

// forClient makes a certificate a device's.
func forClient(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

// long ago and far ahead.
func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().AddDate(-2, 0, 0), time.Now().AddDate(-1, 0, 0)
}

func notYet(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().AddDate(1, 0, 0), time.Now().AddDate(2, 0, 0)
}

// chain is what a server shows.
func (m *minted) chain(above ...*minted) tls.Certificate {
	c := tls.Certificate{PrivateKey: m.key, Certificate: [][]byte{m.Raw}}
	for _, a := range above {
		c.Certificate = append(c.Certificate, a.Raw)
	}
	return c
}

func encodePEM(all ...*minted) (text []byte) {
	for _, m := range all {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Raw})...)
	}
	return text
}

func (m *minted) keyPEM(t testing.TB) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must[[]byte](t)(x509.MarshalPKCS8PrivateKey(m.key))})
}

func pool(roots ...*minted) *x509.CertPool {
	p := x509.NewCertPool()
	for _, r := range roots {
		p.AddCert(r.Certificate)
	}
	return p
}
