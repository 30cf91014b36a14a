// Command ferrule-factory is the host tool of the factory line: a local CA, one-time tokens,
// and the registrar that turns a token and a device's evidence into a certificate.
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
	"slices"
	"strings"
	"syscall"

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
		{"registrar", "[-- COMMAND]", "check the evidence of devices and hand out their certificates", registrarFlags, runRegistrar},
		{"devices", "DIR [ID]", "list devices, their TPMs and certificates; or all of one", jsonFlag, runDevices},
		{"revoke", "DIR DEVICE|SERIAL", "take certificates back, and write the list for brokers", revokeFlags, runRevoke},
		{"batch plan", "DEVICES.csv DIR", "make the orders of devices that are enrolled by files; safe to run again", jsonFlag, runBatchPlan},
		{"batch issue", "DIR [-- COMMAND]", "check the evidence that came back, and write the deliveries; safe to run again", issuingFlags, runBatchIssue},
		{"batch status", "DIR", "how far each device of a batch is", jsonFlag, runBatchStatus},
		{"labels", "RECORDS.jsonl", "print labels with QR codes, an HTML page for A4 sheets of 3 × 8", jsonFlag, runLabels},
		{"authorize init", "DIR", "make the key of one who authorises commands; safe to run again", authorizeInitFlags, runAuthorizeInit},
		{"authorize", "", "print a token that lets one command of one device act", authorizeFlags, runAuthorize},
		{"records", "DIR", "print one JSON line for every certificate issued", jsonFlag, runRecords},
	}
}

// env is what a command gets.
type env struct {
	flags          *flag.FlagSet
	stdout, stderr io.Writer
	json           bool
	ca             caOptions
	token          tokenOptions
	issuing        issuingOptions
	registrar      registrarOptions
	release        bool
	authorize      authorizeOptions
	command        []string // what stands behind --
}

func jsonFlag(e *env) { e.flags.BoolVar(&e.json, "json", false, "print JSON for machines") }

func (e *env) printJSON(v any) error { return json.NewEncoder(e.stdout).Encode(v) }

// printLines prints JSON lines.
func printLines[T any](e *env, lines []T) error {
	for _, line := range lines {
		if err := e.printJSON(line); err != nil {
			return err
		}
	}
	return nil
}

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
	args, e.command = splitCommand(c, args)
	err := parseFlags(e.flags, args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(stdout, "ferrule-factory %s [flags]\n  %s\n\n", c.synopsis(), c.summary)
		e.flags.SetOutput(stdout)
		e.flags.PrintDefaults()
		return exitDone
	}
	if least, most := arity(c.args); err == nil && (e.flags.NArg() < least || e.flags.NArg() > most) {
		err = fmt.Errorf("%s takes %s beside its flags, not %d", c.words, arguments(least, most), e.flags.NArg())
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

// arity is how many arguments a command takes beside its flags: of "DIR [ID]" one or two.
func arity(args string) (least, most int) {
	for _, word := range strings.Fields(args) {
		if word == "[--" {
			break
		}
		most++
		if word[0] != '[' {
			least++
		}
	}
	return least, most
}

func arguments(least, most int) string {
	if least == most {
		return fmt.Sprintf("%d arguments", most)
	}
	return fmt.Sprintf("%d to %d arguments", least, most)
}

// splitCommand takes off a program of the user's, which stands behind --.
func splitCommand(c command, args []string) (own, program []string) {
	n := slices.Index(args, "--")
	if n < 0 || !strings.Contains(c.args, "[-- ") {
		return args, nil
	}
	return args[:n], args[n+1:]
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
