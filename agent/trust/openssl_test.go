package trust

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// openssl makes staples and lists of its own for a PKI.
type openssl struct {
	t   *testing.T
	dir string
}

func newOpenssl(t *testing.T, p *pki, responder *party) *openssl {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing; run: make deps")
	}
	return &openssl{t, files(t, map[string][]byte{
		"ca.pem": pemOf(p.issuing), "ca.key": keyPEM(t, p.issuing), "broker.pem": pemOf(p.broker),
		"responder.pem": pemOf(responder), "responder.key": keyPEM(t, responder), "number": []byte("1000\n"),
		"ca.conf": []byte("[ca]\ndefault_ca=c\n[c]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=7\ncrl_extensions=x\n[x]\nauthorityKeyIdentifier=keyid\n"),
	})}
}

func (o *openssl) run(args ...string) {
	o.t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = o.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		o.t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (o *openssl) read(name string) []byte {
	return must[[]byte](o.t)(os.ReadFile(filepath.Join(o.dir, name)))
}

// index is openssl's record of what a CA issued: V or R, until when, when revoked, serial, name.
func (o *openssl) index(lines ...string) {
	if err := os.WriteFile(filepath.Join(o.dir, "index"), []byte(strings.Join(lines, "")), 0o600); err != nil {
		o.t.Fatal(err)
	}
}

func line(flag, revoked string, c *party) string {
	return fmt.Sprintf("%s\t%s\t%s\t%X\tunknown\t/CN=%s\n", flag, c.NotAfter.UTC().Format("060102150405Z"), revoked, c.SerialNumber.Bytes(), c.Subject.CommonName)
}

func TestStaplesOfOpenssl(t *testing.T) {
	p := newPKI(t)
	other := p.issuing.issue(t, "other", server)
	for name, signer := range map[string]*party{"a responder": p.issuing.issue(t, "responder", responder), "the issuer": p.issuing} {
		for index, want := range map[string]judgement{
			line("V", "", p.broker):                                     accepted,
			line("R", "251101000000Z,keyCompromise", p.broker):          revoked,
			line("V", "", other):                                        unknown("does not know"),
			line("R", "251101000000Z", other) + line("V", "", p.broker): accepted,
		} {
			for _, hash := range []string{"-sha1", "-sha256", "-sha384"} {
				o := newOpenssl(t, p, signer)
				o.index(index)
				o.run("ocsp", hash, "-issuer", "ca.pem", "-cert", "broker.pem", "-no_nonce", "-reqout", "request")
				o.run("ocsp", "-index", "index", "-CA", "ca.pem", "-rsigner", "responder.pem", "-rkey", "responder.key", "-ndays", "1", "-reqin", "request", "-respout", "response")
				v := revocation(t, newWorld(), PolicyHard, p.root.revoke(t, nil))
				expect(t, v, p, o.read("response"), want.hard, want.text)
				if t.Failed() {
					t.Fatal(name, hash, index)
				}
			}
		}
	}
}

func TestListsOfOpenssl(t *testing.T) {
	p := newPKI(t)
	others := line("R", "251101000000Z,superseded", p.issuing.issue(t, "a")) + line("R", "251101000000Z,CACompromise", p.issuing.issue(t, "b"))
	for index, want := range map[string]judgement{
		"":                               accepted,
		others + line("V", "", p.broker): accepted,
		others + line("R", "251101000000Z,keyCompromise", p.broker): revoked,
	} {
		for _, form := range []string{"DER", "PEM"} {
			o := newOpenssl(t, p, p.issuing)
			o.index(index)
			o.run("ca", "-config", "ca.conf", "-gencrl", "-cert", "ca.pem", "-keyfile", "ca.key", "-out", "crl.pem")
			o.run("crl", "-in", "crl.pem", "-outform", form, "-out", "crl")
			v := revocation(t, newWorld(), PolicyHard, p.root.revoke(t, nil), o.read("crl"))
			expect(t, v, p, nil, want.hard, want.text)
		}
	}
}

// Whatever an authority signs with, its list and its staple are read; SHA-1 is not believed.
func TestAlgorithms(t *testing.T) {
	rsaKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	issuers := map[string]*party{
		"RSA":  (*party)(nil).issueTo(t, "issuing", rsaKey, authority),
		"Ed":   (*party)(nil).issueTo(t, "issuing", edKey, authority),
		"P384": (*party)(nil).issueTo(t, "issuing", p384, authority),
	}
	for name, test := range map[string]struct {
		issuer    string
		algorithm x509.SignatureAlgorithm
		good      bool
	}{
		"RSA": {"RSA", x509.SHA256WithRSA, true}, "RSA 384": {"RSA", x509.SHA384WithRSA, true}, "RSA 512": {"RSA", x509.SHA512WithRSA, true},
		"PSS": {"RSA", x509.SHA256WithRSAPSS, true}, "PSS 384": {"RSA", x509.SHA384WithRSAPSS, true}, "PSS 512": {"RSA", x509.SHA512WithRSAPSS, true},
		"Ed25519": {"Ed", x509.PureEd25519, true}, "P-384": {"P384", x509.ECDSAWithSHA384, true}, "P-384 512": {"P384", x509.ECDSAWithSHA512, true},
	} {
		issuer := issuers[test.issuer]
		list, err := parseList(issuer.revoke(t, func(l *x509.RevocationList) { l.SignatureAlgorithm = test.algorithm }, big.NewInt(1)))
		if err != nil || list.signedBy(issuer.Certificate) != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := newOpenssl(t, &pki{issuing: issuers["RSA"], broker: issuers["RSA"]}, issuers["RSA"])
	o.index("")
	o.run("ca", "-config", "ca.conf", "-gencrl", "-md", "sha1", "-cert", "ca.pem", "-keyfile", "ca.key", "-out", "crl.pem")
	if _, err := parseLists(o.read("crl.pem")); err == nil || !strings.Contains(err.Error(), "not believed") {
		t.Error(err)
	}
}

func FuzzList(f *testing.F) {
	p := newPKI(f)
	f.Add(p.issuing.revoke(f, nil, big.NewInt(1), big.NewInt(-300), new(big.Int).Lsh(big.NewInt(1), 150)))
	f.Add(p.issuing.revoke(f, distribution("\xa0\x09\xa0\x07\x86\x05url-1\x81\x01\xff")))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := parseList(text)
		if err != nil {
			return
		}
		if len(l.data) > len(text) || len(l.at) > len(text)/4 {
			t.Fatal("it grew")
		}
		// What is taken here, Go's own reader takes for the same, unless it is stricter.
		want, err := x509.ParseRevocationList(text)
		if err != nil {
			return
		}
		if len(want.RevokedCertificateEntries) != len(l.at) || !want.ThisUpdate.Equal(l.this) || !want.NextUpdate.Equal(l.next) {
			t.Fatalf("%d entries from %v to %v, want %d from %v to %v", len(l.at), l.this, l.next, len(want.RevokedCertificateEntries), want.ThisUpdate, want.NextUpdate)
		}
		for _, e := range want.RevokedCertificateEntries {
			if !l.revoked(octets(e.SerialNumber)) {
				t.Fatalf("%x is not in it", e.SerialNumber)
			}
		}
	})
}

// octets are those of an INTEGER, by Go's own encoder.
func octets(n *big.Int) []byte {
	text, err := asn1.Marshal(n)
	if err != nil {
		panic(err)
	}
	d := der(text)
	_, content, _, _ := d.next()
	return content
}

func FuzzStaple(f *testing.F) {
	p := newPKI(f)
	f.Add(p.issuing.staple(f, p.issuing, p.broker.SerialNumber))
	f.Add(p.issuing.issue(f, "responder", responder).staple(f, p.issuing, p.broker.SerialNumber, status(1)))
	f.Add([]byte{0x30, 3, 0x0a, 1, 3})
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseStaple(text)
		if err != nil {
			return
		}
		if len(s.answers) > len(text) {
			t.Fatal("it grew")
		}
		_, _ = s.signedBy(p.issuing.Certificate, time.Now())
		a, ok := s.of(serialOf(p.broker.Certificate), p.issuing.Certificate)
		want, err := ocsp.ParseResponseForCert(text, p.broker.Certificate, nil)
		if !ok || err != nil {
			return
		}
		// Of several answers for one number, x/crypto takes the first, for whichever authority.
		if len(s.answers) == 1 && (int(a.status) != want.Status || !a.this.Equal(want.ThisUpdate) || !a.next.Equal(want.NextUpdate)) {
			t.Fatalf("%+v, want %+v", a, want)
		}
	})
}
