package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ferrule/agent"
	"ferrule/agent/clock"
	"ferrule/agent/config"
	"ferrule/agent/identity"
	"ferrule/internal/disk"
)

// loadConfig reads the configuration; every mistake in it ends with exit code 3.
func loadConfig(e *env) (*config.Config, error) {
	c, err := config.Load(e.configPath)
	return c, withCode(exitConfig, err)
}

func runAgent(ctx context.Context, e *env) error {
	handler, err := logHandler(e)
	if err != nil {
		return err
	}
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	err = agent.Run(ctx, agent.Options{
		Load:    func() (*config.Config, error) { return loadConfig(e) },
		Reload:  reload,
		Version: version,
		Built:   buildTime(),
		Log:     slog.New(agent.Quiet(handler)),
	})
	if errors.Is(err, agent.ErrRestart) {
		return restart()
	}
	return err
}

// restart replaces the process by a new one of the same program and arguments, so that it
// works under any supervisor, or none.
func restart() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the program to restart: %w", err)
	}
	return fmt.Errorf("restarting %s: %w", self, syscall.Exec(self, os.Args, os.Environ()))
}

func logHandler(e *env) (slog.Handler, error) {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if e.verbose {
		options.Level = slog.LevelDebug
	}
	switch e.log {
	case "text":
		return slog.NewTextHandler(e.stderr, options), nil
	case "json":
		return slog.NewJSONHandler(e.stderr, options), nil
	}
	return nil, withCode(exitUsage, fmt.Errorf("--log %q: it is text or json", e.log))
}

// buildTime is the floor of the clock: no certificate was ever checked before it.
func buildTime() time.Time {
	t, err := time.Parse(time.RFC3339, built)
	if err != nil {
		return time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	}
	return t
}

func runEnroll(ctx context.Context, e *env) error {
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	token := e.token
	if token == "-" {
		// A token on the command line can be read by every user of the machine.
		if token, err = readToken(os.Stdin); err != nil {
			return withCode(exitIdentity, err)
		}
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return withCode(exitIdentity, fmt.Errorf("making the state directory: %w", err))
	}
	lock, err := agent.LockEnrollment(c.StateDir)
	if err != nil {
		return withCode(exitIdentity, err)
	}
	defer lock.Close()
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	fsys := disk.OS()
	now := clock.Open(fsys, clockPath(c), buildTime(), log)
	result, err := identity.Enroll(ctx, c.Identity,
		identity.Options{StateDir: c.StateDir, FS: fsys, Now: now.Now, Log: log}, c.Enroll, token, e.force)
	if err != nil {
		return enrollError(err)
	}
	printEnrolled(e.stdout, result)
	return nil
}

// enrollError keeps the exit codes of TPM and identity and makes everything else 11.
func enrollError(err error) error {
	if code := exitCode(err); code != 1 {
		return err
	}
	return withCode(exitIdentity, err)
}

// readToken reads one line of at most 4 KiB.
func readToken(r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, 4096))
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	for i, b := range text {
		if b == '\n' || b == '\r' {
			return string(text[:i]), nil
		}
	}
	return string(text), nil
}

func printEnrolled(w io.Writer, r identity.Result) {
	if r.Already {
		fmt.Fprintf(w, "%s is already enrolled, until %s (--force enrolls again)\n", r.Device, r.NotAfter.Format(time.DateOnly))
		return
	}
	fmt.Fprintf(w, "enrolled as %s\n  key          %s", r.Device, r.Key)
	if r.Weak {
		fmt.Fprint(w, "  WEAK: a file that can be copied")
	}
	fmt.Fprintf(w, "\n  certificate  until %s, issued by %s\n", r.NotAfter.Format(time.DateOnly), r.Issuer)
}
