package dial

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
)

// ours are the certificates that we show to brokers that know root, and list it.
type ours struct {
	root, server                                       *minted
	good, expired, notYet, stranger, namesake, revoked *minted
	wrongUse                                           *minted
	list                                               []byte // the CRL
	crt, key, ca, crl                                  string
}

func newOurs(t *testing.T) *ours {
	o := &ours{root: mint(t, "fleet", nil, authority)}
	o.server = mint(t, "broker", o.root, forServer("localhost", "broker.test"), func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} })
	o.good = mint(t, "device-1", o.root, forClient)
	o.expired = mint(t, "device-1", o.root, forClient, expired)
	o.notYet = mint(t, "device-1", o.root, forClient, notYet)
	o.stranger = mint(t, "device-1", mint(t, "strangers", nil, authority), forClient)
	o.namesake = mint(t, "device-1", mint(t, "fleet", nil, authority), forClient) // of an authority that only sounds like ours
	o.revoked = mint(t, "device-1", o.root, forClient)
	o.wrongUse = mint(t, "device-1", o.root, forServer())
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().AddDate(0, 1, 0),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: o.revoked.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)}}}
	der := must[[]byte](t)(x509.CreateRevocationList(rand.Reader, list, o.root.Certificate, o.root.key))
	o.list = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	dir := t.TempDir()
	o.crt = writeFile(t, filepath.Join(dir, "server.crt"), encodePEM(o.server))
	o.key = writeFile(t, filepath.Join(dir, "server.key"), o.server.keyPEM(t))
	o.ca = writeFile(t, filepath.Join(dir, "ca.crt"), encodePEM(o.root))
	o.crl = writeFile(t, filepath.Join(dir, "ca.crl"), o.list)
	return o
}

// trusting makes a dialer trust brokers of root.
func trusting(root *minted) func(*Options) {
	p := pool(root)
	return func(o *Options) { o.Trust.Roots = func() *x509.CertPool { return p } }
}

// asGo is a broker of Go's, which knows of revocation only what it is told.
func (o *ours) asGo(t *testing.T) string {
	return tlsEcho(t, &tls.Config{
		Certificates: []tls.Certificate{o.server.chain()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(o.root),
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.PeerCertificates[0].Equal(o.revoked.Certificate) {
				return errors.New("revoked")
			}
			return nil
		},
	})
}

// asOpenSSL does not list the authorities that it knows.
func (o *ours) asOpenSSL(t *testing.T) string {
	port := freePort(t)
	start(t, "openssl", "s_server", "-accept", "127.0.0.1:"+port, "-cert", o.crt, "-key", o.key,
		"-Verify", "3", "-verify_return_error", "-verifyCAfile", o.ca, "-crl_check", "-CRL", o.crl, "-quiet")
	listens(t, "127.0.0.1:"+port)
	return "127.0.0.1:" + port
}

func (o *ours) asMosquitto(t *testing.T) string {
	port := freePort(t)
	start(t, "mosquitto", "-c", writeFile(t, filepath.Join(t.TempDir(), "mosquitto.conf"), fmt.Appendf(nil,
		"listener %s 127.0.0.1\ncafile %s\ncertfile %s\nkeyfile %s\ncrlfile %s\nrequire_certificate true\nallow_anonymous true\nuser root\n", port, o.ca, o.crt, o.key, o.crl)))
	listens(t, "127.0.0.1:"+port)
	return "127.0.0.1:" + port
}

// want is what is to be made of a refusal; nothing: it is none.
type want struct {
	cause cause.Cause
	side  cause.Side
	text  string
}

// ourCase is a certificate of ours, and how three brokers take it.
type ourCase struct {
	name                     string
	shown                    *identity.Credential
	ofGo, openssl, mosquitto want
}

func (o *ours) cases(show func(*minted) *identity.Credential) []ourCase {
	const device, broker = cause.SideDevice, cause.SideBroker
	refused := want{cause.CertificateRefused, broker, "bad certificate"}
	unknown := want{cause.CertificateUnknownCA, broker, "unknown certificate authority"}
	unlisted := want{cause.CertificateNotAcceptable, broker, "not signed by an acceptable CA"}
	return []ourCase{
		{"good", show(o.good), want{}, want{}, want{}},
		{"expired", show(o.expired), want{cause.CertificateExpired, device, "expired certificate"}, want{cause.CertificateExpired, device, "expired certificate"}, want{cause.CertificateExpired, device, "expired certificate"}},
		{"not yet valid", show(o.notYet), want{cause.CertificateExpired, device, "expired certificate"}, refused, refused},
		{"of a stranger", show(o.stranger), unlisted, unknown, unknown},
		{"of a namesake of the authority", show(o.namesake), unknown, unknown, unknown},
		{"revoked", show(o.revoked), refused, want{cause.CertificateRevoked, device, "revoked certificate"}, want{cause.CertificateRevoked, device, "revoked certificate"}},
		{"a server's", show(o.wrongUse), refused, want{cause.CertificateRefused, broker, "unsupported certificate"}, want{cause.CertificateRefused, broker, "unsupported certificate"}},
		{"none", nil, want{cause.CertificateRequired, device, "certificate required"}, want{cause.CertificateRequired, device, "certificate required"}, want{cause.CertificateRequired, device, "certificate required"}},
	}
}

// Our own certificate, as brokers of Go, of OpenSSL and mosquitto judge it, in both versions.
func TestOurCertificate(t *testing.T) {
	w, o := newWorld(t), newOurs(t)
	show := func(m *minted) *identity.Credential { return credential(t, encodePEM(m), m.keyPEM(t)) }
	cases := o.cases(show)
	for server, address := range map[string]string{"Go": o.asGo(t), "OpenSSL": o.asOpenSSL(t), "mosquitto": o.asMosquitto(t)} {
		each(t, func(t *testing.T, version uint16) {
			for _, test := range cases {
				t.Run(server+" "+strings.ReplaceAll(test.name, " ", "-"), func(t *testing.T) {
					w := &world{t: t, ca: w.ca, log: w.log}
					d := w.dialer(atMost(version), trusting(o.root))
					want := map[string]want{"Go": test.ofGo, "OpenSSL": test.openssl, "mosquitto": test.mosquitto}[server]
					if want.cause == "" && want.text == "" {
						c, err := w.dialAs(d, "mqtts://"+address, test.shown)
						if err == nil {
							err = c.Prove(t.Context())
						}
						if err != nil {
							t.Error(err)
						}
						return
					}
					stage := cause.StageTLS
					if version == tls.VersionTLS13 && want.cause != cause.CertificateNotAcceptable {
						stage = cause.StageConnack
					}
					if test.shown == nil && version == tls.VersionTLS12 { // which has no word for it
						want.cause, want.text = cause.Handshake, "handshake failure"
					}
					expect(t, w.failureAs(d, "mqtts://"+address, test.shown), stage, want.cause, want.side, want.text)
				})
			}
		})
	}
}
