package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ferrule/firmware/bundle"
	"ferrule/firmware/manifest"
	"ferrule/internal/cli"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// bundleOptions are the flags of bundle.
type bundleOptions struct {
	spec            bundle.Spec
	hardware        list
	notes, extra    string
	within, grace   string
	noSession       bool
	noLines         bool
	paused          bool
	steps           string
	securityVersion string
}

func bundleFlags(e *env) {
	o := &e.bundle
	e.Flags.StringVar(&o.spec.Product, "product", "", "what the release is for, such as `gw`")
	e.Flags.StringVar(&o.spec.Version, "version", "", "the release's `version`, such as 1.4.0")
	e.Flags.StringVar(&o.spec.Channel, "channel", "stable", "the `channel` that it goes to")
	e.Flags.Var(&o.hardware, "hardware", "a `revision` that may have it; may be repeated (default every one)")
	e.Flags.StringVar(&o.securityVersion, "security-version", "", "devices that have committed it refuse lower `numbers` (default as the release before)")
	e.Flags.StringVar(&o.spec.MinAgent, "min-agent", "", "the oldest `version` of the agent that can install it")
	e.Flags.StringVar(&o.notes, "notes", "", "a `file` with notes for people")
	e.Flags.StringVar(&o.extra, "extra", "", "a `file` with a JSON object of yours, signed with the rest")
	e.Flags.IntVar(&o.spec.Deltas, "deltas", -1, "to how many older `releases` deltas are made (default as the repository is set)")
	e.Flags.StringVar(&o.within, "within", "10m", "how `long` a trial may take to be healthy")
	e.Flags.StringVar(&o.grace, "network-grace", "14d", "how `long` the network itself may be out in a trial")
	e.Flags.BoolVar(&o.noSession, "no-session", false, "a trial needs no session with the cloud")
	e.Flags.BoolVar(&o.noLines, "no-lines", false, "a trial needs no answers of the lines' units")
	e.Flags.StringVar(&o.spec.Rollout.Seed, "seed", "", "`text` that stirs which devices come first (default the version)")
	e.Flags.StringVar(&o.steps, "steps", "", "who gets it when, as `1@+0s,10@+24h,100@+72h` (default everybody at once)")
	e.Flags.BoolVar(&o.paused, "paused", false, "nobody gets it until: rollout --resume")
	allowFlag(e, &o.spec.Allow)
	jsonFlag(e)
}

func runBundle(ctx context.Context, e *env) error {
	spec, err := e.spec()
	if err != nil {
		return err
	}
	r, release, err := e.repository(true)
	if err != nil {
		return err
	}
	m, made, err := r.Bundle(ctx, spec)
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	return e.printMade(m, made)
}

func (e *env) spec() (bundle.Spec, error) {
	o := &e.bundle
	spec := o.spec
	spec.Hardware = o.hardware
	if spec.Product == "" || spec.Version == "" {
		return spec, hint.With(fmt.Errorf("%w: --product and --version are needed", cli.ErrUsage), "ferrule-release bundle REPO --product gw --version 1.4.0 rootfs=image.squashfs")
	}
	var err error
	if spec.Images, err = images(e.Flags.Args()[1:]); err != nil {
		return spec, err
	}
	if o.securityVersion != "" {
		n, err := strconv.ParseUint(o.securityVersion, 10, 64)
		if err != nil {
			return spec, fmt.Errorf("%w: --security-version %q is no number", cli.ErrUsage, o.securityVersion)
		}
		spec.SecurityVersion = &n
	}
	if spec.Notes, err = text(o.notes, manifest.MaxNotes); err != nil {
		return spec, err
	}
	extra, err := text(o.extra, manifest.MaxSize)
	if err != nil {
		return spec, err
	}
	if spec.Extra = json.RawMessage(extra); o.extra != "" && !json.Valid(spec.Extra) {
		return spec, fmt.Errorf("reading %s: it is no JSON", o.extra)
	}
	spec.Health = manifest.Health{Session: !o.noSession, Lines: !o.noLines}
	if spec.Health.Within, err = duration(o.within); err != nil {
		return spec, fmt.Errorf("%w: --within: %w", cli.ErrUsage, err)
	}
	if spec.Health.NetworkGrace, err = duration(o.grace); err != nil {
		return spec, fmt.Errorf("%w: --network-grace: %w", cli.ErrUsage, err)
	}
	spec.Rollout.Paused = o.paused
	spec.Rollout.Steps, err = parseSteps(o.steps, e.now())
	return spec, err
}

// images reads PART=IMAGE.
func images(args []string) ([]bundle.Image, error) {
	var out []bundle.Image
	for _, arg := range args {
		name, file, ok := strings.Cut(arg, "=")
		if !ok || file == "" || !manifest.PartName(name) {
			return nil, hint.With(fmt.Errorf("%w: %q is not PART=IMAGE", cli.ErrUsage, arg), "such as rootfs=build/image.squashfs; a part's name has letters a-z, digits and -")
		}
		out = append(out, bundle.Image{Name: name, File: file})
	}
	return out, nil
}

// text reads a file that may not be asked for.
func text(name string, limit int64) (string, error) {
	if name == "" {
		return "", nil
	}
	data, err := disk.ReadFile(disk.OS(), name, limit)
	return strings.TrimRight(string(data), "\n"), err
}

// parseSteps reads 1@+0s,10@+24h,100@2026-11-24T06:00:00Z: per cents, and times from now or RFC 3339.
func parseSteps(text string, now time.Time) ([]manifest.Step, error) {
	if text == "" {
		return nil, nil
	}
	var steps []manifest.Step
	for word := range strings.SplitSeq(text, ",") {
		percent, at, ok := strings.Cut(strings.TrimSpace(word), "@")
		if !ok {
			return nil, fmt.Errorf("%w: step %q is not as 10@+24h", cli.ErrUsage, word)
		}
		p, err := parsePercent(percent)
		if err != nil {
			return nil, err
		}
		from, err := moment(at, now)
		if err != nil {
			return nil, err
		}
		steps = append(steps, manifest.Step{Percent: p, From: from})
	}
	return steps, nil
}

func parsePercent(text string) (float64, error) {
	p, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	if err != nil || !(p >= 0 && p <= 100) {
		return 0, fmt.Errorf("%w: %q is no per cent from 0 to 100", cli.ErrUsage, text)
	}
	return p, nil
}

// moment reads +24h, counted from now, or RFC 3339.
func moment(text string, now time.Time) (time.Time, error) {
	if after, ok := strings.CutPrefix(text, "+"); ok {
		d, err := duration(after)
		if err != nil {
			return now, fmt.Errorf("%w: %w", cli.ErrUsage, err)
		}
		return now.Add(d).UTC().Truncate(time.Second), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return now, fmt.Errorf("%w: %q is no time, as +24h or 2026-11-24T06:00:00Z", cli.ErrUsage, text)
	}
	return t.UTC().Truncate(time.Second), nil
}

// printMade says what came of images.
func (e *env) printMade(m *manifest.Manifest, made []bundle.Made) error {
	if e.json {
		return e.printJSON(map[string]any{"release": m.Target(), "security_version": m.SecurityVersion(), "parts": made})
	}
	for _, p := range made {
		fmt.Fprintf(e.Stdout, "%-12s %10s   full %10s  %s\n", p.Part, size(p.Size), size(p.Full), share(p.Full, p.Size))
		for _, d := range p.Deltas {
			kept := share(d.Size, p.Full) + " of full"
			if !d.Kept {
				kept = "left out: not smaller than full"
			}
			fmt.Fprintf(e.Stdout, "%-12s from %-18s %10s  %s\n", "", d.From, size(d.Size), kept)
		}
	}
	fmt.Fprintf(e.Stdout, "%s waits; next: ferrule-release publish %s --keys KEYS\n", m.Target(), e.Flags.Arg(0))
	return nil
}

// deltaOptions are the flags of delta.
type deltaOptions struct{ from, old list }

func deltaFlags(e *env) {
	e.Flags.Var(&e.delta.from, "from", "an older `release` of the repository; may be repeated")
	e.Flags.Var(&e.delta.old, "old", "an old image that no release has, as `PART=IMAGE`; may be repeated")
	jsonFlag(e)
}

func runDelta(ctx context.Context, e *env) error {
	if len(e.delta.from)+len(e.delta.old) == 0 {
		return hint.With(fmt.Errorf("%w: --from or --old is needed", cli.ErrUsage), "--from 1.3.0, or --old rootfs=factory.img")
	}
	old, err := images(e.delta.old)
	if err != nil {
		return err
	}
	r, release, err := e.repository(true)
	if err != nil {
		return err
	}
	m, made, err := r.AddDeltas(ctx, e.Flags.Arg(1), e.delta.from, old)
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	return e.printMade(m, made)
}
