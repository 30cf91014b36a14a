package identity_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/enroll/wire"
	"ferrule/agent/identity"
)

// impostor is a registrar that answers chain, or what it makes of the request's key.
func impostor(t *testing.T, promised string, chain func(public crypto.PublicKey) []byte) enroll.Config {
	t.Helper()
	var public crypto.PublicKey
	mux := http.NewServeMux()
	mux.HandleFunc(wire.PathBegin, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(wire.Begun{Version: 1, Session: "s", Device: promised, Require: []string{wire.KindCSR}})
	})
	mux.HandleFunc(wire.PathEvidence, func(w http.ResponseWriter, r *http.Request) {
		var e wire.Evidence
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		csr, err := x509.ParseCertificateRequest(e.Evidence[0].Data)
		if err != nil {
			t.Error(err)
			return
		}
		public = csr.PublicKey
		_ = json.NewEncoder(w).Encode(wire.Challenged{})
	})
	mux.HandleFunc(wire.PathFinish, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(wire.Issued{Chain: string(chain(public))})
	})
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(roots, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return enroll.Config{Method: enroll.MethodRegistrar, URL: server.URL, Roots: roots}
}

// certify has a CA of its own sign public.
func certify(t *testing.T, public crypto.PublicKey, device string, notAfter time.Time) []byte {
	t.Helper()
	ca, _ := softwareKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: device}, NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter,
	}
	parent := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "some CA"}}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestEnrollChecksWhatItIsGiven(t *testing.T) {
	other, _ := softwareKey(t)
	future := time.Now().Add(time.Hour)
	for name, test := range map[string]struct {
		chain func(crypto.PublicKey) []byte
		is    error
		says  string
	}{
		"for another key":    {func(crypto.PublicKey) []byte { return certify(t, other.Public(), "gw-1", future) }, identity.ErrMismatch, ""},
		"for another device": {func(p crypto.PublicKey) []byte { return certify(t, p, "gw-2", future) }, nil, `"gw-2"`},
		"of another CA":      {func(p crypto.PublicKey) []byte { return certify(t, p, "gw-1", future) }, nil, "enroll.roots"},
		"for nobody":         {func(p crypto.PublicKey) []byte { return certify(t, p, "", future) }, nil, "common name"},
		"no certificate":     {func(crypto.PublicKey) []byte { return []byte("sorry") }, nil, "no certificate"},
		"a key":              {func(crypto.PublicKey) []byte { _, text := softwareKey(t); return text }, nil, "PRIVATE KEY"},
		"unrelated certificates": {func(p crypto.PublicKey) []byte {
			return append(certify(t, p, "gw-1", future), certify(t, p, "gw-1", future)...)
		}, nil, "did not issue"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t.TempDir())
			_, err := identity.Enroll(background, software(), o, impostor(t, "gw-1", test.chain), identity.EnrollRequest{Token: "token"})
			if err == nil || (test.is != nil && !errors.Is(err, test.is)) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v", err)
			}
			if _, err := identity.Open(background, software(), o); !errors.Is(err, identity.ErrNotEnrolled) {
				t.Errorf("after it: %v", err)
			}
		})
	}
}
