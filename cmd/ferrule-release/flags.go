package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"ferrule/firmware/bundle"
	"ferrule/internal/cli"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// list collects a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(text string) error {
	if text == "" {
		return fmt.Errorf("it is empty")
	}
	*l = append(*l, text)
	return nil
}

// perRole collects ROLE=VALUE.
type perRole[T any] struct {
	values map[string]T
	parse  func(string) (T, error)
}

func (p *perRole[T]) String() string { return "" }

func (p *perRole[T]) Set(text string) error {
	role, value, ok := strings.Cut(text, "=")
	switch role {
	case "root", "targets", "snapshot", "timestamp":
	default:
		return fmt.Errorf("%q is no role; root, targets, snapshot and timestamp are", role)
	}
	if !ok {
		return fmt.Errorf("write %s=VALUE", role)
	}
	v, err := p.parse(value)
	if err == nil && p.values == nil {
		p.values = make(map[string]T)
	}
	if err == nil {
		p.values[role] = v
	}
	return err
}

// quorum reads 2 (two keys, and both sign) or 2/3 (two of three).
func quorum(text string) (q bundle.Quorum, err error) {
	threshold, keys, ok := strings.Cut(text, "/")
	if !ok {
		keys = threshold
	}
	if q.Threshold, err = strconv.Atoi(threshold); err == nil {
		q.Keys, err = strconv.Atoi(keys)
	}
	if err != nil || q.Threshold < 1 || q.Threshold > q.Keys {
		return q, fmt.Errorf("%q is not as 2 or 2/3", text)
	}
	return q, nil
}

// duration reads what Go reads, and days: 14d.
func duration(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 0 || n > 100*365 {
			return 0, fmt.Errorf("%q is no number of days", text)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	return time.ParseDuration(text)
}

// repository opens the repository that is the first argument. While write is set, no other program
// may write it; release is to be called at the end.
func (e *env) repository(write bool) (r *bundle.Repository, release func() error, err error) {
	dir := e.Flags.Arg(0)
	release = func() error { return nil }
	p := newProgress(e.Stderr)
	if r, err = bundle.Open(bundle.Options{FS: disk.OS(), Dir: dir, Now: e.now, Progress: p.show}); err != nil || !write {
		return r, release, err
	}
	release, err = bundle.Lock(dir)
	return r, release, err
}

func keysFlag(e *env) {
	e.Flags.Var(&e.keys.keys, "keys", "a `path` of a key, or a folder of *.pem; may be repeated")
}

// loadKeys reads the keys of --keys, and of --root.
func (e *env) loadKeys() (bundle.Keys, error) {
	paths := append(append([]string{}, e.keys.keys...), e.keys.root...)
	if len(paths) == 0 {
		return nil, hint.With(fmt.Errorf("%w: --keys is needed", cli.ErrUsage), "--keys FOLDER, which keys init has made")
	}
	return bundle.LoadKeys(disk.OS(), paths...)
}

func allowFlag(e *env, allow *bundle.Allow) {
	e.Flags.Func("allow", "what is refused otherwise: `lower-security` or security-jump; may be repeated", func(text string) error {
		switch text {
		case "lower-security":
			allow.LowerSecurity = true
		case "security-jump":
			allow.SecurityJump = true
		default:
			return fmt.Errorf("there are lower-security and security-jump")
		}
		return nil
	})
}

// size prints bytes for people.
func size(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", (n+1<<19)>>20)
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// of prints a share, such as 12.3 %.
func share(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}
