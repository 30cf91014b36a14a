package authorize

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/internal/jws"
)

// Clock is what is known of the time (agent/clock).
type Clock interface {
	Now() time.Time
	Trusted() bool
}

// Device is who a token must be for.
type Device struct {
	ID string
	// Thumbprints are those of the keys that are ours (jws.Thumbprint): the one in use, and while another is
	// staged that one too.
	Thumbprints []string
}

// Options is what an Authority needs of others.
type Options struct {
	FS disk.FS
	// Path is the store of used tokens; StateDir is where relative paths of issuers start.
	Path, StateDir string
	Device         func() Device
	// Key signs receipts: the device's key of the moment.
	Key   func() crypto.Signer
	Clock Clock
	Log   *slog.Logger
}

// Authority judges commands. It is safe for concurrent use.
type Authority struct {
	config  Config
	o       Options
	issuers []issuer
	spent   *store // nil where no command is judged

	mu       sync.Mutex
	accepted uint64
	refused  map[string]uint64
}

// Open reads the issuers and the store of used tokens. An issuer that cannot be read is an error; a store that
// cannot be read refuses every token that may have been in it.
func Open(c Config, o Options) (*Authority, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	a := &Authority{config: c, o: o, refused: map[string]uint64{}}
	if !c.uses(Audit) && !c.uses(Enforce) {
		return a, nil
	}
	var err error
	if a.issuers, err = readIssuers(o.FS, o.StateDir, c.Issuers); err != nil {
		return nil, err
	}
	a.spent = openStore(o.FS, o.Path, o.Clock, c.Leeway.Std(), o.Log)
	return a, nil
}

// Close closes the store.
func (a *Authority) Close() error {
	if a.spent == nil {
		return nil
	}
	return a.spent.close()
}

// Mode is what becomes of a command.
func (a *Authority) Mode(command string) Mode { return a.config.mode(command) }

// Decision is what Check found: the command may act, once Spend was told.
type Decision struct {
	Mode Mode
	// Refused is what enforce would have refused, where Mode is Audit; nil otherwise.
	Refused *Refusal
	// Issuer and Token are iss and jti, Key the thumbprint of the issuer's key, Grant the part of the scope that
	// covers the operation; empty where Mode is Off or Refused is set.
	Issuer, Token, Key, Grant string

	expires time.Time
	spent   bool
}

// Check judges a token, without writing anything: signature, device, time, operation, and whether it was used. In
// Enforce the error is a *Refusal; in the other modes it is nil. What Check allows must be given to Spend, which
// makes the token used, before it acts.
func (a *Authority) Check(ctx context.Context, token string, op Operation) (Decision, error) {
	d := Decision{Mode: a.Mode(op.Command)}
	if d.Mode == Off {
		return d, nil
	}
	if r := a.judge(token, op, &d); r != nil {
		return a.refuse(ctx, d, op, r)
	}
	return d, nil
}

// Spend makes the use of d's token durable: nobody can use it again, whatever happens to power and process. It
// belongs between the journal's Begin and the act. In Enforce an error is a *Refusal and the command must not act.
func (a *Authority) Spend(ctx context.Context, d *Decision, op Operation) error {
	if d.Mode == Off || d.Refused != nil {
		return nil
	}
	if d.Token == "" {
		return refuse(CodeMissing, "the command was not checked")
	}
	if r := a.spent.add(identify(d.Key, d.Token), d.expires); r != nil {
		refused, err := a.refuse(ctx, *d, op, r)
		*d = refused
		return err
	}
	d.spent = true
	a.mu.Lock()
	a.accepted++
	a.mu.Unlock()
	return nil
}

// refuse counts and logs a refusal, and makes of it what the mode says.
func (a *Authority) refuse(ctx context.Context, d Decision, op Operation, r *Refusal) (Decision, error) {
	a.mu.Lock()
	a.refused[r.Code]++
	a.mu.Unlock()
	d = Decision{Mode: d.Mode, Refused: r}
	if d.Mode == Audit {
		a.o.Log.LogAttrs(ctx, slog.LevelWarn, "command would be refused without a good authorisation",
			slog.String("id", op.ID), slog.String("command", op.Command), slog.String("code", r.Code), slog.String("err", r.Error()))
		return d, nil
	}
	d.Refused = nil
	return d, r
}

// judge is the whole check, cheapest first; nothing a token says is believed before its signature.
func (a *Authority) judge(token string, op Operation, d *Decision) *Refusal {
	if token == "" {
		return &Refusal{CodeMissing, hint.With(fmt.Errorf("the command %q needs an authorisation", op.Command),
			`send a token of an issuer of this device in "authorization"; ferrule-factory authorize makes one`)}
	}
	if len(token) > MaxToken {
		return refuse(CodeMalformed, "the token has %d bytes; %d are allowed", len(token), MaxToken)
	}
	t, err := jws.Parse(token)
	if err != nil {
		return parseRefusal(err)
	}
	if r := checkHeader(t.Header()); r != nil {
		return r
	}
	by, r := a.verify(t)
	if r != nil {
		return r
	}
	c, r := readClaims(t)
	if r != nil {
		return r
	}
	if r := a.checkClaims(c, by, op); r != nil {
		return r
	}
	scope, err := ParseScope(c.scope)
	if err != nil {
		return refuse(CodeScopeSyntax, "%w", err)
	}
	grant := scope.Grants(op)
	if grant == "" {
		return refuse(CodeScope, "the token grants %.200q, and not %s", c.scope, op)
	}
	if r := a.spent.look(identify(by.thumbprint, c.id), c.issued, c.expires); r != nil {
		return r
	}
	d.Issuer, d.Token, d.Key, d.Grant, d.expires = c.issuer, c.id, by.thumbprint, grant, c.expires
	return nil
}

func parseRefusal(err error) *Refusal {
	switch {
	case errors.Is(err, jws.ErrAlgorithm):
		return &Refusal{CodeAlgorithm, err}
	case errors.Is(err, jws.ErrCritical):
		return &Refusal{CodeHeader, err}
	}
	return &Refusal{CodeMalformed, err}
}

// checkHeader refuses what could tell another reader where to find a key (jwk, jku, x5c, x5u), and a token
// that says it is something else (RFC 8725, 3.11).
func checkHeader(h jws.Header) *Refusal {
	for _, name := range h.Names {
		if name != "alg" && name != "kid" && name != "typ" {
			return refuse(CodeHeader, "the token's header has %.40q; only alg, kid and typ are allowed", name)
		}
	}
	switch typ := strings.TrimPrefix(strings.ToLower(h.Typ), "application/"); typ {
	case "", "jwt", "at+jwt":
		return nil
	}
	return refuse(CodeHeader, "the token is of type %.40q, which is no authorisation", h.Typ)
}

// verify finds the pinned key that signed. The key's kind decides what alg must be, never the reverse.
func (a *Authority) verify(t *jws.Token) (by issuer, r *Refusal) {
	kid, fits := t.Header().Kid, false
	candidates := a.issuers
	if slices.Contains(t.Header().Names, "kid") {
		candidates = slices.DeleteFunc(slices.Clone(a.issuers), func(i issuer) bool { return i.thumbprint != kid })
		if len(candidates) == 0 {
			return by, refuse(CodeKey, "the token's kid %.60q is not the thumbprint of an issuer of this device", kid)
		}
	}
	for _, i := range candidates {
		switch err := t.Verify(i.key); {
		case err == nil:
			return i, nil
		case !errors.Is(err, jws.ErrKey):
			fits = true
		}
	}
	if !fits {
		return by, refuse(CodeAlgorithm, "the token is signed with %s, and no issuer of this device has a key for that", t.Header().Alg)
	}
	return by, refuse(CodeSignature, "no issuer of this device signed the token")
}

// checkClaims judges who the token is from and for, and when it may be used.
func (a *Authority) checkClaims(c claims, by issuer, op Operation) *Refusal {
	now, leeway, device := a.o.Clock.Now(), a.config.Leeway.Std(), a.o.Device()
	switch {
	case by.name != "" && by.name != c.issuer:
		return refuse(CodeIssuer, "the token is from %.80q; its key belongs to %q", c.issuer, by.name)
	case device.ID == "" || c.audience != device.ID:
		return refuse(CodeAudience, "the token is for %.80q; this is %q", c.audience, device.ID)
	case !slices.Contains(device.Thumbprints, c.binding):
		return refuse(CodeBinding, "the token is bound to the key %.60q, which is none of this device", c.binding)
	case c.expires.Sub(c.issued) > MaxLife:
		return refuse(CodeLife, "the token lives %v; at most %v is allowed", c.expires.Sub(c.issued), MaxLife)
	case !c.expires.After(c.issued):
		return refuse(CodeLife, "the token expires before it was issued")
	case !a.o.Clock.Trusted():
		return &Refusal{CodeClock, hint.With(errors.New("the gateway's clock is not synchronised, so it cannot tell a token of now from one that was held back"),
			"let the gateway reach a time server; ferrule status shows its clock")}
	case now.After(c.expires.Add(leeway)):
		return refuse(CodeExpired, "the token expired at %s; it is %s here", stamp(c.expires), stamp(now))
	case c.issued.After(now.Add(leeway)) || c.notBefore.After(now.Add(leeway)):
		return refuse(CodeEarly, "the token is not yet to be used; it is %s here", stamp(now))
	case !by.current(now, leeway):
		return refuse(CodeIssuer, "the certificate of the token's issuer is good from %s to %s; it is %s here", stamp(by.from), stamp(by.to), stamp(now))
	case c.args != "" && c.args != Digest(op.Args):
		return refuse(CodeArgs, "the token is for other arguments")
	}
	return nil
}

// Digest is the claim "args": base64url of the SHA-256 over the bytes of the payload's "args" as they are sent.
func Digest(args []byte) string {
	sum := sha256.Sum256(args)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (o Operation) String() string {
	if version, ok := o.Value.(string); ok && o.Command == "update" && version != "" {
		return fmt.Sprintf("update:%.80s", Quote(version))
	}
	if o.Command != "write" {
		return o.Command
	}
	value := fmt.Sprint(o.Value)
	if text, ok := o.Value.(string); ok {
		value = "'" + Quote(text) + "'"
	}
	return fmt.Sprintf("write:%s/%s/%s=%.80s", Quote(o.Line), Quote(o.Unit), Quote(o.Point), value)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Status is what the authority says of itself.
type Status struct {
	Mode     Mode              `json:"mode"`
	Issuers  []string          `json:"issuers,omitempty"` // thumbprints
	Accepted uint64            `json:"accepted"`
	Refused  map[string]uint64 `json:"refused,omitempty"` // by code; in audit, what would have been
	// Waiting is how many used tokens are remembered until they expire, of at most Capacity.
	Waiting int `json:"waiting"`
	// Problem is why single use cannot be guaranteed at present, "" when all is well.
	Problem string `json:"problem,omitempty"`
}

// Status returns the state of the authority.
func (a *Authority) Status() Status {
	s := Status{Mode: a.config.Mode, Refused: map[string]uint64{}}
	for _, i := range a.issuers {
		s.Issuers = append(s.Issuers, i.thumbprint)
	}
	if a.spent != nil {
		s.Waiting, s.Problem = a.spent.status()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Accepted = a.accepted
	for code, n := range a.refused {
		s.Refused[code] = n
	}
	return s
}
