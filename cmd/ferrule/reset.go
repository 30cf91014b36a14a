package main

import (
	"context"
	"fmt"

	"ferrule/agent"
	"ferrule/agent/identity"
	"ferrule/internal/hint"
)

// resetOptions are the flags of ferrule reset.
type resetOptions struct {
	yes bool
	all bool
}

func resetFlags(e *env) {
	e.jsonFlag()
	e.flags.BoolVar(&e.reset.yes, "yes", false, "do it; without this flag nothing is removed")
	e.flags.BoolVar(&e.reset.all, "all", false, "remove the factory certificate and its key as well")
}

// runReset takes the device back to its factory identity.
func runReset(ctx context.Context, e *env) error {
	c, err := loadConfig(e)
	if err != nil {
		return err
	}
	if !e.reset.yes {
		return withCode(exitUsage, hint.With(
			fmt.Errorf("reset removes key, certificate, undelivered readings and the logs of commands below %s", c.StateDir),
			"if that is what you want: ferrule reset --yes"))
	}
	release, err := agent.LockReset(c.StateDir)
	if err != nil {
		return withCode(exitIdentity, err)
	}
	defer release()
	removed, err := identity.Reset(ctx, c.Identity, identityOptions(e, c), e.reset.all)
	if err != nil {
		return enrollError(err)
	}
	if e.json {
		return printJSON(e, map[string][]string{"removed": removed})
	}
	for _, what := range removed {
		fmt.Fprintf(e.stdout, "removed %s\n", what)
	}
	fmt.Fprintln(e.stdout, "the device is as it left the factory; next: ferrule enroll")
	return nil
}
