package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// ConfirmWithin is how long staged roots wait where RootsConfig does not say.
const ConfirmWithin = 7 * 24 * time.Hour

// RootsConfig says where the roots of one purpose are.
type RootsConfig struct {
	// Name is what they are for and part of a file's name: broker or registrar.
	Name string
	// File is the configured PEM file; empty: the authorities of the operating system.
	File string
	// ConfirmWithin is how long staged roots wait to be confirmed; 0: ConfirmWithin.
	ConfirmWithin time.Duration
}

// Roots are the authorities that peers of one purpose are checked against: those of the
// configured file, or those that were confirmed in its place, and beside them those that are
// staged. Its methods may be called from any goroutine.
//
//	           Stage                        Confirm (once seen)
//	active ──────────► active + staged ──────────────────────────► staged are the active ones
//	   ▲                    │ Discard, or confirm_within over: unless a connection needed them
//	   └────────────────────┘
type Roots struct {
	config RootsConfig
	o      Options
	path   string

	mu     sync.Mutex
	file   configured
	saved  saved
	active []*x509.Certificate // nil: the system's
	staged []*x509.Certificate
	pool   *x509.CertPool
	// last says how the last connection of this process was verified; nil: there was none.
	last *verdict
	// counted is when the running time of the staged roots was last added up.
	counted time.Time
}

// verdict says which roots a connection would have been verified by.
type verdict struct {
	byActive, byStaged bool
}

// configured is what the configured file held.
type configured struct {
	digest       string // SHA-256 in hex; "system" without a file; empty: not readable
	certificates []*x509.Certificate
}

// OpenRoots reads the configured file and what was sent since. An error is the configured
// file's, where no confirmed set stands in for it; damage to our own file is never one.
func OpenRoots(c RootsConfig, o Options) (*Roots, error) {
	if c.ConfirmWithin <= 0 {
		c.ConfirmWithin = ConfirmWithin
	}
	r := &Roots{config: c, o: o, path: filepath.Join(o.StateDir, "roots", c.Name+".json"), counted: time.Now()}
	r.saved = r.load()
	if r.saved.Staged != nil {
		r.staged, _ = parseRoots([]byte(r.saved.Staged.PEM)) // load has tried
	}
	if _, err := r.Reload(); err != nil {
		return nil, err
	}
	return r, nil
}

// Reload reads the configured file again, and says whether other roots are active for it. One
// that cannot be read leaves what there is, and is an error only where there is nothing.
func (r *Roots) Reload() (changed bool, err error) {
	defer func() {
		if changed {
			r.o.changed()
		}
	}()
	file, err := readConfigured(r.o.FS, r.config.File)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if r.file.digest == "" && r.saved.Confirmed == nil {
			return false, err
		}
		r.o.event(slog.LevelError, "configured roots not readable", slog.String("for", r.config.Name), slog.Any("err", err))
		if r.file.digest != "" {
			return false, nil
		}
	}
	first := r.file.digest == ""
	if !first && file.digest == r.file.digest {
		return false, nil
	}
	r.file = file
	r.choose()
	r.last = nil
	return !first, nil
}

// choose settles which roots are active. An operator who changes the file wins over what was
// sent: the confirmed set replaced another file.
func (r *Roots) choose() {
	r.pool = nil
	r.active = r.file.certificates
	confirmed := r.saved.Confirmed
	if confirmed == nil {
		return
	}
	if r.file.digest == "" || confirmed.Replaces == r.file.digest {
		r.active, _ = parseRoots([]byte(confirmed.PEM)) // load has tried
		return
	}
	r.o.event(slog.LevelWarn, "configured roots changed, so the confirmed ones are dropped", slog.String("for", r.config.Name))
	next := r.saved
	next.Confirmed = nil
	_ = r.store(next) // a file that stays is dropped again at the next start
	r.saved = next
}

// Pool returns what to verify with: the active roots and the staged ones; nil means the
// system's. It is the same pool until something changes; while staged roots wait to be seen it
// is another one at each call, which keeps a caller that compares from resuming a TLS session:
// that would show the certificate of the handshake before.
func (r *Roots) Pool() *x509.CertPool {
	r.mu.Lock()
	expired := r.expire()
	defer func() {
		if expired {
			r.o.changed()
		}
	}()
	defer r.mu.Unlock()
	if r.pool != nil && !r.waiting() || len(r.staged) == 0 && r.system() {
		return r.pool
	}
	pool := x509.NewCertPool()
	if r.system() {
		if system, err := x509.SystemCertPool(); err == nil {
			pool = system
		}
	}
	for _, c := range slices.Concat(r.active, r.staged) {
		pool.AddCert(c)
	}
	r.pool = pool
	return pool
}

// system says whether the operating system's authorities are the active ones.
func (r *Roots) system() bool { return r.active == nil }

// waiting says whether staged roots wait to be seen.
func (r *Roots) waiting() bool {
	return r.saved.Staged != nil && !r.saved.Staged.Seen
}

// Stage adds the roots of a PEM text beside the active ones, in place of others that are
// staged. What is not a set of authorities is refused with ErrRefused; ErrInUse where the last
// connection needed those that are staged now, unless they are among the new ones. The same set again changes nothing.
func (r *Roots) Stage(text []byte) error {
	certificates, err := parseRoots(text)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err := r.current(certificates); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return r.alter(func() error { return r.stage(certificates) })
}

// alter changes something under the lock, and says so when it is done.
func (r *Roots) alter(change func() error) error {
	r.mu.Lock()
	pool := r.pool
	err := change()
	changed := err == nil && (r.pool == nil || r.pool != pool)
	r.mu.Unlock()
	if changed {
		r.o.changed()
	}
	return err
}

func (r *Roots) stage(certificates []*x509.Certificate) error {
	if same(certificates, r.staged) {
		return nil
	}
	lacks := func(c *x509.Certificate) bool { return !slices.ContainsFunc(certificates, c.Equal) }
	if r.needed() && slices.ContainsFunc(r.staged, lacks) {
		return hint.With(fmt.Errorf("staging other roots: %w", ErrInUse), "confirm them first, send them together with the others, or let the "+r.config.Name+" go back to its old certificate")
	}
	next := r.saved
	next.Staged = &staged{PEM: string(encode(certificates)), Since: r.o.Clock.Now().UTC(), Trusted: r.o.Clock.Trusted()}
	if err := r.store(next); err != nil {
		return err
	}
	r.saved, r.staged, r.pool, r.last, r.counted = next, certificates, nil, nil, time.Now()
	r.o.event(slog.LevelInfo, "roots staged", slog.String("for", r.config.Name), slog.Int("roots", len(certificates)))
	return nil
}

// current refuses roots that have expired for certain.
func (r *Roots) current(certificates []*x509.Certificate) error {
	now := r.o.Clock.Floor()
	if r.o.Clock.Trusted() {
		now = r.o.Clock.Now()
	}
	for _, c := range certificates {
		if now.After(c.NotAfter) {
			return hint.With(fmt.Errorf("%q expired on %s", c.Subject.String(), c.NotAfter.Format(time.DateOnly)), "send roots that are still valid")
		}
	}
	return nil
}

// needed says whether the last connection could not have been made without the staged roots: all
// was verified by one or the other.
func (r *Roots) needed() bool { return r.last != nil && !r.last.byActive }

// Confirm makes the staged roots the only ones. ErrNotSeen until the last connection, and one
// since they were staged, was verified by them alone.
func (r *Roots) Confirm() error { return r.alter(r.confirm) }

func (r *Roots) confirm() error {
	r.expire()
	if r.saved.Staged == nil {
		return ErrNothingStaged
	}
	if !r.saved.Staged.Seen || r.last != nil && !r.last.byStaged {
		return hint.With(ErrNotSeen, "let the "+r.config.Name+" show a certificate that the staged roots vouch for; confirm once status says seen")
	}
	next := saved{Confirmed: &confirmed{PEM: r.saved.Staged.PEM, Replaces: r.file.digest, At: r.o.Clock.Now().UTC()}}
	if r.file.digest == "" {
		next.Confirmed.Replaces = r.saved.Confirmed.Replaces // the file is not there: what it last was
	}
	if err := r.store(next); err != nil {
		return err
	}
	r.saved, r.active, r.staged, r.pool = next, r.staged, nil, nil
	r.last = nil
	r.o.event(slog.LevelInfo, "roots confirmed", slog.String("for", r.config.Name), slog.Int("roots", len(r.active)))
	return nil
}

// Discard drops the staged roots. ErrInUse where the last connection needed them: dropping
// them would be the last command that this device hears.
func (r *Roots) Discard() error { return r.alter(r.discard) }

func (r *Roots) discard() error {
	if r.saved.Staged == nil {
		return ErrNothingStaged
	}
	if r.needed() {
		return hint.With(fmt.Errorf("discarding roots: %w", ErrInUse), "let the "+r.config.Name+" go back to its old certificate first")
	}
	return r.drop("roots discarded")
}

// drop forgets the staged roots.
func (r *Roots) drop(event string) error {
	next := r.saved
	next.Staged = nil
	if err := r.store(next); err != nil {
		return err
	}
	r.saved, r.staged, r.pool = next, nil, nil
	r.o.event(slog.LevelWarn, event, slog.String("for", r.config.Name))
	return nil
}

// Verified is told of every good connection by the chains that it was verified with.
func (r *Roots) Verified(chains [][]*x509.Certificate) { r.VerifiedAll(chains) }

// VerifiedAll is Verified for a connection over which something else was given that has to lead to
// the roots, as a registrar gives certificates: roots suffice that vouch for all of it.
func (r *Roots) VerifiedAll(all ...[][]*x509.Certificate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.saved.Staged == nil || len(all) == 0 {
		return
	}
	v := verdict{byActive: true, byStaged: true}
	for _, chains := range all {
		if len(chains) == 0 {
			return
		}
		one := r.judge(chains)
		v.byActive, v.byStaged = v.byActive && one.byActive, v.byStaged && one.byStaged
	}
	r.last = &v
	r.seen(v)
}

// judge says which roots vouch for one of chains. The caller holds mu.
func (r *Roots) judge(chains [][]*x509.Certificate) (v verdict) {
	for _, chain := range chains {
		if len(chain) == 0 {
			continue
		}
		root := chain[len(chain)-1]
		inStaged := slices.ContainsFunc(r.staged, root.Equal)
		v.byStaged = v.byStaged || inStaged
		v.byActive = v.byActive || slices.ContainsFunc(r.active, root.Equal) || r.system() && !inStaged
	}
	return v
}

// seen keeps what a verdict says of the staged roots. The caller holds mu.
func (r *Roots) seen(v verdict) {
	before := *r.saved.Staged
	after := before
	after.Seen = after.Seen || v.byStaged
	after.Needed = after.Needed || r.needed()
	if after == before {
		return
	}
	next := r.saved
	next.Staged = &after
	if err := r.store(next); err != nil {
		r.o.event(slog.LevelWarn, "roots were seen, and this could not be stored", slog.String("for", r.config.Name), slog.Any("err", err))
	}
	r.saved = next
	r.o.event(slog.LevelInfo, "staged roots verified a connection", slog.String("for", r.config.Name), slog.Bool("needed", after.Needed))
}

// RootsStatus is how the roots of one purpose are.
type RootsStatus struct {
	// Source of the active roots: file, confirmed or system.
	Source string `json:"source"`
	File   string `json:"file,omitempty"`
	Active []Root `json:"active,omitempty"`
	// Staged is what waits to be confirmed.
	Staged *StagedStatus `json:"staged,omitempty"`
}

// StagedStatus is how staged roots are.
type StagedStatus struct {
	Roots []Root    `json:"roots"`
	Since time.Time `json:"since"`
	// Seen says that a connection was verified by them alone; Needed, that one needed them,
	// and they do not expire; InUse, that the last one did.
	Seen   bool `json:"seen"`
	Needed bool `json:"needed"`
	InUse  bool `json:"in_use"`
	// Confirmable says whether Confirm would be taken.
	Confirmable bool `json:"confirmable"`
	// Expires is when they are dropped, by the time that passed since they were staged.
	Expires time.Time `json:"expires,omitzero"`
}

// Status returns how the roots are.
func (r *Roots) Status() RootsStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := RootsStatus{Source: "file", File: r.config.File, Active: describe(r.active)}
	switch {
	case r.saved.Confirmed != nil:
		s.Source = "confirmed"
	case r.system():
		s.Source = "system"
	}
	if st := r.saved.Staged; st != nil {
		s.Staged = &StagedStatus{
			Roots: describe(r.staged), Since: st.Since, Seen: st.Seen, Needed: st.Needed, InUse: r.needed(),
			Confirmable: st.Seen && (r.last == nil || r.last.byStaged),
		}
		if !st.Needed {
			s.Staged.Expires = r.o.Clock.Now().Add(r.config.ConfirmWithin - r.age()).UTC()
		}
	}
	return s
}

func same(a, b []*x509.Certificate) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(c *x509.Certificate) bool { return !slices.ContainsFunc(b, c.Equal) })
}

// readConfigured reads the configured file.
func readConfigured(fsys disk.FS, name string) (configured, error) {
	if name == "" {
		return configured{digest: "system"}, nil
	}
	text, err := disk.ReadFile(fsys, name, maxFile)
	if err != nil {
		return configured{}, hint.With(fmt.Errorf("reading the roots: %w", err),
			"name a file with the PEM certificates of the authorities that sign the other side's certificate")
	}
	certificates := lenient(text)
	if len(certificates) == 0 {
		return configured{}, hint.With(fmt.Errorf("reading the roots: %w", errors.New(name+" holds no certificate")),
			"put PEM certificates (-----BEGIN CERTIFICATE-----) into it")
	}
	return configured{digest: digest(text), certificates: certificates}, nil
}
