package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent"
	"ferrule/agent/agenttest"
	"ferrule/agent/local"
	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/internal/disk"
)

// updating is a gateway whose agent updates its own program: the built binary, started by
// ferrule-launch, with a repository and a server of its own.
type updating struct {
	*site
	cloud   *watchedBroker // of the site; nil where mosquitto is the broker
	heard   func(t *testing.T) []agenttest.Message
	tell    func(t *testing.T, topic, payload string)
	repo    *bundletest.Repository
	clock   *shiftedClock // of the repository
	server  *updateServer
	program string // folder of the releases
	inside  string // what leads to the agent's own view of the files; "": it has none
	keeper  *keeper
	n       int // releases so far
	asked   int
	content []byte            // of the newest image, behind its first lines
	oldest  map[string][]byte // metadata of the empty repository
}

// shiftedClock is the time at which a repository is signed.
type shiftedClock struct {
	mu sync.Mutex
	by time.Duration
}

func (c *shiftedClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.by)
}

func (c *shiftedClock) shift(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by = by
}

// newUpdating is one whose broker keeps a ledger. table is added to [update].
func newUpdating(t *testing.T, o siteOptions, table string) *updating {
	t.Helper()
	return newUpdatingIn(t, "", o, table)
}

// newUpdatingIn has state directory and releases in the folder data; "": in that of the world.
func newUpdatingIn(t *testing.T, data string, o siteOptions, table string) *updating {
	t.Helper()
	if data != "" {
		o.state = filepath.Join(data, "state")
	}
	u := &updating{site: newSite(t, o)}
	if data == "" {
		data = u.dir
	}
	u.program = filepath.Join(data, "program")
	u.cloud = u.watched(t, filepath.Join(u.ca, "broker"), readFile(t, filepath.Join(u.ca, "root.crt")))
	u.heard = func(t *testing.T) []agenttest.Message {
		messages, err := agenttest.ReadLedger(u.ledger())
		if err != nil {
			t.Fatal(err)
		}
		return messages
	}
	u.tell = func(t *testing.T, topic, payload string) {
		if err := u.cloud.Publish(topic, []byte(payload), false); err != nil {
			t.Fatal(err)
		}
	}
	u.prepare(t, table)
	return u
}

// prepare makes repository and server, and says so in the configuration.
func (u *updating) prepare(t *testing.T, table string) {
	t.Helper()
	u.clock = &shiftedClock{}
	var err error
	if u.repo, err = bundletest.New(filepath.Join(u.dir, "factory"), u.clock.now); err != nil {
		t.Fatal(err)
	}
	if u.oldest, err = u.repo.Metadata(); err != nil {
		t.Fatal(err)
	}
	u.server = newUpdateServer(t, u.world, u.repo.Dir)
	u.section(t, fmt.Sprintf("[update]\nrepository = %q\nroot = %q\nproduct = \"gw\"\ncheck_every = \"0s\"\nboot = \"directory\"\nenvironment = %q\n%s\n",
		u.server.URL(), u.file(t, "root.json", string(u.repo.Root)), u.program, table))
	u.keeper = newKeeper(t, u)
	u.content = randomBytes(1, 1<<20+12345)
}

// randomBytes are letters that are worth half of what they weigh.
func randomBytes(seed uint64, n int) []byte {
	source := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(source.Uint32()%16)
	}
	return b
}

// wrapped is a program that is the built one, with bytes behind it that make it an image of its own.
// That the agent is another file than the one in the slot takes a protection of the kernel's from
// the slot: nothing but the agent itself keeps it from being written.
func (u *updating) wrapped(content []byte) []byte {
	return slices.Concat([]byte("#!/bin/sh\nexec '"+u.ferrule[0]+"' \"$@\"\nexit 1\n"), content)
}

// version is the name of the newest release.
func (u *updating) version() string { return fmt.Sprintf("1.%d.0", u.n) }

// next is an image that differs from all before in each of its two segments, but not in much.
func (u *updating) next() []byte {
	u.n++
	for _, at := range []int{u.n % 9 * 100 << 10, len(u.content) - 4<<10} {
		copy(u.content[at:], randomBytes(uint64(u.n)+100, 60<<10))
	}
	return u.wrapped(u.content)
}

// release publishes an image as the next version.
func (u *updating) release(t *testing.T, image []byte, more ...func(*bundletest.Release)) *manifest.Manifest {
	t.Helper()
	r := bundletest.Release{Version: u.version()}
	for _, f := range more {
		f(&r)
	}
	m, err := u.repo.Publish(r, bundletest.Part{Name: "agent", Image: image})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// run starts the agent as systemd does, and waits for its session.
func (u *updating) run(t *testing.T) {
	t.Helper()
	u.keeper.begin()
	u.waitUp(t)
}

func (u *updating) waitUp(t *testing.T) {
	t.Helper()
	waitFor(t, "the session", func() bool { return field(u.quickly(t), "session", "stage") == "up" })
}

// quickly is the status without a process of its own for the question.
func (u *updating) quickly(t *testing.T) (status map[string]any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	text, err := u.local().Status(ctx)
	if err == nil {
		err = json.Unmarshal(text, &status)
	}
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	return status
}

func (u *updating) local() *local.Client { return local.Dial(filepath.Join(u.dir, "f.sock")) }

// stands is how the update stands; the zero status where no agent answers.
func (u *updating) stands(t *testing.T) (s agent.UpdateStatus) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	text, err := u.local().Command(ctx, "update", agent.UpdateArgs{Action: "status"})
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return agent.UpdateStatus{}
	}
	return s
}

// said is what ferrule update status --json prints.
func (u *updating) said(t *testing.T) string {
	t.Helper()
	return mustRun(t, "", with(u.ferrule, "update", "status", "--json", "--config", u.config)...)
}

// replied is the reply to a command.
type replied struct {
	OK                bool
	Code, Error, Hint string
}

// command sends the command update as the cloud does, and waits for the reply.
func (u *updating) command(t *testing.T, args agent.UpdateArgs) (r replied) {
	t.Helper()
	u.asked++
	id := fmt.Sprint("u", u.asked)
	text, err := json.Marshal(map[string]any{"id": id, "expires": soon(), "args": args})
	if err != nil {
		t.Fatal(err)
	}
	u.tell(t, "ferrule/"+siteDevice+"/command/update", string(text))
	waitFor(t, "the reply to "+string(text), func() bool {
		for _, m := range u.heard(t) {
			if m.Topic == "ferrule/"+siteDevice+"/reply/"+id {
				if err := json.Unmarshal(m.Payload, &r); err != nil {
					t.Fatalf("%s: %v", m.Payload, err)
				}
				return true
			}
		}
		return false
	})
	return r
}

// apply asks for the newest release.
func (u *updating) apply(t *testing.T) {
	t.Helper()
	if r := u.command(t, agent.UpdateArgs{}); !r.OK {
		t.Fatalf("update: %+v", r)
	}
}

// reports are what the cloud was told, each once.
func (u *updating) reports(t *testing.T) (all []firmware.Report) {
	t.Helper()
	known := make(map[string]bool)
	for _, m := range u.heard(t) {
		var status struct {
			Update struct{ Report *firmware.Report }
		}
		if m.Topic != "ferrule/"+siteDevice+"/status" || json.Unmarshal(m.Payload, &status) != nil {
			continue
		}
		if r := status.Update.Report; r != nil && !known[r.ID] {
			known[r.ID] = true
			all = append(all, *r)
		}
	}
	return all
}

// report waits for what the cloud is told of a release.
func (u *updating) report(t *testing.T, m *manifest.Manifest, outcome string) (r firmware.Report) {
	t.Helper()
	waitFor(t, fmt.Sprintf("the report that %s is %s", m.Version(), outcome), func() bool {
		all := u.reports(t) // by version: a manifest that a test has edited has another id
		i := slices.IndexFunc(all, func(r firmware.Report) bool { return r.Version == m.Version() && r.Outcome == outcome })
		if i >= 0 {
			r = all[i]
		}
		return i >= 0
	})
	return r
}

// tried waits until a release runs on trial with a session, and ends the trial by hand: the waiting
// for two looks at the health is for other tests.
func (u *updating) tried(t *testing.T, m *manifest.Manifest) {
	t.Helper()
	waitFor(t, "the trial of "+m.Version(), func() bool {
		s := u.stands(t)
		if s.State == firmware.Failed || s.State == firmware.Idle && s.Reason != "" {
			t.Fatalf("the update failed: %+v", s)
		}
		return s.State == firmware.Trial && s.Target.Version == m.Version() || s.Version == m.Version()
	})
	u.waitUp(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var refused *local.Error
	if _, err := u.local().Command(ctx, "update", agent.UpdateArgs{Action: "commit"}); err != nil && (!errors.As(err, &refused) || refused.Code != "update-no-trial") {
		t.Fatalf("commit: %v", err)
	}
	u.committed(t, m)
}

// committed waits for the end of a good update and checks what is there then.
func (u *updating) committed(t *testing.T, m *manifest.Manifest) firmware.Report {
	t.Helper()
	r := u.report(t, m, firmware.OutcomeCommitted)
	var s agent.UpdateStatus
	waitFor(t, "the commit of "+m.Version(), func() bool { s = u.stands(t); return s.State == firmware.Idle && s.Version == m.Version() })
	if s.Slot != s.Active || s.Slot != r.Slot || s.Unreported != 0 || s.Problem != "" {
		t.Errorf("after the commit of %s: %+v", m.Version(), s)
	}
	if got, want := fileSum(t, slot.Program(u.inside+u.program, slot.Slot(s.Active))), hex.EncodeToString(m.Parts()[0].SHA256[:]); got != want {
		t.Errorf("slot %s holds %s and not %s, which is %s", s.Active, got, m.Version(), want)
	}
	return r
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// running is the program of the slot that runs, and what of it must not change: content, file and time.
func (u *updating) running(t *testing.T) string {
	t.Helper()
	s := u.stands(t)
	path := u.ferrule[0]
	if s.Slot != "" {
		path = slot.Program(u.inside+u.program, slot.Slot(s.Slot))
	}
	return u.untouched(t, path)
}

func (u *updating) untouched(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintln(path, info.Size(), info.ModTime().UnixNano(), fileSum(t, path))
}

// environment is what ferrule-launch would do now.
func (u *updating) environment(t *testing.T) slot.State {
	t.Helper()
	s, err := slot.NewDirectory(disk.OS(), "", u.inside+u.program).State()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keptPromise is a second, which is what sync promises, and half of one for a machine with two
// processors and a dozen gateways.
var keptPromise = promise{window: 1500 * time.Millisecond}

// restarts are when lines were stopped and the agent ended, as excuses for readings that were being
// asked for then.
func (u *updating) restarts(t *testing.T) (at []time.Time) {
	t.Helper()
	for _, start := range u.keeper.starts() {
		at = append(at, start.ended.Add(keptPromise.window/2))
	}
	for line := range strings.Lines(u.keeper.output()) {
		text, rest, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		if !strings.Contains(rest, "restart into a slot") && !strings.Contains(rest, "configuration changed") {
			continue
		}
		began, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, began.Add(keptPromise.window))
	}
	return at
}

// whole ends the agent and judges the ledgers.
func (u *updating) whole(t *testing.T, kills ...time.Time) {
	t.Helper()
	waitFor(t, "the backlog to drain", func() bool {
		s := u.quickly(t)
		return field(s, "session", "stage") == "up" && count(s, "outbox", "depth") <= 4
	})
	u.stopped = time.Now()
	u.keeper.end(t)
	all := append(u.restarts(t), kills...)
	slices.SortFunc(all, time.Time.Compare)
	u.judge(t, all, keptPromise)
}

// at is a subtest beside others. Unlike t.Parallel, it does not count: these mostly wait.
func at(t *testing.T, all *sync.WaitGroup, name string, test func(t *testing.T)) {
	all.Go(func() { t.Run(name, test) })
}
