package role

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Policy is the rules with the CAs they name. It is immutable.
type Policy struct {
	rules []bound
	pool  *x509.CertPool
	empty bool
}

// bound is a rule and the certificates that may end a chain for it, by SHA-256.
type bound struct {
	Rule
	roots map[[sha256.Size]byte]bool
}

// ErrNoRole refuses a good certificate to which no rule gives a role.
var ErrNoRole = errors.New("no rule gives a role to this certificate")

// New binds rules to the CAs of their files. Load returns the certificates of one file; it is
// asked once for each, for roots ("" : no common CA) too.
func New(rules []Rule, roots string, load func(file string) ([]*x509.Certificate, error)) (*Policy, error) {
	p := &Policy{pool: x509.NewCertPool(), empty: true}
	loaded := make(map[string]map[[sha256.Size]byte]bool)
	add := func(file string) (map[[sha256.Size]byte]bool, error) {
		if known := loaded[file]; known != nil || file == "" {
			return known, nil
		}
		certificates, err := load(file)
		if err != nil {
			return nil, err
		}
		set := make(map[[sha256.Size]byte]bool)
		for _, c := range certificates {
			set[sha256.Sum256(c.Raw)] = true
			p.pool.AddCert(c)
			p.empty = false
		}
		loaded[file] = set
		return set, nil
	}
	if _, err := add(roots); err != nil {
		return nil, err
	}
	for n, rule := range rules {
		if err := rule.Validate(); err != nil {
			return nil, fmt.Errorf("role %d: %w", n+1, err)
		}
		file := rule.Roots
		if file == "" {
			file = roots
		}
		set, err := add(file)
		if err != nil {
			return nil, err
		}
		p.rules = append(p.rules, bound{Rule: rule, roots: set})
	}
	return p, nil
}

// Pool holds every CA that a rule or the configuration names: whose certificates are verified
// at all. False: there is none.
func (p *Policy) Pool() (*x509.CertPool, bool) { return p.pool, !p.empty }

// Decide returns what the holder of the leaf of these verified chains may do. Several rules may
// match; the highest role counts: rules only grant, so their order means nothing and adding
// one never takes anything away. Its error wraps ErrNoRole and names what the certificate says.
func (p *Policy) Decide(chains [][]*x509.Certificate) (Grant, error) {
	var grant Grant
	for _, rule := range p.rules {
		if rule.Role <= grant.Role {
			continue
		}
		for _, chain := range chains {
			if len(chain) == 0 || !rule.roots[sha256.Sum256(chain[len(chain)-1].Raw)] {
				continue
			}
			if name := rule.match(chain[0]); name != "" {
				kind, _ := rule.kind()
				grant = Grant{Role: rule.Role, Name: kind + ":" + name}
				break
			}
		}
	}
	if grant.Role != None {
		return grant, nil
	}
	if len(chains) == 0 || len(chains[0]) == 0 {
		return Grant{}, ErrNoRole
	}
	return Grant{}, fmt.Errorf("%w (%s)", ErrNoRole, Describe(chains[0][0]))
}

// describeAtMost bounds what Describe shows of a certificate, in bytes.
const describeAtMost = 300

// Describe shows the names of a certificate for a log: escaped, and short however long they are.
func Describe(c *x509.Certificate) string {
	words := []string{"cn " + strconv.QuoteToASCII(short(c.Subject.CommonName))}
	for _, ou := range c.Subject.OrganizationalUnit {
		words = append(words, "ou "+strconv.QuoteToASCII(short(ou)))
	}
	for _, uri := range uris(c) {
		words = append(words, "uri "+strconv.QuoteToASCII(short(uri)))
	}
	for _, name := range c.DNSNames {
		words = append(words, "dns "+strconv.QuoteToASCII(short(name)))
	}
	words = append(words, "issued by "+strconv.QuoteToASCII(short(c.Issuer.CommonName)))
	text := strings.Join(words, ", ")
	if len(text) > describeAtMost {
		text = text[:describeAtMost] + "…"
	}
	return text
}

func short(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
