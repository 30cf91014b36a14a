package main

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts in testdata/script run the real command line, one story each. This binary
// plays ferrule-release in them.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"ferrule-release": func() {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
		},
	})
}

func TestScripts(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing; run: make deps")
	}
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "image": image, "serves": serves, "spoils": spoils},
	})
}

// exits runs ferrule-release and compares its exit code: exits 2 publish REPO. The words of
// FERRULE_EXEC go before it, where this binary is for another architecture.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exits CODE [ARGUMENT…]")
	}
	programs, _, _ := strings.Cut(ts.Getenv("PATH"), string(os.PathListSeparator))
	argv := append(strings.Fields(os.Getenv("FERRULE_EXEC")), filepath.Join(programs, "ferrule-release"))
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

// image makes an image: image FILE SIZE SEED [SEED…], each seed a stretch of noise of that size.
func image(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: image FILE SIZE SEED…")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	var out []byte
	for _, seed := range args[2:] {
		stretch := make([]byte, n)
		_, _ = rand.NewChaCha8([32]byte{seed[0]}).Read(stretch)
		out = append(out, stretch...)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), out, 0o644))
}

// serves has a web server serve a folder; its URL is the variable: serves FOLDER NAME.
func serves(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: serves FOLDER NAME")
	}
	server := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[0]))))
	ts.Defer(server.Close)
	ts.Setenv(args[1], server.URL)
}

// spoils flips a bit of every file that fits: spoils PATTERN.
func spoils(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: spoils PATTERN")
	}
	files, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(files) == 0 {
		ts.Fatalf("no file fits %s", args[0])
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		ts.Check(err)
		data[len(data)/2] ^= 1
		ts.Check(os.WriteFile(file, data, 0o644))
	}
}
