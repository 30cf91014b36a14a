package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"text/tabwriter"

	"ferrule/agent/config"
	"ferrule/hw"
	"ferrule/hw/port"
)

func clockPath(c *config.Config) string { return filepath.Join(c.StateDir, "time") }

// runCheck prints what the agent would do on every line, and refuses what cannot work.
func runCheck(_ context.Context, e *env) error {
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	plans := make([]hw.Plan, 0, len(c.Lines))
	for _, config := range c.Lines {
		line, err := hw.New(config, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			return withCode(exitConfig, err)
		}
		plans = append(plans, line.Plan())
	}
	if e.json {
		err = printJSON(e, plans)
	} else {
		err = printPlans(e.stdout, plans)
	}
	return errors.Join(err, overloaded(plans))
}

// overloaded refuses a plan that asks more of a line than its wire can carry.
func overloaded(plans []hw.Plan) error {
	for _, plan := range plans {
		if plan.Overload() {
			return withCode(exitConfig, fmt.Errorf("line %s: the plan needs %.0f %% of the wire; poll less often, or raise the baud rate",
				plan.Line, plan.LoadPercent))
		}
	}
	return nil
}

func printPlans(w io.Writer, plans []hw.Plan) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, plan := range plans {
		fmt.Fprintf(table, "line %s: %s, %d requests, load %.1f %%\n", plan.Line, plan.Settings, len(plan.Requests), plan.LoadPercent)
		for _, r := range plan.Requests {
			fmt.Fprintf(table, "  %s\t%s:%d\t× %d\tevery %s\t%.1f ms\n", r.Unit, r.Table, r.From, r.Count, r.Every, r.Milliseconds)
		}
	}
	return table.Flush()
}

func runPorts(_ context.Context, e *env) error {
	infos, err := port.List()
	if err != nil {
		return withCode(exitLine, err)
	}
	if e.json {
		return printJSON(e, infos)
	}
	if len(infos) == 0 {
		fmt.Fprintln(e.stdout, "no serial ports found")
		return nil
	}
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PORT\tSTABLE NAME\tDRIVER\tPRODUCT")
	for _, info := range infos {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", info.Path, stableName(info), info.Driver, info.Product)
	}
	return table.Flush()
}

// stableName prefers the name that follows the adapter over the one that follows the socket.
func stableName(info port.Info) string {
	switch {
	case info.ByID != "":
		return info.ByID
	case info.ByPath != "":
		return info.ByPath
	}
	return "-"
}
