package registrar_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"testing"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/internal/disk"
)

// newCA makes a CA with the registrar's certificate, and the records beside it.
func newCA(t testing.TB, dir string) (*ca.CA, *records.Book) {
	t.Helper()
	authority, err := ca.Init(disk.OS(), dir, "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Server("registrar", []string{"localhost", "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	book, err := records.Open(disk.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return authority, book
}

func key(t testing.TB) *ecdsa.PrivateKey { return keyOn(t, elliptic.P256()) }

func keyOn(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func request(t testing.TB, k *ecdsa.PrivateKey, device string) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, k)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func write(t testing.TB, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
