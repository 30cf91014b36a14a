package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// killer stands in for every program that build/provision.sh starts: it counts, and at the
// chosen one ends the script with all its children, before that program has done anything.
const killer = `#!/bin/sh
name=${0##*/}
echo "$name" >>"$KILL_COUNT"
lines=0
while read -r _; do lines=$((lines + 1)); done <"$KILL_COUNT"
[ "$lines" -lt "$KILL_AT" ] || kill -9 0
exec "$(PATH=$KILL_PATH && command -v "$name")" "$@"
`

// The script is ended before every single program that it starts. The run after it makes of
// each of these states one key, one certificate and one record.
func TestProvisionCutBeforeEveryProgram(t *testing.T) {
	steps := 0
	for ended := false; !ended; {
		steps++
		ended = !t.Run(fmt.Sprint(steps), func(t *testing.T) { cutBefore(t, steps, &ended) }) || ended
	}
	t.Logf("%d programs", steps-1)
	if steps < 20 && !t.Failed() {
		t.Errorf("the script was cut at %d places only: are its programs still found by name?", steps-1)
	}
}

// cutBefore sets ended where the script has fewer programs than that.
func cutBefore(t *testing.T, step int, ended *bool) {
	p := newProvisioning(t)
	programs := t.TempDir()
	for _, name := range strings.Fields("awk cat chmod cut date dirname flock grep mkdir mktemp mv openssl rm sed sh sha256sum sync touch") {
		if err := os.WriteFile(filepath.Join(programs, name), []byte(killer), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	factory := filepath.Join(t.TempDir(), "ferrule-factory")
	if err := os.Symlink(p.factory[0], factory); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(programs, "ferrule-factory"), []byte(killer), 0o700); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/bin/sh", append(p.argv[1:], "--factory", "ferrule-factory")...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Env = append(os.Environ(), "PATH="+programs, fmt.Sprintf("KILL_AT=%d", step),
		"KILL_COUNT="+filepath.Join(t.TempDir(), "count"),
		"KILL_PATH="+filepath.Dir(factory)+string(os.PathListSeparator)+os.Getenv("PATH"))
	var exit *exec.ExitError
	switch out, err := command.CombinedOutput(); {
	case err == nil:
		*ended = true
	case !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL:
		t.Fatalf("%v\n%s", err, out)
	}
	mustRun(t, "", p.argv...)
	p.converged(t)
}
