package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"ferrule/agent"
	"ferrule/agent/local"
	"ferrule/agent/trust"
	"ferrule/internal/hint"
)

// maxRootsFile bounds what is read of a file of roots, in bytes.
const maxRootsFile = 1 << 20

// rootsOptions are the flags of ferrule roots.
type rootsOptions struct {
	of string
}

func rootsFlags(e *env) {
	e.jsonFlag()
	e.flags.StringVar(&e.roots.of, "for", "broker", "whose roots: `broker` or registrar")
}

// runRoots changes whom the running agent believes (docs/trust.md).
func runRoots(ctx context.Context, e *env) error {
	args := agent.RootsArgs{For: e.roots.of, Action: e.flags.Arg(0)}
	switch file := e.flags.Arg(1); {
	case args.Action == "stage" && file == "":
		return withCode(exitUsage, hint.With(fmt.Errorf("roots stage needs a file"), "ferrule roots stage new-ca.pem --for broker"))
	case args.Action == "stage":
		text, err := readRootsFile(file)
		if err != nil {
			return withCode(exitUsage, err)
		}
		args.PEM = text
	case file != "":
		return withCode(exitUsage, fmt.Errorf("roots %s takes no argument %q", args.Action, file))
	}
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, valueTimeout)
	defer cancel()
	result, err := local.Dial(c.Local.Socket).Command(ctx, "roots", args)
	if err != nil {
		return withCode(exitSession, err)
	}
	var status trust.RootsStatus
	if err := json.Unmarshal(result, &status); err != nil {
		return fmt.Errorf("reading the agent's answer: %w", err)
	}
	if e.json {
		return printJSON(e, status)
	}
	return printRoots(e.stdout, status)
}

func readRootsFile(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("reading the roots: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxRootsFile))
	if err != nil {
		return "", fmt.Errorf("reading the roots: %w", err)
	}
	return string(text), nil
}

func printRoots(w io.Writer, s trust.RootsStatus) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "source\t%s\n", s.Source)
	for _, r := range s.Active {
		fmt.Fprintf(table, "active\t%s\tuntil %s\t%s\n", r.Subject, r.NotAfter.Format(time.DateOnly), r.Fingerprint)
	}
	if s.Staged != nil {
		for _, r := range s.Staged.Roots {
			fmt.Fprintf(table, "staged\t%s\tuntil %s\t%s\n", r.Subject, r.NotAfter.Format(time.DateOnly), r.Fingerprint)
		}
	}
	switch staged := s.Staged; {
	case staged == nil:
	case staged.Confirmable:
		fmt.Fprintln(table, "next\tconfirm: the last connection was verified by the staged roots alone")
	case staged.Needed:
		fmt.Fprintln(table, "next\twait: a connection needed the staged roots, the last one did not")
	default:
		fmt.Fprintf(table, "next\twait until a connection was verified by the staged roots alone; dropped on %s otherwise\n", staged.Expires.Format(time.DateTime))
	}
	return table.Flush()
}
