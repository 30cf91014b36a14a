package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// judge finds what is known of the best of the chains: any of them would do.
func (v *Revocation) judge(state tls.ConnectionState) finding {
	best := finding{result: ResultUnknown, subject: state.PeerCertificates[0].Subject.String(), why: "nothing was verified"}
	for i, chain := range state.VerifiedChains {
		if f := v.judgeChain(chain, state.OCSPResponse); i == 0 || best.result.worse(f.result) {
			best = f
		}
	}
	return best
}

// judgeChain finds the worst of a chain's certificates. Its root is believed as configured.
func (v *Revocation) judgeChain(chain []*x509.Certificate, response []byte) finding {
	worst := finding{result: ResultGood, subject: chain[0].Subject.String()}
	for i := 0; i+1 < len(chain); i++ {
		v.remember(chain[i+1])
		f := v.byLists(chain[i], chain[i+1])
		if i == 0 && len(response) > 0 {
			f = together(f, v.byStaple(response, chain[0], chain[1]))
		}
		f.subject = chain[i].Subject.String()
		until := sooner(worst.until, f.until)
		if f.result.worse(worst.result) {
			worst = f
		}
		worst.until = until
	}
	return worst
}

// together joins what two proofs say of one certificate: a proof that it was revoked, or a
// staple that is none, stands; else one good proof is enough, the one that holds longer.
func together(a, b finding) finding {
	switch {
	case a.result == ResultGood && b.result == ResultGood:
		if !b.until.IsZero() && b.until.After(a.until) {
			return b
		}
		return a
	case b.result == ResultRevoked, b.result == ResultBad && a.result != ResultRevoked:
		return b
	case a.result == ResultUnknown && b.result == ResultUnknown:
		a.why += "; " + b.why
		return a
	case a.result == ResultUnknown:
		return b
	}
	return a
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// byStaple finds what a stapled response says of c.
func (v *Revocation) byStaple(response []byte, c, issuer *x509.Certificate) finding {
	bad := func(err error) finding {
		return finding{result: ResultBad, why: "the proof that the server staples is none: " + err.Error()}
	}
	s, err := parseStaple(response)
	if errors.Is(err, errNoAnswer) {
		return finding{result: ResultUnknown, why: "the server staples no proof: " + err.Error()}
	}
	if err != nil {
		return bad(err)
	}
	a, ok := s.of(serialOf(c), issuer)
	if !ok {
		return bad(errors.New("it is for another certificate"))
	}
	responder, err := s.signedBy(issuer, a.this)
	if err != nil {
		return bad(err)
	}
	if responder != nil && v.byLists(responder, issuer).result == ResultRevoked {
		return bad(errors.New("its responder's certificate is revoked"))
	}
	switch a.status {
	case statusRevoked: // also when the answer is old: what is revoked stays so
		return finding{result: ResultRevoked, why: "it was revoked on " + a.at.UTC().Format(time.DateOnly) + ", says the OCSP response"}
	case statusUnknown:
		return finding{result: ResultUnknown, why: "the OCSP responder does not know it"}
	}
	until, why := v.fresh(a.this, a.next)
	if responder != nil && why == "" {
		var end time.Time
		end, why = v.fresh(a.this, responder.NotAfter)
		until = sooner(until, end)
	}
	if why != "" {
		return finding{result: ResultUnknown, why: "the stapled OCSP response " + why}
	}
	return finding{result: ResultGood, until: until}
}

// byLists finds what the lists say of c.
func (v *Revocation) byLists(c, issuer *x509.Certificate) finding {
	found := finding{result: ResultUnknown, why: fmt.Sprintf("there is no proof of it, and no CRL of %q", issuer.Subject.String())}
	serial := serialOf(c)
	for _, s := range v.sources {
		for _, l := range s.believed(issuer) {
			if l.revoked(serial) {
				return finding{result: ResultRevoked, why: fmt.Sprintf("it was revoked, says the CRL of %q", issuer.Subject.String())}
			}
			if !l.covers(c) || found.result == ResultGood {
				continue
			}
			if until, why := v.fresh(l.this, l.next); why == "" {
				found = finding{result: ResultGood, until: until}
			} else {
				found.why = fmt.Sprintf("the CRL of %q %s", issuer.Subject.String(), why)
			}
		}
	}
	return found
}

// at is the time to judge a proof by that was made at this. Where our clock cannot be believed
// and stands before, the proof tells that it is later.
func (v *Revocation) at(this time.Time) time.Time {
	now := v.o.Clock.Now()
	if !v.o.Clock.Trusted() && now.Before(this) {
		return this
	}
	return now
}

// fresh says until when a proof holds, or why it does not.
func (v *Revocation) fresh(this, next time.Time) (until time.Time, why string) {
	now := v.at(this)
	if next.IsZero() {
		next = this.Add(openEnded)
		if m := v.config.MaxAge.Std(); m > 0 {
			next = this.Add(m)
		}
	}
	if m := v.config.MaxAge.Std(); m > 0 && next.After(this.Add(m)) {
		next = this.Add(m)
	}
	switch {
	case now.Add(skew).Before(this):
		return time.Time{}, "is from the future: " + this.UTC().Format(time.RFC3339)
	case !now.Before(next):
		why := "ran out on " + next.UTC().Format(time.RFC3339)
		if !v.o.Clock.Trusted() {
			why += ", and our clock is not synchronised"
		}
		return time.Time{}, why
	}
	return next, ""
}
