package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// What docs/releases.md says runs as it stands.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/releases.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)\n```sh\n(.*?)\n```\n").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 8 {
		t.Fatalf("the document has %d blocks of commands", len(blocks))
	}
	script := "set -eux\n"
	for _, b := range blocks {
		script += b[1] + "\n"
	}
	testscript.Run(t, testscript.Params{
		Files: []string{write(t, "document.txt", "document\nexec sh document.sh\nstderr 'ferrule-release keys rotate'\n")},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"document": func(ts *testscript.TestScript, _ bool, _ []string) { prepare(ts, script) },
		},
	})
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// prepare puts the document's commands into the script's own folder, and the program in front of
// its PATH: behind the words of FERRULE_EXEC, where this binary is for another architecture.
func prepare(ts *testscript.TestScript, script string) {
	work := ts.MkAbs(".")
	programs, _, _ := strings.Cut(ts.Getenv("PATH"), string(os.PathListSeparator))
	wrapper := fmt.Sprintf("#!/bin/sh\nexec %s %s/ferrule-release \"$@\"\n", os.Getenv("FERRULE_EXEC"), programs)
	ts.Check(os.MkdirAll(filepath.Join(work, "bin"), 0o755))
	ts.Check(os.WriteFile(filepath.Join(work, "bin", "ferrule-release"), []byte(wrapper), 0o755))
	ts.Setenv("PATH", filepath.Join(work, "bin")+string(os.PathListSeparator)+ts.Getenv("PATH"))
	script = strings.ReplaceAll(script, "/tmp/release", filepath.Join(work, "release"))
	ts.Check(os.WriteFile(filepath.Join(work, "document.sh"), []byte(script), 0o600))
}
