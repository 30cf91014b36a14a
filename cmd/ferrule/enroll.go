package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"ferrule/agent"
	"ferrule/agent/clock"
	"ferrule/agent/identity"
	"ferrule/internal/disk"
)

// enrollOptions are the flags of ferrule enroll.
type enrollOptions struct {
	token string
	force bool
}

func enrollFlags(e *env) {
	e.flags.StringVar(&e.enroll.token, "token", "", "the one-time `token` of the registrar; - reads it from standard input")
	e.flags.BoolVar(&e.enroll.force, "force", false, "enroll again although the certificate is valid")
}

func runEnroll(ctx context.Context, e *env) error {
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	token := e.enroll.token
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
		identity.Options{StateDir: c.StateDir, FS: fsys, Clock: now, Log: log}, c.Enroll,
		identity.EnrollRequest{Token: token, Force: e.enroll.force})
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
