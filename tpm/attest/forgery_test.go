package attest

import (
	"bytes"
	"crypto/x509"
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

func TestForgeriesAreRefusedEachForItsReason(t *testing.T) {
	m := newMaker(t)
	s := newSoftTPM(t, m, ekP256)
	kinds := [...]*softTPM{s, newSoftTPM(t, m, ekP384), newSoftTPM(t, m, ekRSA)}
	seen := map[string]bool{reasonEvidence: true}
	all := 0
	for _, list := range []map[string]forgery{
		forgeriesOfKey(s, t), forgeriesOfAK(s, t), forgeriesOfCertify(s, t),
		forgeriesOfRequest(s, t), forgeriesOfEK(s, t), forgeriesOfCertificate(s, t),
	} {
		for _, name := range slices.Sorted(maps.Keys(list)) {
			f := list[name]
			all++
			seen[f.reason] = true
			t.Run(name, func(t *testing.T) {
				e, c := kinds[f.kind].evidence(t, nonce, device, f.parts)
				if f.after != nil {
					f.after(&e, &c)
				}
				v := m.verifier()
				if f.trust != nil {
					f.trust(v)
				}
				refused(t, v, e, c, f.reason)
			})
		}
	}
	t.Logf("%d forgeries", all)
	for _, reason := range reasons(t) {
		if !seen[reason] {
			t.Errorf("no forgery is refused for %q", reason)
		}
		delete(seen, reason)
	}
	for reason := range seen {
		t.Errorf("the table of reasons has no %q", reason)
	}
}

func refused(t *testing.T, v *Verifier, e Evidence, c Claim, reason string) {
	t.Helper()
	p, err := v.Check(e, c)
	var r *Refusal
	if p != nil || !errors.As(err, &r) || r.Reason != reason {
		t.Fatalf("got %T %+v: %v; want %q", err, err, err, reason)
	}
}

// reasons are those of Refusal's doc comment.
func reasons(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("refusal.go")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range regexp.MustCompile(`(?m)^//\t([a-z-]+(?:, [a-z-]+)*)  `).FindAllStringSubmatch(string(text), -1) {
		found = append(found, strings.Split(m[1], ", ")...)
	}
	return found
}

// The guide promises the same words.
func TestReasonsAreDocumented(t *testing.T) {
	guide, err := os.ReadFile("../../docs/enrollment.md")
	if err != nil {
		t.Fatal(err)
	}
	all := reasons(t)
	if len(all) < 40 {
		t.Errorf("only %d reasons were found", len(all))
	}
	for _, reason := range all {
		if !bytes.Contains(guide, []byte("`"+reason+"`")) {
			t.Errorf("docs/enrollment.md does not explain `%s`", reason)
		}
	}
}

// Whoever runs the registrar is told what to do where something can be done.
func TestRefusalsCarryTheirRepair(t *testing.T) {
	m := newMaker(t)
	s := newSoftTPM(t, m, ekP256)
	for name, test := range map[string]struct {
		v     *Verifier
		parts func(*parts)
		want  string
	}{
		"unknown maker": {v: &Verifier{Now: m.verifier().Now}, want: "add the root"},
		"clock":         {v: &Verifier{Roots: m.verifier().Roots, Intermediates: m.verifier().Intermediates, Now: func() time.Time { return time.Unix(0, 0) }}, want: "clock"},
		"foreign key":   {v: m.verifier(), parts: ofKey(attributes(func(a *tpm2.TPMAObject) { a.NoDA = false })), want: "--rekey"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := test.v.Check(s.evidence(t, nonce, device, test.parts))
			if got := hint.Of(err); !strings.Contains(got, test.want) {
				t.Errorf("the hint of %v is %q", err, got)
			}
		})
	}
}

// A chip is no worse when its certificate has run out, and its device must not be stranded.
func TestEKOnRecordMayShowAnOldCertificate(t *testing.T) {
	m := newMaker(t)
	s := newSoftTPM(t, m, ekP256)
	e, c := s.evidence(t, nonce, device, ofCert(func(c *x509.Certificate) { c.NotAfter = now.AddDate(0, 0, -1) }))
	v := m.verifier()
	refused(t, v, e, c, "ek-certificate-validity")
	v.Known = func(string) bool { return true }
	p, err := v.Check(e, c)
	if err != nil || p.FirstUse() {
		t.Fatal(p, err)
	}
}

func TestFirstUseIsSaidToBeOne(t *testing.T) {
	m := newMaker(t)
	s := newSoftTPM(t, m, ekP256)
	e, c := s.evidence(t, nonce, device, nil)
	e.EKs[0].Certificate = nil
	v := m.verifier()
	v.TrustOnFirstUse = true
	p, err := v.Check(e, c)
	if err != nil {
		t.Fatal(err)
	}
	if maker, model, version := p.TPM(); !p.FirstUse() || maker+model+version != "" {
		t.Errorf("first use %v, TPM %q %q %q", p.FirstUse(), maker, model, version)
	}
}

// A claim of the registrar's own that is not usable is its fault, not the device's.
func TestUnusableClaimIsNoRefusal(t *testing.T) {
	m := newMaker(t)
	e, c := newSoftTPM(t, m, ekP256).evidence(t, nonce, device, nil)
	for name, change := range map[string]func(*Claim){
		"short nonce": func(c *Claim) { c.Nonce = c.Nonce[:15] },
		"long nonce":  func(c *Claim) { c.Nonce = make([]byte, 65) },
		"no device":   func(c *Claim) { c.Device = "" },
	} {
		t.Run(name, func(t *testing.T) {
			spoilt := c
			change(&spoilt)
			_, err := m.verifier().Check(e, spoilt)
			if _, ok := errors.AsType[*Refusal](err); err == nil || ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
