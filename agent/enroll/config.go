package enroll

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ferrule/agent/enroll/peer"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

// The values of Config.Method.
const (
	MethodNone      = "none"
	MethodRegistrar = "registrar"
	MethodEST       = "est"
	MethodStep      = "step"
	MethodExec      = "exec"
)

// Config is the [enroll] section.
type Config struct {
	// Who issues the certificate: registrar, est (RFC 7030), step (step-ca), exec (a program of
	// yours), or none where it is put in place by other means.
	Method string `toml:"method"`
	// Address of the service, an https URL. That of an EST server may have a label:
	// https://est.example/.well-known/est/gateways.
	URL string `toml:"url"`
	// File with the root certificates, PEM, that the service's certificate and the one it
	// issues must chain to.
	Roots string `toml:"roots"`
	// Id to ask for at the first enrollment where neither registrar, token nor factory
	// certificate gives one.
	Device string `toml:"device"`
	// Part of a certificate's life after which it is renewed, 0.2 to 0.9, less a random tenth of
	// the life. 0 is 0.66.
	RenewAt float64 `toml:"renew_at"`
	// Name of the X5C provisioner of step-ca that trusts the factory certificates.
	Provisioner string `toml:"provisioner"`
	// Program of method exec and its arguments, without a shell: PKCS #10 request on standard
	// input, chain on standard output, both PEM; exit 75 to be asked again later
	// (docs/enrollment.md).
	Command []string `toml:"command"`
	// How long one answer of the service, or one run of the program, may take.
	Timeout quantity.Duration `toml:"timeout"`
	// HTTP proxy on the way to the service: an http URL, or env for what HTTPS_PROXY and NO_PROXY
	// say. It passes TLS on and can read nothing.
	Proxy string `toml:"proxy"`
	// Who issues the factory certificate (ferrule enroll --factory); where this table is
	// missing, the same as above.
	Factory *Source `toml:"factory"`
}

// Source is the [enroll.factory] table.
type Source struct {
	// As enroll.method.
	Method string `toml:"method"`
	// As enroll.url.
	URL string `toml:"url"`
	// As enroll.roots.
	Roots string `toml:"roots"`
	// As enroll.provisioner.
	Provisioner string `toml:"provisioner"`
	// As enroll.command.
	Command []string `toml:"command"`
}

// The defaults.
const (
	defaultRenewAt = 0.66
	minRenewAt     = 0.2
	maxRenewAt     = 0.9
	spread         = 0.1 // of the life, before renew_at
)

// Default returns the section as it is when the file says nothing.
func Default() Config {
	return Config{Method: MethodNone, RenewAt: defaultRenewAt, Timeout: quantity.Duration(peer.DefaultTimeout)}
}

// ForFactory is c with who issues the factory certificate in the place of who issues the
// operational one.
func (c Config) ForFactory() Config {
	if f := c.Factory; f != nil {
		c.Method, c.URL, c.Roots, c.Provisioner, c.Command = f.Method, f.URL, f.Roots, f.Provisioner, f.Command
		c.Factory = nil
	}
	return c
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	problems := []error{c.validateSource("enroll")}
	if c.Device != "" && !ValidDevice(c.Device) {
		problems = append(problems, hint.With(fmt.Errorf("enroll.device %q is no id of a device", c.Device), deviceHint))
	}
	if c.RenewAt != 0 && !(c.RenewAt >= minRenewAt && c.RenewAt <= maxRenewAt) {
		problems = append(problems, hint.With(fmt.Errorf("enroll.renew_at %v is out of range", c.RenewAt),
			"write a part of the certificate's life from 0.2 to 0.9; 0.66 leaves a third of it for repairs"))
	}
	if c.Timeout != 0 && (c.Timeout.Std() < time.Second || c.Timeout.Std() > 10*time.Minute) {
		problems = append(problems, hint.With(fmt.Errorf("enroll.timeout %v is out of range", c.Timeout), `write 1s to 10m; "20s" is the default`))
	}
	if _, err := c.proxy(); err != nil {
		problems = append(problems, err)
	}
	if c.Factory != nil {
		problems = append(problems, c.ForFactory().validateSource("enroll.factory"))
	}
	return errors.Join(problems...)
}

func (c Config) validateSource(section string) error {
	switch c.Method {
	case MethodNone:
		return nil
	case MethodRegistrar, MethodEST, MethodStep:
		if _, err := peer.ParseURL(c.URL); err != nil {
			return hint.With(fmt.Errorf("%s.url: %w", section, err), `write it as "https://registrar.example:8443"; a user for EST goes into --token`)
		}
	case MethodExec:
		if len(c.Command) == 0 || !filepath.IsAbs(c.Command[0]) {
			return hint.With(fmt.Errorf("%s.command names no program by its whole path", section),
				`write it as ["/usr/local/bin/sign", "argument"]; no shell reads it`)
		}
	default:
		return hint.With(fmt.Errorf("%s.method %q is not known", section, c.Method), "it is registrar, est, step, exec or none")
	}
	if c.Roots == "" {
		return hint.With(fmt.Errorf("%s.roots is missing", section),
			"name the file with the factory's root certificate; without it anybody could pose as the service")
	}
	return nil
}

func (c Config) proxy() (func(*http.Request) (*url.URL, error), error) {
	switch c.Proxy {
	case "":
		return nil, nil
	case "env":
		return proxyOfEnvironment, nil
	}
	address, err := url.Parse(c.Proxy)
	if err != nil || address.Scheme != "http" || address.Host == "" {
		return nil, hint.With(errors.New("enroll.proxy is no http address"), `write it as "http://proxy.example:3128", or "env"`)
	}
	return http.ProxyURL(address), nil
}

// proxyOfEnvironment refuses proxies that speak TLS themselves: net/http would show them the
// certificate that is for the service.
func proxyOfEnvironment(r *http.Request) (*url.URL, error) {
	address, err := http.ProxyFromEnvironment(r)
	if err == nil && address != nil && address.Scheme != "http" {
		return nil, errors.New("HTTPS_PROXY names no http address")
	}
	return address, err
}

const deviceHint = "an id is 1 to 64 letters, digits, dots, hyphens and underlines, the first a letter or digit"

// ValidDevice says whether id may be the id of a device: [A-Za-z0-9][A-Za-z0-9._-]{0,63}. It
// becomes a common name, part of topics, and the name of files.
func ValidDevice(id string) bool {
	if id == "" || len(id) > 64 || strings.ContainsRune("._-", rune(id[0])) {
		return false
	}
	return strings.IndexFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	}) < 0
}

// Due is when leaf should be renewed: at RenewAt of its life less up to a tenth of the life.
// What is taken off comes from the digest of leaf, so that it is the same after a restart and
// even over a fleet whose certificates were all issued in one hour.
func (c Config) Due(leaf *x509.Certificate) time.Time {
	at := c.RenewAt
	if at == 0 {
		at = defaultRenewAt
	}
	digest := sha256.Sum256(leaf.Raw)
	at -= spread * float64(binary.BigEndian.Uint64(digest[:])) / (1 << 64)
	life := max(leaf.NotAfter.Sub(leaf.NotBefore), 0)
	return leaf.NotBefore.Add(time.Duration(at * float64(life)))
}

// maxRoots bounds the file of enroll.roots, in bytes.
const maxRoots = 1 << 20

func readRoots(path string) (*x509.CertPool, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading enroll.roots: %w", err), "put the root certificate there, or write enroll.roots as where it is")
	}
	defer file.Close()
	pem, err := io.ReadAll(io.LimitReader(file, maxRoots))
	if err != nil {
		return nil, fmt.Errorf("reading enroll.roots: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, hint.With(fmt.Errorf("reading enroll.roots: %s holds no certificate", path), "it takes certificates in PEM")
	}
	return pool, nil
}

// Verify says whether a chain, the leaf first, is a client's and leads to the roots of c. How
// long it is valid is not judged beyond reason: the clock of a gateway may be behind.
func (c Config) Verify(chain []*x509.Certificate, now time.Time) error {
	roots, err := readRoots(c.Roots)
	if err != nil {
		return err
	}
	return VerifyAgainst(roots, chain, now)
}

// VerifyAgainst is Config.Verify with roots of the caller's.
func VerifyAgainst(roots *x509.CertPool, chain []*x509.Certificate, now time.Time) error {
	_, err := ChainsTo(roots, chain, now)
	return err
}

// ChainsTo is VerifyAgainst, and returns the ways by which chain leads to roots.
func ChainsTo(roots *x509.CertPool, chain []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("checking the certificate: there is none")
	}
	between := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		between.AddCert(certificate)
	}
	for _, certificate := range chain {
		if now.Before(certificate.NotBefore) {
			now = certificate.NotBefore
		}
	}
	if now.After(chain[0].NotAfter) {
		now = chain[0].NotAfter
	}
	chains, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, hint.With(fmt.Errorf("checking the certificate against enroll.roots: %w", err),
			"the service and the CA behind it do not belong to the roots in that file: put the CA's root there too")
	}
	return chains, nil
}
