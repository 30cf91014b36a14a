package firmware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/firmware/tuf"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Bounds of asking.
const (
	lookMax    = 15 * time.Minute // for the repository's metadata
	retryFirst = time.Minute
	retryMost  = 6 * time.Hour
	attempts   = 5 // of an update that somebody asked for, where nothing is done unasked
)

// firstCheck spreads the checks of a fleet that got its power back.
func (e *Engine) firstCheck() {
	if every := e.o.Config.CheckEvery.Std(); e.client != nil && every > 0 {
		e.nextCheck = time.Now().Add(rand.N(every/10) + time.Second)
	}
	if e.retries() {
		e.nextCheck = time.Now().Add(rand.N(retryFirst) + time.Second)
	}
}

// retries reports whether the last update failed, and is to be tried again though nobody asks.
func (e *Engine) retries() bool {
	u := e.saved.Update
	return e.client != nil && u != nil && u.Reason != "" && u.Manifest != "" && !u.Give && u.Attempts > 0 && u.Attempts < attempts &&
		(e.saved.State == Idle || e.saved.State == Reporting)
}

// schedule says when the repository is asked again, sooner after a failure.
func (e *Engine) schedule(err error) {
	every := e.o.Config.CheckEvery.Std()
	next := every - every/10
	jitter := every / 5
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		e.checkFail = 0
	} else if e.checkFail++; e.checkFail < 10 {
		soon := min(retryFirst<<(e.checkFail-1), retryMost)
		if every == 0 && e.retries() || soon < every {
			next, jitter = soon/2, soon/2
		}
	}
	if next <= 0 {
		e.nextCheck = time.Time{}
		return
	}
	e.nextCheck = time.Now().Add(next + rand.N(jitter+1))
}

// wait is the step of idle.
func (e *Engine) wait(ctx context.Context) (State, error) {
	e.setWaits("")
	for {
		e.pauseUntil(ctx, e.nextCheck)
		if ctx.Err() != nil {
			return Idle, ctx.Err()
		}
		if e.lookNow(ctx) {
			return Fetching, nil
		}
	}
}

// lookNow asks the repository because it is time; true: there is something to fetch.
func (e *Engine) lookNow(ctx context.Context) bool {
	if e.held {
		e.schedule(nil)
		return false
	}
	request := Request{By: "schedule"}
	if e.retries() {
		request = e.saved.Update.Request
	}
	err := e.look(ctx, request)
	if ctx.Err() != nil {
		return false
	}
	if err != nil && !errors.Is(err, ErrNothing) {
		e.log.LogAttrs(ctx, slog.LevelWarn, "nothing to install", slog.Any("err", err))
	}
	return err == nil
}

// look asks the repository and makes what is to be installed the update; nothing is durable of it
// but the manifest. Errors are ErrNothing, ErrRefused, or why it could not be asked.
func (e *Engine) look(ctx context.Context, r Request) (err error) {
	ctx, cancel := context.WithTimeout(ctx, lookMax)
	defer cancel()
	defer func() {
		passing := err
		if errors.Is(err, ErrNothing) || errors.Is(err, ErrRefused) {
			passing = nil
		}
		e.setProblem("repository", passing)
		e.schedule(passing)
		if passing == nil {
			e.setRefused(err)
		}
	}()
	if e.saved.FloorDue > 0 {
		_ = e.raise(ctx, e.saved.FloorDue) // the floor counts as raised; Status tells
	}
	if err := e.readFloor(ctx); err != nil {
		return err
	}
	targets, err := e.refresh(ctx)
	if err != nil {
		return err
	}
	m, err := e.choose(targets, r)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(e.o.FS, e.manifestName(), m.Raw(), 0o600); err != nil {
		return hint.With(fmt.Errorf("keeping the manifest: %w", err), "make room below state_dir")
	}
	e.propose(m, r)
	return nil
}

func (e *Engine) manifestName() string { return filepath.Join(e.o.Dir, "manifest.json") }

func (e *Engine) refresh(ctx context.Context) ([]tuf.Target, error) {
	if e.trust == nil {
		trust, err := tuf.Open(tuf.Options{FS: e.o.FS, Dir: filepath.Join(e.o.Dir, "metadata"), Root: e.o.Root, Now: e.expiryTime, Log: e.log})
		if err != nil {
			return nil, fmt.Errorf("opening the metadata of updates: %w", err)
		}
		e.trust = trust
	}
	targets, err := e.trust.Refresh(ctx, e.client)
	e.noteMetadata(err)
	if err != nil {
		return nil, fmt.Errorf("asking the repository: %w", err)
	}
	e.mu.Lock()
	e.lastCheck, _ = e.o.Now()
	e.mu.Unlock()
	return targets.All(), nil
}

// expiryTime is what expiry is judged by.
func (e *Engine) expiryTime() (now time.Time, trusted bool) {
	now, trusted = e.o.Now()
	if !trusted && e.o.Passed != nil {
		now = e.o.Passed()
	}
	return now, trusted
}

// propose makes m the update. What was counted of the same edition is kept: it breaks loops.
func (e *Engine) propose(m *manifest.Manifest, r Request) {
	from := e.runs()
	next := &update{
		Manifest: m.ID(), Edition: m.Edition(), Version: m.Version(), Release: m.Release(), Security: m.SecurityVersion(),
		Target: targetOf(e.env), From: from.Version, Request: r, Health: policy(m.Health()),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if u := e.saved.Update; u != nil && u.Edition == next.Edition && u.Target == next.Target {
		next.Steps, next.Attempts, next.Rewrites = u.Steps, u.Attempts, u.Rewrites
	}
	e.m, e.fresh, e.verified = m, true, false
	e.saved.Update = next
	delete(e.saved.Slots, next.Target)
	e.target = TargetStatus{}
}

// targetOf is the slot to write: the one that does not run, nor, where neither does, the active one.
func targetOf(env slot.State) slot.Slot {
	if env.Running == "" {
		return env.Active.Other()
	}
	return env.Running.Other()
}

// runs is what runs.
func (e *Engine) runs() installed {
	if known, ok := e.saved.Slots[e.env.Running]; ok {
		return known
	}
	return installed{Version: e.o.Version}
}

// choose finds what is to be installed among the repository's targets.
func (e *Engine) choose(targets []tuf.Target, r Request) (*manifest.Manifest, error) {
	runs := e.runs()
	if runs.Release == 0 {
		for _, t := range targets {
			if m, err := manifest.Of(t); err == nil && m.Product() == e.o.Config.Product && m.Version() == runs.Version {
				runs.Release = m.Release()
				break
			}
		}
	}
	var best *manifest.Manifest
	var refused, unusable error
	var refusedRelease uint64
	for _, t := range targets {
		m, err := manifest.Of(t)
		if errors.Is(err, manifest.ErrNone) {
			continue
		}
		if err != nil {
			e.log.Warn("release skipped", slog.String("target", clean(t.Path())), slog.Any("err", err))
			if e.wouldBeFor(t.Path(), r, runs) {
				unusable = hint.With(fmt.Errorf("%w: %s: %w", ErrRefused, clean(t.Path()), err), "publish it anew; ferrule-release verify says what is wrong with it")
			}
			continue
		}
		if !e.concerns(m, r) || best != nil && m.Release() <= best.Release() {
			continue
		}
		if err := e.admit(m, r, runs); err == nil {
			best = m
		} else if m.Release() > refusedRelease {
			refused, refusedRelease = err, m.Release()
		}
	}
	switch {
	case best != nil:
		return best, nil
	case unusable != nil && !errors.Is(refused, ErrRefused):
		return nil, unusable
	case refused != nil:
		return nil, refused
	case r.Version != "":
		return nil, hint.With(fmt.Errorf("%w: the repository has no version %s for product %s and channel %s", ErrNothing, r.Version, e.o.Config.Product, e.o.Config.Channel),
			"ferrule-release verify lists what it has")
	}
	return nil, fmt.Errorf("%w: it has the newest, %s", ErrNothing, runs.Version)
}

// wouldBeFor reports whether this device would have got the release at path, had it had a manifest.
func (e *Engine) wouldBeFor(path string, r Request, runs installed) bool {
	product, version, _ := strings.Cut(path, "/")
	order, known := compare(version, runs.Version)
	return product == e.o.Config.Product && version != runs.Version && (version == r.Version || r.Version == "" && (!known || order > 0))
}

// concerns reports whether m is asked for, wherever it may be installed.
func (e *Engine) concerns(m *manifest.Manifest, r Request) bool {
	c := e.o.Config
	return m.Product() == c.Product && m.Channel() == c.Channel && (r.Version == "" || m.Version() == r.Version)
}

// admit says why this device does not get m: ErrNothing where that is as it should be, else ErrRefused.
func (e *Engine) admit(m *manifest.Manifest, r Request, runs installed) error {
	c := e.o.Config
	now, _ := e.o.Now()
	refuse := func(advice, format string, args ...any) error {
		return hint.With(fmt.Errorf("%w: version %s %s", ErrRefused, m.Version(), fmt.Sprintf(format, args...)), advice)
	}
	switch {
	case m.Version() == runs.Version:
		return fmt.Errorf("%w: version %s runs", ErrNothing, m.Version())
	case r.Version == "" && !newer(m, runs):
		return fmt.Errorf("%w: version %s is not newer than %s, which runs", ErrNothing, m.Version(), runs.Version)
	case len(m.Hardware()) > 0 && !slices.Contains(m.Hardware(), c.Hardware):
		return refuse("check update.hardware", "is for hardware %s, not %q", strings.Join(m.Hardware(), ", "), c.Hardware)
	case m.SecurityVersion() < e.floor.Value:
		return refuse("publish a version with at least that security version", "has the security version %d, and the floor of this device is %d", m.SecurityVersion(), e.floor.Value)
	case !reaches(e.o.Agent, m.MinAgent()):
		return refuse("install a version in between first", "needs at least agent %s, and this is %s", m.MinAgent(), e.o.Agent)
	case e.quarantined(m) != "":
		return refuse("publish it anew, with a new release number, once it is repaired", "was given up before: %s", e.quarantined(m))
	case m.Rollout().Paused:
		return fmt.Errorf("%w: the rollout of version %s is paused", ErrNothing, m.Version())
	case r.Version == "" && !m.Rollout().Admits(e.o.Device, now):
		return fmt.Errorf("%w: version %s has not been rolled out to this device yet", ErrNothing, m.Version())
	}
	return nil
}

func (e *Engine) quarantined(m *manifest.Manifest) string {
	for _, q := range e.saved.Quarantine {
		if q.Edition == m.Edition() {
			return q.Reason
		}
	}
	return ""
}

// newer reports whether m is published after what runs. Where nobody knows the release of that, the
// versions must do: a device that came with a version that was never published must not go
// back to one that was.
func newer(m *manifest.Manifest, runs installed) bool {
	if runs.Release > 0 {
		return m.Release() > runs.Release
	}
	order, known := compare(m.Version(), runs.Version)
	return !known || order > 0
}

// reaches reports whether version have is at least need. A version that is none is taken for the newest.
func reaches(have, need string) bool {
	order, known := compare(have, need)
	return need == "" || !known || order >= 0
}

// compare orders versions such as v1.4.0 by their numbers; what follows - or + does not count. known
// is false where one of them is no such version.
func compare(a, b string) (order int, known bool) {
	x, xok := numbers(a)
	y, yok := numbers(b)
	if !xok || !yok {
		return 0, false
	}
	for len(x) < len(y) {
		x = append(x, 0)
	}
	for len(y) < len(x) {
		y = append(y, 0)
	}
	return slices.Compare(x, y), true
}

func numbers(version string) ([]uint64, bool) {
	version = strings.TrimPrefix(version, "v")
	if end := strings.IndexAny(version, "-+~"); end >= 0 {
		version = version[:end]
	}
	var out []uint64
	for field := range strings.SplitSeq(version, ".") {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil || len(out) == 8 {
			return nil, false
		}
		out = append(out, n)
	}
	return out, true
}

// manifestOf returns the manifest of the update under way, after a start from its file.
func (e *Engine) manifestOf() (*manifest.Manifest, error) {
	u := e.saved.Update
	if e.m != nil && e.m.ID() == u.Manifest {
		return e.m, nil
	}
	raw, err := disk.ReadFile(e.o.FS, e.manifestName(), manifest.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest that was kept: %w", err)
	}
	m, err := manifest.Reopen(raw)
	if err == nil && m.ID() != u.Manifest {
		err = errors.New("it is of another update")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the manifest that was kept: %w", err)
	}
	e.m = m
	return m, nil
}
