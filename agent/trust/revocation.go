package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"time"

	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

// Policy says what is done about a certificate of which nobody knows whether it was revoked.
type Policy string

// The policies.
const (
	PolicyOff  Policy = "off"  // nothing is looked at
	PolicySoft Policy = "soft" // what is known to be revoked is refused, what is not known is accepted and reported
	PolicyHard Policy = "hard" // without a fresh proof there is no connection
)

// RevocationConfig says how certificates that their authority took back are found.
type RevocationConfig struct {
	// off: not at all. soft: a certificate that is known to be revoked is refused; where
	// nothing is known, that is reported. hard: without a fresh proof, from an OCSP response
	// that the server staples or from a CRL, there is no connection. Intermediate
	// authorities are checked too, by CRL.
	Policy Policy `toml:"policy"`
	// CRLs as files (PEM or DER) or http:// and https:// URLs.
	CRL []string `toml:"crl"`
	// Longest time between two looks at the CRLs; they are fetched again before they run out
	// in any case. At least 1m.
	Refresh quantity.Duration `toml:"refresh"`
	// Oldest proof that counts as fresh, however long it says that it is valid; 0: as it says.
	MaxAge quantity.Duration `toml:"max_age"`
}

// DefaultRevocation returns what an empty section means.
func DefaultRevocation() RevocationConfig {
	return RevocationConfig{Policy: PolicySoft, Refresh: quantity.Duration(6 * time.Hour)}
}

const (
	minRefresh = time.Minute
	minMaxAge  = time.Minute
	maxSources = 16
	// openEnded is for how long a proof holds that does not say until when.
	openEnded = 24 * time.Hour
	// skew is how far ahead of ours the clock of an authority may go.
	skew = time.Hour
)

// Validate names every key that cannot be used, without the name of the section.
func (c RevocationConfig) Validate() error {
	var problems []error
	bad := func(repair, format string, args ...any) {
		problems = append(problems, hint.With(fmt.Errorf(format, args...), repair))
	}
	if c.Policy != PolicyOff && c.Policy != PolicySoft && c.Policy != PolicyHard {
		bad("use off, soft or hard", "policy: %q", c.Policy)
	}
	if r := c.Refresh.Std(); r < minRefresh {
		bad(fmt.Sprintf("use %v or more", minRefresh), "refresh: %v", c.Refresh)
	}
	if m := c.MaxAge.Std(); m != 0 && m < minMaxAge {
		bad(fmt.Sprintf("use %v or more, or 0", minMaxAge), "max_age: %v", c.MaxAge)
	}
	if len(c.CRL) > maxSources {
		bad(fmt.Sprintf("name at most %d", maxSources), "crl: there are %d", len(c.CRL))
	}
	for i, name := range c.CRL {
		if err := checkSource(name); err != nil {
			bad(`name a file, or an URL such as "http://ca.example/ca.crl"`, "crl: %q: %w", name, err)
		}
		if slices.Contains(c.CRL[:i], name) {
			bad("name it once", "crl: %q is there twice", name)
		}
	}
	return errors.Join(problems...)
}

func checkSource(name string) error {
	if name == "" {
		return errors.New("it is empty")
	}
	u, err := url.Parse(name)
	if err != nil || u.Scheme == "" {
		return nil // a file
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("the scheme is %q", u.Scheme)
	case u.Host == "":
		return errors.New("the host is missing")
	case u.User != nil:
		return errors.New("a name and password are not sent")
	}
	return nil
}

// Result is what is known of a certificate, or of a chain: the worst of its certificates.
type Result string

// The results, the best first.
const (
	ResultGood    Result = "good"
	ResultUnknown Result = "unknown"
	ResultBad     Result = "bad-staple" // the server's proof is none
	ResultRevoked Result = "revoked"
)

// worse orders results.
func (r Result) worse(other Result) bool {
	order := []Result{ResultGood, ResultUnknown, ResultBad, ResultRevoked}
	return slices.Index(order, r) > slices.Index(order, other)
}

// Refusal says why a connection is refused.
type Refusal struct {
	Result Result
	// Subject of the certificate, as the other side wrote it.
	Subject string
	Why     string
}

func (e *Refusal) Error() string { return fmt.Sprintf("certificate %q: %s", e.Subject, e.Why) }

// Revoked tells a certificate that is revoked from one of which too little is known.
func (e *Refusal) Revoked() bool { return e.Result == ResultRevoked }

// finding is what is known of a certificate or a chain.
type finding struct {
	result  Result
	subject string
	why     string
	until   time.Time // how long it holds; zero: for ever
}

// Revocation finds certificates that were taken back. Its methods may be called from any
// goroutine.
type Revocation struct {
	config  RevocationConfig
	o       Options
	fetch   Fetch
	sources []*source // fixed; what is in them is under mu
	wake    chan struct{}

	mu      sync.Mutex
	issuers []*x509.Certificate // seen in chains, the latest last: who may have signed a list
	recheck time.Time           // when the proof of the last connection has ended, where that matters; monotonic
	last    RevocationResult
	counts  map[Result]uint64
}

// RevocationResult is the last look at a chain.
type RevocationResult struct {
	Result  Result    `json:"result"`
	Subject string    `json:"subject,omitempty"`
	Why     string    `json:"why,omitempty"`
	At      time.Time `json:"at"`
	Refused bool      `json:"refused"`
}

// maxIssuers is how many issuers are remembered; a broker's chain has two or three.
const maxIssuers = 16

// NewRevocation reads the lists that were fetched before. A nil fetch is HTTP with the roots of
// the operating system. Files are read now, URLs when Run does.
func NewRevocation(c RevocationConfig, o Options, fetch Fetch) (*Revocation, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if fetch == nil {
		fetch = HTTP(nil)
	}
	v := &Revocation{config: c, o: o, fetch: fetch, wake: make(chan struct{}, 1), counts: make(map[Result]uint64)}
	if c.Policy == PolicyOff {
		return v, nil
	}
	for _, name := range c.CRL {
		s := newSource(name, o)
		v.sources = append(v.sources, s)
		if !s.url {
			v.look(context.Background(), s) // so that the first connection finds it
		} else if len(s.kept) > 0 {
			s.due = time.Now().Add(jitter(v.delay(s))) // the power may have come back to a whole fleet
		}
	}
	return v, nil
}

// Check judges a connection whose chain crypto/tls has verified, a resumed one as well. The
// error is a *Refusal.
func (v *Revocation) Check(state tls.ConnectionState) error {
	if v.config.Policy == PolicyOff || len(state.PeerCertificates) == 0 {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.judge(state)
	refused := f.result == ResultRevoked || f.result == ResultBad || f.result == ResultUnknown && v.config.Policy == PolicyHard
	if must := mustStaple(state.PeerCertificates[0]); must && !refused && !v.stapled(state) {
		f.result, f.why, refused = ResultUnknown, "it says that the server always staples a proof (must-staple), and there is no fresh one", true
	}
	v.note(f, refused)
	if !refused {
		v.schedule(f.until)
		return nil
	}
	return hint.With(&Refusal{Result: f.result, Subject: f.subject, Why: f.why}, repair(f.result))
}

// schedule asks for another look at the connections that stand when the proof has ended. A
// fleet has the same proof of the same broker: it is spread over a tenth of the time that the
// proof had left, and an hour at most.
func (v *Revocation) schedule(until time.Time) {
	v.recheck = time.Time{}
	if v.config.Policy != PolicyHard || until.IsZero() {
		return
	}
	left := until.Sub(v.o.Clock.Now())
	v.recheck = time.Now().Add(left + jitter(min(left/10, time.Hour)))
	v.awake()
}

func repair(r Result) string {
	switch r {
	case ResultRevoked:
		return "give the broker a new certificate; if nobody revoked this one on purpose, somebody else has its key"
	case ResultBad:
		return "look at the OCSP response that the broker staples: it is damaged, or of another certificate"
	default:
		return "let the broker staple an OCSP response, or name the CRLs of every authority in its chain in revocation.crl; revocation.policy = \"soft\" connects all the same"
	}
}

// note counts and keeps a result, and logs one that differs from the last.
func (v *Revocation) note(f finding, refused bool) {
	v.counts[f.result]++
	before := v.last
	v.last = RevocationResult{Result: f.result, Subject: f.subject, Why: f.why, At: v.o.Clock.Now().UTC(), Refused: refused}
	if before.Result == f.result && before.Subject == f.subject || f.result == ResultGood && before.Result == "" {
		return
	}
	level := slog.LevelWarn
	switch {
	case f.result == ResultGood:
		level = slog.LevelInfo
	case f.result == ResultUnknown && !refused && len(v.config.CRL) == 0:
		level = slog.LevelDebug // nobody asked for a proof, and most brokers have none
	}
	v.o.event(level, "revocation", slog.String("result", string(f.result)), slog.String("subject", f.subject),
		slog.String("why", f.why), slog.Bool("refused", refused))
}

// remember keeps an issuer for the lists that come later.
func (v *Revocation) remember(c *x509.Certificate) {
	if i := slices.IndexFunc(v.issuers, c.Equal); i >= 0 {
		return
	}
	if len(v.issuers) == maxIssuers {
		v.issuers = slices.Delete(v.issuers, 0, 1)
	}
	v.issuers = append(v.issuers, c)
	v.awake() // a list that waits for its issuer can be judged, and stored
}

// awake makes Run look again.
func (v *Revocation) awake() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// stapled says whether there is a fresh, good staple.
func (v *Revocation) stapled(state tls.ConnectionState) bool {
	return len(state.OCSPResponse) > 0 && slices.ContainsFunc(state.VerifiedChains, func(chain []*x509.Certificate) bool {
		return len(chain) > 1 && v.byStaple(state.OCSPResponse, chain[0], chain[1]).result == ResultGood
	})
}

// oidFeature is TLS Feature (RFC 7633); status_request is number 5 of TLS's extensions.
var oidFeature = []int{1, 3, 6, 1, 5, 5, 7, 1, 24}

// mustStaple says whether a certificate wants to be shown with a proof.
func mustStaple(c *x509.Certificate) bool {
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidFeature) {
			continue
		}
		value := der(e.Value)
		features, ok := value.take(tagSequence)
		for ok && len(features) > 0 {
			var n der
			if n, ok = features.integer(); ok && bytes.Equal(n, []byte{5}) {
				return true
			}
		}
	}
	return false
}

// RevocationStatus is what is known of revocation.
type RevocationStatus struct {
	Policy Policy `json:"policy"`
	// Last is the last look at a chain; nil: there was none.
	Last *RevocationResult `json:"last,omitempty"`
	// Counts of the results since the start.
	Counts map[Result]uint64 `json:"counts,omitempty"`
	Lists  []ListStatus      `json:"lists,omitempty"`
}

// ListStatus is how one source of lists is.
type ListStatus struct {
	Source string `json:"source"`
	// Issuer, entries and times of the list; of the first, where a file holds several.
	Issuer     string    `json:"issuer,omitempty"`
	Entries    int       `json:"entries"`
	ThisUpdate time.Time `json:"this_update,omitzero"`
	NextUpdate time.Time `json:"next_update,omitzero"`
	// Believed says that its signature was found good; before the issuer was seen in a
	// connection, nobody can tell.
	Believed bool `json:"believed"`
	// Looked is when it was last looked at, NextLook when it will be.
	Looked   time.Time `json:"looked,omitzero"`
	NextLook time.Time `json:"next_look,omitzero"`
	// Failures in a row, and the last one.
	Failures int    `json:"failures"`
	Error    string `json:"error,omitempty"`
}

// Status returns what is known.
func (v *Revocation) Status() RevocationStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := RevocationStatus{Policy: v.config.Policy, Counts: make(map[Result]uint64, len(v.counts))}
	for r, n := range v.counts {
		s.Counts[r] = n
	}
	if v.last.Result != "" {
		last := v.last
		s.Last = &last
	}
	for _, source := range v.sources {
		s.Lists = append(s.Lists, source.status())
	}
	return s
}
