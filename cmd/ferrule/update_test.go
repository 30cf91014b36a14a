package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ferrule/agent"
	"ferrule/agent/local"
	"ferrule/firmware"
)

// stages answers the command update, one status after the other; the last one stays. A status of
// no state is an agent that is away.
type stages struct {
	mu     sync.Mutex
	asked  []agent.UpdateArgs
	stages []agent.UpdateStatus
	refuse *local.Error
}

func (s *stages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var args agent.UpdateArgs
	_ = json.NewDecoder(r.Body).Decode(&args)
	s.asked = append(s.asked, args)
	if s.refuse != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(s.refuse)
		return
	}
	now := s.stages[0]
	if len(s.stages) > 1 {
		s.stages = s.stages[1:]
	}
	if now.State == "" {
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(w).Encode(now)
}

// stand is a command line with an agent that answers by s.
func stand(t *testing.T, s *stages) func(args ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fu") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "f.toml")
	text := fmt.Sprintf("[session]\nbrokers = [\"mqtts://b.example\"]\n[local]\nsocket = %q\n[[line]]\nname = \"l\"\nport = \"/dev/null\"\n", socket)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close(); <-served })
	return func(args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), append([]string{"update", "--config", file}, args...), &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
}

func at(state firmware.State, version, target, reason string, segments int) agent.UpdateStatus {
	s := agent.UpdateStatus{Repository: "https://u.example", Boot: "directory"}
	s.State, s.Version, s.Slot, s.Active, s.Reason = state, version, "a", "a", reason
	if target != "" {
		s.Target = &firmware.TargetStatus{Version: target, Segments: segments, SegmentsAll: 10}
	}
	return s
}

func TestUpdateIsWaitedFor(t *testing.T) {
	s := &stages{stages: []agent.UpdateStatus{
		at(firmware.Fetching, "1.0.0", "1.1.0", "", 0), at(firmware.Fetching, "1.0.0", "1.1.0", "", 5),
		at(firmware.Rebooting, "1.0.0", "1.1.0", "", 10), {}, at(firmware.Trial, "1.1.0", "1.1.0", "", 10),
		at(firmware.Reporting, "1.1.0", "1.1.0", "", 10),
	}}
	code, stdout, stderr := stand(t, s)("apply", "--version", "1.1.0", "--now", "--wait")
	if want := "fetching 1.1.0\nrebooting 1.1.0\nthe agent is away\ntrial 1.1.0\nreporting 1.1.0\n"; code != exitDone || stderr != want {
		t.Errorf("code %d, %q, %q", code, stderr, stdout)
	}
	if !strings.Contains(stdout, "version 1.1.0 runs in slot a") {
		t.Errorf("%s", stdout)
	}
	if first := s.asked[0]; first.Action != "apply" || first.Version != "1.1.0" || !first.Now {
		t.Errorf("asked for %+v", first)
	}
	s.stages = []agent.UpdateStatus{at(firmware.Fetching, "1.0.0", "1.1.0", "", 0), at(firmware.Idle, "1.0.0", "1.1.0", "it crashed", 0)}
	code, _, stderr = stand(t, s)("apply", "--wait")
	if code != exitUpdateFailed || !strings.Contains(stderr, "version 1.1.0 was not kept: it crashed") {
		t.Errorf("code %d, %q", code, stderr)
	}
}

func TestUpdateIsRefused(t *testing.T) {
	for refusal, want := range map[string]int{
		"update-refused": exitUpdateRefused, "update-none": exitUpdateRefused, "busy": exitUpdateRefused, "failed": exitUpdateFailed,
	} {
		s := &stages{refuse: &local.Error{Text: "no", Code: refusal, Hint: "do this"}}
		code, _, stderr := stand(t, s)("apply")
		if code != want || stderr != "ferrule: error: no\nferrule: hint: do this\n" {
			t.Errorf("%s: code %d, %q", refusal, code, stderr)
		}
	}
}

func TestUpdateStatusForPeople(t *testing.T) {
	now := at(firmware.Fetching, "1.0.0", "1.1.0", "", 5)
	now.Floor = firmware.FloorStatus{Value: 3, Weak: "it is a file"}
	now.Quarantined = []firmware.Quarantined{{Version: "1.0.9", Reason: "it hung"}}
	now.Metadata.Alarm = "expired"
	_, stdout, _ := stand(t, &stages{stages: []agent.UpdateStatus{now}})("status")
	for _, want := range []string{"fetching 1.1.0 [###############...............]  50 %", "ALARM: expired", "WEAK: it is a file", "1.0.9", "it hung"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	broken := agent.UpdateStatus{Unusable: "no root", Hint: "bring one"}
	broken.State = firmware.Idle
	_, stdout, _ = stand(t, &stages{stages: []agent.UpdateStatus{broken}})("status")
	if stdout != "updates  UNUSABLE: no root\n         bring one\n" {
		t.Errorf("%q", stdout)
	}
	var terminal bytes.Buffer
	w := &updateWatch{out: &terminal, bar: true}
	for _, n := range []int{1, 10} {
		s := at(firmware.Fetching, "1.0.0", "1.1.0", "", n)
		w.say(line(&s))
	}
	w.end()
	if got := terminal.String(); strings.Count(got, "\n") != 1 || strings.Count(got, "\r") != 2 || !strings.Contains(got, "100 %") {
		t.Errorf("%q", got)
	}
}
