// Command ferrule-factory is the host tool of the factory line: a local CA, one-time tokens,
// and the registrar that turns a token and a device's evidence into a certificate.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
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
		{"ca init", "DIR", "make the CA: root, device CA, certificates for broker and registrar; safe to run again", caFlags, runCAInit},
		{"ca server", "DIR", "make one more server certificate", serverFlags, runCAServer},
		{"token add", "DIR", "make a one-time token for a device", tokenFlags, runTokenAdd},
		{"token list", "DIR", "list tokens and what came of them", jsonFlag, runTokenList},
		{"registrar", "", "serve enrollments", registrarFlags, runRegistrar},
		{"records", "DIR", "print one JSON line for every certificate issued", nil, runRecords},
	}
}

// env is what a command gets.
type env struct {
	flags          *flag.FlagSet
	stdout, stderr io.Writer
	name           string
	hosts          hosts
	device         string
	valid          time.Duration
	json           bool
	ca             string
	listen         string
	log            string
}

// hosts collects --host, which may be given several times.
type hosts []string

func (h *hosts) String() string { return strings.Join(*h, ",") }

func (h *hosts) Set(host string) error {
	if host == "" {
		return errors.New("a host is empty")
	}
	*h = append(*h, host)
	return nil
}

func caFlags(e *env) {
	e.flags.StringVar(&e.name, "name", "Ferrule factory", "the `name` that the CA's certificates bear")
	e.flags.Var(&e.hosts, "host", "a DNS `name` or address of broker and registrar; may be repeated (default localhost and 127.0.0.1)")
}

func serverFlags(e *env) {
	e.flags.StringVar(&e.name, "name", "", "the file `name`: NAME.crt and NAME.key")
	e.flags.Var(&e.hosts, "host", "a DNS `name` or address of the server; may be repeated")
}

func tokenFlags(e *env) {
	e.flags.StringVar(&e.device, "device", "", "the device's `id`: letters, digits and . _ -")
	e.flags.DurationVar(&e.valid, "valid", time.Hour, "how long the token may be redeemed")
	jsonFlag(e)
}

func jsonFlag(e *env) { e.flags.BoolVar(&e.json, "json", false, "print JSON for machines") }

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
	fmt.Fprintf(stderr, "ferrule-factory: error: there is no command %q\nferrule-factory: hint: run: ferrule-factory help\n", args[0])
	return exitUsage
}

func runCommand(ctx context.Context, c command, args []string, stdout, stderr io.Writer) int {
	e := &env{flags: flag.NewFlagSet(c.words, flag.ContinueOnError), stdout: stdout, stderr: stderr}
	e.flags.SetOutput(io.Discard) // mistakes are printed once, in our own form
	if c.flags != nil {
		c.flags(e)
	}
	err := parseFlags(e.flags, args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(stdout, "ferrule-factory %s [flags]\n  %s\n\n", c.synopsis(), c.summary)
		e.flags.SetOutput(stdout)
		e.flags.PrintDefaults()
		return exitDone
	}
	if want := len(strings.Fields(c.args)); err == nil && e.flags.NArg() != want {
		err = fmt.Errorf("%s takes %d arguments beside its flags, not %d", c.words, want, e.flags.NArg())
	}
	if err != nil {
		fmt.Fprintf(stderr, "ferrule-factory: error: %v\nferrule-factory: hint: usage: ferrule-factory %s [flags]\n", err, c.synopsis())
		return exitUsage
	}
	if err := c.run(ctx, e); err != nil {
		fmt.Fprintf(stderr, "ferrule-factory: error: %v\n", err)
		if h := hint.Of(err); h != "" {
			fmt.Fprintf(stderr, "ferrule-factory: hint: %s\n", h)
		}
		if errors.Is(err, errUsage) {
			return exitUsage
		}
		return exitFailed
	}
	return exitDone
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
	fmt.Fprint(w, "ferrule-factory makes gateways into enrolled devices.\n\n")
	for _, c := range table() {
		fmt.Fprintf(w, "  ferrule-factory %-22s %s\n", c.synopsis()+" [flags]", c.summary)
	}
	fmt.Fprint(w, "\nEvery command has --help. The whole line, step by step: docs/factory.md.\n")
}
