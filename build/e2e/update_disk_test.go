package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ferrule/agent"
	"ferrule/firmware"
)

// The data partition, with the state directory and the releases, is full: nothing begins, or an update
// that had begun ends, each time with that reason. With room again, the next attempt works. The
// partition really is one, in a mount namespace of the agent's.
func TestUpdateOnAFullPartition(t *testing.T) {
	t.Parallel()
	data := filepath.Join(shortDir(t), "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	u := newUpdatingIn(t, data, siteOptions{sync: "1s", every: 200_000_000, points: 1}, "floor = \"file\"")
	holder := start(t, "the mount namespace", need(t, "unshare"), "--map-root-user", "--mount", "sh", "-ec",
		`cp -r "$1" "$1.copy"; mount -t tmpfs -o size=4m none "$1"; cp -r "$1.copy"/. "$1"; echo mounted; exec sleep 10000`, "sh", data)
	holder.waitLine(t, "mounted")
	u.inside = fmt.Sprintf("/proc/%d/root", holder.Process.Pid)
	within := []string{need(t, "nsenter"), "--preserve-credentials", "--user", "--mount", "--target", fmt.Sprint(holder.Process.Pid)}
	u.keeper.wrap = within
	u.base(t)

	// No room for the slot.
	m := u.release(t, u.next(), atTwo)
	before := u.running(t)
	filled := u.fillUp(t, data, 300<<10)
	u.apply(t)
	r := u.report(t, m, firmware.OutcomeFailed)
	if said := u.said(t); !strings.Contains(r.Reason, "no space left") || !strings.Contains(said, "no space left") {
		t.Errorf("report %+v, status %s", r, said)
	}
	waitFor(t, "the end of it", func() bool { return u.stands(t).State == firmware.Idle })

	// No room for anything.
	u.fillUp(t, data, 0)
	if a := u.command(t, agent.UpdateArgs{}); a.OK || !strings.Contains(a.Error, "no space left") {
		t.Errorf("reply: %+v", a)
	}
	readings := len(u.arrivals(t))
	waitFor(t, "readings", func() bool { return len(u.arrivals(t)) > readings+10 })
	if after := u.running(t); after != before {
		t.Errorf("what runs was %s and is %s", before, after)
	}
	if err := os.RemoveAll(filled); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the next attempt", func() bool {
		a := u.command(t, agent.UpdateArgs{})
		return a.OK || a.Code == "busy"
	})
	u.tried(t, m)
	u.whole(t)
}

// fillUp leaves so many bytes free, but for what the agent itself writes meanwhile.
func (u *updating) fillUp(t *testing.T, data string, room int) (name string) {
	t.Helper()
	name = filepath.Join(u.inside+data, "fill")
	if err := os.MkdirAll(name, 0o700); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		err := os.WriteFile(filepath.Join(name, fmt.Sprint(n, room)), make([]byte, 16<<10), 0o600)
		if err != nil {
			if n*16<<10 < room {
				t.Fatalf("there was no room for %d bytes: %v", room, err)
			}
			for free := 0; free < room; free += 16 << 10 {
				n--
				if err := os.Remove(filepath.Join(name, fmt.Sprint(n, room))); err != nil {
					t.Fatal(err)
				}
			}
			return name
		}
	}
}

// The medium fails in the midst of an update: that is the reason, and the slot that runs is as it was.
// strace has the kernel answer so.
func TestUpdateOnABadDisk(t *testing.T) {
	t.Parallel()
	u := newUpdating(t, siteOptions{sync: "1s", every: 200_000_000, points: 1}, "floor = \"file\"")
	u.base(t)
	second := u.release(t, u.next(), atTwo)
	u.apply(t)
	u.tried(t, second)
	for _, test := range []struct{ name, inject, says string }{
		{"in a write", "pwrite64:error=EIO", "input/output error"},
		{"in a sync", "fsync:error=EIO", "input/output error"},
		{"when it is read back", "pread64:error=EIO", "input/output error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := u.release(t, u.next(), atTwo)
			s := u.stands(t)
			target := map[string]string{"a": "b", "b": "a"}[s.Slot]
			u.keeper.end(t)
			call, _, _ := strings.Cut(test.inject, ":")
			// Its child runs as if it were not there (-D), and so is killed as itself.
			u.keeper.wrap = []string{need(t, "strace"), "-D", "-f", "-q", "-o", filepath.Join(u.dir, "strace"), "-P", filepath.Join(u.program, "releases", target, "ferrule"),
				"-e", "trace=" + call, "-e", "inject=" + test.inject}
			u.run(t)
			before, environment := u.running(t), u.environment(t)
			u.apply(t)
			r := u.report(t, m, firmware.OutcomeFailed)
			if said := u.said(t); !strings.Contains(r.Reason, test.says) || !strings.Contains(said, test.says) {
				t.Errorf("report %+v, status %s\n%s", r, said, readFile(t, filepath.Join(u.dir, "strace")))
			}
			t.Log(r.Reason)
			if u.running(t) != before || u.environment(t) != environment {
				t.Errorf("what runs was %s and is %s; environment %+v, was %+v", before, u.running(t), u.environment(t), environment)
			}
			waitFor(t, "the end of it", func() bool { return u.stands(t).State == firmware.Idle })
			u.keeper.end(t)
			u.keeper.wrap = nil
			u.run(t)
			if a := u.command(t, agent.UpdateArgs{}); !a.OK && a.Code != "busy" {
				t.Fatalf("update: %+v", a)
			}
			u.tried(t, m)
		})
	}
	u.whole(t)
}
