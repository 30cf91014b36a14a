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
	"ferrule/agent/config/trial"
	"ferrule/agent/local"
	"ferrule/internal/hint"
)

// configOptions are the flags of ferrule config.
type configOptions struct {
	within time.Duration
	dryRun bool
}

func configFlags(e *env) {
	e.jsonFlag()
	e.flags.DurationVar(&e.apply.within, "within", 0, "how long the trial may take (default 2m)")
	e.flags.BoolVar(&e.apply.dryRun, "dry-run", false, "only check")
}

// runConfig has the running agent try a configuration (docs/remote-configuration.md).
func runConfig(ctx context.Context, e *env) error {
	args := agent.ConfigArgs{Action: e.flags.Arg(0), DryRun: e.apply.dryRun}
	switch file := e.flags.Arg(1); {
	case args.Action == "apply" && file == "":
		return withCode(exitUsage, hint.With(fmt.Errorf("config apply needs a file"), "ferrule config apply new.toml"))
	case args.Action == "apply":
		text, err := readNewConfig(file)
		if err != nil {
			return withCode(exitUsage, err)
		}
		args.Action, args.TOML = "", text
		if e.apply.within != 0 {
			args.ConfirmWithin = e.apply.within.String()
		}
	case file != "":
		return withCode(exitUsage, fmt.Errorf("config %s takes no argument %q", args.Action, file))
	case args.Action == "confirm" || args.Action == "cancel":
		args.ID = agent.AtTheSite
	}
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, valueTimeout)
	defer cancel()
	answer, err := local.Dial(c.Local.Socket).Command(ctx, "config", args)
	if err != nil {
		return withCode(exitConfig, err)
	}
	if e.json {
		_, err = e.stdout.Write(answer)
		return err
	}
	var result agent.ConfigResult
	if err := json.Unmarshal(answer, &result); err != nil {
		return fmt.Errorf("reading the agent's answer: %w", err)
	}
	return printConfigResult(e.stdout, result)
}

func readNewConfig(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("reading the new configuration: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, trial.MaxText+1))
	if err != nil {
		return "", fmt.Errorf("reading the new configuration: %w", err)
	}
	return string(text), nil
}

func printConfigResult(w io.Writer, r agent.ConfigResult) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	switch {
	case r.Trying:
		fmt.Fprintf(table, "trying\t%v, until %s\nnext\tferrule config status\n", r.Changes, r.Deadline.Local().Format(time.DateTime))
	case r.Unchanged:
		fmt.Fprintln(table, "unchanged\tthis is the configuration that runs")
	case r.Valid:
		fmt.Fprintf(table, "valid\tit changes %v\n", r.Changes)
	case r.Confirmed:
		fmt.Fprintln(table, "confirmed\tit is kept as soon as the session answers")
	case r.Cancelled:
		fmt.Fprintln(table, "cancelled\tthe old one returns")
	case r.Status != nil:
		fmt.Fprintf(table, "file\t%s\nsha256\t%s\n", r.Status.Path, r.Status.SHA256)
		printConfig(table, *r.Status, time.Now())
		if o := r.Status.Last; o != nil && o.Outcome == trial.Kept {
			fmt.Fprintf(table, "config\tthe one of command %s: kept on %s (%s)\n", o.ID, o.At.Format(time.DateTime), o.Reason)
		}
	}
	return table.Flush()
}
