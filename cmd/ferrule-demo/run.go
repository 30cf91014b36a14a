package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"ferrule/internal/hint"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1 // something was lost or did not hold
	exitUsage  = 2
)

// shortest is the least time in which every act can happen.
const shortest = 8 * time.Second

// options is the command line.
type options struct {
	length  time.Duration // 0: until Ctrl-C
	program string        // the agent
	plain   bool
	keep    bool
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, os.Getenv("DEMO_FOR"), stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitDone
	case err != nil:
		complain(stderr, err)
		return exitUsage
	}
	held, err := play(ctx, o, newScreen(stdout, o.plain))
	if err != nil {
		complain(stderr, err)
	}
	if err != nil || !held {
		return exitFailed
	}
	return exitDone
}

func complain(stderr io.Writer, err error) {
	fmt.Fprintf(stderr, "ferrule-demo: error: %v\n", err)
	if h := hint.Of(err); h != "" {
		fmt.Fprintf(stderr, "ferrule-demo: hint: %s\n", h)
	}
}

// parse reads the command line; length is DEMO_FOR.
func parse(args []string, length string, stdout io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("ferrule-demo", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // mistakes are printed once, in our own form
	flags.StringVar(&length, "for", length, "end by itself after so `long`, e.g. 30s; default: the environment variable DEMO_FOR, or else Ctrl-C")
	flags.StringVar(&o.program, "ferrule", "", "the agent's `program`; default: ferrule beside this one")
	flags.BoolVar(&o.plain, "plain", false, "no colour and no status lines, on a terminal too")
	flags.BoolVar(&o.keep, "keep", false, "keep the temporary folder")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, "ferrule-demo shows the whole loop on one machine, and counts.\n\n")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
	}
	if err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("an argument too many: %q", flags.Arg(0))
	}
	if length != "" {
		if o.length, err = time.ParseDuration(length); err != nil || o.length < shortest {
			return o, hint.With(fmt.Errorf("%q is no length for the demo", length), fmt.Sprintf("say 30s or 10m; the least is %v", shortest))
		}
	}
	o.program, err = findAgent(o.program)
	return o, err
}

func findAgent(program string) (string, error) {
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("finding the agent: %w", err)
		}
		program = filepath.Join(filepath.Dir(self), "ferrule")
	}
	if _, err := os.Stat(program); err != nil {
		return "", hint.With(fmt.Errorf("finding the agent: %w", err), "run: make demo, or name it with --ferrule")
	}
	return filepath.Abs(program)
}
