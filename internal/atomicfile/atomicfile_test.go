package atomicfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

func content(i int) []byte {
	return bytes.Repeat([]byte{byte('a' + i)}, 100+i*900)
}

// Every state holds one of the contents whole: the one whose Write returned last, or the one
// being written.
func TestPowerCutLeavesOldOrNew(t *testing.T) {
	second := 0
	check := func(t testing.TB, state *disktest.Disk) {
		done := len(state.Marks())
		data, ok := state.Content("/state/key")
		old := done > 0 && bytes.Equal(data, content(done-1))
		if !old && !bytes.Equal(data, content(done)) && (ok || done > 0) {
			t.Errorf("after %d writes: %d bytes %.20q", done, len(data), data)
		}
	}
	n := disktest.Replay(t, func(d *disktest.Disk) {
		if err := errors.Join(d.MkdirAll("/state", 0o700), d.SyncDir("/")); err != nil {
			t.Fatal(err)
		}
		for i := range 8 {
			if err := atomicfile.Write(d, "/state/key", content(i), 0o600); err != nil {
				t.Fatal(err)
			}
			d.Mark(i)
		}
	}, func(t testing.TB, state *disktest.Disk) {
		if _, err := state.ReadDir("/state"); err != nil {
			return // cut before the folder was durable
		}
		check(t, state)
		// The program starts again on what was left, and loses power while it writes.
		done := len(state.Marks())
		if done%3 != 0 {
			return
		}
		if data, _ := state.Content("/state/key"); done < 8 && bytes.Equal(data, content(done)) {
			return // the next content is here already
		}
		if err := atomicfile.Write(state, "/state/key", content(done), 0o600); err != nil {
			t.Fatal(err)
		}
		state.Mark(done)
		for _, again := range state.CrashStates() {
			second++
			check(t, again)
		}
	})
	t.Logf("%d states, %d more after a second cut", n, second)
}

func TestAnErrorLeavesTheOldContentAndNoTemporaryFile(t *testing.T) {
	for _, kind := range []disktest.Kind{disktest.Create, disktest.Write, disktest.Sync, disktest.Rename, disktest.SyncDir} {
		d := disktest.New()
		if err := atomicfile.Write(d, "/key", content(0), 0o600); err != nil {
			t.Fatal(err)
		}
		d.Fail(func(op disktest.Op) error {
			if op.Kind == kind {
				return &disktest.ShortWrite{N: 10, Err: syscall.ENOSPC}
			}
			return nil
		})
		err := atomicfile.Write(d, "/key", content(1), 0o600)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%v: error %v", kind, err)
		}
		want := content(0)
		if kind == disktest.SyncDir { // the new content has its name, only not durably
			want = content(1)
		}
		if data, _ := d.Content("/key"); !bytes.Equal(data, want) {
			t.Errorf("%v: content is %d bytes", kind, len(data))
		}
		if names := d.Names(); len(names) != 1 {
			t.Errorf("%v: left %v", kind, names)
		}
	}
}

func TestOnTheMachine(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	// A temporary file left readable for all must not lend its permissions to the secret.
	if err := os.WriteFile(name+atomicfile.Suffix, []byte("left over"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := atomicfile.Write(disk.OS(), name, content(i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() != int64(len(content(2))) {
		t.Errorf("%v, %v", info, err)
	}
	err = atomicfile.Write(disk.OS(), filepath.Join(filepath.Dir(name), "none", "key"), nil, 0o600)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none") {
		t.Errorf("a folder that is not there: %v", err)
	}
}
