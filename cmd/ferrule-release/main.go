// Command ferrule-release is the host tool of the release engineer: update keys, bundles with
// their deltas, and the signed repository that any web server hands to the fleet.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ferrule/internal/hint"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// errUsage says that a flag is missing or has no sense.
var errUsage = errors.New("the command line is wrong")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is one row of the command line: its words, its arguments and flags, what it does.
type command struct {
	words   string
	args    string
	summary string
	flags   func(*env)
	run     func(context.Context, *env) error
}

func (c command) synopsis() string { return strings.TrimSpace(c.words + " " + c.args) }

func table() []command {
	return []command{
		{"keys init", "REPO", "make the keys and an empty repository; safe to run again", initFlags, runKeysInit},
		{"keys rotate", "REPO", "replace the keys of a role, or sign the root anew for its time", rotateFlags, runKeysRotate},
		{"bundle", "REPO PART=IMAGE…", "make a release of images, with deltas to older ones; it waits to be published", bundleFlags, runBundle},
		{"delta", "REPO RELEASE", "make more deltas of a release; they wait to be published", deltaFlags, runDelta},
		{"publish", "REPO [RELEASE…]", "sign and publish what waits; safe to run again after a cut", publishFlags, runPublish},
		{"refresh", "REPO", "sign the timestamp anew before it runs out: for cron", refreshFlags, runRefresh},
		{"rollout", "REPO RELEASE", "say who gets a release when, pause it, go on", rolloutFlags, runRollout},
		{"list", "REPO", "what is published, and what waits", jsonFlag, runList},
		{"verify", "REPO|URL", "read the repository as a device does, make every part out of every object", verifyFlags, runVerify},
	}
}

// env is what a command gets.
type env struct {
	flags          *flag.FlagSet
	stdout, stderr io.Writer
	now            func() time.Time
	json           bool
	keys           keyOptions
	bundle         bundleOptions
	delta          deltaOptions
	publish        publishOptions
	rollout        rolloutOptions
	verify         verifyOptions
}

func jsonFlag(e *env) { e.flags.BoolVar(&e.json, "json", false, "print JSON for machines") }

func (e *env) printJSON(v any) error { return json.NewEncoder(e.stdout).Encode(v) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		usage(stdout)
		return exitDone
	}
	for _, c := range table() {
		words := strings.Fields(c.words)
		if len(args) >= len(words) && strings.Join(args[:len(words)], " ") == c.words {
			return runCommand(ctx, c, args[len(words):], stdout, stderr)
		}
	}
	fmt.Fprintf(stderr, "ferrule-release: error: there is no command %q\nferrule-release: hint: run: ferrule-release help\n", args[0])
	return exitUsage
}

func runCommand(ctx context.Context, c command, args []string, stdout, stderr io.Writer) int {
	e := &env{flags: flag.NewFlagSet(c.words, flag.ContinueOnError), stdout: stdout, stderr: stderr}
	e.flags.SetOutput(io.Discard) // mistakes are printed once, in our own form
	c.flags(e)
	err := parseFlags(e.flags, args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(stdout, "ferrule-release %s [flags]\n  %s\n\n", c.synopsis(), c.summary)
		e.flags.SetOutput(stdout)
		e.flags.PrintDefaults()
		return exitDone
	}
	if least, most := arity(c.args); err == nil && (e.flags.NArg() < least || most >= 0 && e.flags.NArg() > most) {
		err = fmt.Errorf("%s takes %s beside its flags, not %d", c.words, arguments(least, most), e.flags.NArg())
	}
	if err != nil {
		fmt.Fprintf(stderr, "ferrule-release: error: %v\nferrule-release: hint: usage: ferrule-release %s [flags]\n", err, c.synopsis())
		return exitUsage
	}
	if e.now, err = clock(os.Getenv("SOURCE_DATE_EPOCH")); err == nil {
		err = c.run(ctx, e)
	}
	if err != nil {
		fmt.Fprintf(stderr, "ferrule-release: error: %v\n", err)
		if h := hint.Of(err); h != "" {
			fmt.Fprintf(stderr, "ferrule-release: hint: %s\n", h)
		}
		if errors.Is(err, errUsage) {
			return exitUsage
		}
		return exitFailed
	}
	return exitDone
}

// clock is the time that signatures count from: the machine's, or that of SOURCE_DATE_EPOCH, so
// that the same inputs give the same bytes (reproducible-builds.org).
func clock(epoch string) (func() time.Time, error) {
	if epoch == "" {
		return time.Now, nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%w: SOURCE_DATE_EPOCH is %q, and seconds since 1970 are needed", errUsage, epoch)
	}
	return func() time.Time { return time.Unix(seconds, 0) }, nil
}

// arity is how many arguments a command takes beside its flags: of "REPO [RELEASE…]" one or more,
// where most is -1.
func arity(args string) (least, most int) {
	for _, word := range strings.Fields(args) {
		if word[0] != '[' {
			least++
		}
		if strings.Contains(word, "…") {
			most = -1
		}
		if most >= 0 {
			most++
		}
	}
	return least, most
}

func arguments(least, most int) string {
	switch most {
	case least:
		return fmt.Sprintf("%d arguments", most)
	case -1:
		return fmt.Sprintf("%d arguments or more", least)
	}
	return fmt.Sprintf("%d to %d arguments", least, most)
}

// parseFlags accepts flags before, between and after the arguments, as people type them.
func parseFlags(flags *flag.FlagSet, args []string) error {
	var positional []string
	for {
		if err := flags.Parse(args); err != nil {
			return err
		}
		rest := flags.Args()
		for len(rest) > 0 && (!strings.HasPrefix(rest[0], "-") || rest[0] == "-") {
			positional, rest = append(positional, rest[0]), rest[1:]
		}
		if len(rest) == 0 {
			return flags.Parse(append([]string{"--"}, positional...))
		}
		args = rest
	}
}

func usage(w io.Writer) {
	fmt.Fprint(w, "ferrule-release makes updates, signs them and publishes them as static files.\n\n")
	for _, c := range table() {
		fmt.Fprintf(w, "  ferrule-release %-32s %s\n", c.synopsis()+" [flags]", c.summary)
	}
	fmt.Fprint(w, "\nEvery command has --help. From keys to a rollout, step by step: docs/releases.md.\n")
}
