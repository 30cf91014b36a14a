package trust

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"ferrule/internal/hint"
)

// judgement is what a policy makes of a chain.
type judgement struct {
	soft, hard Result // "" stands for accepted
	text       string // of the refusals
}

var (
	accepted = judgement{}
	revoked  = judgement{ResultRevoked, ResultRevoked, "revoked"}
)

func unknown(text string) judgement   { return judgement{"", ResultUnknown, text} }
func badStaple(text string) judgement { return judgement{ResultBad, ResultBad, text} }

// matrix is the ways in which a broker's chain may be known to be good or not. Each is judged
// with the list of the root, so that the intermediate is known to be good, unless it says other.
var matrix = map[string]func(t *testing.T, p *pki) (staple []byte, lists [][]byte, want judgement){
	"nothing at all": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, nil, unknown("no proof")
	},
	"lists of both": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, nil), p.issuing.revoke(t, nil, big.NewInt(5), big.NewInt(-7), new(big.Int).Lsh(big.NewInt(1), 150))}, accepted
	},
	"leaf revoked": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, nil), p.issuing.revoke(t, nil, big.NewInt(1), p.broker.SerialNumber, big.NewInt(2))}, judgement{ResultRevoked, ResultRevoked, `it was revoked, says the CRL of "CN=issuing"`}
	},
	"intermediate revoked": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, nil, p.issuing.SerialNumber), p.issuing.revoke(t, nil)}, judgement{ResultRevoked, ResultRevoked, `certificate "CN=issuing"`}
	},
	"the same serial of another authority": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, nil, p.broker.SerialNumber), p.issuing.revoke(t, nil, p.issuing.SerialNumber)}, accepted
	},
	"only the leaf is known": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber), nil, unknown(`certificate "CN=issuing"`)
	},
	"leaf's list expired": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, nil), p.issuing.revoke(t, old)}, unknown("ran out")
	},
	"revoked in a list that expired": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, nil), p.issuing.revoke(t, old, p.broker.SerialNumber)}, revoked
	},
	"list from the future": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, nil), p.issuing.revoke(t, func(l *x509.RevocationList) { l.ThisUpdate = time.Now().Add(2 * time.Hour) })}, unknown("future")
	},
	"list signed by another": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		impostor := (*party)(nil).issue(t, "issuing", authority)
		return nil, [][]byte{p.root.revoke(t, nil), impostor.revoke(t, nil)}, unknown("no CRL of")
	},
	"revoked by an impostor": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		impostor := (*party)(nil).issue(t, "issuing", authority)
		return nil, [][]byte{p.root.revoke(t, nil), impostor.revoke(t, nil, p.broker.SerialNumber), p.issuing.revoke(t, nil)}, accepted
	},
	"list signed by one who may not": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		p.issuing = p.root.issue(t, "issuing", authority, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
		p.broker = p.issuing.issue(t, "broker.example", server)
		signer := &party{&x509.Certificate{RawSubject: p.issuing.RawSubject, Subject: p.issuing.Subject, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: p.issuing.SubjectKeyId}, p.issuing.key}
		return nil, [][]byte{p.root.revoke(t, nil), signer.revoke(t, nil)}, unknown("no CRL of")
	},
	"list of users": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, nil), p.issuing.revoke(t, distribution("\x81\x01\xff"))}, accepted
	},
	"list of authorities, for a leaf": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, distribution("\x82\x01\xff")), p.issuing.revoke(t, distribution("\x82\x01\xff"))}, unknown(`certificate "CN=broker.example"`)
	},
	"list of another shard": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return nil, [][]byte{p.root.revoke(t, nil), p.issuing.revoke(t, distribution("\xa0\x09\xa0\x07\x86\x05url-1"))}, unknown("no CRL of")
	},
	"list of its shard": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		p.broker = p.issuing.issue(t, "broker.example", server, func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"url-2"} })
		return nil, [][]byte{p.root.revoke(t, nil), p.issuing.revoke(t, distribution("\xa0\x09\xa0\x07\x86\x05url-2"))}, accepted
	},

	"staple good": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber), rootList(t, p), accepted
	},
	"staple of a responder": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.issue(t, "responder", responder).staple(t, p.issuing, p.broker.SerialNumber), rootList(t, p), accepted
	},
	"staple revoked": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, status(ocsp.Revoked)), rootList(t, p), revoked
	},
	"staple revoked and expired": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, status(ocsp.Revoked), between(-48*time.Hour, -24*time.Hour)), rootList(t, p), revoked
	},
	"staple revoked, list good": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, status(ocsp.Revoked)), append(rootList(t, p), p.issuing.revoke(t, nil)), revoked
	},
	"staple good, list revoked": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber), append(rootList(t, p), p.issuing.revoke(t, nil, p.broker.SerialNumber)), revoked
	},
	"staple unknown": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, status(ocsp.Unknown)), rootList(t, p), unknown("does not know")
	},
	"staple unknown, list good": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, status(ocsp.Unknown)), append(rootList(t, p), p.issuing.revoke(t, nil)), accepted
	},
	"staple expired": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, between(-48*time.Hour, -24*time.Hour)), rootList(t, p), unknown("ran out")
	},
	"staple without an end": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, between(-23*time.Hour, 0)), rootList(t, p), accepted
	},
	"old staple without an end": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, between(-25*time.Hour, 0)), rootList(t, p), unknown("ran out")
	},
	"staple from the future": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, between(2*time.Hour, 24*time.Hour)), rootList(t, p), unknown("future")
	},
	"no answer to staple": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return ocsp.TryLaterErrorResponse, rootList(t, p), unknown("no answer")
	},
	"staple garbage": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return []byte("garbage"), append(rootList(t, p), p.issuing.revoke(t, nil)), badStaple("not DER")
	},
	"staple with something behind": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return append(p.issuing.staple(t, p.issuing, p.broker.SerialNumber), 0), rootList(t, p), badStaple("not DER")
	},
	"staple with a wrong signature": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		staple := p.issuing.staple(t, p.issuing, p.broker.SerialNumber)
		staple[len(staple)-1] ^= 1
		return staple, rootList(t, p), badStaple("verification failure")
	},
	"staple of another key of that name": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		impostor := (*party)(nil).issue(t, "issuing", authority)
		other := &party{p.issuing.Certificate, impostor.key}
		return other.staple(t, other, p.broker.SerialNumber), rootList(t, p), badStaple("verification failure")
	},
	"staple whose responder is not shown": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		r := p.issuing.issue(t, "responder", responder)
		return r.staple(t, p.issuing, p.broker.SerialNumber, func(r *ocsp.Response) { r.Certificate = nil }), rootList(t, p), badStaple("nobody")
	},
	"staple for another certificate": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.staple(t, p.issuing, big.NewInt(77)), rootList(t, p), badStaple("for another certificate")
	},
	"staple for this serial of another issuer": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		// The key of our issuer signs it, but it speaks of an authority of another name.
		other := p.root.issueTo(t, "another", p.issuing.key, authority)
		return other.staple(t, other, p.broker.SerialNumber), rootList(t, p), badStaple("for another certificate")
	},
	"staple for this serial of another key of that name": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		other := p.root.issue(t, "issuing", authority)
		return p.issuing.staple(t, other, p.broker.SerialNumber, func(r *ocsp.Response) { r.Certificate = nil }), rootList(t, p), badStaple("for another certificate")
	},
	"staple of a responder for other uses": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.issue(t, "responder", server).staple(t, p.issuing, p.broker.SerialNumber), rootList(t, p), badStaple("other uses")
	},
	"staple of the broker itself": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.broker.staple(t, p.issuing, p.broker.SerialNumber), rootList(t, p), badStaple("other uses")
	},
	"staple of a responder that another authority named": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.root.issue(t, "responder", responder).staple(t, p.issuing, p.broker.SerialNumber), rootList(t, p), badStaple("not named by the issuer")
	},
	"staple of a responder that had expired": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.issue(t, "responder", responder, validFor(-3*time.Hour, -2*time.Hour)).staple(t, p.issuing, p.broker.SerialNumber), rootList(t, p), badStaple("not valid when")
	},
	"staple of a responder that expired since": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		return p.issuing.issue(t, "responder", responder, validFor(-3*time.Hour, -30*time.Minute)).staple(t, p.issuing, p.broker.SerialNumber), rootList(t, p), unknown("ran out")
	},
	"staple of a responder that is revoked": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		r := p.issuing.issue(t, "responder", responder)
		return r.staple(t, p.issuing, p.broker.SerialNumber), append(rootList(t, p), p.issuing.revoke(t, nil, r.SerialNumber)), badStaple("responder's certificate is revoked")
	},

	"must-staple without one": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		p.broker = p.issuing.issue(t, "broker.example", server, mustStaples)
		return nil, append(rootList(t, p), p.issuing.revoke(t, nil)), judgement{ResultUnknown, ResultUnknown, "must-staple"}
	},
	"must-staple with an expired one": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		p.broker = p.issuing.issue(t, "broker.example", server, mustStaples)
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber, between(-48*time.Hour, -24*time.Hour)), append(rootList(t, p), p.issuing.revoke(t, nil)),
			judgement{ResultUnknown, ResultUnknown, "must-staple"}
	},
	"must-staple with one": func(t *testing.T, p *pki) ([]byte, [][]byte, judgement) {
		p.broker = p.issuing.issue(t, "broker.example", server, mustStaples)
		return p.issuing.staple(t, p.issuing, p.broker.SerialNumber), rootList(t, p), accepted
	},
}

func rootList(t *testing.T, p *pki) [][]byte { return [][]byte{p.root.revoke(t, nil)} }

func old(l *x509.RevocationList) {
	l.ThisUpdate, l.NextUpdate = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
}

// distribution adds an IssuingDistributionPoint with this content.
func distribution(content string) func(*x509.RevocationList) {
	return extension(pkix.Extension{Id: []int{2, 5, 29, 28}, Critical: true, Value: append([]byte{0x30, byte(len(content))}, content...)})
}

func extension(e pkix.Extension) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) { l.ExtraExtensions = append(l.ExtraExtensions, e) }
}

// revocation makes one with lists as files.
func revocation(t testing.TB, w *world, policy Policy, lists ...[]byte) *Revocation {
	t.Helper()
	c := DefaultRevocation()
	c.Policy = policy
	for i, text := range lists {
		name := "list-" + string(rune('a'+i))
		put(w.disk, name, text)
		c.CRL = append(c.CRL, name)
	}
	return must[*Revocation](t)(NewRevocation(c, w.Options, noFetch))
}

func expect(t *testing.T, v *Revocation, p *pki, staple []byte, want Result, text string) {
	t.Helper()
	err := v.Check(p.state(staple))
	var refusal *Refusal
	if want == "" {
		if err != nil {
			t.Errorf("%s: refused: %v", v.config.Policy, err)
		}
		return
	}
	if !errors.As(err, &refusal) || refusal.Result != want || refusal.Revoked() != (want == ResultRevoked) ||
		!strings.Contains(refusal.Error(), text) || hint.Of(err) == "" {
		t.Errorf("%s: %v; want %s with %q", v.config.Policy, err, want, text)
	}
}

func TestMatrix(t *testing.T) {
	for name, make := range matrix {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			staple, lists, want := make(t, p)
			for policy, result := range map[Policy]Result{PolicyOff: "", PolicySoft: want.soft, PolicyHard: want.hard} {
				w := newWorld()
				v := revocation(t, w, policy, lists...)
				for range 2 { // the second time a signature is not checked again
					expect(t, v, p, staple, result, want.text)
				}
				st := v.Status()
				if refused := st.Last != nil && st.Last.Refused; refused != (result != "") || policy == PolicyOff && st.Last != nil {
					t.Errorf("%s: %+v", policy, st.Last)
				}
				for _, l := range st.Lists {
					if l.Issuer == "" {
						t.Errorf("%+v", l)
					}
				}
			}
		})
	}
}

// Each of these is not taken for a list at all.
func TestListsThatAreRefused(t *testing.T) {
	p := newPKI(t)
	good := p.issuing.revoke(t, nil, big.NewInt(1), big.NewInt(2))
	entry := func(e pkix.Extension) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(1), RevocationTime: time.Now(), ExtraExtensions: []pkix.Extension{e}}}
		}
	}
	for name, test := range map[string]struct {
		text []byte
		want string
	}{
		"delta":            {p.issuing.revoke(t, extension(pkix.Extension{Id: []int{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}})), "delta"},
		"indirect":         {p.issuing.revoke(t, distribution("\x84\x01\xff")), "indirect"},
		"of other issuers": {p.issuing.revoke(t, entry(pkix.Extension{Id: []int{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}})), "indirect"},
		"some reasons":     {p.issuing.revoke(t, distribution("\x83\x02\x06\x40")), "leaves out"},
		"attributes":       {p.issuing.revoke(t, distribution("\x85\x01\xff")), "leaves out"},
		"critical":         {p.issuing.revoke(t, extension(pkix.Extension{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}})), "critical"},
		"critical entry":   {p.issuing.revoke(t, entry(pkix.Extension{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}})), "critical"},
		"cut off":          {good[:len(good)-1], "DER"},
		"more behind":      {append(bytes.Clone(good), 0), "DER"},
		"empty":            {nil, "DER"},
		"a web page":       {[]byte("<html>please log in</html>"), "DER"},
		"PEM of others":    {pemOf(p.root), "no revocation list"},
		"too large":        {make([]byte, maxList+1), "allowed"},
	} {
		if lists, err := parseLists(test.text); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, %v", name, lists, err)
		}
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good})
	for _, text := range [][]byte{text, append(append([]byte("# a comment\n"), text...), text...)} {
		if lists, err := parseLists(text); err != nil || len(lists[0].at) != 2 {
			t.Error(lists, err)
		}
	}
}

// A chain of which one way is good is good: the other way's authority may be the one that was
// given up.
func TestOneGoodChainIsEnough(t *testing.T) {
	p := newPKI(t)
	cross := (*party)(nil).issue(t, "second root", authority)
	again := cross.issueTo(t, "issuing", p.issuing.key, authority)
	v := revocation(t, newWorld(), PolicyHard, p.root.revoke(t, nil, p.issuing.SerialNumber), cross.revoke(t, nil), p.issuing.revoke(t, nil))
	expect(t, v, p, nil, ResultRevoked, "issuing")
	state := p.state(nil)
	state.VerifiedChains = append(state.VerifiedChains, []*x509.Certificate{p.broker.Certificate, again.Certificate, cross.Certificate})
	if err := v.Check(state); err != nil {
		t.Error(err)
	}
}

// The clock's floor lies in the past: what was made since is no lie, and shows that it is later.
func TestClocksThatCannotBeBelieved(t *testing.T) {
	p := newPKI(t)
	lists := [][]byte{p.root.revoke(t, nil), p.issuing.revoke(t, nil)}
	for name, test := range map[string]struct {
		now     time.Time
		trusted bool
		want    Result
		text    string
	}{
		"1970, floor of last year":  {time.Unix(0, 0), false, "", ""},
		"ten years ahead":           {time.Now().AddDate(10, 0, 0), false, ResultUnknown, "not synchronised"},
		"ten years ahead, believed": {time.Now().AddDate(10, 0, 0), true, ResultUnknown, "ran out"},
		"a year behind, believed":   {time.Now().AddDate(-1, 0, 1), true, ResultUnknown, "future"},
	} {
		w := newWorld()
		w.clock.floor = time.Now().AddDate(-1, 0, 0)
		w.clock.set(test.now, test.trusted)
		t.Log(name)
		expect(t, revocation(t, w, PolicyHard, lists...), p, nil, test.want, test.text)
	}
}

func TestMaxAge(t *testing.T) {
	p := newPKI(t)
	w := newWorld()
	v := revocation(t, w, PolicyHard, p.root.revoke(t, nil), p.issuing.revoke(t, func(l *x509.RevocationList) { l.ThisUpdate = time.Now().Add(-2 * time.Hour) }))
	expect(t, v, p, nil, "", "")
	v.config.MaxAge = 3600e9
	expect(t, v, p, nil, ResultUnknown, "ran out")
	expect(t, v, p, p.issuing.staple(t, p.issuing, p.broker.SerialNumber, between(-59*time.Minute, 100*time.Hour)), "", "")
	expect(t, v, p, p.issuing.staple(t, p.issuing, p.broker.SerialNumber, between(-61*time.Minute, 100*time.Hour)), ResultUnknown, "ran out")
	v.config.MaxAge = 48 * 3600e9
	expect(t, v, p, p.issuing.staple(t, p.issuing, p.broker.SerialNumber, between(-47*time.Hour, 0)), "", "")
}

func TestResultsAreCountedAndLoggedOnce(t *testing.T) {
	p := newPKI(t)
	w := newWorld()
	v := revocation(t, w, PolicySoft, p.root.revoke(t, nil))
	for range 3 {
		expect(t, v, p, nil, "", "")
	}
	expect(t, v, p, []byte("x"), ResultBad, "")
	if st := v.Status(); st.Counts[ResultUnknown] != 3 || st.Counts[ResultBad] != 1 || st.Last.Result != ResultBad {
		t.Errorf("%+v", st)
	}
	if n := strings.Count(w.log.String(), "msg=revocation "); n != 2 {
		t.Errorf("%d lines:\n%s", n, w.log.String())
	}
}

func TestRevocationConfig(t *testing.T) {
	if err := DefaultRevocation().Validate(); err != nil {
		t.Error(err)
	}
	bad := RevocationConfig{Policy: "maybe", Refresh: 1, MaxAge: 1, CRL: []string{"", "ftp://x/y", "http://", "http://u:p@x/y", "a", "a"}}
	err := bad.Validate()
	for _, want := range []string{"policy", "refresh", "max_age", `""`, "ftp", `"http://"`, "password", "twice"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s: %v", want, err)
		}
	}
	if (RevocationConfig{Policy: PolicySoft, Refresh: DefaultRevocation().Refresh, CRL: make([]string, 17)}).Validate() == nil {
		t.Error("seventeen")
	}
}
