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
[ "$KILL_AT" = 0 ] || [ "$lines" -lt "$KILL_AT" ] || kill -9 0
exec "$(PATH=$KILL_PATH && command -v "$name")" "$@"
`

// The script is ended before every single program that it starts. The run after it makes of
// each of these states one key, one certificate and one record.
func TestProvisionCutBeforeEveryProgram(t *testing.T) {
	steps := cutBefore(t, 0)
	t.Logf("%d programs", steps)
	if steps < 20 {
		t.Errorf("the script was cut at %d places only: are its programs still found by name?", steps)
	}
	for step := range steps {
		t.Run(fmt.Sprint(step+1), func(t *testing.T) { t.Parallel(); cutBefore(t, step+1) })
	}
}

// cutBefore cuts before one program, 0 for none, and returns how many there were.
func cutBefore(t *testing.T, step int) (programs int) {
	p := newProvisioning(t)
	stand, count := t.TempDir(), filepath.Join(t.TempDir(), "count")
	for _, name := range strings.Fields("awk cat chmod cut date dirname flock grep mkdir mktemp mv openssl rm sed sh sha256sum sync touch tr") {
		if err := os.WriteFile(filepath.Join(stand, name), []byte(killer), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	factory := filepath.Join(t.TempDir(), "ferrule-factory")
	if err := os.Symlink(p.factory[0], factory); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stand, "ferrule-factory"), []byte(killer), 0o700); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/bin/sh", append(p.argv[1:], "--factory", "ferrule-factory")...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Env = append(os.Environ(), "TMPDIR="+p.dir, "PATH="+stand, fmt.Sprintf("KILL_AT=%d", step),
		"KILL_COUNT="+count,
		"KILL_PATH="+filepath.Dir(factory)+string(os.PathListSeparator)+os.Getenv("PATH"))
	out, err := command.CombinedOutput()
	if step == 0 && err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var exit *exec.ExitError
	if step > 0 && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
		t.Fatalf("%v\n%s", err, out)
	}
	mustRun(t, "", p.argv...)
	p.converged(t)
	started, err := os.ReadFile(count)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(started), "\n")
}
