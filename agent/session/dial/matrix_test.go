package dial

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"os/exec"
	"path/filepath"
	"testing"

	"ferrule/agent/session/cause"
)

// pki is a good chain that cases deviate from.
type pki struct {
	t                  *testing.T
	root, intermediate *minted
}

// shown is what a broker shows, and what we trust.
type shown struct {
	chain tls.Certificate
	roots *x509.CertPool
	host  string // "" is localhost
}

func (p *pki) shows(chain tls.Certificate) shown { return shown{chain: chain, roots: pool(p.root)} }

func (p *pki) leaf(change ...func(*x509.Certificate)) shown {
	return p.shows(mint(p.t, "broker", p.intermediate, append([]func(*x509.Certificate){forServer()}, change...)...).chain(p.intermediate))
}

func (p *pki) below(change ...func(*x509.Certificate)) shown {
	odd := mint(p.t, "odd authority", p.root, append([]func(*x509.Certificate){authority}, change...)...)
	return p.shows(mint(p.t, "broker", odd, forServer()).chain(odd))
}

func (p *pki) at(host string, change ...func(*x509.Certificate)) shown {
	s := p.leaf(change...)
	s.host = host
	return s
}

// brokers are the chains that brokers show. No cause: it is accepted.
var brokers = []struct {
	name  string
	shown func(p *pki) shown
	cause cause.Cause
	text  string
}{
	{"good", func(p *pki) shown { return p.leaf() }, "", ""},
	{"signed by the root", func(p *pki) shown { return p.shows(mint(p.t, "broker", p.root, forServer()).chain()) }, "", ""},
	{"chain in the wrong order", func(p *pki) shown {
		above := mint(p.t, "above", p.root, authority)
		below := mint(p.t, "below", above, authority)
		return p.shows(mint(p.t, "broker", below, forServer()).chain(above, below))
	}, "", ""},
	{"a stranger in the chain", func(p *pki) shown {
		return p.shows(mint(p.t, "broker", p.intermediate, forServer()).chain(mint(p.t, "stranger", nil, authority), p.intermediate))
	}, "", ""},
	{"cross-signed", func(p *pki) shown {
		other := mint(p.t, "other root", nil, authority)
		again := mintFor(p.t, "intermediate", other, p.intermediate.key, authority)
		return shown{chain: mint(p.t, "broker", p.intermediate, forServer()).chain(p.intermediate, again), roots: pool(other)}
	}, "", ""},
	{"root sent along", func(p *pki) shown {
		return p.shows(mint(p.t, "broker", p.intermediate, forServer()).chain(p.intermediate, p.root))
	}, "", ""},

	{"unknown root", func(p *pki) shown { s := p.leaf(); s.roots = pool(mint(p.t, "other", nil, authority)); return s },
		cause.BrokerUnknownCA, `"CN=intermediate"`},
	{"a root of the same name", func(p *pki) shown { s := p.leaf(); s.roots = pool(mint(p.t, "root", nil, authority)); return s },
		cause.BrokerUnknownCA, "not trusted here"},
	{"intermediate missing", func(p *pki) shown { return p.shows(mint(p.t, "broker", p.intermediate, forServer()).chain()) },
		cause.BrokerUnknownCA, `"CN=intermediate"`},
	{"another intermediate", func(p *pki) shown {
		return p.shows(mint(p.t, "broker", p.intermediate, forServer()).chain(mint(p.t, "another", p.root, authority)))
	}, cause.BrokerUnknownCA, `"CN=intermediate"`},
	{"self-signed", func(p *pki) shown { return p.shows(mint(p.t, "broker", nil, forServer()).chain()) }, cause.BrokerUnknownCA, `"CN=broker"`},

	{"leaf expired", func(p *pki) shown { return p.leaf(expired) }, cause.BrokerExpired, "the broker's certificate has expired"},
	{"intermediate expired", func(p *pki) shown { return p.below(expired) }, cause.BrokerExpired, "the certificate of an authority above the broker's has expired"},
	{"root expired", func(p *pki) shown {
		root := mint(p.t, "root", nil, authority, expired)
		return shown{chain: mint(p.t, "broker", root, forServer()).chain(), roots: pool(root)}
	}, cause.BrokerExpired, "the certificate of an authority above the broker's has expired"},
	{"leaf not yet valid", func(p *pki) shown { return p.leaf(notYet) }, cause.Clock, "is before"},
	{"intermediate not yet valid", func(p *pki) shown { return p.below(notYet) }, cause.Clock, "is before"},

	{"wrong name", func(p *pki) shown { return p.leaf(forServer("other.test")) }, cause.BrokerName, "other.test"},
	{"in capitals", func(p *pki) shown { return p.at("LOCALHOST") }, "", ""},
	{"absolute name", func(p *pki) shown { return p.at("broker.test.", forServer("broker.test")) }, "", ""},
	{"wildcard", func(p *pki) shown { return p.at("a.fleet.test", forServer("*.fleet.test")) }, "", ""},
	{"wildcard, two levels", func(p *pki) shown { return p.at("a.b.fleet.test", forServer("*.fleet.test")) }, cause.BrokerName, "*.fleet.test"},
	{"wildcard, no level", func(p *pki) shown { return p.at("fleet.test", forServer("*.fleet.test")) }, cause.BrokerName, "*.fleet.test"},
	{"wildcard in a label", func(p *pki) shown { return p.at("ab.fleet.test", forServer("a*.fleet.test")) }, cause.BrokerName, "certificate is for another name"},
	{"wildcard in the middle", func(p *pki) shown { return p.at("a.b.fleet.test", forServer("a.*.fleet.test")) }, cause.BrokerName, "certificate is for another name"},
	{"international name", func(p *pki) shown { return p.at("bücher.test", forServer("xn--bcher-kva.test")) }, "", ""},
	{"IP in SAN", func(p *pki) shown {
		return p.at("127.0.0.1", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} })
	}, "", ""},
	{"another IP", func(p *pki) shown {
		return p.at("127.0.0.1", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 2)} })
	}, cause.BrokerName, "127.0.0.2"},
	{"IP as a name", func(p *pki) shown { return p.at("127.0.0.1", forServer("127.0.0.1")) }, cause.BrokerName, "IP SANs"},
	{"common name only", func(p *pki) shown {
		return p.leaf(func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = nil, "localhost" })
	}, cause.BrokerName, "Common Name"},

	{"no extended key usage", func(p *pki) shown { return p.leaf(func(c *x509.Certificate) { c.ExtKeyUsage = nil }) }, "", ""},
	{"any extended key usage", func(p *pki) shown {
		return p.leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })
	}, "", ""},
	{"for clients only", func(p *pki) shown { return p.leaf(forClient) }, cause.BrokerInvalid, "is not a server's"},
	{"authority for clients only", func(p *pki) shown { return p.below(forClient) }, cause.BrokerInvalid, "is not a server's"},
	// Go judges the extended usage alone, and so do we: the key signs in every handshake we speak.
	{"leaf without digital signature", func(p *pki) shown {
		return p.leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	}, "", ""},
	{"path too long", func(p *pki) shown {
		end := mint(p.t, "end", p.root, authority, func(c *x509.Certificate) { c.MaxPathLenZero = true })
		below := mint(p.t, "below", end, authority)
		return p.shows(mint(p.t, "broker", below, forServer()).chain(below, end))
	}, cause.BrokerInvalid, "too many authorities"},
	{"name not permitted", func(p *pki) shown {
		return p.below(func(c *x509.Certificate) {
			c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"fleet.test"}
		})
	}, cause.BrokerInvalid, "may not certify this name"},
	{"name excluded", func(p *pki) shown {
		return p.below(func(c *x509.Certificate) {
			c.PermittedDNSDomainsCritical, c.ExcludedDNSDomains = true, []string{"localhost"}
		})
	}, cause.BrokerInvalid, "may not certify this name"},
	{"authority without the flag", func(p *pki) shown {
		return p.below(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
	}, cause.BrokerInvalid, "is not an authority"},
	{"authority that may not sign certificates", func(p *pki) shown {
		return p.below(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	}, cause.BrokerInvalid, "is not an authority"},
	{"signed with SHA-1", func(p *pki) shown {
		return p.leaf(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 })
	}, cause.BrokerInvalid, "too weak"},
	{"signed with 512 bits", weakKey, cause.BrokerInvalid, "too weak"},
	{"a critical extension that nobody knows", func(p *pki) shown {
		return p.leaf(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		})
	}, cause.BrokerInvalid, "is not valid"},
}

// weakKey is a root of 512 bits, which Go will not make.
func weakKey(p *pki) shown {
	dir := p.t.TempDir()
	run := func(args ...string) {
		p.t.Helper()
		cmd := exec.Command(program(p.t, "openssl"), args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			p.t.Fatalf("openssl %v: %v: %s", args, err, out)
		}
	}
	run("req", "-x509", "-newkey", "rsa:512", "-nodes", "-keyout", "root.key", "-out", "root.crt", "-subj", "/CN=weak", "-days", "9")
	run("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=broker")
	writeFile(p.t, filepath.Join(dir, "ext"), []byte("subjectAltName=DNS:localhost\n"))
	run("x509", "-req", "-in", "leaf.csr", "-CA", "root.crt", "-CAkey", "root.key", "-CAcreateserial", "-days", "9", "-extfile", "ext", "-out", "leaf.crt")
	chain := must[tls.Certificate](p.t)(tls.LoadX509KeyPair(filepath.Join(dir, "leaf.crt"), filepath.Join(dir, "leaf.key")))
	return shown{chain: chain, roots: must[*x509.CertPool](p.t)(ReadRoots(filepath.Join(dir, "root.crt")))}
}

// What brokers show, in both versions of TLS: accepted, or refused for a reason that is right,
// before a byte of CONNECT leaves.
func TestBrokersCertificates(t *testing.T) {
	w := newWorld(t)
	p := &pki{t: t, root: mint(t, "root", nil, authority)}
	p.intermediate = mint(t, "intermediate", p.root, authority)
	names := dnsServer(t, nil, func(string, bool) []net.IP { return []net.IP{net.IPv4(127, 0, 0, 1)} })
	for _, test := range brokers {
		s := test.shown(p)
		each(t, func(t *testing.T, version uint16) {
			t.Run(test.name, func(t *testing.T) {
				w := &world{t: t, ca: w.ca, server: w.server, device: w.device, log: w.log}
				config := w.server.ServerTLS(w.ca)
				config.Certificates, config.MaxVersion = []tls.Certificate{s.chain}, version
				address := tlsEcho(t, config)
				_, port, _ := net.SplitHostPort(address)
				if s.host == "" {
					s.host = "localhost"
				}
				d := w.dialer(func(o *Options) { o.Trust.Roots = func() *x509.CertPool { return s.roots } })
				d.resolver = names
				broker := "mqtts://" + net.JoinHostPort(s.host, port)
				if test.cause == "" {
					w.connected(d, broker)
					return
				}
				side := cause.SideBroker
				if test.cause == cause.BrokerUnknownCA || test.cause == cause.Clock {
					side = cause.SideDevice
				}
				expect(t, w.failure(d, broker), cause.StageTLS, test.cause, side, test.text)
			})
		})
	}
	if n := 2 * len(brokers); n < 40 {
		t.Errorf("%d cases", n)
	}
}
