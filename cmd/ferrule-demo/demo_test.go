package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// programs builds the demo for the machine that runs this test and the agent for the
// architecture that is tested, which an emulator may have to run.
func programs(t *testing.T) (demo, agent string) {
	t.Helper()
	dir := t.TempDir()
	demo, agent = filepath.Join(dir, "ferrule-demo"), filepath.Join(dir, "ferrule")
	build := func(output, name string, env ...string) {
		command := exec.CommandContext(t.Context(), "go", "build", "-o", output, "ferrule/cmd/"+name)
		command.Env = append(os.Environ(), append(env, "CGO_ENABLED=0")...)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", name, err, out)
		}
	}
	build(demo, "ferrule-demo", "GOARCH=", "GOARM=")
	build(agent, "ferrule")
	if words := os.Getenv("FERRULE_EXEC"); words != "" {
		emulator, err := exec.LookPath(words)
		if err != nil {
			t.Fatalf("%v; run: make deps", err)
		}
		wrapper := agent + ".sh"
		text := fmt.Sprintf("#!/bin/sh\nexec %s %s \"$@\"\n", emulator, agent)
		if err := os.WriteFile(wrapper, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		agent = wrapper
	}
	return demo, agent
}

// perform runs the demo with its temporary files in a folder of its own.
func perform(ctx context.Context, t *testing.T, env []string, args ...string) (*exec.Cmd, *bytes.Buffer, string) {
	t.Helper()
	// A socket's path holds 107 bytes at most, so t.TempDir will not do.
	dir, err := os.MkdirTemp("", "fd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	demo, agent := programs(t)
	command := exec.CommandContext(ctx, demo, append([]string{"--ferrule", agent}, args...)...)
	command.Env = append(append(os.Environ(), "TMPDIR="+dir, "DEMO_FOR="), env...)
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	return command, &out, dir
}

func mustContain(t *testing.T, out string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(out) {
			t.Errorf("the output lacks %q", p)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s", out)
	}
}

// nothingLeft checks that the demo took its files and its processes with it.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%s was left, and %d more", left[0].Name(), len(left)-1)
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		if text, _ := os.ReadFile(name); bytes.Contains(text, []byte(dir)) {
			t.Errorf("%s still runs: %q", filepath.Dir(name), text)
		}
	}
}

// The whole demo, as make demo runs it but shorter.
func TestDemo(t *testing.T) {
	command, out, dir := perform(t.Context(), t, nil, "--for", "8s")
	err := command.Run()
	mustContain(t, out.String(),
		`(?m)^   answered +\d+ +\d+ +\d\d+$`, `(?m)^   lost +0 +0 +0$`, `✔  0 lost`, `✔  3 sessions, mutual TLS 1\.3, client certificate CN=gw-demo`,
		`✔  2 full TLS handshakes for 2 starts of the agent, 1 resumed for 1 cuts`, `✔  2 TPM Sign`, `✔  key tpm2:file=device\.key: in the TPM 2\.0`,
		`meter-a  #\d+ .* W .* waited`, `meter-b  #\d+ .* W .* waited`, `kill -9 of process \d+`)
	if err != nil || strings.Contains(out.String(), "✘") || strings.Contains(out.String(), "\x1b") {
		t.Errorf("the demo ended with %v:\n%s", err, out)
	}
	nothingLeft(t, dir)
}

// Where swtpm cannot be had the demo goes on, and says loudly what that means. SIGINT is
// Ctrl-C: the agent drains, and the page comes all the same.
func TestDemoWithoutTPMUntilInterrupted(t *testing.T) {
	command, out, dir := perform(t.Context(), t, []string{"PATH=/nowhere"})
	lines, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	command.Stdout, command.Stderr = writer, writer
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	chunk := make([]byte, 4096)
	for interrupted := false; ; {
		n, err := lines.Read(chunk)
		out.Write(chunk[:n])
		if err != nil {
			break
		}
		if !interrupted && strings.Contains(out.String(), "meter-b  #2") {
			interrupted = true
			if err := command.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = command.Wait()
	mustContain(t, out.String(), `NONE: swtpm is missing.*WEAK`, `✔  the key is a WEAK software key \(file:device\.pem\)`, `✔  0 lost`, `Tally`)
	if err != nil {
		t.Errorf("the demo ended with %v:\n%s", err, out)
	}
	nothingLeft(t, dir)
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args   []string
		length string
		code   int
		want   string
	}{
		{[]string{"--help"}, "", exitDone, "-ferrule"},
		{[]string{"--for", "1s"}, "", exitUsage, "the least is 8s"},
		{nil, "30", exitUsage, "say 30s"},
		{[]string{"--no-such"}, "", exitUsage, "no-such"},
		{[]string{"x"}, "", exitUsage, "too many"},
		{[]string{"--ferrule", "/no/such/file"}, "", exitUsage, "make demo"},
	} {
		t.Setenv("DEMO_FOR", c.length)
		var out bytes.Buffer
		if code := run(t.Context(), c.args, &out, &out); code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("%q: exit code %d, output %q; want %d, %q", c.args, code, out.String(), c.code, c.want)
		}
	}
}

func TestPollEvery(t *testing.T) {
	for length, want := range map[time.Duration]time.Duration{
		0: time.Second, 8 * time.Second: 250 * time.Millisecond, 30 * time.Second: time.Second, time.Hour: time.Second,
	} {
		if got := pollEvery(length); got != want {
			t.Errorf("%v: %v, want %v", length, got, want)
		}
	}
}
