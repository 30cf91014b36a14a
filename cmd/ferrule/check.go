package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"text/tabwriter"

	"ferrule/agent/config"
	"ferrule/hw"
)

func checkFlags(e *env) {
	e.jsonFlag()
	e.flags.BoolVar(&e.profiles, "profiles", false, "list the sensor profiles instead")
}

func clockPath(c *config.Config) string { return filepath.Join(c.StateDir, "time") }

// runCheck prints what the agent would do on every line, and refuses what cannot work.
func runCheck(_ context.Context, e *env) error {
	if e.profiles {
		return listProfiles(e)
	}
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
		for _, plan := range plans {
			fmt.Fprint(e.stdout, plan)
		}
		if c.Update.Enabled() {
			fmt.Fprint(e.stdout, updatePlan(c.Update))
		}
	}
	if err := c.Local.Probe(c.StateDir); err != nil {
		fmt.Fprintf(e.stderr, "ferrule: warning: nobody could use the listener on this machine: %v\n", err)
	}
	for _, sentence := range c.Local.Advice() {
		fmt.Fprintf(e.stderr, "ferrule: note: %s\n", sentence)
	}
	for _, plan := range plans {
		if plan.Tight() && !plan.Overload() {
			fmt.Fprintf(e.stderr, "ferrule: warning: %s, and units need time to think; %s\n", plan.Need(), hw.LessLoad)
		}
	}
	return errors.Join(err, overloaded(plans))
}

// listProfiles prints the sensor profiles that units can name. Without a configuration it knows
// those that are built in.
func listProfiles(e *env) error {
	library, problem := config.Profiles(e.configPath)
	if e.json {
		return errors.Join(printJSON(e, library.List()), withCode(exitConfig, problem))
	}
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PROFILE\tPOINTS\tFOR")
	for _, p := range library.List() {
		title := p.Title
		if p.File != "" {
			title += " (" + p.File + ")"
		}
		fmt.Fprintf(table, "%s\t%d\t%s\n", p.Name, p.Points, title)
	}
	fmt.Fprintln(table, "sunspec\t-\tany SunSpec device: its points are asked of itself")
	return errors.Join(table.Flush(), withCode(exitConfig, problem))
}

// overloaded refuses a plan that asks more of a line than its wire can carry.
func overloaded(plans []hw.Plan) error {
	for _, plan := range plans {
		if plan.Overload() {
			return withCode(exitConfig, errors.New(plan.Need()+"; "+hw.LessLoad))
		}
	}
	return nil
}
