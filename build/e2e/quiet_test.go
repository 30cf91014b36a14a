package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A healthy session costs the flash nothing: 100 readings a second for a while, counted by
// the kernel (proc(5), write_bytes). The control is the same load with sync = "always".
func TestHealthySessionLeavesTheFlashAlone(t *testing.T) {
	length := time.Duration(number(t, "E2E_QUIET", 15)) * time.Second
	quiet, payload := written(t, "1s", length)
	if quiet > 64<<10 {
		t.Errorf("sync=1s: %d bytes written in %s; at most 64 KiB are allowed", quiet, length)
	}
	always, payloadAlways := written(t, "always", length)
	if always <= payloadAlways {
		t.Errorf("control: sync=always wrote %d bytes for %d bytes of payload: this is no measurement", always, payloadAlways)
	}
	t.Logf("%s of 100 readings/s: sync=1s wrote %d bytes for %d of payload; sync=always %d for %d",
		length, quiet, payload, always, payloadAlways)
}

// written runs the agent for length and returns the bytes it wrote to disk, from start to
// end, and the bytes of payload that arrived.
func written(t *testing.T, sync string, length time.Duration) (disk, payload int64) {
	t.Helper()
	// Two units with five readings each, polled ten times a second.
	s := newSite(t, siteOptions{sync: sync, every: 100 * time.Millisecond, points: 4, state: realDisk(t)})
	s.run(t)
	waitFor(t, "the session", func() bool { return field(s.status(t), "session", "stage") == "up" })
	pause(t, length)
	disk = writeBytes(t, s.agent.Process.Pid)
	s.stop(t)
	entries := 0
	for _, m := range s.messages(t) {
		payload += int64(m.size)
		entries += len(m.entries)
	}
	if want := int(length/time.Second) * 20 * 9 / 10; entries < want {
		t.Errorf("only %d entries arrived in %s; want %d", entries, length, want)
	}
	s.judge(t, nil, promise{})
	return disk, payload
}

// realDisk returns a new directory on a file system that counts writes: tmpfs counts none.
func realDisk(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, parent := range []string{os.TempDir(), cache, "."} {
		var fs unix.Statfs_t
		if unix.Statfs(parent, &fs) != nil || fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
			continue
		}
		if dir, err := os.MkdirTemp(parent, "ferrule-quiet"); err == nil {
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			return dir
		}
	}
	t.Fatal("no directory on a real file system can be written")
	return ""
}

func writeBytes(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "io"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if number, ok := strings.CutPrefix(line, "write_bytes:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
			if err != nil {
				t.Fatal(fmt.Errorf("reading /proc/%d/io: %w", pid, err))
			}
			return n
		}
	}
	t.Fatalf("/proc/%d/io has no write_bytes", pid)
	return 0
}
