// Command ferrule is the mTLS agent for IoT gateways. It only parses, prints and turns
// errors into exit codes; the agent itself is in package agent.
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

	"ferrule/agent/config"
	"ferrule/internal/cli"
)

// The build sets these: -ldflags "-X main.version=1.2.3 -X main.built=2026-11-21T00:00:00Z".
var (
	version = "devel"
	built   = ""
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is one row of the command line.
type command struct {
	name    string
	args    string
	summary string
	flags   func(e *env) // beyond --config; nil: none
	run     func(ctx context.Context, e *env) error
}

// table is the whole command line, in the order that help shows.
func table() []command {
	return []command{
		{"run", "", "run the agent", logFlags, runAgent},
		{"check", "[--json]", "read the configuration strictly; print plan, cost and load of every line", checkFlags, runCheck},
		{"enroll", "[--token T]", "create the key in the TPM and obtain the certificate", enrollFlags, runEnroll},
		{"status", "[--json|--web]", "ask the running agent; --web shows it as a page in the browser", statusFlags, runStatus},
		{"doctor", "[--json] [--explain] [--compare FILE] [--archive FILE] [--broker URL]", "check every layer; name the one that fails, and the repair", doctorFlags, runDoctor},
		{"read", "LINE UNIT AT TYPE", "read one value once, in every byte order", (*env).jsonFlag, runRead},
		{"write", "LINE UNIT POINT VALUE", "write one value and read it back", nil, runWrite},
		{"scan", "LINE", "find the units of an unknown line, their speed and parity", scanLineFlags, runScan},
		{"tpm", "[--json]", "show what the TPM is, and what keeps it from serving; changes nothing", tpmFlags, runTPM},
		{"roots", "status|stage|confirm|discard [FILE]", "change whom the running agent believes", rootsFlags, runRoots},
		{"config", "apply|status|confirm|cancel [FILE]", "have the running agent try a configuration", configFlags, runConfig},
		{"update", "status|apply|check|commit|rollback [--json] [--version V] [--now] [--wait]", "install a signed update, or say how it stands", updateFlags, runUpdate},
		{"audit", "verify [--json]", "check that nothing in the audit log was changed", auditFlags, runAudit},
		{"reset", "--yes", "back to the factory identity; removes everything else", resetFlags, runReset},
		{"ports", "[--json]", "list serial ports with their stable names; opens none", (*env).jsonFlag, runPorts},
		{"version", "[--json]", "version, and with --json the bill of materials", (*env).jsonFlag, runVersion},
	}
}

// env is what a command gets: its flags, its arguments and where to print.
type env struct {
	flags          *flag.FlagSet
	stdout, stderr io.Writer
	configPath     string
	json           bool
	log            string
	verbose        bool
	profiles       bool
	device         string // a TPM
	enroll         enrollOptions
	reset          resetOptions
	roots          rootsOptions
	apply          configOptions
	update         updateOptions
	scan           scanFlags
	audit          auditOptions
	doctor         doctorOptions
	web            webOptions
}

func newEnv(c command, stdout, stderr io.Writer) *env {
	e := &env{flags: flag.NewFlagSet("ferrule "+c.name, flag.ContinueOnError), stdout: stdout, stderr: stderr}
	e.flags.SetOutput(io.Discard) // mistakes are printed once, in our own form
	e.flags.StringVar(&e.configPath, "config", config.DefaultPath, "the configuration `file`")
	if c.flags != nil {
		c.flags(e)
	}
	return e
}

func (e *env) jsonFlag() { e.flags.BoolVar(&e.json, "json", false, "print JSON for machines") }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		usage(stdout)
		return exitDone
	}
	for _, c := range table() {
		if c.name == args[0] {
			return runCommand(ctx, c, args[1:], stdout, stderr)
		}
	}
	fmt.Fprintf(stderr, "ferrule: error: there is no command %q\nferrule: hint: run: ferrule help\n", args[0])
	return exitUsage
}

func runCommand(ctx context.Context, c command, args []string, stdout, stderr io.Writer) int {
	e := newEnv(c, stdout, stderr)
	err := cli.ParseFlags(e.flags, args, isNumber)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(stdout, "ferrule %s %s\n  %s\n\n", c.name, c.args, c.summary)
		e.flags.SetOutput(stdout)
		e.flags.PrintDefaults()
		return exitDone
	}
	if least, most := arity(c.args); err == nil && e.flags.NArg() < least {
		err = fmt.Errorf("%s needs %s", c.name, c.args)
	} else if err == nil && e.flags.NArg() > most {
		err = fmt.Errorf("%s takes no argument %q", c.name, e.flags.Arg(most))
	}
	if err != nil {
		fmt.Fprintf(stderr, "ferrule: error: %v\nferrule: hint: usage: ferrule %s [--config F] %s\n", err, c.name, c.args)
		return exitUsage
	}
	return report(stderr, c.run(ctx, e))
}

// arity is how many arguments a command takes beside its flags: of "LINE UNIT [VALUE] [--json]"
// at least two and at most three.
func arity(args string) (least, most int) {
	inFlag := false
	for _, word := range strings.Fields(args) {
		if strings.HasPrefix(word, "--") {
			continue
		}
		if strings.HasPrefix(word, "[-") {
			inFlag = true
		} else if !inFlag {
			most++
			if !strings.HasPrefix(word, "[") {
				least++
			}
		}
		if strings.HasSuffix(word, "]") {
			inFlag = false
		}
	}
	return least, most
}

// isNumber: a negative number, as in "ferrule write l u p -5", is an argument.
func isNumber(s string) bool {
	var f float64
	n, err := fmt.Sscanf(s, "%g", &f)
	return n == 1 && err == nil
}

func usage(w io.Writer) {
	fmt.Fprint(w, "ferrule joins the serial lines of an IoT gateway to the cloud, with its key in the TPM.\n\nusage: ferrule COMMAND [--config F] …\n\n")
	for _, c := range table() {
		fmt.Fprintf(w, "  %-8s %-22s %s\n", c.name, c.args, c.summary)
	}
	fmt.Fprintf(w, "\n--config defaults to %s. More: docs/ and ferrule COMMAND --help.\n", config.DefaultPath)
}
