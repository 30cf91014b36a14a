package disk_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// Every implementation answers alike: the one on the machine, and the one that loses power.
func TestImplementationsAgree(t *testing.T) {
	for name, fsys := range map[string]disk.FS{"machine": disk.OS(), "memory": disktest.New()} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := fsys.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			conform(t, fsys, dir)
		})
	}
}

func conform(t *testing.T, fsys disk.FS, dir string) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	a, b := filepath.Join(dir, "deep", "a"), filepath.Join(dir, "deep", "b")
	if _, err := fsys.OpenFile(a, os.O_RDONLY, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening what is not there: %v", err)
	}
	must(fsys.MkdirAll(filepath.Dir(a), 0o755))
	must(fsys.MkdirAll(filepath.Dir(a), 0o755))
	f, err := fsys.OpenFile(a, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(err)
	if _, err := fsys.OpenFile(a, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating exclusively what is there: %v", err)
	}
	_, err = f.Write([]byte("hello "))
	must(err)
	_, err = f.Write([]byte("world"))
	must(err)
	_, err = f.WriteAt([]byte("!"), 12)
	must(err)
	must(f.Sync())
	must(fsys.SyncDir(filepath.Dir(a)))
	got := make([]byte, 20)
	if n, err := f.ReadAt(got, 0); err != io.EOF || !bytes.Equal(got[:n], []byte("hello world\x00!")) {
		t.Errorf("read %q, %v", got[:n], err)
	}
	must(fsys.Rename(a, b))
	must(f.Truncate(5))
	if info, err := f.Stat(); err != nil || info.Size() != 5 {
		t.Errorf("size %d, %v", info.Size(), err)
	}
	must(f.Close())
	if data, err := disk.ReadFile(fsys, b, 5); err != nil || string(data) != "hello" {
		t.Errorf("after rename and truncate: %q, %v", data, err)
	}
	if _, err := disk.ReadFile(fsys, b, 4); !errors.Is(err, disk.ErrTooLarge) {
		t.Errorf("more than allowed was read: %v", err)
	}
	list, err := fsys.ReadDir(filepath.Dir(b))
	if err != nil || len(list) != 1 || list[0].Name() != "b" || list[0].IsDir() {
		t.Errorf("listing: %v, %v", list, err)
	}
	must(fsys.Remove(b))
	if err := fsys.Remove(b); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removing twice: %v", err)
	}
	if err := fsys.SyncDir(filepath.Join(dir, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("syncing a folder that is not there: %v", err)
	}
}
