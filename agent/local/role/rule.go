package role

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"ferrule/internal/hint"
)

// Rule gives a role to the certificates that carry one name below one CA.
type Rule struct {
	// What the certificate's holder may do: viewer, operator or admin.
	Role Role `toml:"role"`
	// The certificate's SAN URI, whole; an ending of "/*" stands for one path segment of letters,
	// digits and "._-". One of uri, dns and ou is given.
	URI string `toml:"uri"`
	// The certificate's SAN DNS name; a first label of "*" stands for any one label. Names are
	// ASCII and their case does not count. A wildcard in the certificate itself matches nothing.
	DNS string `toml:"dns"`
	// One of the certificate's organizational units (OU of the subject), byte by byte.
	OU string `toml:"ou"`
	// PEM file of the CA that may give this name; empty: that of local.roots. A certificate below
	// any other CA does not match, whatever it is called.
	Roots string `toml:"roots"`
}

// Validate says what is wrong with r.
func (r Rule) Validate() error {
	if r.Role == None {
		return hint.With(errors.New("role is missing"), `write one of role = "viewer", "operator", "admin"`)
	}
	if r.Role > Admin {
		return fmt.Errorf("%v does not exist", r.Role)
	}
	given := 0
	for _, name := range []string{r.URI, r.DNS, r.OU} {
		if name != "" {
			given++
		}
	}
	if given != 1 {
		return hint.With(fmt.Errorf("%d of uri, dns and ou are given; a rule holds one", given),
			"write one [[local.role]] for each name")
	}
	switch {
	case r.URI != "":
		return validURI(r.URI)
	case r.DNS != "":
		return validDNS(r.DNS)
	}
	return validOU(r.OU)
}

// kind returns how the rule's name is called in the configuration, and the name.
func (r Rule) kind() (kind, name string) {
	switch {
	case r.URI != "":
		return "uri", r.URI
	case r.DNS != "":
		return "dns", r.DNS
	}
	return "ou", r.OU
}

// match returns the name of leaf that r stands for, "" where there is none.
func (r Rule) match(leaf *x509.Certificate) string {
	switch {
	case r.URI != "":
		for _, name := range uris(leaf) {
			if matchURI(r.URI, name) {
				return name
			}
		}
	case r.DNS != "":
		for _, name := range leaf.DNSNames {
			if matchDNS(r.DNS, name) {
				return lower(name)
			}
		}
	default:
		for _, name := range leaf.Subject.OrganizationalUnit {
			if name == r.OU && validOU(name) == nil {
				return name
			}
		}
	}
	return ""
}

// subjectAltName is its extension (RFC 5280, 4.2.1.6).
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// uris returns the SAN URIs as the CA wrote them: the parsed ones of crypto/x509 have lost an empty
// fragment and the case of their scheme.
func uris(leaf *x509.Certificate) (all []string) {
	const uniformResourceIdentifier = 6
	for _, extension := range leaf.Extensions {
		var names []asn1.RawValue
		if !extension.Id.Equal(subjectAltName) {
			continue
		}
		if rest, err := asn1.Unmarshal(extension.Value, &names); err != nil || len(rest) > 0 {
			return nil
		}
		for _, name := range names {
			if name.Class == asn1.ClassContextSpecific && name.Tag == uniformResourceIdentifier {
				all = append(all, string(name.Bytes))
			}
		}
	}
	return all
}

func validURI(pattern string) error {
	base := strings.TrimSuffix(pattern, "/*")
	scheme, rest, ok := strings.Cut(base, ":")
	if !ok || scheme == "" || rest == "" || !plain(base) {
		return fmt.Errorf("uri %q is not an absolute URI of printable ASCII", pattern)
	}
	if strings.Contains(base, "*") {
		return fmt.Errorf(`uri %q: only an ending of "/*" is a wildcard`, pattern)
	}
	if authority := strings.TrimPrefix(rest, "//"); base != pattern && authority == "" {
		return fmt.Errorf("uri %q names nobody in particular", pattern)
	}
	return nil
}

// matchURI compares whole URIs, byte by byte: two spellings of one URI are two names.
func matchURI(pattern, name string) bool {
	base, wild := strings.CutSuffix(pattern, "/*")
	if !wild {
		return name == pattern
	}
	segment, ok := strings.CutPrefix(name, base+"/")
	return ok && plainSegment(segment)
}

// plainSegment accepts one path segment that means the same to everybody: no escapes, no dots
// alone, nothing of a query.
func plainSegment(s string) bool {
	if s == "" || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		if !letterOrDigit(s[i]) && !strings.ContainsRune("._-", rune(s[i])) {
			return false
		}
	}
	return true
}

func validDNS(pattern string) error {
	name := strings.TrimPrefix(pattern, "*.")
	if !hostName(name) {
		return fmt.Errorf("dns %q is not a host name in ASCII", pattern)
	}
	if name != pattern && !strings.Contains(name, ".") {
		return fmt.Errorf("dns %q would take everything of a top-level domain", pattern)
	}
	return nil
}

// matchDNS compares names label by label. The certificate's own name must be one name: a
// wildcard, a trailing dot, an underscore or a letter outside ASCII in it matches nothing.
func matchDNS(pattern, name string) bool {
	if !hostName(name) {
		return false
	}
	suffix, wild := strings.CutPrefix(lower(pattern), "*")
	if !wild {
		return lower(name) == suffix
	}
	label, ok := strings.CutSuffix(lower(name), suffix)
	return ok && label != "" && !strings.Contains(label, ".")
}

// hostName follows RFC 1123, 2.1: labels of letters, digits and inner hyphens.
func hostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if !letterOrDigit(label[i]) && label[i] != '-' {
				return false
			}
		}
	}
	return true
}

func validOU(name string) error {
	if !utf8.ValidString(name) {
		return fmt.Errorf("ou %q is not UTF-8", name)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("ou %q holds a character that cannot be seen", name)
		}
	}
	if strings.TrimSpace(name) != name {
		return fmt.Errorf("ou %q begins or ends with a space", name)
	}
	return nil
}

func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func letterOrDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// lower changes ASCII only: the Kelvin sign is not a k here.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
