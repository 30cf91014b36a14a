package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"ferrule/agent/enroll"
	"ferrule/internal/hint"
	"ferrule/tpm"
)

// retireAfter is how long the key of an old certificate stays open: a handshake that began
// before the rotation may still sign with it.
const retireAfter = time.Minute

// maxStrikes is how often a broker may refuse a staged certificate before another one is asked for.
const maxStrikes = 3

// renewalAsk is a Renew that waits for Run.
type renewalAsk struct {
	rekey bool
	done  chan error // with room for the answer
}

// Run renews the certificate, obtains another one where it expired or a broker refuses it, and
// finishes what the disk refused. It ends with ctx.
func (i *Identity) Run(ctx context.Context, e enroll.Config) error {
	i.mu.Lock()
	i.state.terms = e.Due
	i.mu.Unlock()
	r := &runner{Identity: i, enroll: e}
	r.spreadStart()
	for {
		sleep := r.look(ctx)
		timer := time.NewTimer(sleep)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		case <-i.wake:
		case ask := <-i.asks:
			ask.done <- r.renew(ctx, ask.rekey)
		}
		timer.Stop()
	}
}

// spreadStart keeps a fleet whose power came back from asking all at once. Who is late already
// does not wait.
func (r *runner) spreadStart() {
	c := r.newest()
	now, _ := r.judge.now(c.leaf)
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.term(c); !t.expired(now) && now.Before(t.alarmAt()) {
		first, _ := steps(t.life())
		r.state.next = time.Now().Add(time.Duration(r.o.random() * float64(5*first)))
	}
}

// nudge makes Run look again at once.
func (i *Identity) nudge() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// Renew asks for a new certificate now, with rekey for a new key. It returns when the certificate
// is staged, or with the reason why none came. Run does the work, and goes on with it where ctx
// ends before.
func (i *Identity) Renew(ctx context.Context, rekey bool) error {
	ask := renewalAsk{rekey: rekey, done: make(chan error, 1)}
	select {
	case i.asks <- ask:
	case <-ctx.Done():
		return fmt.Errorf("waiting for the renewal before: %w", ctx.Err())
	}
	select {
	case err := <-ask.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the new certificate, which may still come: %w", ctx.Err())
	}
}

// Refused notes that a broker does not take the certificate with this fingerprint. The one in use
// is replaced by the way back; a staged one is proved again later, and given up after a few times.
func (i *Identity) Refused(fingerprint string, why error) {
	ctx := context.Background()
	i.mu.Lock()
	now := time.Now()
	var c *Credential
	switch {
	case i.staged != nil && i.staged.fingerprint == fingerprint:
		if now.Before(i.state.reprove) {
			break // one proof, one strike, however often the session tries
		}
		c = i.staged
		i.state.strikes++
		i.state.reprove = now.Add(backoff(i.term(c).life(), i.state.strikes, i.o.random()))
	case i.current.fingerprint == fingerprint && i.staged == nil && !i.state.refused:
		c = i.current
		i.state.rejected(now, i.term(c))
	}
	i.mu.Unlock()
	if c == nil {
		return
	}
	i.o.event(ctx, EventRefused, append(c.attrs(), slog.String("err", text(why)))...)
	i.nudge()
}

// Accepted notes that a broker takes the certificate with this fingerprint, so that one which was
// refused by mistake is not replaced, nor complained of.
func (i *Identity) Accepted(fingerprint string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.current.fingerprint == fingerprint {
		i.state.refused = false
	}
}

// runner is Run's own: one goroutine.
type runner struct {
	*Identity
	enroll enroll.Config
	wall   time.Time // of the last look, with its monotonic reading
	judged time.Time
}

// look does what is due and returns how long to sleep.
func (r *runner) look(ctx context.Context) time.Duration {
	r.tidy(ctx)
	r.watchClock(ctx)
	r.challengeStaged(ctx)
	r.alarm(ctx)
	c := r.newest()
	now, _ := r.judge.now(c.leaf)
	r.mu.Lock()
	do, sleep := r.state.decide(now, time.Now(), r.term(c))
	if do == nothing && r.state.rekey && r.staged == nil && !time.Now().Before(r.state.next) {
		do = renewal // a rotation that a restart interrupted
	}
	r.mu.Unlock()
	switch {
	case r.enroll.Method == enroll.MethodNone, r.enroll.Method == "":
		return lookEvery // others renew; the alarm is ours
	case do == nothing:
		return max(sleep, time.Second)
	}
	_ = r.attempt(ctx, do, false)
	return time.Second
}

// renew serves Renew.
func (r *runner) renew(ctx context.Context, rekey bool) error {
	c := r.newest()
	now, _ := r.judge.now(c.leaf)
	do := renewal
	r.mu.Lock()
	if r.state.refused || r.term(c).expired(now) {
		do = homecoming
	}
	r.mu.Unlock()
	return r.attempt(ctx, do, rekey)
}

// attempt makes one attempt and notes how it went.
func (r *runner) attempt(ctx context.Context, do action, rekey bool) error {
	last := &Attempt{At: r.o.Clock.Now(), Way: do.String(), NewKey: rekey}
	c, err := r.renewOnce(ctx, r.enroll, do, rekey)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.mu.Lock()
	if r.state.last = last; err != nil {
		last.Error, last.Hint = text(err), hint.Of(err)
		r.state.failed(time.Now(), r.term(r.current), do, err)
	}
	if do == homecoming {
		r.state.came = time.Now()
	}
	next := r.state.next
	r.mu.Unlock()
	if err != nil {
		r.o.Log.LogAttrs(ctx, slog.LevelWarn, "renewal failed", slog.String("way", do.String()),
			slog.Duration("again_in", time.Until(next).Round(time.Second)), slog.Any("err", err))
		r.o.event(ctx, EventFailed, slog.String("way", do.String()), slog.String("err", text(err)))
		return err
	}
	r.stage(ctx, c)
	return nil
}

// renewOnce obtains the certificate that follows the newest one.
func (i *Identity) renewOnce(ctx context.Context, e enroll.Config, do action, rekey bool) (*Credential, error) {
	from := i.newest()
	key, err := i.keyFor(ctx, from, rekey)
	if err != nil {
		return nil, err
	}
	device := from.leaf.Subject.CommonName
	var c *Credential
	if do == homecoming {
		c, err = i.wayBack(ctx, e, device, key)
	} else {
		c, err = i.obtain(ctx, e, order{purpose: enroll.Renew, device: device, key: key, present: from})
	}
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	c.successor = key == i.nextKey
	i.mu.Unlock()
	return c, nil
}

// keyFor returns the key of the next certificate: that of the newest one, or with rekey, and
// where a rotation was begun before, a new one, durable before its request leaves.
func (i *Identity) keyFor(ctx context.Context, from *Credential, rekey bool) (tpm.DeviceKey, error) {
	i.work.Lock()
	defer i.work.Unlock()
	i.settle(ctx)
	if i.mu.Lock(); i.unwritten != nil && i.unwritten.successor {
		defer i.mu.Unlock()
		if rekey {
			return nil, errors.New("the key in use could not be put in its place yet, and goes before another one")
		}
		return from.key, nil
	}
	i.mu.Unlock()
	if err := i.findNextKey(ctx); err != nil {
		return nil, err
	}
	i.mu.Lock()
	next := i.nextKey
	i.mu.Unlock()
	switch {
	case next != nil:
		uri, err := tpm.NextURI(i.config.Key)
		if err == nil {
			err = tpm.SettleKey(uri, i.keyOptions(record{}))
		}
		return next, err
	case !rekey:
		return from.key, nil
	}
	uri, err := tpm.NextURI(i.config.Key)
	if err != nil {
		return nil, err
	}
	key, err := tpm.CreateKeyAt(ctx, uri, tpm.KeySpec{}, i.keyOptions(record{}))
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.nextKey, i.state.rekey = key, true
	return key, nil
}

// rekey is ferrule enroll --rekey while no agent runs: what it obtains is staged.
func rekey(ctx context.Context, c Config, o Options, e enroll.Config) (Result, error) {
	o.Changed = nil
	i, err := Open(ctx, c, o)
	if err != nil {
		return Result{}, err
	}
	defer i.Close()
	if staged := i.Staged(); staged != nil && staged.successor {
		result := i.result(staged)
		result.Already, result.Staged = true, true
		return result, nil
	}
	do := renewal
	if now, _ := i.judge.now(nil); now.After(i.newest().leaf.NotAfter) {
		do = homecoming
	}
	fresh, err := i.renewOnce(ctx, e, do, true)
	if err != nil {
		return Result{}, err
	}
	i.stage(ctx, fresh)
	if problem := i.Status().Problem; problem != "" {
		return Result{}, errors.New(problem)
	}
	result := i.result(fresh)
	result.Staged = true
	return result, nil
}
