package enroll_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ferrule/agent/enroll"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/hint"
)

// The registrar is at enroll.url and nowhere else: who answers there cannot send the token on,
// least of all to a place without TLS.
func TestRedirectsAreNotFollowed(t *testing.T) {
	heard := make(chan string, 1)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		select {
		case heard <- string(body):
		default:
		}
	}))
	defer elsewhere.Close()
	f, d := newFake(t), &device{t: t}
	f.answer[wire.PathBegin] = func(w http.ResponseWriter) {
		w.Header().Set("Location", elsewhere.URL)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
	_, err := enroll.Enroll(t.Context(), f.config, d.request())
	if !errors.Is(err, enroll.ErrRefused) || !strings.Contains(err.Error(), "307") {
		t.Errorf("error %v", err)
	}
	select {
	case body := <-heard:
		t.Errorf("it was sent on: %s", body)
	default:
	}
}

// A wrong name, an unknown CA and a wrong clock are mended in three places.
func TestImpostorsAreToldApart(t *testing.T) {
	f := newFake(t)
	// httptest's servers all bear one certificate, which is its own root; this one is nobody's.
	wrongRoots := f.config
	wrongRoots.Roots = rootsFile(t, strange(t))
	wrongName := f.config
	wrongName.URL = strings.Replace(f.config.URL, "127.0.0.1", "localhost", 1)
	late, early := time.Now().AddDate(200, 0, 0), time.Unix(-3600, 0)
	for name, test := range map[string]struct {
		config enroll.Config
		now    time.Time
		hint   string
	}{
		"other roots":  {wrongRoots, time.Now(), "enroll.roots"},
		"other name":   {wrongName, time.Now(), "enroll.url"},
		"clock ahead":  {f.config, late, "clock"},
		"clock behind": {f.config, early, "clock"},
	} {
		d := &device{t: t}
		r := d.request()
		r.Now = func() time.Time { return test.now }
		_, err := enroll.Enroll(t.Context(), test.config, r)
		if !errors.Is(err, enroll.ErrUntrusted) || !strings.Contains(hint.Of(err), test.hint) {
			t.Errorf("%s: %v\nhint: %s", name, err, hint.Of(err))
		}
	}
}

// strange is a certificate that signed nothing here.
func strange(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "strange"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
