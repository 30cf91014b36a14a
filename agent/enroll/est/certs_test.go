package est

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
)

// certificates makes n self-signed ones.
func certificates(t testing.TB, n int) []*x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var all []*x509.Certificate
	for i := range n {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: fmt.Sprint("c", i)}, NotAfter: time.Unix(4e9, 0),
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func joined(all []*x509.Certificate) (der []byte) {
	for _, c := range all {
		der = append(der, c.Raw...)
	}
	return der
}

func degenerate(t testing.TB, all []*x509.Certificate) []byte {
	t.Helper()
	message, err := pkcs7.DegenerateCertificate(joined(all))
	if err != nil {
		t.Fatal(err)
	}
	return message
}

func same(got, want []*x509.Certificate) bool {
	return bytes.Equal(joined(got), joined(want)) && len(got) == len(want)
}

// indefinitely writes the message as Bouncy Castle does: BER, all lengths indefinite.
func indefinitely(all []*x509.Certificate) []byte {
	wrap := func(tag byte, parts ...[]byte) []byte {
		return append(append([]byte{tag, 0x80}, bytes.Join(parts, nil)...), 0, 0)
	}
	oid := append([]byte{tagOID, 9}, signedData...)
	data := []byte{tagOID, 9, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x01}
	return wrap(tagSequence, oid, wrap(tagFirst, wrap(tagSequence,
		[]byte{2, 1, 1}, []byte{tagSet, 0}, wrap(tagSequence, data), wrap(tagFirst, joined(all)), []byte{tagSet, 0})))
}

func TestReadsWhatServersSend(t *testing.T) {
	all := certificates(t, 3)
	message := degenerate(t, all)
	text := base64.StdEncoding.EncodeToString(message)
	for name, body := range map[string][]byte{
		"one line":          []byte(text),
		"lines":             lines(message),
		"lines of 76, LF":   []byte(text[:76] + "\n" + text[76:152] + "\n" + text[152:] + "\n"),
		"blanks around":     []byte("\r\n \t" + text + "\r\n\r\n"),
		"DER":               message,
		"BER":               indefinitely(all),
		"BER in base64":     lines(indefinitely(all)),
		"BER within itself": bytes.Replace(indefinitely(all), all[0].Raw, all[0].Raw, 1),
	} {
		if got, err := parseAnswer(body); err != nil || !same(got, all) {
			t.Errorf("%s: %d certificates, %v", name, len(got), err)
		}
	}
}

// openssl, which libest is built on, writes certs-only messages too.
func TestReadsWhatOpenSSLWrites(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is missing; run: make deps")
	}
	all := certificates(t, 2)
	path := filepath.Join(t.TempDir(), "all.pem")
	var text []byte
	for _, c := range all {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	der, err := exec.Command(openssl, "crl2pkcs7", "-nocrl", "-certfile", path, "-outform", "DER").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseAnswer(lines(der)); err != nil || !same(got, all) {
		t.Errorf("%d certificates, %v", len(got), err)
	}
}

func TestRefusesWhatIsNone(t *testing.T) {
	all := certificates(t, 1)
	message := degenerate(t, all)
	deep := bytes.Repeat([]byte{tagSequence, 0x80}, 1000)
	for name, test := range map[string]struct {
		body []byte
		says string
	}{
		"nothing":         {nil, "too early"},
		"a page":          {[]byte("<html>"), "base64"},
		"padding":         {[]byte("MIIB="), "base64"},
		"cut":             {message[:len(message)-3], "too early"},
		"something more":  {append(bytes.Clone(message), 0), "follows"},
		"no signed data":  {bytes.Replace(message, signedData, append(bytes.Clone(signedData[:8]), 3), 1), "signed data"},
		"a certificate":   {all[0].Raw, "signed data"},
		"no certificate":  {bytes.Replace(indefinitely(nil), []byte{tagFirst, 0x80, 0, 0, tagSet}, []byte{tagSet}, 1), "no certificate"},
		"empty bag":       {indefinitely(nil), "no certificate"},
		"too many":        {indefinitely(certificates(t, maxCertificates+1)), "more than 32"},
		"rubbish inside":  {bytes.Replace(message, all[0].Raw[8:12], []byte{1, 2, 3, 4}, 1), "certificate 1"},
		"endless length":  {[]byte{tagSequence, 0x84, 0xFF, 0xFF, 0xFF, 0xFF, 1}, "too early"},
		"longest length":  {[]byte{tagSequence, 0x89, 1, 1, 1, 1, 1, 1, 1, 1, 1}, "too long"},
		"too deep":        {deep, "deeply"},
		"no end":          {[]byte{tagSequence, 0x80, tagOID}, "too early"},
		"plain, no lengh": {[]byte{tagSequence, 0x80, tagOID, 0x80, 0, 0, 0, 0}, "no length"},
		"a long tag":      {[]byte{tagSequence, 0x80, 0x1F, 0x85, 1, 0, 0, 0}, "longer than one byte"},
	} {
		got, err := parseAnswer(test.body)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %d certificates, %v; want %q", name, len(got), err, test.says)
		}
	}
}

// What is read has been there, in that order, and is read by others too.
func FuzzAnswer(f *testing.F) {
	all := certificates(f, 2)
	for _, body := range [][]byte{degenerate(f, all), lines(degenerate(f, all)), indefinitely(all), []byte("<html>"), {tagSequence, 0x80}} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parseAnswer(body)
		if err != nil {
			if len(got) > 0 {
				t.Error("certificates beside an error")
			}
			return
		}
		if len(got) == 0 || len(got) > maxCertificates {
			t.Fatalf("%d certificates", len(got))
		}
		again, err := parseAnswer(lines(degenerate(t, got)))
		if err != nil || !same(again, got) {
			t.Errorf("written again it reads as %d, %v", len(again), err)
		}
	})
}
