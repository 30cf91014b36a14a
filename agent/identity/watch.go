package identity

import (
	"context"
	"crypto/x509"
	"log/slog"
	"time"
)

// What Run looks after beside the renewal itself.

// jump is how far the clock may move beside the monotonic one before it is worth a line.
const jump = time.Minute

// tidy writes what the disk refused before, and frees keys that no connection uses any more.
func (r *runner) tidy(ctx context.Context) {
	r.work.Lock()
	r.settle(ctx)
	r.work.Unlock()
	r.mu.Lock()
	var done []retiree
	for len(r.retired) > 0 && time.Since(r.retired[0].since) >= retireAfter {
		done, r.retired = append(done, r.retired[0]), r.retired[1:]
	}
	r.mu.Unlock()
	for _, old := range done {
		if err := old.key.Close(); err != nil {
			r.o.Log.LogAttrs(ctx, slog.LevelWarn, "old key not freed", slog.Any("err", err))
		}
	}
}

// watchClock says when the clock jumped. Nothing is timed by it, so nothing more happens.
func (r *runner) watchClock(ctx context.Context) {
	wall, judged := time.Now(), r.o.Clock.Now()
	if !r.wall.IsZero() {
		moved := judged.Round(0).Sub(r.judged) - wall.Sub(r.wall)
		if moved > jump || moved < -jump {
			r.o.Log.LogAttrs(ctx, slog.LevelWarn, "clock jumped", slog.Duration("by", moved.Round(time.Second)),
				slog.Time("now", judged), slog.Bool("trusted", r.o.Clock.Trusted()))
		}
	}
	r.wall, r.judged = wall, judged.Round(0)
}

// challengeStaged has a staged certificate proved again that a broker refused, throws it away
// after a few times, and one that expired meanwhile.
func (r *runner) challengeStaged(ctx context.Context) {
	c := r.Staged()
	if c == nil {
		return
	}
	now, _ := r.judge.now(c.leaf)
	r.mu.Lock()
	expired, tired := r.term(c).expired(now), r.state.strikes >= maxStrikes
	again := !r.state.reprove.IsZero() && !time.Now().Before(r.state.reprove)
	if again {
		r.state.reprove = time.Time{}
	}
	if expired || tired {
		r.staged, r.state.strikes = nil, 0
		r.state.failed(time.Now(), r.term(r.current), nothing, nil)
	}
	r.mu.Unlock()
	switch {
	case expired || tired:
		r.o.Log.LogAttrs(ctx, slog.LevelWarn, "staged certificate given up", append(c.attrs(), slog.Bool("expired", expired))...)
		r.work.Lock()
		defer r.work.Unlock()
		if err := r.dropCertificate(); err != nil {
			r.o.Log.LogAttrs(ctx, slog.LevelWarn, "staged certificate not removed", slog.Any("err", err))
		}
	case again:
		r.o.changed()
	}
}

// alarm raises the alarm once for a certificate that is near its end.
func (r *runner) alarm(ctx context.Context) {
	c := r.Current()
	now, _ := r.judge.now(c.leaf)
	r.mu.Lock()
	due := !now.Before(r.term(c).alarmAt()) && r.state.alarmed != c.fingerprint
	if due {
		r.state.alarmed = c.fingerprint
	}
	r.mu.Unlock()
	if due {
		r.o.Log.LogAttrs(ctx, slog.LevelError, "certificate near its end", slog.Time("not_after", c.leaf.NotAfter))
		r.o.event(ctx, EventAlarm, c.attrs()...)
	}
}

// term is what the schedule knows of c. The caller holds mu.
func (i *Identity) term(c *Credential) term {
	return term{notBefore: c.leaf.NotBefore, notAfter: c.leaf.NotAfter, due: i.dueOf(c.leaf)}
}

// dueOf is when leaf is to be renewed; before Run it is not known, and nothing asks.
func (i *Identity) dueOf(leaf *x509.Certificate) time.Time {
	if i.state.terms == nil {
		return leaf.NotAfter
	}
	return i.state.terms(leaf)
}
