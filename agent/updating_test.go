package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/config"
	"ferrule/agent/config/trial"
	"ferrule/agent/local"
	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/slot"
	"ferrule/internal/disk"
	"ferrule/tpm"
	"ferrule/tpm/tpmtest"
)

// site is a place whose agent updates itself: boot directory, which needs no restart of a machine.
type site struct {
	*place
	repository *bundletest.Repository
	server     *agenttest.Updates
	version    string // of the program that runs
	asked      int    // commands
}

// update is the [update] table of a site; more is added to it.
const update = `[update]
repository = "URL"
root = "ROOT"
product = "gw"
check_every = "0s"
boot = "directory"
environment = "PROGRAM"
`

// image is a program of some segments that nobody compresses away. It stands for the agent: it has
// a version, and says which slot the launcher has started.
func image(seed uint64) []byte {
	source := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // not a secret
	b := []byte("#!/bin/sh\n[ \"$1\" = version ] && echo 1 || printf %s \"$FERRULE_SLOT\"\nexit 0\n")
	for len(b) < 2<<20+12345 {
		b = append(b, byte(source.Uint32()))
	}
	return b
}

func release(version string, security uint64) bundletest.Release {
	return bundletest.Release{Version: version, SecurityVersion: security}
}

func newSite(t *testing.T, more string, oldnew ...string) *site {
	t.Helper()
	s := &site{place: newPlace(t), version: "1.0.0"}
	var err error
	if s.repository, err = bundletest.New(s.path("factory"), nil); err != nil {
		t.Fatal(err)
	}
	certificate, err := s.ca.Server()
	if err != nil {
		t.Fatal(err)
	}
	if s.server, err = agenttest.StartUpdates(s.repository.Dir, certificate.ServerTLS(s.ca)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.server.Close() })
	s.write("root.json", s.repository.Root)
	s.write("packaged", image(0))
	if err := os.Chmod(s.path("packaged"), 0o700); err != nil {
		t.Fatal(err)
	}
	table := strings.NewReplacer("URL", s.server.URL(), "ROOT", s.path("root.json"), "PROGRAM", s.path("program")).Replace(update)
	s.write("etc/ferrule.toml", []byte(s.text(append([]string{
		"[[line]]\nname", table + more + "[[line]]\nname", "[session]", "[session]\nreconnect_spread = \"100ms\"",
	}, oldnew...)...)))
	t.Setenv(slot.Variable, "packaged")
	return s
}

func (s *site) publish(r bundletest.Release, image []byte) {
	s.t.Helper()
	if _, err := s.repository.Publish(r, bundletest.Part{Name: program, Image: image}); err != nil {
		s.t.Fatal(err)
	}
}

// start runs the program that the launcher would start.
func (s *site) start() {
	s.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.ended = stop, make(chan error, 1)
	file := s.path("etc/ferrule.toml")
	go func() {
		s.ended <- Run(ctx, Options{
			Load: func() (*config.Config, error) { return config.Load(file) }, File: file,
			Reload: s.reload, Version: s.version, Log: slog.New(slog.NewTextHandler(s.t.Output(), nil)), shortestTrial: time.Second,
		})
	}()
	s.t.Cleanup(s.end)
}

// launch has ferrule-launch choose the slot, after the agent has ended to be restarted. It returns
// which one it started, and what the environment was before.
func (s *site) launch() (started string, before slot.State) {
	s.t.Helper()
	if err := <-s.ended; !errors.Is(err, ErrRestart) {
		s.t.Fatalf("the agent ended: %v", err)
	}
	s.stop()
	s.stop = nil
	boot := slot.NewDirectory(disk.OS(), "", s.path("program"))
	before, err := boot.State()
	if err != nil {
		s.t.Fatal(err)
	}
	launcher := exec.Command("sh", "../build/systemd/ferrule-launch", "run")
	launcher.Env = append(os.Environ(), "FERRULE_DIRECTORY="+s.path("program"), "FERRULE_PACKAGED="+s.path("packaged"))
	launcher.Stderr = s.t.Output()
	out, err := launcher.Output()
	if err != nil {
		s.t.Fatalf("ferrule-launch: %v", err)
	}
	s.t.Setenv(slot.Variable, string(out))
	return string(out), before
}

// ask sends a command through the socket's way.
func (s *site) ask(args UpdateArgs) (answer, UpdateStatus) {
	s.t.Helper()
	s.asked++
	id := fmt.Sprint("u-", s.asked)
	s.send(id, "update", args)
	var a struct {
		answer
		Result UpdateStatus
	}
	topic := "ferrule/gw-1/reply/" + id
	s.until("the reply to "+id, func() bool { return len(s.on(topic)) > 0 })
	if err := json.Unmarshal(s.on(topic)[0], &a); err != nil {
		s.t.Fatalf("%s: %v", s.on(topic)[0], err)
	}
	return a.answer, a.Result
}

// report waits until the status message tells of an outcome.
func (s *site) report(version, outcome string) (r firmware.Report) {
	s.t.Helper()
	s.until(outcome+" of "+version, func() bool {
		for _, payload := range s.on("ferrule/gw-1/status") {
			var m struct {
				Update struct{ Report firmware.Report }
			}
			if err := json.Unmarshal(payload, &m); err != nil {
				s.t.Fatal(err)
			}
			if r = m.Update.Report; r.Version == version && r.Outcome == outcome {
				return true
			}
		}
		return false
	})
	return r
}

func (s *site) idle() UpdateStatus {
	s.t.Helper()
	var last UpdateStatus
	s.until("the update to be over", func() bool {
		_, last = s.ask(UpdateArgs{Action: "status"})
		return last.State == firmware.Idle
	})
	return last
}

func (s *site) audited(event string) string {
	s.t.Helper()
	files, err := filepath.Glob(s.path("state/audit/*"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			s.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, `"`+event+`"`) {
				return line
			}
		}
	}
	return ""
}

// TestUpdateIsCommitted: told to, fetched over mTLS, started as the other slot, healthy, committed;
// the TPM's floor rises with it, the cloud and the audit log know.
func TestUpdateIsCommitted(t *testing.T) {
	chip := tpmtest.Start(t)
	s := newSite(t, "floor = \"tpm\"\n", `tpm = "none"`, `tpm = "`+chip.Address()+`"`)
	newer := image(2)
	s.publish(release("1.1.0", 2), newer)
	s.start()
	s.up()
	if _, st := s.ask(UpdateArgs{Action: "status"}); st.Version != "1.0.0" || st.State != firmware.Idle || st.Floor.Value != 0 || st.Floor.Weak != "" {
		t.Fatalf("before: %+v", st)
	}
	if a, _ := s.ask(UpdateArgs{Version: "1.1.0"}); !a.OK {
		t.Fatalf("apply: %+v", a)
	}
	if started, before := s.launch(); started != "a" || before.Trial != slot.A || before.Tries != 3 {
		t.Fatalf("the launcher found %+v, and started %s", before, started)
	}
	if got, err := os.ReadFile(slot.Program(s.path("program"), slot.A)); err != nil || !bytes.Equal(got, newer) {
		t.Fatalf("slot a holds %d bytes, %v", len(got), err)
	}
	for _, r := range s.server.Requests() {
		if r.Device != "gw-1" {
			t.Errorf("%s was asked for by %q", r.Path, r.Device)
		}
	}

	s.version = "1.1.0"
	s.start()
	r := s.report("1.1.0", firmware.OutcomeCommitted)
	if r.From != "1.0.0" || r.Slot != "a" || r.ID == "" {
		t.Errorf("report %+v", r)
	}
	st := s.idle()
	if st.Version != "1.1.0" || st.Slot != "a" || st.Active != "a" || st.Floor.Value != 2 || st.Floor.Weak != "" || st.Unreported != 0 {
		t.Errorf("after: %+v", st)
	}
	if s.audited("update.committed") == "" {
		t.Error("nothing of it is in the audit log")
	}

	// What is older than the floor is refused, also with a state directory that knows nothing.
	old := release("1.2.0", 1)
	old.LowerSecurity = true
	s.publish(old, image(3))
	if a, _ := s.ask(UpdateArgs{Version: "1.2.0"}); a.Code != "update-refused" || !strings.Contains(a.Error, "security") {
		t.Errorf("an old one: %+v", a)
	}
	s.end()
	if err := os.RemoveAll(s.path("state/update")); err != nil {
		t.Fatal(err)
	}
	if err := chip.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.up()
	if a, _ := s.ask(UpdateArgs{Version: "1.2.0"}); a.Code != "update-refused" {
		t.Errorf("an old one, state directory wiped, TPM reset: %+v", a)
	}
}

// TestUpdateIsRolledBack: one that does not prove healthy is given up, told of, and not tried again.
func TestUpdateIsRolledBack(t *testing.T) {
	s := newSite(t, "floor = \"file\"\n")
	s.publish(release("1.1.0", 0), image(2))
	s.start()
	s.up()
	if a, _ := s.ask(UpdateArgs{}); !a.OK {
		t.Fatalf("apply: %+v", a)
	}
	s.launch()
	s.version = "1.1.0"
	s.write("etc/ferrule.toml", []byte(strings.Replace(s.file(), "[update]", "[update]\nhealth_command = [\"/bin/false\"]", 1)))
	s.start()
	s.up()
	s.until("the trial", func() bool {
		_, st := s.ask(UpdateArgs{Action: "status"})
		return st.State == firmware.Trial
	})
	if a := s.command("c-1", "config", ConfigArgs{TOML: s.file(), DryRun: true}); a.Code != "busy" {
		t.Errorf("a configuration while an update is on trial: %+v", a)
	}
	s.broker.Cut() // reporting waits for it
	if a, err := localCommand(s, UpdateArgs{Action: "rollback", Reason: "no good"}); err != nil {
		t.Fatalf("rollback: %v, %+v", err, a)
	}
	if started, before := s.launch(); started != "packaged" || before.Trial != "" || before.Active != "" {
		t.Errorf("after the rollback: %+v, and %s was started", before, started)
	}
	s.version = "1.0.0"
	s.start()
	if s.audited("update.rolled-back") == "" {
		s.until("the audit log", func() bool { return s.audited("update.rolled-back") != "" })
	}
	if err := s.broker.Mend(); err != nil {
		t.Fatal(err)
	}
	r := s.report("1.1.0", firmware.OutcomeRolledBack)
	if !strings.Contains(r.Reason, "no good") || r.From != "1.0.0" {
		t.Errorf("report %+v", r)
	}
	st := s.idle()
	if st.Version != "1.0.0" || len(st.Quarantined) != 1 || st.Floor.Weak == "" {
		t.Errorf("after: %+v", st)
	}
	if a, _ := s.ask(UpdateArgs{}); a.OK || !strings.HasPrefix(a.Code, "update-") {
		t.Errorf("again: %+v", a)
	}
}

// localCommand asks through the socket, whatever the network does.
func localCommand(s *site, args UpdateArgs) (UpdateStatus, error) {
	var st UpdateStatus
	text, err := s.local(args)
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	return st, err
}

// TestUpdatesThatCannotBe: what is wrong with the configuration of updates keeps nobody from sending
// readings, and is said.
func TestUpdatesThatCannotBe(t *testing.T) {
	s := newSite(t, "")
	if err := os.Remove(s.path("root.json")); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.up()
	st, err := localCommand(s, UpdateArgs{Action: "status"})
	if err != nil || !strings.Contains(st.Unusable, "root.json") || st.Hint == "" {
		t.Errorf("%v: %+v", err, st)
	}
	if _, err := localCommand(s, UpdateArgs{Action: "apply"}); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("apply: %v", err)
	}
}

// TestRootIsPinned: once it was seen, it is the copy that counts.
func TestRootIsPinned(t *testing.T) {
	s := newSite(t, "")
	s.start()
	s.up()
	s.end()
	s.write("root.json", []byte(`{"another": "root"}`))
	s.publish(release("1.1.0", 0), image(2))
	s.start()
	s.up()
	if a, _ := s.ask(UpdateArgs{}); !a.OK {
		t.Errorf("apply: %+v", a)
	}
	s.launch()
}

// TestUpdateCommand: the commands of updates are like all that act.
func TestUpdateCommand(t *testing.T) {
	s := newSite(t, "")
	s.publish(release("1.0.0", 0), image(1))
	s.start()
	s.up()
	for _, c := range []struct {
		args UpdateArgs
		code string
	}{
		{UpdateArgs{Action: "explode"}, "bad-args"},
		{UpdateArgs{Version: strings.Repeat("1", 1000)}, "bad-args"},
		{UpdateArgs{Action: "commit"}, "update-no-trial"},
		{UpdateArgs{Action: "rollback"}, "update-no-trial"},
		{UpdateArgs{Version: "9.9.9"}, "update-none"},
	} {
		if a, _ := s.ask(c.args); a.Code != c.code {
			t.Errorf("%+v: %+v, not %s", c.args, a, c.code)
		}
	}
	text := strings.Replace(s.file(), `product = "gw"`, `product = "other"`, 1)
	if a := s.command("c-2", "config", ConfigArgs{TOML: text}); a.Code != "not-from-afar" || !strings.Contains(a.Error, "update cannot") {
		t.Errorf("another product from afar: %+v", a)
	}
	s.try("c-3", strings.Replace(s.file(), `every = "50ms"`, `every = "60ms"`, 1), byCommand)
	s.news("c-3", trial.Trying)
	if a, _ := s.ask(UpdateArgs{}); a.Code != "busy" {
		t.Errorf("while a configuration is on trial: %+v", a)
	}
}

// TestFloorIsNoticedToBeGone: a TPM that was cleared is told of, and its counter is made again.
func TestFloorIsNoticedToBeGone(t *testing.T) {
	d, err := tpm.Open(t.Context(), tpm.Options{Path: tpmtest.Start(t).Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	lost := []uint64{}
	dir := t.TempDir()
	open := func(first uint32) *tpmFloor {
		return &tpmFloor{
			counter: d.Counter(first), fs: disk.OS(), path: filepath.Join(dir, "update", "tpm-floor"),
			log: slog.New(slog.DiscardHandler), now: time.Now,
			lost: func(_ context.Context, value uint64) { lost = append(lost, value) },
		}
	}
	read := func(f *tpmFloor, want uint64, weak bool) {
		t.Helper()
		if got, why, err := f.Read(t.Context()); err != nil || got != want || (why != "") != weak {
			t.Errorf("%d, %q, %v", got, why, err)
		}
	}
	read(open(0), 0, false)
	if err := open(0).Raise(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	read(open(0), 7, false)
	// Other handles are a TPM without the counter.
	read(open(0x01800200), 7, true)
	read(open(0x01800200), 7, true) // from now on
	if len(lost) != 1 || lost[0] != 7 {
		t.Errorf("told of %v", lost)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	read(open(0), 7, false) // the TPM remembers
}

func (s *site) local(args UpdateArgs) (json.RawMessage, error) {
	return local.Dial(s.path("f.sock")).Command(s.t.Context(), "update", args)
}
