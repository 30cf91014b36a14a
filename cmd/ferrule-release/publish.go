package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ferrule/firmware/bundle"
	"ferrule/firmware/manifest"
	"ferrule/internal/cli"
	"ferrule/internal/hint"
)

// publishOptions are the flags of publish.
type publishOptions struct {
	again, withdraw list
	keep            int
	allow           bundle.Allow
}

func publishFlags(e *env) {
	keysFlag(e)
	e.Flags.Var(&e.publish.again, "again", "a published `release` that the fleet is to go (back) to; may be repeated")
	e.Flags.Var(&e.publish.withdraw, "withdraw", "a published `release` to take back; may be repeated")
	e.Flags.IntVar(&e.publish.keep, "keep", 0, "take back all but the newest `N` releases of each product, channel and hardware, and remove what nothing names (default: remove nothing)")
	allowFlag(e, &e.publish.allow)
	jsonFlag(e)
}

func runPublish(ctx context.Context, e *env) error {
	if e.publish.keep < 0 {
		return fmt.Errorf("%w: --keep %d", cli.ErrUsage, e.publish.keep)
	}
	return e.publishThis(ctx, bundle.Publication{
		Releases: e.Flags.Args()[1:], Again: e.publish.again, Withdraw: e.publish.withdraw, Keep: e.publish.keep, Allow: e.publish.allow,
	})
}

func (e *env) publishThis(ctx context.Context, p bundle.Publication) error {
	var err error
	if p.Keys, err = e.loadKeys(); err != nil {
		return err
	}
	r, release, err := e.repository(true)
	if err != nil {
		return err
	}
	done, err := r.Publish(ctx, p)
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	return e.printPublished(done)
}

func refreshFlags(e *env) {
	keysFlag(e)
	jsonFlag(e)
}

func runRefresh(ctx context.Context, e *env) error {
	return e.publishThis(ctx, bundle.Publication{Refresh: true})
}

func (e *env) printPublished(done *bundle.Published) error {
	for _, text := range done.Soon {
		fmt.Fprintf(e.Stderr, "ferrule-release: warning: %s\n", text)
	}
	if done.Expires.Before(time.Now()) {
		fmt.Fprintf(e.Stderr, "ferrule-release: warning: the timestamp has expired already: the clock, or SOURCE_DATE_EPOCH, is behind\n")
	}
	if e.json {
		releases := []map[string]any{}
		for _, m := range done.Releases {
			releases = append(releases, map[string]any{"release": m.Target(), "number": m.Release(), "id": m.ID()})
		}
		return e.printJSON(map[string]any{
			"timestamp": done.Timestamp, "snapshot": done.Snapshot, "targets": done.Targets, "expires": done.Expires,
			"soon": append([]string{}, done.Soon...), "releases": releases, "withdrawn": append([]string{}, done.Withdrawn...), "removed": append([]string{}, done.Removed...),
		})
	}
	for _, m := range done.Releases {
		fmt.Fprintf(e.Stdout, "%s is published as number %d%s\n", m.Target(), m.Release(), reach(m.Rollout(), e.now()))
	}
	for _, release := range done.Withdrawn {
		fmt.Fprintf(e.Stdout, "%s is taken back\n", release)
	}
	if len(done.Removed) > 0 {
		fmt.Fprintf(e.Stdout, "%d files that nothing names are removed\n", len(done.Removed))
	}
	fmt.Fprintf(e.Stdout, "timestamp %d is good until %s; refresh it before\n", done.Timestamp, done.Expires.Format(time.RFC3339))
	return nil
}

// reach says who may have a release.
func reach(r manifest.Rollout, now time.Time) string {
	if r.Paused {
		return ", paused"
	}
	out := fmt.Sprintf(", for %g %% of the fleet", r.Share(now))
	for _, step := range r.Steps {
		if step.From.After(now) {
			out += fmt.Sprintf(", %g %% from %s", step.Percent, step.From.Format(time.RFC3339))
		}
	}
	return out
}

// rolloutOptions are the flags of rollout.
type rolloutOptions struct {
	percent, at, steps string
	all, pause, resume bool
}

func rolloutFlags(e *env) {
	keysFlag(e)
	o := &e.rollout
	e.Flags.StringVar(&o.percent, "percent", "", "the `share` of the fleet that gets it, 0 to 100")
	e.Flags.StringVar(&o.at, "at", "+0s", "from this `time` on: +24h or 2026-11-24T06:00:00Z, with --percent")
	e.Flags.StringVar(&o.steps, "steps", "", "the whole plan, as `1@+0s,10@+24h,100@+72h`")
	e.Flags.BoolVar(&o.all, "all", false, "everybody at once")
	e.Flags.BoolVar(&o.pause, "pause", false, "nobody more gets it")
	e.Flags.BoolVar(&o.resume, "resume", false, "go on where it was paused")
	jsonFlag(e)
}

func runRollout(_ context.Context, e *env) error {
	edit, err := e.rolloutEdit()
	if err != nil {
		return err
	}
	keys, err := e.loadKeys()
	if err != nil {
		return err
	}
	r, release, err := e.repository(true)
	if err != nil {
		return err
	}
	m, done, err := r.Rollout(e.Flags.Arg(1), edit, keys)
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	if done == nil && e.json {
		return e.printJSON(map[string]any{"release": m.Target(), "waits": true})
	}
	if done == nil {
		fmt.Fprintf(e.Stdout, "%s waits to be published%s\n", m.Target(), reach(m.Rollout(), e.now()))
		return nil
	}
	return e.printPublished(done)
}

// rolloutEdit is the change that the flags ask for.
func (e *env) rolloutEdit() (func(manifest.Rollout) manifest.Rollout, error) {
	o := &e.rollout
	asked := 0
	for _, flag := range []bool{o.percent != "", o.steps != "", o.all, o.pause, o.resume} {
		if flag {
			asked++
		}
	}
	if asked != 1 {
		return nil, hint.With(fmt.Errorf("%w: one of --percent, --steps, --all, --pause and --resume is needed", cli.ErrUsage), "ferrule-release rollout REPO 1.4.0 --percent 10 --keys KEYS")
	}
	steps, err := parseSteps(o.steps, e.now())
	if err != nil {
		return nil, err
	}
	share, at := 0.0, e.now()
	if o.percent != "" {
		if share, err = parsePercent(o.percent); err != nil {
			return nil, err
		}
		if at, err = moment(o.at, e.now()); err != nil {
			return nil, err
		}
	}
	return func(r manifest.Rollout) manifest.Rollout {
		switch {
		case o.percent != "":
			r.Steps = bundle.Reach(r.Steps, share, at)
		case o.steps != "" || o.all:
			r.Steps = steps
		default:
			r.Paused = o.pause
		}
		return r
	}, nil
}

func runList(_ context.Context, e *env) error {
	r, _, err := e.repository(false)
	if err != nil {
		return err
	}
	published, err := r.Releases()
	if err != nil {
		return err
	}
	staged, err := r.Staged()
	if err != nil {
		return err
	}
	if e.json {
		line := func(m *manifest.Manifest, waits bool) error {
			return e.printJSON(map[string]any{
				"release": m.Target(), "number": m.Release(), "id": m.ID(), "channel": m.Channel(), "hardware": append([]string{}, m.Hardware()...),
				"security_version": m.SecurityVersion(), "waits": waits, "paused": m.Rollout().Paused, "reach": m.Rollout().Share(e.now()),
			})
		}
		for _, m := range staged {
			err = errors.Join(err, line(m, true))
		}
		for _, m := range published {
			err = errors.Join(err, line(m, false))
		}
		return err
	}
	for _, m := range staged {
		fmt.Fprintf(e.Stdout, "%-24s waits to be published\n", m.Target())
	}
	for _, m := range published {
		fmt.Fprintf(e.Stdout, "%-24s number %d, %s, security version %d%s\n", m.Target(), m.Release(), m.Channel(), m.SecurityVersion(), reach(m.Rollout(), e.now()))
	}
	return nil
}
