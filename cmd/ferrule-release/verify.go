package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"ferrule/firmware/bundle"
	"ferrule/internal/cli"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// verifyOptions are the flags of verify.
type verifyOptions struct {
	root   string
	within string
	temp   string
	old    list
}

func verifyFlags(e *env) {
	e.Flags.StringVar(&e.verify.root, "root", "", "the `root.json` that devices have pinned (default the oldest of the folder)")
	e.Flags.StringVar(&e.verify.within, "within", "72h", "warn of what expires within this `time`")
	e.Flags.StringVar(&e.verify.temp, "temp", "", "a `folder` for unpacked images (default that of the system)")
	e.Flags.Var(&e.verify.old, "old", "an old `image` that deltas are made from and no release has; may be repeated")
	jsonFlag(e)
}

// errUnsound says that a device could not do with the repository.
var errUnsound = errors.New("devices could not do with it")

func runVerify(ctx context.Context, e *env) error {
	within, err := duration(e.verify.within)
	if err != nil {
		return fmt.Errorf("%w: --within: %w", cli.ErrUsage, err)
	}
	site, root, err := e.site()
	if err != nil {
		return err
	}
	report, err := bundle.Verify(ctx, site, bundle.Verification{
		Root: root, Temp: e.verify.temp, Old: e.verify.old, Now: e.now, Progress: newProgress(e.Stderr).show,
	})
	if err != nil {
		return err
	}
	for _, role := range report.ExpiringWithin(e.now(), within) {
		report.Warnings = append(report.Warnings, fmt.Sprintf("%s %d expires on %s", role.Role, role.Version, role.Expires.Format(time.RFC3339)))
	}
	if e.json {
		err = e.printJSON(report)
	} else {
		e.printReport(report)
	}
	if err == nil && len(report.Problems) > 0 {
		err = fmt.Errorf("verifying %s: %w: %d problems", e.Flags.Arg(0), errUnsound, len(report.Problems))
	}
	return err
}

// site is what the argument names, and the root to begin with.
func (e *env) site() (bundle.Site, []byte, error) {
	where := e.Flags.Arg(0)
	if strings.HasPrefix(where, "http://") || strings.HasPrefix(where, "https://") {
		if e.verify.root == "" {
			return nil, nil, hint.With(fmt.Errorf("%w: --root is needed with a URL", cli.ErrUsage), "--root REPO/metadata/1.root.json: what devices have pinned")
		}
		site, err := bundle.RemoteSite(where)
		if err != nil {
			return nil, nil, err
		}
		root, err := disk.ReadFile(disk.OS(), e.verify.root, bundle.MaxRoot)
		return site, root, err
	}
	if _, err := os.Stat(where); err != nil {
		return nil, nil, err
	}
	site := bundle.FolderSite(disk.OS(), where)
	if e.verify.root != "" {
		root, err := disk.ReadFile(disk.OS(), e.verify.root, bundle.MaxRoot)
		return site, root, err
	}
	root, err := bundle.FirstRoot(disk.OS(), where)
	return site, root, err
}

func (e *env) printReport(r *bundle.Report) {
	for _, role := range r.Roles {
		left := role.Expires.Sub(e.now()).Truncate(time.Hour)
		fmt.Fprintf(e.Stdout, "%-10s %4d   %d of %d keys   until %s, %s\n", role.Role, role.Version, role.Threshold, role.Keys, role.Expires.Format(time.RFC3339), days(left))
	}
	for _, release := range r.Releases {
		paused := ""
		if release.Paused {
			paused = ", paused"
		}
		fmt.Fprintf(e.Stdout, "%s   number %d, %s, security version %d, for %g %% of the fleet%s\n", release.Target, release.Release, release.Channel, release.SecurityVersion, release.Reach, paused)
		for _, p := range release.Parts {
			fmt.Fprintf(e.Stdout, "  %-10s %10s   full %10s  %s\n", p.Name, size(p.Size), size(p.Full), share(p.Full, p.Size))
			for _, d := range p.Deltas {
				note := ""
				if !d.Applied {
					note = ", not applied"
				}
				fmt.Fprintf(e.Stdout, "  %-10s from %-18.18s %10s  %s of full%s\n", "", d.From, size(d.Size), share(d.Size, p.Full), note)
			}
		}
	}
	fmt.Fprintf(e.Stdout, "%d objects, %s\n", r.Files, size(r.Bytes))
	for _, w := range r.Warnings {
		fmt.Fprintf(e.Stdout, "warning: %s\n", w)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(e.Stdout, "problem: %s\n", p)
	}
}

func days(d time.Duration) string {
	if d < 0 {
		return "expired"
	}
	if d >= 48*time.Hour {
		return fmt.Sprintf("%d days", int(d/(24*time.Hour)))
	}
	return fmt.Sprintf("%d hours", int(d/time.Hour))
}
