//go:build cgo

package main

import (
	"os"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts in testdata/script run the real command line, one story each.
func TestScripts(t *testing.T) {
	need(t, "softhsm2-util")
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("MODULE", softhsmModule(t))
			e.Setenv("SOFTHSM2_CONF", e.WorkDir+"/softhsm2.conf")
			if err := os.Mkdir(e.WorkDir+"/tokens", 0o700); err != nil {
				return err
			}
			return os.WriteFile(e.WorkDir+"/softhsm2.conf", []byte("directories.tokendir = "+e.WorkDir+"/tokens\nlog.level = ERROR\n"), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs ferrule-p11 and compares its exit code: exits 2 keys --module /x.so.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exits CODE [ARGUMENT…]")
	}
	err := ts.Exec("ferrule-p11", args[1:]...)
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
