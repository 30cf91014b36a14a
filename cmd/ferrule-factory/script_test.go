package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts in testdata/script run the real command line, one story each. This binary
// plays ferrule-factory in them.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"ferrule-factory": func() {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
		},
	})
}

func TestScripts(t *testing.T) {
	g := newGateways(t)
	// The scripts run beside each other; the gateways are switched off when all are done.
	t.Run("script", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: "testdata/script",
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"exits": exits, "saves": saves, "makers": g.makers, "collects": g.collects, "unseals": g.unseals,
			},
		})
	})
}

// exits runs ferrule-factory and compares its exit code: exits 2 token add DIR. The words of
// FERRULE_EXEC go before it, where this binary is for another architecture.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exits CODE [ARGUMENT…]")
	}
	programs, _, _ := strings.Cut(ts.Getenv("PATH"), string(os.PathListSeparator))
	argv := append(strings.Fields(os.Getenv("FERRULE_EXEC")), filepath.Join(programs, "ferrule-factory"))
	argv = append(argv, args[1:]...)
	err := ts.Exec(argv[0], argv[1:]...)
	got := 0
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("%v: exit code %d, want %s", args[1:], got, args[0])
	}
}

// saves keeps what the last command printed as a variable: saves TOKEN.
func saves(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: saves NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}
