package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// shifted builds the agent with another clock. No preloaded library reaches a static Go program, and
// no namespace moves the time of day, so that Go's own time.Now is changed while it is built, by
// FERRULE_TEST_CLOCK seconds; FERRULE_TEST_SYNCED is the kernel's word for whether to believe
// it. All else is the program as it is.
func shifted(t *testing.T) []string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if path, done := builds.made["shifted"]; done {
		return []string{path}
	}
	dir := func(of string) string {
		return strings.TrimSpace(mustRun(t, "", "go", "list", "-f", "{{.Dir}}", of))
	}
	overlay := map[string]string{}
	patch := func(of, name, old, replacement, more string) {
		t.Helper()
		original := filepath.Join(dir(of), name)
		text := readFile(t, original)
		if strings.Count(text, old) != 1 {
			t.Fatalf("%s is not as this test knows it", original)
		}
		path := filepath.Join(builds.dir, "shifted-"+name)
		if err := os.WriteFile(path, []byte(strings.Replace(text, old, replacement, 1)+more), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay[original] = path
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	patch("time", "time.go", now, now+"\tsec += testShift\n", `
var testShift = func() (n int64) {
	text, _ := syscall.Getenv("FERRULE_TEST_CLOCK")
	negative := text != "" && text[0] == '-'
	for i := range len(text) {
		if text[i] >= '0' && text[i] <= '9' {
			n = 10*n + int64(text[i]-'0')
		}
	}
	if negative {
		return -n
	}
	return n
}()
`)
	original := filepath.Join(dir("time"), "time.go")
	text := readFile(t, overlay[original])
	if err := os.WriteFile(overlay[original], []byte(strings.Replace(text, "import (", "import (\n\t\"syscall\"", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	const synchronised = "func kernelSynchronised() bool {\n"
	patch("ferrule/agent/clock", "clock.go", synchronised, synchronised+"\treturn os.Getenv(\"FERRULE_TEST_SYNCED\") != \"\"\n}\n\nfunc really() bool {\n", "\nvar _ = really\n")
	list, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	file, path := filepath.Join(builds.dir, "overlay.json"), filepath.Join(builds.dir, "ferrule-shifted")
	if err := os.WriteFile(file, list, 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-overlay", file, "-o", path, "ferrule/cmd/ferrule")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("building with another clock: %v\n%s", err, out)
	}
	builds.made["shifted"] = path
	return []string{path}
}

const tenYears = 10 * 365 * 24 * time.Hour

// runAt starts the agent with its clock moved.
func (s *site) runAt(t *testing.T, by time.Duration, synced string) {
	t.Helper()
	s.agent = start(t, "ferrule run", append([]string{"env", fmt.Sprintf("FERRULE_TEST_CLOCK=%d", int64(by.Seconds())),
		"FERRULE_TEST_SYNCED=" + synced}, with(shifted(t), "run", "--config", s.config)...)...)
}

// wakeUps counts how often a process's threads have gone to sleep by themselves (proc(5), status).
func wakeUps(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no threads of %d: %v", pid, err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // it has just ended
		}
		_, rest, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
		count, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
		if one, err := strconv.Atoi(count); err == nil {
			n += one
		}
	}
	return n
}

// calm checks that no timer has run wild: such a one wakes the process thousands of times a second.
func (s *site) calm(t *testing.T, what string) {
	t.Helper()
	const length = 4 * time.Second
	before := wakeUps(t, s.agent.Process.Pid)
	pause(t, length)
	n := wakeUps(t, s.agent.Process.Pid) - before
	t.Logf("%s: %d wake-ups in %s", what, n, length)
	if n > 4000 {
		t.Errorf("%s: the process was woken %d times in %s", what, n, length)
	}
}

// A gateway without a battery wakes in 1970, another ten years ahead, and nobody tells them the
// time: they connect, also to a broker whose certificate is younger than theirs, renew their
// certificate with a new key, mark their readings, and no timer runs wild. The first site's clock
// is right, for comparison.
func TestClockThatIsWrong(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		by    time.Duration
		clock string
	}{
		{"right", 0, "untrusted"},
		{"1970", -time.Since(time.Unix(100, 0)), "untrusted"},
		{"ten years ahead", tenYears, "floor"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, quietLine)
			pause(t, 3*time.Second)
			mustRun(t, "", with(s.factory, "ca", "server", s.ca, "--name", "young", "--host", "127.0.0.1")...)
			broker := s.watched(t, filepath.Join(s.ca, "young"), readFile(t, filepath.Join(s.ca, "root.crt")))
			s.runAt(t, test.by, "")
			s.waitUp(t)
			status := s.status(t)
			if clock := field(status, "identity", "clock"); clock != test.clock || field(status, "clock", "trusted") != false {
				t.Errorf("judged by %v (%v), clock %v", clock, field(status, "identity", "clock_note"), field(status, "clock"))
			}
			if failure := field(status, "session", "last_failure"); failure != nil {
				t.Errorf("it took more than one attempt: %v", failure)
			}
			waitFor(t, "a reading", func() bool { return len(s.arrivals(t)) > 0 })
			if a := s.arrivals(t)[0]; !strings.Contains(a.raw, `"unsynced":true`) {
				t.Errorf("a reading with a clock that nobody vouches for: %s", a.raw)
			}
			s.calm(t, test.name)
			first := s.leaf(t)
			mustRun(t, "", with(s.ferrule, "enroll", "--rekey", "--config", s.config)...)
			waitLeaf(t, broker, first)
			if strings.Contains(s.agent.output(), "renewal failed") {
				t.Error("the renewal took more than one attempt")
			}
			s.stop(t)
			s.settled(t)
		})
	}
}

// Ten years ahead, and the time server says so: nothing can be believed, and the status says why.
func TestClockThatIsWrongAndTrusted(t *testing.T) {
	t.Parallel()
	s := newSite(t, quietLine)
	s.runAt(t, tenYears, "1")
	s.waitRefused(t, "broker-expired")
	status := s.status(t)
	if hint, _ := field(status, "session", "last_failure", "hint").(string); !strings.Contains(hint, "clock") {
		t.Errorf("last failure: %v", field(status, "session", "last_failure"))
	}
	note, _ := field(status, "identity", "clock_note").(string)
	alarm, _ := field(status, "identity", "alarm").(string)
	if field(status, "identity", "clock") != "trusted" || !strings.Contains(note, "said to be right") || !strings.Contains(alarm, "expired") {
		t.Errorf("identity: %v", field(status, "identity"))
	}
	s.calm(t, "ten years ahead and trusted")
	if n := strings.Count(s.agent.output(), "renewal failed"); n > 3 {
		t.Errorf("%d attempts to come back within seconds", n)
	}
	s.checkSilence(t)
	s.stop(t)
	if _, err := os.Stat(filepath.Join(s.state, "time")); err == nil {
		t.Error("a leap of ten years was stored as a floor at once")
	}
	s.run(t) // with the right clock
	s.waitUp(t)
	s.stop(t)
}
