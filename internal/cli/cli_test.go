package cli_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ferrule/internal/cli"
	"ferrule/internal/hint"
)

// env is what the commands of the test get.
type env struct {
	call *cli.Call
	deep bool
}

func tool(ran func(*env) error) *cli.Tool[*env] {
	run := func(_ context.Context, e *env) error { return ran(e) }
	deep := func(e *env) { e.call.Flags.BoolVar(&e.deep, "deep", false, "look deeper") }
	return &cli.Tool[*env]{
		Name: "tool", About: "does it.", More: "More: docs.",
		Env: func(c *cli.Call) *env { return &env{call: c} },
		Table: []cli.Command[*env]{
			{Words: "one", Args: "DIR [ID]", Summary: "takes one or two", Flags: deep, Run: run},
			{Words: "one more", Args: "REPO PART…", Summary: "takes two or more", Flags: deep, Run: run},
			{Words: "with", Args: "[-- COMMAND]", Summary: "starts a program", Run: run},
		},
	}
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want string // arguments, deep and program where it ran, else a part of what is said
	}{
		{"", cli.ExitDone, "tool does it."},
		{"one d", cli.ExitDone, "[d] false []"},
		{"one d --deep i", cli.ExitDone, "[d i] true []"},
		{"one --deep -", cli.ExitDone, "[-] true []"},
		{"one", cli.ExitUsage, "one takes 1 to 2 arguments beside its flags, not 0"},
		{"one a b c", cli.ExitUsage, "not 3"},
		{"one d --deeper", cli.ExitUsage, "tool: hint: usage: tool one DIR [ID] [flags]"},
		{"one --help", cli.ExitDone, "look deeper"},
		{"one more r", cli.ExitUsage, "2 arguments or more"},
		{"with", cli.ExitDone, "[] false []"},
		{"with -- a --deep", cli.ExitDone, "[] false [a --deep]"},
		{"with a", cli.ExitUsage, "0 arguments"},
		{"two", cli.ExitUsage, `there is no command "two"`},
	} {
		var out, errs bytes.Buffer
		code := tool(func(e *env) error {
			_, err := fmt.Fprint(e.call.Stdout, e.call.Flags.Args(), " ", e.deep, " ", e.call.Program)
			return err
		}).Run(t.Context(), strings.Fields(c.args), &out, &errs)
		if code != c.code || !strings.Contains(out.String()+errs.String(), c.want) {
			t.Errorf("%q: exit code %d, %q %q; want %d, %q", c.args, code, out.String(), errs.String(), c.code, c.want)
		}
	}
}

func TestErrors(t *testing.T) {
	for want, c := range map[string]struct {
		err  error
		code int
	}{
		"tool: error: broken\n":                        {errors.New("broken"), cli.ExitFailed},
		"tool: error: broken\ntool: hint: mend\n":      {hint.With(errors.New("broken"), "mend"), cli.ExitFailed},
		"tool: error: the command line is wrong: no\n": {fmt.Errorf("%w: no", cli.ErrUsage), cli.ExitUsage},
	} {
		var out, errs bytes.Buffer
		if code := tool(func(*env) error { return c.err }).Run(t.Context(), []string{"with"}, &out, &errs); code != c.code || errs.String() != want {
			t.Errorf("%v: exit code %d, %q; want %d, %q", c.err, code, errs.String(), c.code, want)
		}
	}
}

func TestPrepareComesBeforeRun(t *testing.T) {
	tl := tool(func(*env) error { t.Error("it ran"); return nil })
	tl.Prepare = func(*env) error { return cli.ErrUsage }
	var errs bytes.Buffer
	if code := tl.Run(t.Context(), []string{"with"}, &errs, &errs); code != cli.ExitUsage {
		t.Errorf("exit code %d", code)
	}
}

func TestParseFlagsTakesNegativeNumbersWhereToldTo(t *testing.T) {
	number := func(s string) bool { _, err := strconv.ParseFloat(s, 64); return err == nil }
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	if err := cli.ParseFlags(flags, []string{"unit", "-5"}, number); err != nil || !slices.Equal(flags.Args(), []string{"unit", "-5"}) {
		t.Errorf("%v, %v", flags.Args(), err)
	}
}
