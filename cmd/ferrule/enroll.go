package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"ferrule/agent"
	"ferrule/agent/clock"
	"ferrule/agent/config"
	"ferrule/agent/identity"
	"ferrule/agent/local"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// enrollOptions are the flags of ferrule enroll.
type enrollOptions struct {
	token   string
	force   bool
	rekey   bool
	factory bool
	collect string
	deliver string
}

func enrollFlags(e *env) {
	o := &e.enroll
	e.flags.StringVar(&o.token, "token", "", "the one-time `token` of the registrar; - reads it from standard input")
	e.flags.BoolVar(&o.force, "force", false, "enroll again although the certificate is valid")
	e.flags.BoolVar(&o.rekey, "rekey", false, "make a new key and get a certificate for it; both take over once a broker took them")
	e.flags.BoolVar(&o.factory, "factory", false, "get the factory certificate (IDevID) instead of the operational one")
	e.flags.StringVar(&o.collect, "collect", "", "answer the order in this `file`, - for standard input, with evidence on standard output; no network")
	e.flags.StringVar(&o.deliver, "deliver", "", "install the delivery in this `file`, - for standard input; no network")
}

// renewTimeout is how long the running agent may take for a new certificate.
const renewTimeout = 40 * time.Second

func runEnroll(ctx context.Context, e *env) error {
	if err := e.enroll.check(); err != nil {
		return withCode(exitUsage, err)
	}
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	if e.enroll.rekey {
		// The agent holds the TPM, and its session proves the new certificate.
		if done, err := renewByAgent(ctx, e, c); done || err != nil {
			return err
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
	if err := enrollHere(ctx, e, c); err != nil {
		return enrollError(err)
	}
	if c.Update.Enabled() {
		// Now, while somebody is there who knows where the file came from.
		if _, err := agent.PinRoot(disk.OS(), c); err != nil {
			fmt.Fprintf(e.stderr, "ferrule: warning: %v\n", err)
		}
	}
	return nil
}

// check refuses flags that contradict each other.
func (o enrollOptions) check() error {
	n := 0
	for _, given := range []bool{o.rekey, o.factory && o.collect == "" && o.deliver == "", o.collect != "", o.deliver != ""} {
		if given {
			n++
		}
	}
	if n > 1 {
		return hint.With(errors.New("--rekey, --factory, --collect and --deliver are different things"), "give one of them")
	}
	if o.token != "" && (o.rekey || o.collect != "" || o.deliver != "") {
		return errors.New("a token is for an enrollment over the network")
	}
	return nil
}

// enrollHere enrolls in this process.
func enrollHere(ctx context.Context, e *env, c *config.Config) error {
	o, options := e.enroll, identityOptions(e, c)
	whose := c.Identity
	if o.factory {
		whose = c.Identity.ForFactory()
	}
	switch {
	case o.collect != "":
		order, err := readInput(o.collect)
		if err != nil {
			return err
		}
		collected, err := identity.Collect(ctx, whose, options, order)
		if err != nil {
			return err
		}
		_, err = e.stdout.Write(append(collected, '\n'))
		return err
	case o.deliver != "":
		delivery, err := readInput(o.deliver)
		if err != nil {
			return err
		}
		result, err := identity.Deliver(ctx, whose, options, c.Enroll, delivery)
		if err != nil {
			return err
		}
		printEnrolled(e.stdout, result)
		return nil
	}
	token := o.token
	if token == "-" {
		// A token on the command line can be read by every user of the machine.
		var err error
		if token, err = readToken(os.Stdin); err != nil {
			return err
		}
	}
	result, err := identity.Enroll(ctx, c.Identity, options, c.Enroll,
		identity.EnrollRequest{Token: token, Force: o.force, Rekey: o.rekey, Factory: o.factory})
	if err != nil {
		return err
	}
	printEnrolled(e.stdout, result)
	return nil
}

// renewByAgent has the running agent rotate the key. It answers false where none runs.
func renewByAgent(ctx context.Context, e *env, c *config.Config) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	text, err := local.Dial(c.Local.Socket).Command(ctx, "renew", agent.RenewArgs{Rekey: true})
	if errors.Is(err, local.ErrNotRunning) {
		return false, nil
	}
	if err != nil {
		return true, withCode(exitIdentity, err)
	}
	var result agent.RenewResult
	if err := json.Unmarshal(text, &result); err != nil {
		return true, fmt.Errorf("reading the agent's answer: %w", err)
	}
	if result.Staged {
		fmt.Fprintf(e.stdout, "new key and certificate %s wait for the broker to take them; see: ferrule status\n", result.Fingerprint)
	} else {
		fmt.Fprintf(e.stdout, "new key and certificate %s are in use\n", result.Fingerprint)
	}
	return true, nil
}

// identityOptions are those of a command that runs beside no agent.
func identityOptions(e *env, c *config.Config) identity.Options {
	log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	fsys := disk.OS()
	return identity.Options{
		StateDir: c.StateDir, FS: fsys, Log: log,
		Clock: clock.Open(fsys, clockPath(c), buildTime(), log),
	}
}

// enrollError keeps the exit codes of TPM and identity and makes everything else 11.
func enrollError(err error) error {
	if code := exitCode(err); err == nil || code != 1 {
		return err
	}
	return withCode(exitIdentity, err)
}

// maxInput is the longest order or delivery, in bytes.
const maxInput = 256 << 10

// readInput reads a file, or standard input for -.
func readInput(name string) ([]byte, error) {
	file := os.Stdin
	if name != "-" {
		var err error
		if file, err = os.Open(name); err != nil {
			return nil, err
		}
		defer file.Close()
	}
	text, err := io.ReadAll(io.LimitReader(file, maxInput+1))
	if err == nil && len(text) > maxInput {
		err = fmt.Errorf("reading %s: it is longer than %d bytes", name, maxInput)
	}
	return text, err
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
	switch {
	case r.Already && r.Staged:
		fmt.Fprintf(w, "%s has a new key that waits for a broker to take it\n", r.Device)
		return
	case r.Already:
		fmt.Fprintf(w, "%s is already enrolled, until %s (--force enrolls again)\n", r.Device, r.NotAfter.Format(time.DateOnly))
		return
	}
	fmt.Fprintf(w, "enrolled as %s\n  key          %s", r.Device, r.Key)
	if r.Weak {
		fmt.Fprint(w, "  WEAK: a file that can be copied")
	}
	fmt.Fprintf(w, "\n  certificate  until %s, issued by %s\n", r.NotAfter.Format(time.DateOnly), r.Issuer)
	if r.Staged {
		fmt.Fprintln(w, "  the agent shows it to the broker first, and uses it once it was taken")
	}
}
