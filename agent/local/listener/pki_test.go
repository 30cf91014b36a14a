package listener_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"strings"
	"testing"
	"time"

	"ferrule/agent/local/listener"
	"ferrule/agent/local/role"
)

// certificates are those of the matrix, by name.
type certificates map[string]*issued

func rsaKey(t *testing.T, bits int) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (w *world) certificates(t *testing.T) certificates {
	t.Helper()
	twin := newAuthority(t, "site", nil) // the CA's name, and another key
	between := newAuthority(t, "between", w.site)
	ended := newAuthority(t, "ended", w.site, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })
	narrow := newAuthority(t, "narrow", w.site, func(c *x509.Certificate) {
		c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"inside.example"}
	})
	short := newAuthority(t, "short", w.site, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	beyond := newAuthority(t, "beyond", short)
	servers := newAuthority(t, "servers", w.site, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := w.site.issue(t, nil, nil)
	client := &authority{certificate: good.leaf, key: good.key}
	self := newAuthority(t, "self", nil, func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"Operators"} })
	at := func(from, to time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
	}
	ou := func(names ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.Subject.OrganizationalUnit = names }
	}
	return certificates{
		"good":            good,
		"rsa 2048":        w.site.issue(t, rsaKey(t, 2048), nil),
		"ed25519":         w.site.issue(t, edwards, nil),
		"p-384":           w.site.issue(t, p384, nil),
		"any usage":       w.site.issue(t, nil, func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
		"intermediate":    between.issue(t, nil, nil, between),
		"vendor":          w.other.issue(t, nil, ou("Vendor")),
		"no intermediate": between.issue(t, nil, nil),
		"ended above":     ended.issue(t, nil, nil, ended),
		"outside name":    narrow.issue(t, nil, func(c *x509.Certificate) { c.DNSNames = []string{"outside.example"} }, narrow),
		"path too long":   beyond.issue(t, nil, nil, beyond, short),
		"usage above":     servers.issue(t, nil, nil, servers),
		"by a client":     client.issue(t, nil, nil, client),
		"unknown ca":      newAuthority(t, "nobody", nil).issue(t, nil, nil),
		"twin ca":         twin.issue(t, nil, nil, twin),
		"self-signed":     {leaf: self.certificate, key: self.key, chain: [][]byte{self.certificate.Raw}},
		"expired":         w.site.issue(t, nil, at(-2*time.Hour, -time.Hour)),
		"not yet":         w.site.issue(t, nil, at(time.Hour, 2*time.Hour)),
		"for servers":     w.site.issue(t, nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"no role":         w.site.issue(t, nil, ou("Guests")),
		"no names":        w.site.issue(t, nil, func(c *x509.Certificate) { c.Subject = pkix.Name{} }),
		"spoofed ou":      w.other.issue(t, nil, ou("Operators")),
		"ansi":            w.site.issue(t, nil, func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "x\x1b[2J\nlevel=ERROR"} }),
		"rsa 1024":        w.site.issue(t, rsaKey(t, 1024), nil),
		"sha-1":           w.site.issue(t, nil, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }),
		"unknown critical": w.site.issue(t, nil, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}),
		"other key":     {leaf: good.leaf, key: newKey(t), chain: good.chain},
		"garbage":       {leaf: good.leaf, key: good.key, chain: [][]byte{{0x30, 3, 2, 1, 1}}},
		"huge":          {leaf: good.leaf, key: good.key, chain: huge(good.leaf.Raw)},
		"the ca itself": {leaf: w.site.certificate, key: w.site.key, chain: [][]byte{w.site.certificate.Raw}},
	}
}

// huge is a chain of 60 KiB.
func huge(der []byte) (chain [][]byte) {
	for size := 0; size < 60<<10; size += len(der) {
		chain = append(chain, der)
	}
	return chain
}

// matrix is what each certificate leads to: what the client sees in TLS 1.3 ("" is to be let
// in), and of the log the cause and a part of the reason.
var matrix = []struct{ certificate, alert, cause, reason string }{
	{"good", "", "", ""},
	{"rsa 2048", "", "", ""},
	{"ed25519", "", "", ""},
	{"p-384", "", "", ""},
	{"any usage", "", "", ""},
	{"intermediate", "", "", ""},
	{"vendor", "", "", ""},
	{"none", "tls: certificate required", listener.NoCertificate, "showed no certificate"},
	{"unknown ca", "tls: unknown certificate authority", listener.UnknownCA, `issued by "nobody"`},
	{"twin ca", "tls: unknown certificate authority", listener.UnknownCA, "a CA that [local] does not name"},
	{"self-signed", "tls: unknown certificate authority", listener.UnknownCA, `cn "self"`},
	{"no intermediate", "tls: unknown certificate authority", listener.UnknownCA, `issued by "between"`},
	{"by a client", "tls: unknown certificate authority", listener.UnknownCA, `issued by "anna"`},
	{"ended above", "tls: expired certificate", listener.Expired, "certificate expired"},
	{"expired", "tls: expired certificate", listener.Expired, "is after"},
	{"not yet", "tls: expired certificate", listener.NotYetValid, "is before"},
	{"outside name", "tls: bad certificate", listener.BadCertificate, "is not permitted"},
	{"path too long", "tls: bad certificate", listener.BadCertificate, "too many intermediates"},
	{"usage above", "tls: bad certificate", listener.WrongUsage, "not for clients"},
	{"for servers", "tls: bad certificate", listener.WrongUsage, "not for clients"},
	{"no role", "tls: bad certificate", listener.NoRole, `no rule gives a role to this certificate (cn "anna", ou "Guests"`},
	{"no names", "tls: bad certificate", listener.NoRole, `cn ""`},
	{"spoofed ou", "tls: bad certificate", listener.NoRole, `ou "Operators", issued by "other"`},
	{"ansi", "tls: bad certificate", listener.NoRole, `x\x1b[2J\nlevel=ERROR`},
	{"the ca itself", "tls: bad certificate", listener.NoRole, `cn "site"`},
	{"rsa 1024", "tls: bad certificate", listener.WeakKey, "RSA key of 1024 bits"},
	{"sha-1", "tls: unknown certificate authority", listener.BadCertificate, "algorithm that nobody believes"},
	{"unknown critical", "tls: bad certificate", listener.BadCertificate, "critical extension"},
	{"other key", "tls: error decrypting message", listener.BadSignature, "did not prove"},
	{"garbage", "tls: error decoding message", listener.BadCertificate, "a certificate that is none"},
	{"huge", "*", listener.TooLarge, "more than 24 KiB"},
}

// TestPKIMatrix is the server's half of the table: what the client sees, and what the log says.
func TestPKIMatrix(t *testing.T) {
	for _, version := range []struct {
		name   string
		number uint16
	}{{"TLS 1.3", tls.VersionTLS13}, {"TLS 1.2", tls.VersionTLS12}} {
		t.Run(version.name, func(t *testing.T) {
			w := newWorld(t, nil)
			shown := w.certificates(t)
			for _, c := range matrix {
				t.Run(c.certificate, func(t *testing.T) {
					want := c.alert
					if version.number == tls.VersionTLS12 && c.cause == listener.NoCertificate {
						want = "tls: handshake failure" // RFC 5246, 7.4.6: nothing better exists
					}
					before := w.Status().Refused[c.cause]
					got := w.dial(t, shown[c.certificate], func(o *tls.Config) { o.MinVersion, o.MaxVersion = version.number, version.number })
					if got != want && (want != "*" || got == "") {
						t.Errorf("the client sees %q, want %q", got, want)
					}
					if c.cause == "" {
						if in := w.last(); in == nil || in.Grant().Role == role.None || !in.Asked() || in.NotAfter().IsZero() {
							t.Errorf("came in as %+v", in)
						}
						return
					}
					w.refused(t, c.cause, c.reason, before)
				})
			}
			if log := w.log.String(); !strings.Contains(log, "local client refused") || strings.Contains(log, "\x1b") {
				t.Errorf("the log says %q", log)
			}
		})
	}
}

// refused waits until one more was refused for a cause, and compares the reason.
func (w *world) refused(t *testing.T, cause, part string, before uint64) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for w.Status().Refused[cause] == before {
		if time.Now().After(deadline) {
			t.Fatalf("nobody was refused for %s: %v", cause, w.Status().Refused)
		}
	}
	last := w.Status().LastRefusal
	if last.Cause != cause || !strings.Contains(last.Text, part) || strings.ContainsAny(last.Text, "\n\x1b\x00") {
		t.Errorf("refused for %s: %s; want %s: … %s …", last.Cause, last.Text, cause, part)
	}
}

func TestWhatIsOffered(t *testing.T) {
	w := newWorld(t, nil)
	good := w.site.issue(t, nil, nil)
	for _, c := range []struct {
		name, alert, cause, reason string
		change                     func(*tls.Config)
	}{
		{"TLS 1.1", "tls: protocol version not supported", listener.Version, "offers no TLS version from 1.2 on", func(o *tls.Config) { o.MinVersion, o.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }},
		{"CBC only", "tls: handshake failure", listener.Cipher, "no cipher suite", func(o *tls.Config) {
			o.MaxVersion, o.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		}},
		{"RSA key exchange only", "tls: handshake failure", listener.Cipher, "no cipher suite", func(o *tls.Config) {
			o.MaxVersion, o.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}},
		{"ALPN mqtt", "tls: no application protocol", listener.Protocol, "does not offer http/1.1", func(o *tls.Config) { o.NextProtos = []string{"mqtt"} }},
		{"our certificate refused", "tls: failed to verify certificate: x509: certificate is valid for", listener.RefusedByClient, "the client refused", func(o *tls.Config) {
			o.InsecureSkipVerify, o.ServerName = false, "else.example"
		}},
		{"our CA unknown", "tls: failed to verify certificate: x509: certificate signed by unknown authority", listener.RefusedByClient, "the client refused", func(o *tls.Config) {
			o.InsecureSkipVerify, o.ServerName = false, "localhost"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := w.Status().Refused[c.cause]
			if got := w.dial(t, good, c.change); !strings.HasPrefix(got, c.alert) {
				t.Errorf("the client sees %q, want %q", got, c.alert)
			}
			w.refused(t, c.cause, c.reason, before)
		})
	}
	for name, change := range map[string]func(*tls.Config){
		"page":   func(o *tls.Config) { o.NextProtos = []string{"h2", "http/1.1"} },
		"P-256":  func(o *tls.Config) { o.CurvePreferences = []tls.CurveID{tls.CurveP256} },
		"ML-KEM": func(o *tls.Config) { o.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768} },
		"ChaCha": func(o *tls.Config) {
			o.MaxVersion, o.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}
		},
		"any name": func(o *tls.Config) { o.ServerName = "whatever.example" },
	} {
		if got := w.dial(t, good, change); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// The three modes, and the WebSocket that no browser opens when it is asked for a certificate.
func TestWhoIsAsked(t *testing.T) {
	socket := func(o *tls.Config) { o.NextProtos = []string{"http/1.1"} }
	page := func(o *tls.Config) { o.NextProtos = []string{"h2", "http/1.1"} }
	const required, stranger, guest = "tls: certificate required", "stranger", "guest"
	for _, c := range []struct {
		name      string
		auth      listener.Auth
		askSocket bool
		// What comes of an HTTPS client and of a WebSocket, without a certificate and with one.
		page, pageWith, socket, socketWith string
		asked, socketAsked                 bool
	}{
		{"required", listener.Required, false, required, guest, stranger, stranger, true, false},
		{"required, sockets too", listener.Required, true, required, guest, required, guest, true, true},
		{"optional", listener.Optional, false, stranger, guest, stranger, stranger, true, false},
		{"optional, sockets too", listener.Optional, true, stranger, guest, stranger, guest, true, true},
		{"none", listener.Never, false, stranger, stranger, stranger, stranger, false, false},
		{"none, sockets too", listener.Never, true, stranger, stranger, stranger, stranger, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, func(o *listener.Options) { o.Auth, o.AskWebSocket = c.auth, c.askSocket })
			good, bad := w.site.issue(t, nil, nil), newAuthority(t, "nobody", nil).issue(t, nil, nil)
			try := func(name string, certificate *issued, alpn func(*tls.Config), want string, asked bool) {
				t.Helper()
				wasAsked := false
				got := w.dial(t, nil, func(o *tls.Config) {
					alpn(o)
					o.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
						wasAsked = true
						if certificate == nil {
							return &tls.Certificate{}, nil
						}
						shown := certificate.TLS()
						return &shown, nil
					}
				})
				if got == "" {
					got = stranger
					if w.last().Grant().Role == role.Operator {
						got = guest
					}
				}
				if got != want || wasAsked != asked {
					t.Errorf("%s: %s, asked %t; want %s, %t", name, got, wasAsked, want, asked)
				}
			}
			try("page", nil, page, c.page, c.asked)
			try("page with a certificate", good, page, c.pageWith, c.asked)
			try("socket", nil, socket, c.socket, c.socketAsked)
			try("socket with a certificate", good, socket, c.socketWith, c.socketAsked)
			none := func(*tls.Config) {}
			try("no ALPN", good, none, c.pageWith, c.asked)
			if c.asked { // optional is no excuse for a bad one
				try("a bad certificate", bad, page, "tls: unknown certificate authority", true)
			}
		})
	}
}

// What the agent knows beyond a CA, such as revocation, refuses too; and nothing is resumed, so it
// is asked each time.
func TestVerifyIsAskedEachTime(t *testing.T) {
	asked, revoked := 0, false
	w := newWorld(t, func(o *listener.Options) {
		o.Verify = func(tls.ConnectionState) error {
			asked++
			if revoked {
				return errors.New("revoked\non 1 May")
			}
			return nil
		}
	})
	good := w.site.issue(t, nil, nil)
	cache := func(o *tls.Config) { o.ServerName, o.ClientSessionCache = "localhost", tls.NewLRUClientSessionCache(8) }
	for range 3 {
		if got := w.dial(t, good, cache); got != "" {
			t.Fatalf("a good client sees %q", got)
		}
	}
	revoked = true
	if got := w.dial(t, good, cache); got != "tls: bad certificate" {
		t.Errorf("a revoked client sees %q", got)
	}
	w.refused(t, listener.NotVerified, `revoked\non 1 May`, 0)
	if asked != 4 {
		t.Errorf("asked %d times, want 4", asked)
	}
}

// The clock of the agent judges, not that of the system.
func TestTheAgentsClockJudges(t *testing.T) {
	w := newWorld(t, func(o *listener.Options) { o.Now = func() time.Time { return time.Now().Add(3 * time.Hour) } })
	if got := w.dial(t, w.site.issue(t, nil, nil), nil); got != "tls: expired certificate" {
		t.Errorf("three hours later a certificate of one sees %q", got)
	}
}

// A CA that is taken away is gone at the next look, and one that cannot be read changes nothing.
func TestRootsAreReadAgain(t *testing.T) {
	var policy func() (*role.Policy, error)
	w := newWorld(t, func(o *listener.Options) {
		policy = o.Policy
		o.Policy = func() (*role.Policy, error) { return policy() }
	})
	good, rules := w.site.issue(t, nil, nil), []role.Rule{{Role: role.Operator, OU: "Operators"}}
	w.site = newAuthority(t, "site", nil)
	policy = func() (*role.Policy, error) { return nil, errors.New("no such file") }
	w.Refresh()
	if got := w.dial(t, good, nil); got != "" || !strings.Contains(w.Status().Problem, "no such file") {
		t.Errorf("with an unreadable CA: %q, %+v", got, w.Status())
	}
	policy = w.rules(rules)
	w.Refresh()
	if got := w.dial(t, good, nil); got != "tls: unknown certificate authority" || w.Status().Problem != "" {
		t.Errorf("with another CA: %q, %+v", got, w.Status())
	}
}
