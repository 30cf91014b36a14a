package disk_test

import (
	"testing"

	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// A folder that MakeFolder made is there after every power cut, with those above it.
func TestMakeFolderIsDurable(t *testing.T) {
	type made struct{}
	states := disktest.Replay(t, func(d *disktest.Disk) {
		if err := disk.MakeFolder(d, "/a/b/c"); err != nil {
			t.Fatal(err)
		}
		d.Mark(made{})
	}, func(t testing.TB, state *disktest.Disk) {
		if len(state.Marks()) == 0 {
			return
		}
		if _, err := state.ReadDir("/a/b/c"); err != nil {
			t.Error(err)
		}
	})
	if states < 2 {
		t.Errorf("only %d disk states were tried", states)
	}
}
