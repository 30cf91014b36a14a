package disktest_test

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"ferrule/internal/disk/disktest"
)

func write(t testing.TB, d *disktest.Disk, name string, data []byte, sync bool) {
	t.Helper()
	f, err := d.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if sync {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
}

// outcomes returns the distinct contents of name over all states ("-": no such file).
func outcomes(d *disktest.Disk, name string) map[string]int {
	seen := map[string]int{}
	for _, state := range d.CrashStates() {
		data, ok := state.Content(name)
		if !ok {
			data = []byte("-")
		}
		seen[string(data)]++
	}
	return seen
}

// The mistakes that a replay is there to find must show in it.
func TestTheClassicMistakesShow(t *testing.T) {
	replace := func(sync bool, tail func(d *disktest.Disk)) *disktest.Disk {
		d := disktest.New()
		write(t, d, "f", []byte("old"), true)
		if err := d.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		d = d.Kill()
		write(t, d, "f.tmp", []byte("new"), sync)
		tail(d)
		return d
	}
	rename := func(d *disktest.Disk) { _ = d.Rename("f.tmp", "f") }

	if got := outcomes(replace(true, rename), "f"); len(got) != 2 || got["old"] == 0 || got["new"] == 0 {
		t.Errorf("a synced file renamed: %v", got)
	}
	if got := outcomes(replace(false, rename), "f"); got[""] == 0 || got["\x00\x00\x00"] == 0 {
		t.Errorf("renaming an unsynced file never left it empty or zero: %v", got)
	}
	inPlace := disktest.New()
	write(t, inPlace, "f", []byte("old"), true)
	_ = inPlace.SyncDir("/")
	inPlace = inPlace.Kill()
	write(t, inPlace, "f", []byte("new"), true)
	if got := outcomes(inPlace, "f"); got[""] == 0 {
		t.Errorf("truncating and writing again never left it empty: %v", got)
	}
	unnamed := disktest.New()
	write(t, unnamed, "f", []byte("new"), true)
	unnamed.Mark("synced")
	lost := 0
	for _, state := range unnamed.CrashStates() {
		if _, ok := state.Content("f"); !ok && len(state.Marks()) == 1 {
			lost++
		}
	}
	if lost == 0 {
		t.Error("a file whose folder was not synced was never lost")
	}
}

func TestWhatWasSyncedIsInEveryLaterState(t *testing.T) {
	n := disktest.Replay(t, func(d *disktest.Disk) {
		f, err := d.OpenFile("log", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		_ = d.SyncDir("/")
		for i := range 20 {
			if _, err := f.Write(bytes.Repeat([]byte{byte('a' + i)}, 700)); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			d.Mark(i)
		}
	}, func(t testing.TB, state *disktest.Disk) {
		data, _ := state.Content("log")
		for _, m := range state.Marks() {
			i := m.(int)
			if want := bytes.Repeat([]byte{byte('a' + i)}, 700); len(data) < (i+1)*700 || !bytes.Equal(data[i*700:(i+1)*700], want) {
				t.Fatalf("block %d was synced and is gone", i)
			}
		}
	})
	t.Logf("%d states", n)
	if n < 100 {
		t.Errorf("only %d states", n)
	}
}

// After a failed Sync the kernel forgets what it could not write, and the next Sync succeeds.
func TestASyncThatFailedIsNeverMadeUpFor(t *testing.T) {
	d := disktest.New()
	f, err := d.OpenFile("log", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_ = d.SyncDir("/")
	d.Fail(func(op disktest.Op) error {
		if op.Kind == disktest.Sync {
			return syscall.EIO
		}
		return nil
	})
	_, _ = f.Write([]byte("one"))
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync: %v", err)
	}
	d.Fail(nil)
	_, _ = f.Write([]byte("two"))
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	d.Mark("synced")
	var got []string
	for _, state := range d.CrashStates() {
		if data, _ := state.Content("log"); len(state.Marks()) == 1 {
			got = append(got, string(data))
		}
	}
	slices.Sort(got)
	for _, want := range []string{"\x00\x00\x00two", "onetwo"} {
		if !slices.Contains(got, want) {
			t.Errorf("after the second sync no state holds %q: %q", want, got)
		}
	}
}

func TestStatesAreTheSameInEveryRun(t *testing.T) {
	history := func() (names []string) {
		d := disktest.New()
		write(t, d, "a", bytes.Repeat([]byte("x"), 3000), false)
		write(t, d, "b", bytes.Repeat([]byte("y"), 3000), true)
		_ = d.Rename("b", "a")
		for name, state := range d.CrashStates() {
			names = append(names, name+state.String())
		}
		return names
	}
	if a, b := history(), history(); !slices.Equal(a, b) {
		t.Errorf("%d states and then %d others", len(a), len(b))
	}
}

func TestAShortWriteLeavesItsHead(t *testing.T) {
	d := disktest.New()
	f, _ := d.OpenFile("log", os.O_RDWR|os.O_CREATE, 0o600)
	d.Fail(func(op disktest.Op) error {
		if op.Kind == disktest.Write {
			return &disktest.ShortWrite{N: 4, Err: syscall.ENOSPC}
		}
		return nil
	})
	if n, err := f.Write([]byte("too much")); n != 4 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%d, %v", n, err)
	}
	if data, _ := d.Content("log"); string(data) != "too " {
		t.Errorf("left %q", data)
	}
}
