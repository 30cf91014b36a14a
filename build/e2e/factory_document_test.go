package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// docs/factory.md promises that its commands run as they stand. They do, in its order and in
// one shell, but for the folder, the ports, and make, whose work is done.
func TestFactoryDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/factory.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := shellBlocks(string(text))
	if len(blocks) < 10 {
		t.Fatalf("only %d blocks marked sh are found", len(blocks))
	}
	dir, bin, port := shortDir(t), t.TempDir(), freePort(t)
	for _, program := range []string{"ferrule", "ferrule-factory"} {
		if err := os.Symlink(build(t, program, native)[0], filepath.Join(bin, program)); err != nil {
			t.Fatal(err)
		}
	}
	here := strings.NewReplacer("/tmp/line", dir, "127.0.0.1:8443", "127.0.0.1:"+port, "make deps\nmake build\n", "",
		"$PWD/bin", bin, "--ferrule bin/", "--ferrule "+bin+"/")
	var script strings.Builder
	for n, block := range blocks {
		fmt.Fprintf(&script, "echo 'block %d'\n%s", n+1, here.Replace(block))
		if strings.Contains(block, "ferrule-factory registrar") { // whoever types is slower
			fmt.Fprintf(&script, "until (exec 3<>/dev/tcp/127.0.0.1/%s) 2>/dev/null; do sleep 0.05; done\n", port)
		}
	}
	if left := script.String(); strings.Contains(left, "/tmp/line") || strings.Contains(left, "8443") {
		t.Fatalf("something is not put in its place:\n%s", left)
	}
	var said bytes.Buffer
	shell := exec.CommandContext(t.Context(), need(t, "bash"), "-e")
	shell.Dir, shell.Stdin = "../..", strings.NewReader(script.String())
	shell.Stdout, shell.Stderr = &said, &said
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	t.Cleanup(func() { _ = syscall.Kill(-shell.Process.Pid, syscall.SIGKILL) }) // what it left behind
	if err := shell.Run(); err != nil {
		t.Fatalf("%v\n%s", err, tail(said.String()))
	}
	checkFactoryDocument(t, dir, said.String())
}

// shellBlocks are the fenced blocks marked sh.
func shellBlocks(text string) (blocks []string) {
	for _, rest := range strings.Split(text, "\n```sh\n")[1:] {
		block, _, _ := strings.Cut(rest, "\n```\n")
		blocks = append(blocks, block+"\n")
	}
	return blocks
}

// checkFactoryDocument looks at what the commands have left: three gateways, one of them
// revoked, and labels for all.
func checkFactoryDocument(t *testing.T, dir, said string) {
	t.Helper()
	for _, name := range []string{"gw-0001", "gw-0002", "gw-0003"} {
		certificate := filepath.Join(dir, name, "var/lib/ferrule/device.crt")
		mustRun(t, "", need(t, "openssl"), "verify", "-purpose", "sslclient", "-CAfile", filepath.Join(dir, "ca/root.crt"),
			"-untrusted", certificate, certificate)
	}
	text, err := os.ReadFile(filepath.Join(dir, "records.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	labels, err := os.ReadFile(filepath.Join(dir, "labels.html"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := readLines(t, string(text)); len(lines) != 3 || strings.Count(string(labels), "<svg") != 3 {
		t.Errorf("records %v, and %d labels", lines, strings.Count(string(labels), "<svg"))
	}
	for _, want := range []string{"Serial Number", "gw-0002: certificate ", "gw-0003  issued", "enrolled as gw-0001"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q was not said:\n%s", want, tail(said))
		}
	}
}
