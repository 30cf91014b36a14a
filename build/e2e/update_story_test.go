package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent"
	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/manifest"
)

// A gateway's life with updates: one that is good; then one that dies at once, one that cannot reach a
// unit of its line and, at another gateway, one that hangs. Each of these is given up by itself, told
// of, and not tried again; and nothing is lost over any of them.
func TestUpdateStory(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	at(t, &all, "good, dead, blind", updateStory)
	at(t, &all, "hung", func(t *testing.T) {
		u := newUpdating(t, siteOptions{sync: "1s", every: 100 * time.Millisecond, points: 4}, "floor = \"file\"\ntries = 2")
		u.base(t)
		u.keeper.impatient(4 * time.Second)
		u.givesUp(t, "hangs", []byte("#!/bin/sh\n[ \"$1\" = version ] && echo 9 && exit\nexec sleep 1000\n"), "did not come up")
		u.keeper.impatient(0)
		u.whole(t)
	})
	all.Wait()
}

func updateStory(t *testing.T) {
	u := newUpdating(t, siteOptions{sync: "1s", every: 100 * time.Millisecond, points: 4}, "floor = \"tpm\"\ntries = 2")
	old, image := u.packaged(t)
	first := u.release(t, old, u.story)
	u.run(t)

	u.n++
	m := u.release(t, image, u.story, security(1))
	u.apply(t)
	r := u.committed(t, m)
	s := u.stands(t)
	if r.From != first.Version() || r.Slot != "a" || r.Reason != "" || s.Floor.Value != 1 || s.Floor.Weak != "" {
		t.Errorf("report %+v, status %+v", r, s)
	}
	all, _ := u.server.sent()
	t.Logf("an agent of %d bytes, its object %d, delta %d; %d were sent", m.Parts()[0].Size, m.Parts()[0].Full.Size, m.Parts()[0].Deltas[0].Object.Size, all)
	if all > m.Parts()[0].Full.Size/2 {
		t.Errorf("%d bytes of objects were sent for a delta of %d", all, m.Parts()[0].Deltas[0].Object.Size)
	}

	u.givesUp(t, "dies at once", []byte("#!/bin/sh\n[ \"$1\" = version ] && echo 9 && exit\nexit 1\n"), "did not come up")
	other := u.file(t, "other.toml", strings.Replace(readFile(t, u.config), "address = 2\n", "address = 9\n", 1))
	u.givesUp(t, "a line fails", fmt.Appendf(nil, "#!/bin/sh\n[ \"$1\" = version ] && echo 9 && exit\nexec '%s' run --config '%s'\n", u.ferrule[0], other),
		"unit rs485-1/meter-b does not answer")
	if all := u.reports(t); len(all) != 3 {
		t.Errorf("%d reports: %+v", len(all), all)
	}
	u.whole(t)
}

// givesUp releases an image that has to be rolled back, for the reason given.
func (u *updating) givesUp(t *testing.T, name string, image []byte, reason string) {
	t.Helper()
	before, environment := u.running(t), u.environment(t)
	u.n++
	began := time.Now()
	m := u.release(t, append(image, u.content...), func(r *bundletest.Release) {
		health := manifest.DefaultHealth()
		health.Within = 10 * time.Second
		r.Health, r.SecurityVersion = &health, 2
	})
	u.apply(t)
	r := u.report(t, m, firmware.OutcomeRolledBack)
	t.Logf("%s: rolled back and told of after %v: %s", name, time.Since(began).Round(time.Second), r.Reason)
	waitFor(t, "the end of it", func() bool { return u.stands(t).State == firmware.Idle })
	s := u.stands(t)
	if !strings.Contains(r.Reason, reason) || !strings.Contains(u.said(t), reason) || s.Version == m.Version() {
		t.Errorf("%s: %+v; status %+v", name, r, s)
	}
	if after := u.running(t); after != before || u.environment(t).Active != environment.Active || u.environment(t).Trial != "" {
		t.Errorf("%s: what runs was %s and is %s; %+v", name, before, after, u.environment(t))
	}
	if a := u.command(t, agent.UpdateArgs{Now: true}); a.Code != "update-refused" || !strings.Contains(a.Error, "given up before") {
		t.Errorf("%s: once more: %+v", name, a)
	}
}

// packaged has the agent that the package has brought be a release, too: the first update is a delta.
// The versions that it and the next one say are of one length, so that one build makes both.
func (u *updating) packaged(t *testing.T) (first, second []byte) {
	t.Helper()
	path := filepath.Join(u.dir, "packaged")
	command := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", "nethttpomithttp2",
		"-ldflags", "-s -w -X main.version="+storyVersion(0), "-o", path, "ferrule/cmd/ferrule")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("building the agent: %v\n%s", err, out)
	}
	u.keeper.env = append(u.keeper.env, "FERRULE_PACKAGED="+path)
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	second = bytes.ReplaceAll(first, []byte(storyVersion(0)), []byte(storyVersion(1)))
	if bytes.Equal(first, second) {
		t.Fatal("the agent does not know its version")
	}
	return first, second
}

func storyVersion(n int) string { return fmt.Sprintf("1.%d.0+story", n) }

// story names a release as the agent in it does.
func (u *updating) story(r *bundletest.Release) { r.Version = storyVersion(u.n) }
