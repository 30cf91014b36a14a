package role_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"ferrule/agent/local/role"
)

// authority is a CA for these tests.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string, above *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a := &authority{key: key}
	parent, parentKey := template, key
	if above != nil {
		parent, parentKey = above.certificate, above.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// names are what a client's certificate says.
type names struct {
	cn, uri  string
	ous, dns []string
	rawSAN   []byte // instead of uri and dns
	subject  []byte // instead of cn and ous
}

func (a *authority) issue(t testing.TB, n names) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: n.cn, OrganizationalUnit: n.ous}, RawSubject: n.subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: n.dns,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if n.uri != "" {
		uri, err := url.Parse(n.uri)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{uri}
	}
	if n.rawSAN != nil {
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: n.rawSAN}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// verify verifies as the listener does: below any CA of the policy.
func verify(t testing.TB, p *role.Policy, leaf *x509.Certificate, between ...*x509.Certificate) [][]*x509.Certificate {
	t.Helper()
	pool, ok := p.Pool()
	if !ok {
		t.Fatal("the policy has no CA")
	}
	o := x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range between {
		o.Intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(o)
	if err != nil {
		return nil
	}
	return chains
}

// san encodes general names: the tag of its context, and the content.
func san(t testing.TB, tag int, content ...string) []byte {
	t.Helper()
	var all []asn1.RawValue
	for _, c := range content {
		all = append(all, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(c)})
	}
	der, err := asn1.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// twoRDNs is a subject whose OU stands in an RDN of two values beside the CN (X.501).
func twoRDNs(t testing.TB, cn, ou string) []byte {
	t.Helper()
	der, err := asn1.Marshal(pkix.RDNSequence{{
		{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: cn}, {Type: asn1.ObjectIdentifier{2, 5, 4, 11}, Value: ou},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// world is the CAs of the rules below.
type world struct {
	site, other, stranger, below *authority
	policy                       *role.Policy
}

var rules = []role.Rule{
	{Role: role.Viewer, OU: "Viewers"},
	{Role: role.Operator, OU: "Operators"},
	{Role: role.Admin, OU: "Betriebsführung"},
	{Role: role.Viewer, DNS: "*.panels.site.example"},
	{Role: role.Operator, DNS: "console.site.example"},
	{Role: role.Viewer, URI: "spiffe://site.example/people/*"},
	{Role: role.Admin, URI: "spiffe://site.example/people/anna"},
	{Role: role.Admin, OU: "Vendor", Roots: "other"},
	{Role: role.Operator, URI: "urn:ferrule:robot", Roots: "below"},
}

func newWorld(t testing.TB) *world {
	w := &world{site: newAuthority(t, "site", nil), other: newAuthority(t, "other", nil), stranger: newAuthority(t, "site", nil)}
	w.below = newAuthority(t, "robots", w.site)
	files := map[string]*authority{"site": w.site, "other": w.other, "below": w.below}
	var err error
	w.policy, err = role.New(rules, "site", func(file string) ([]*x509.Certificate, error) {
		return []*x509.Certificate{files[file].certificate}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWhoMayWhat is S4a of the attack list: names spoofed, empty, doubled and written in ways
// that only look alike.
func TestWhoMayWhat(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name string
		by   *authority
		says names
		want role.Role
		who  string
	}{
		{"OU", w.site, names{ous: []string{"Viewers"}}, role.Viewer, "ou:Viewers"},
		{"OU outside ASCII", w.site, names{ous: []string{"Betriebsführung"}}, role.Admin, "ou:Betriebsführung"},
		{"OU in other case", w.site, names{ous: []string{"operators"}}, role.None, ""},
		{"OU with a space behind", w.site, names{ous: []string{"Operators "}}, role.None, ""},
		{"OU with NUL behind", w.site, names{ous: []string{"Operators\x00"}}, role.None, ""},
		{"OU with NUL and more", w.site, names{ous: []string{"Operators\x00.evil"}}, role.None, ""},
		{"OU with a newline", w.site, names{ous: []string{"Operators\n"}}, role.None, ""},
		{"OU with a zero width space", w.site, names{ous: []string{"Oper\u200bators"}}, role.None, ""},
		{"OU with a homoglyph", w.site, names{ous: []string{"Оperators"}}, role.None, ""}, // Cyrillic О
		{"OU decomposed", w.site, names{ous: []string{"Betriebsfu\u0308hrung"}}, role.None, ""},
		{"OU empty", w.site, names{cn: "x", ous: []string{""}}, role.None, ""},
		{"OU *", w.site, names{ous: []string{"*"}}, role.None, ""},
		{"OU as CN", w.site, names{cn: "Operators"}, role.None, ""},
		{"OU inside the CN", w.site, names{cn: "x,OU=Operators"}, role.None, ""},
		{"OU in an RDN of two", w.site, names{subject: twoRDNs(t, "x", "Operators")}, role.Operator, "ou:Operators"},
		{"two OUs, one known", w.site, names{ous: []string{"Nobody", "Operators"}}, role.Operator, "ou:Operators"},
		{"two OUs, both known: the higher", w.site, names{ous: []string{"Operators", "Viewers"}}, role.Operator, "ou:Operators"},
		{"OU under another CA of ours", w.other, names{ous: []string{"Operators"}}, role.None, ""},
		{"OU of the other CA under ours", w.site, names{ous: []string{"Vendor"}}, role.None, ""},
		{"OU under its own CA", w.other, names{ous: []string{"Vendor"}}, role.Admin, "ou:Vendor"},
		{"OU under a stranger of our CA's name", w.stranger, names{ous: []string{"Operators"}}, role.None, ""},
		{"empty subject", w.site, names{subject: []byte{0x30, 0}, dns: []string{"nobody.example"}}, role.None, ""},
		{"DNS", w.site, names{dns: []string{"console.site.example"}}, role.Operator, "dns:console.site.example"},
		{"DNS in other case", w.site, names{dns: []string{"CONSOLE.Site.Example"}}, role.Operator, "dns:console.site.example"},
		{"DNS with a final dot", w.site, names{dns: []string{"console.site.example."}}, role.None, ""},
		{"DNS with NUL", w.site, names{rawSAN: san(t, 2, "console.site.example\x00.evil.example")}, role.None, ""},
		{"DNS below it", w.site, names{dns: []string{"x.console.site.example"}}, role.None, ""},
		{"DNS as its ending", w.site, names{dns: []string{"evilconsole.site.example"}}, role.None, ""},
		{"DNS under the wildcard", w.site, names{dns: []string{"hall-1.panels.site.example"}}, role.Viewer, "dns:hall-1.panels.site.example"},
		{"DNS two labels under it", w.site, names{dns: []string{"a.b.panels.site.example"}}, role.None, ""},
		{"DNS of the wildcard's base", w.site, names{dns: []string{"panels.site.example"}}, role.None, ""},
		{"wildcard in the certificate", w.site, names{dns: []string{"*.panels.site.example"}}, role.None, ""},
		{"wildcard over everything in the certificate", w.site, names{dns: []string{"*.site.example"}}, role.None, ""},
		{"DNS name as CN", w.site, names{cn: "console.site.example"}, role.None, ""},
		{"DNS name as e-mail", w.site, names{rawSAN: san(t, 1, "console.site.example")}, role.None, ""},
		{"DNS punycode of a homoglyph", w.site, names{dns: []string{"xn--cnsole-jye.site.example"}}, role.None, ""},
		{"URI", w.site, names{uri: "spiffe://site.example/people/anna"}, role.Admin, "uri:spiffe://site.example/people/anna"},
		{"URI under the wildcard", w.site, names{uri: "spiffe://site.example/people/ben"}, role.Viewer, "uri:spiffe://site.example/people/ben"},
		{"URI deeper", w.site, names{uri: "spiffe://site.example/people/ben/anna"}, role.None, ""},
		{"URI that climbs", w.site, names{uri: "spiffe://site.example/people/.."}, role.None, ""},
		{"URI with an escaped slash", w.site, names{uri: "spiffe://site.example/people/a%2fb"}, role.None, ""},
		{"URI with an escaped letter", w.site, names{uri: "spiffe://site.example/people/%61nna"}, role.None, ""},
		{"URI with a query", w.site, names{uri: "spiffe://site.example/people/anna?x"}, role.None, ""},
		{"URI with a user", w.site, names{uri: "spiffe://site.example@evil.example/people/anna"}, role.None, ""},
		{"URI with a scheme in capitals", w.site, names{rawSAN: san(t, 6, "SPIFFE://site.example/people/anna")}, role.None, ""},
		{"URI with an empty fragment", w.site, names{rawSAN: san(t, 6, "spiffe://site.example/people/anna#")}, role.None, ""},
		{"URI as the second of two", w.site, names{rawSAN: san(t, 6, "urn:x:y", "spiffe://site.example/people/anna")}, role.Admin, "uri:spiffe://site.example/people/anna"},
		{"URI as e-mail", w.site, names{rawSAN: san(t, 1, "spiffe://site.example/people/anna")}, role.None, ""},
		{"URI in other case", w.site, names{uri: "spiffe://SITE.example/people/anna"}, role.None, ""},
		{"URI ending in nothing", w.site, names{uri: "spiffe://site.example/people/"}, role.None, ""},
		{"URI of a rule's own wildcard", w.site, names{uri: "spiffe://site.example/people/*"}, role.None, ""},
		{"URI below the intermediate that a rule names", w.below, names{uri: "urn:ferrule:robot"}, role.Operator, "uri:urn:ferrule:robot"},
		{"the same below its root directly", w.site, names{uri: "urn:ferrule:robot"}, role.None, ""},
		{"OU below the intermediate, by the root", w.below, names{ous: []string{"Viewers"}}, role.Viewer, "ou:Viewers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaf := c.by.issue(t, c.says)
			grant, err := w.policy.Decide(verify(t, w.policy, leaf, w.below.certificate))
			if grant.Role != c.want || grant.Name != c.who {
				t.Errorf("%v as %q, want %v as %q", grant.Role, grant.Name, c.want, c.who)
			}
			if (err == nil) != (c.want != role.None) || err != nil && !errors.Is(err, role.ErrNoRole) {
				t.Errorf("error %v", err)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\x00\n\u200b") {
				t.Errorf("foreign bytes in %q", err)
			}
		})
	}
}

func TestNobodyWithoutRules(t *testing.T) {
	site := newAuthority(t, "site", nil)
	policy, err := role.New(nil, "site", func(string) ([]*x509.Certificate, error) { return []*x509.Certificate{site.certificate}, nil })
	if err != nil {
		t.Fatal(err)
	}
	leaf := site.issue(t, names{ous: []string{"Operators"}})
	if grant, err := policy.Decide(verify(t, policy, leaf)); err == nil || grant.Role != role.None {
		t.Errorf("%v, %v", grant, err)
	}
	if grant, err := policy.Decide(nil); err == nil || grant.Role != role.None {
		t.Errorf("without a chain: %v, %v", grant, err)
	}
	if grant, err := policy.Decide([][]*x509.Certificate{{}}); err == nil || grant.Role != role.None {
		t.Errorf("with an empty chain: %v, %v", grant, err)
	}
}

func TestRulesThatAreRefused(t *testing.T) {
	for name, rule := range map[string]role.Rule{
		"no role":            {OU: "x"},
		"no such role":       {Role: 9, OU: "x"},
		"no name":            {Role: role.Viewer},
		"two names":          {Role: role.Viewer, OU: "x", DNS: "y.example"},
		"OU with NUL":        {Role: role.Viewer, OU: "x\x00"},
		"OU with a space":    {Role: role.Viewer, OU: " x"},
		"OU not UTF-8":       {Role: role.Viewer, OU: "\xff"},
		"relative URI":       {Role: role.Viewer, URI: "people/anna"},
		"URI wildcard only":  {Role: role.Viewer, URI: "spiffe:///*"},
		"URI wildcard early": {Role: role.Viewer, URI: "spiffe://*/people"},
		"URI with a space":   {Role: role.Viewer, URI: "urn:a b"},
		"DNS of all":         {Role: role.Viewer, DNS: "*"},
		"DNS of a TLD":       {Role: role.Viewer, DNS: "*.example"},
		"DNS wildcard late":  {Role: role.Viewer, DNS: "a.*.example"},
		"DNS in UTF-8":       {Role: role.Viewer, DNS: "bücher.example"},
		"DNS with a port":    {Role: role.Viewer, DNS: "a.example:443"},
	} {
		if err := rule.Validate(); err == nil {
			t.Errorf("%s: %+v is accepted", name, rule)
		}
	}
	for _, rule := range rules {
		if err := rule.Validate(); err != nil {
			t.Errorf("%+v: %v", rule, err)
		}
	}
}

func TestRolesAsText(t *testing.T) {
	for _, r := range []role.Role{role.None, role.Viewer, role.Operator, role.Admin} {
		text, _ := r.MarshalText()
		var back role.Role
		if err := back.UnmarshalText(text); err != nil || back != r {
			t.Errorf("%s: %v, %v", text, back, err)
		}
	}
	var r role.Role
	if r.UnmarshalText([]byte("root")) == nil || r.UnmarshalText([]byte("Admin")) == nil {
		t.Error("a role that does not exist was read")
	}
}

// FuzzDecide gives a verified certificate any names: no panic, a role only for what a rule
// says, and a name that fits on one line of a log.
func FuzzDecide(f *testing.F) {
	w := newWorld(f)
	f.Add("Operators", "console.site.example", "spiffe://site.example/people/anna")
	f.Add("\x00", "*.panels.site.example", "spiffe://site.example/people/..")
	f.Fuzz(func(t *testing.T, ou, dns, uri string) {
		leaf := &x509.Certificate{
			Subject: pkix.Name{OrganizationalUnit: []string{ou}}, DNSNames: []string{dns},
			Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san(t, 6, uri)}},
		}
		grant, err := w.policy.Decide([][]*x509.Certificate{{leaf, w.site.certificate}})
		if err != nil {
			if grant != (role.Grant{}) || len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\x00\n\r\x1b") {
				t.Errorf("%v, %q", grant, err)
			}
			return
		}
		for _, r := range grant.Name {
			if r < ' ' || r == 0x7f {
				t.Errorf("name %q", grant.Name)
			}
		}
		known := ou == "Viewers" || ou == "Operators" || ou == "Betriebsführung" ||
			strings.HasSuffix(strings.ToLower(dns), ".site.example") || strings.HasPrefix(uri, "spiffe://site.example/people/")
		if grant.Role == role.None || !known {
			t.Errorf("%v for %q %q %q", grant, ou, dns, uri)
		}
	})
}

// FuzzNames reads any bytes as the extension that holds the names.
func FuzzNames(f *testing.F) {
	w := newWorld(f)
	f.Add(san(f, 6, "spiffe://site.example/people/anna"))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, extension []byte) {
		leaf := &x509.Certificate{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: extension}}}
		grant, err := w.policy.Decide([][]*x509.Certificate{{leaf, w.site.certificate}})
		if err == nil && !strings.Contains(string(extension), "spiffe://site.example/people/") {
			t.Errorf("%v for % x", grant, extension)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x00\n\r\x1b") {
			t.Errorf("%q", err)
		}
	})
}
