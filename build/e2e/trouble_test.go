package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A state directory that is full, or that cannot be written: the agent starts, publishes,
// and says what is wrong. The file system really is so, in a mount namespace of the agent's.
func TestDiskThatTakesNothing(t *testing.T) {
	for name, test := range map[string]struct{ mount, problem string }{
		"full": {`cp -r "$1" "$2" && mount -t tmpfs -o size=128k none "$1" && cp -r "$2"/. "$1" &&
			{ cat /dev/zero > "$1/fill" || true; } 2>/dev/null`, "no space left"},
		"read-only": {`mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"`, "read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, siteOptions{sync: "1s", every: 100 * time.Millisecond, points: 4})
			s.agent = start(t, "ferrule run", append([]string{need(t, "unshare"), "--map-root-user", "--mount", "sh", "-ec",
				test.mount + "\nshift 2; exec \"$@\"", "sh", s.state, filepath.Join(s.dir, "copy")},
				with(s.ferrule, "run", "--config", s.config)...)...)
			waitFor(t, "readings", func() bool { return len(s.arrivals(t)) > 10 })
			s.process.Kill() // now the outbox needs the disk
			waitFor(t, "the problem to be told", func() bool {
				problem, _ := field(s.status(t), "outbox", "problem").(string)
				return strings.Contains(problem, test.problem)
			})
			s.startBroker(t)
			s.waitDrained(t)
			s.stop(t)
			s.judge(t, nil, promise{})
		})
	}
}

// A damaged segment costs the entries it hits and nothing else: the agent starts and the
// rest arrives.
func TestDamagedSegment(t *testing.T) {
	s := newSite(t, siteOptions{sync: "1s", every: 50 * time.Millisecond, points: 4})
	s.run(t)
	waitFor(t, "readings", func() bool { return len(s.arrivals(t)) > 10 })
	s.process.Kill()
	waitFor(t, "a backlog on disk", func() bool {
		bytes, _ := field(s.status(t), "outbox", "disk_bytes").(float64)
		return bytes > 64<<10 // the middle is older than sync
	})
	killed := time.Now()
	s.agent.kill()
	flipBit(t, filepath.Join(s.state, "outbox"))
	s.damaged = 1
	s.startBroker(t)
	s.run(t)
	s.waitDrained(t)
	status := s.status(t)
	if damaged, _ := field(status, "outbox", "damaged").(float64); damaged < 1 {
		t.Errorf("status does not tell of the damage: %v", field(status, "outbox"))
	}
	s.stop(t)
	s.judge(t, []time.Time{killed}, promise{window: time.Second})
}

// flipBit turns one bit in the middle of the largest file of the outbox.
func flipBit(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var largest string
	var text []byte
	for _, file := range files {
		if have, err := os.ReadFile(file); err == nil && len(have) > len(text) {
			largest, text = file, have
		}
	}
	if len(text) < 1024 {
		t.Fatalf("no segment to damage in %v", files)
	}
	text[len(text)/2] ^= 4
	if err := os.WriteFile(largest, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The first agent's key is what the registrar certified, so a broker of another CA refuses
// it; mosquitto says so in TLS 1.3 only at the first read, and status names the cause.
func TestBrokerThatDoesNotKnowUs(t *testing.T) {
	w := newFactory(t)
	other := filepath.Join(w.dir, "other-ca")
	mustRun(t, "", append(w.factory, "ca", "init", "--host", "127.0.0.1", other)...)
	ferrule := build(t, "ferrule", native)
	config := w.configure(t, "gw-1", w.startUnit(t))
	mustRun(t, w.token(t, "gw-1"), with(ferrule, "enroll", "--config", config, "--token", "-")...)
	own := w.ca
	w.ca = other // mosquitto's certificate and its clients' CA
	w.startMosquitto(t)
	w.ca = own
	s := &site{world: w, ferrule: ferrule, config: config}
	start(t, "ferrule run", with(ferrule, "run", "--config", config)...)
	expect := func(cause string) {
		t.Helper()
		waitFor(t, cause, func() bool {
			got, _ := field(s.status(t), "session", "last_failure", "cause").(string)
			return got == cause
		})
	}
	expect("broker-unknown-ca")
	if strings.Contains(w.mosquitto.output(), "New client connected") {
		t.Error("CONNECT was sent to a broker that could not prove who it is")
	}
	// Now the broker proves itself, but knows another CA for its clients.
	w.mosquitto.stop(t)
	w.startMosquittoWith(t, filepath.Join(other, "root.crt"))
	expect("certificate-unknown-ca")
	if hint := fmt.Sprint(field(s.status(t), "session", "last_failure", "hint")); !strings.Contains(hint, "authority") {
		t.Errorf("hint %q", hint)
	}
}
