package tuf_test

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ferrule/firmware/tuf"
	"ferrule/internal/disk/disktest"
)

// copyOf finds the stored file of a role.
func (w *world) copyOf(role string) string {
	w.t.Helper()
	for _, name := range w.disk.Names() {
		if strings.Contains(name, "."+role) {
			return name
		}
	}
	w.t.Fatalf("no copy of %s in %q", role, w.disk.Names())
	return ""
}

// ways in which flash fails.
var damages = map[string]func(data []byte) []byte{
	"emptied":   func([]byte) []byte { return nil },
	"truncated": func(data []byte) []byte { return data[:len(data)/2] },
	"zeroed":    func(data []byte) []byte { return make([]byte, len(data)) },
	"a bit flipped": func(data []byte) []byte {
		data = bytes.Clone(data)
		data[bytes.Index(data, []byte(`"version":`))+10] ^= 1
		return data
	},
	"grown": func(data []byte) []byte { return append(bytes.Clone(data), make([]byte, 16<<20)...) },
}

// A damaged copy is fetched again, and what its name says is not given up: the same version is
// good enough, an older one is not.
func TestDamagedCopies(t *testing.T) {
	for _, role := range []string{root, timestamp, snapshot, targets} {
		for how, damage := range damages {
			t.Run(role+" "+how, func(t *testing.T) {
				w := newWorld(t, newSim(t))
				w.accept()
				old := w.repo.clone()
				w.repo.publish(allRoles...)
				w.accept()
				w.expect(2, 2, 2, 2)
				name := w.copyOf(role)
				data, _ := w.disk.Content(name)
				w.disk.SetContent(name, damage(data))
				w.oracle = "" // has its own copies

				w.open()
				if got := w.client.Status().Damaged; len(got) != 1 || !strings.HasSuffix(name, got[0]) {
					t.Errorf("status tells of %q", got)
				}
				good := w.repo
				w.repo = old
				if role != root { // the chain of roots only grows
					old.files["2.root.json"] = good.files["2.root.json"]
				}
				ours, _ := w.refresh()
				if !errors.Is(ours, tuf.ErrRollback) {
					t.Errorf("old metadata is met by %v", ours)
				}
				if role == root && !strings.Contains(ours.Error(), "root version 1: older than what is trusted: version 2 is trusted (its copy here is damaged)") {
					t.Error(ours)
				}
				w.repo = good
				w.accept()
				w.expect(2, 2, 2, 2)
				if got := w.client.Status().Damaged; len(got) > 0 {
					t.Errorf("afterwards status tells of %q", got)
				}
				w.open()
				w.accept()
			})
		}
	}
}

// Every pair of copies, and all of them: nothing bricks, nothing falls below the names.
func TestSeveralDamagedCopies(t *testing.T) {
	roles := []string{root, timestamp, snapshot, targets}
	for mask := range 1 << len(roles) {
		w := newWorld(t, newSim(t))
		w.oracle = ""
		w.accept()
		old := w.repo.clone()
		w.repo.publish(allRoles...)
		w.accept()
		for i, role := range roles {
			if mask&(1<<i) != 0 {
				w.disk.SetContent(w.copyOf(role), []byte("{"))
			}
		}
		w.open()
		good := w.repo
		w.repo = old
		if ours, _ := w.refresh(); !errors.Is(ours, tuf.ErrRollback) {
			t.Errorf("damage %b: old metadata is met by %v", mask, ours)
		}
		old.files["2.root.json"] = good.files["2.root.json"]
		if ours, _ := w.refresh(); !errors.Is(ours, tuf.ErrRollback) {
			t.Errorf("damage %b: old metadata with a new root is met by %v", mask, ours)
		}
		w.repo = good
		w.accept()
		w.expect(2, 2, 2, 2)
	}
}

// A damaged root and no pinned one is not "no root".
func TestDamagedRootWithoutAPin(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.accept()
	w.disk.SetContent(w.copyOf(root), []byte("{"))
	_, err := openAt(w.disk, nil, nil)
	checkRefusal(t, err, tuf.ErrCorrupt, "opening /state/tuf/1.root.json: trusted root is damaged")
	if _, err := openAt(w.disk, w.pin, nil); err != nil {
		t.Error(err)
	}
}

// The root of Dir is the later word; the pinned one may even be of another repository.
func TestStoredRootGoesBeforeThePinnedOne(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.repo.rotate(root)
	w.repo.signers[root] = append(w.repo.signers[root], newSigner(t, 1))
	w.repo.publish(root)
	w.accept()
	w.pin = []byte("of another repository")
	w.open()
	w.accept()
	w.expect(2, 1, 1, 1)
}

// A pinned root that no repository has answered to does not outlive its correction.
func TestWrongPinIsNotStored(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.oracle = ""
	stranger := newSim(t)
	stranger.keys = 500
	stranger.rotate(allRoles...)
	stranger.root.Signed.Version = 0
	stranger.publish(root)
	right := w.pin
	w.pin = stranger.files["1.root.json"]
	w.open()
	w.reject(tuf.ErrSignature, "timestamp version 1: not signed as required")
	w.pin = right
	w.open()
	w.accept()
}

func (w *world) create(name string) {
	w.t.Helper()
	f, err := w.disk.OpenFile("/state/tuf/"+name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func TestForeignFilesAreLeftAlone(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.accept()
	foreign := []string{"README", "01.root.json", "0.root.json", "x.root.json", "9.root-tag.json", "9.mirrors.json", "9.timestamp.json", "99999999999999999999.root.json", "9.root.json.bak", "-9.root.json"}
	for _, name := range foreign {
		w.create(name)
	}
	w.open()
	w.repo.publish(allRoles...)
	w.accept()
	w.expect(2, 2, 2, 2)
	if got := len(w.disk.Names()); got != 4+len(foreign) {
		t.Errorf("files %q", w.disk.Names())
	}
}

// However long it lives, a client leaves four files; also those of a cut write and of keys that
// are gone are swept up.
func TestNothingPilesUp(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.oracle = ""
	for i := range 12 {
		if i%4 == 3 {
			w.repo.rotate(timestamp, snapshot)
		}
		w.repo.publish(allRoles...)
		w.create("7.root.json.tmp")
		w.accept()
		if got := w.disk.Names(); len(got) != 4 {
			t.Fatalf("after %d refreshes: %q", i+1, got)
		}
	}
}

// A disk that fails at any operation makes Refresh fail or changes nothing, and the next one
// succeeds; whatever is read from the disk in between is not lower.
func TestDiskFailures(t *testing.T) {
	cases := 0
	for _, kind := range []disktest.Kind{disktest.Create, disktest.Write, disktest.Sync, disktest.Rename, disktest.SyncDir, disktest.ReadDir, disktest.Open, disktest.Read, disktest.Remove} {
		for nth := range 12 {
			w := newWorld(t, newSim(t))
			w.oracle = ""
			w.accept()
			w.repo.rotate(timestamp)
			w.repo.publish(allRoles...)
			count := 0
			w.disk.Fail(func(op disktest.Op) error {
				if op.Kind != kind {
					return nil
				}
				if count++; count == nth+1 {
					return &disktest.ShortWrite{N: 100, Err: syscall.EIO}
				}
				return nil
			})
			ours, _ := w.refresh()
			w.disk.Fail(nil)
			if count <= nth {
				break // there is no n-th operation
			}
			cases++
			if ours != nil && !errors.Is(ours, syscall.EIO) {
				t.Errorf("%v %d: %v", kind, nth+1, ours)
			}
			if got := w.stored(); got[0] < 1 || got[0] == 1 && got[1] < 1 {
				t.Errorf("%v %d: on disk %v", kind, nth+1, got)
			}
			w.accept()
			// Of the targets there may be no durable copy: it costs a download, and is no belief.
			if got := w.stored(); versions(w.client.Status()) != [4]int64{2, 2, 2, 2} || below(got, [4]int64{2, 2, 2}) {
				t.Errorf("%v %d: in the end %v", kind, nth+1, got)
			}
		}
	}
	t.Logf("%d failures", cases)
}

// What a killed process had renamed, but not made durable, is durable before it is believed.
func TestBeliefIsDurable(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.oracle = ""
	w.accept()
	w.repo.publish(root)
	w.disk.Fail(func(op disktest.Op) error {
		if op.Kind == disktest.SyncDir {
			return syscall.EIO
		}
		return nil
	})
	if ours, _ := w.refresh(); !errors.Is(ours, syscall.EIO) {
		t.Errorf("error %v", ours)
	}
	w.disk.Fail(nil)
	w.open()
	w.expect(2, 1, 1, 1)
}

// The history of a device: every state a power cut leaves, at any operation of it, opens, is not
// below what an earlier refresh had returned, refuses what is older, and accepts what is next;
// and so does every state after a second cut during that.
func TestPowerCuts(t *testing.T) {
	for _, rotated := range [][]string{{timestamp, snapshot}, {timestamp}, {snapshot}} {
		t.Run(strings.Join(rotated, " and ")+" rotated", func(t *testing.T) { powerCuts(t, rotated, len(rotated) > 1) })
	}
}

// powerCuts replays a history in which roles are rotated and versions begin anew; twice says
// whether the power is cut a second time.
func powerCuts(t *testing.T, rotated []string, twice bool) {
	repo := newSim(t)
	var steps []map[string][]byte // what the server had at each step
	var floor [][4]int64          // what the device believes after it
	step := func(do func(), want [4]int64) {
		do()
		steps = append(steps, repo.clone().files)
		floor = append(floor, want)
	}
	step(func() {}, [4]int64{1, 1, 1, 1})
	step(func() { repo.publish(targets, snapshot, timestamp) }, [4]int64{1, 2, 2, 2})
	step(func() { repo.addKey(timestamp); repo.publish(root, timestamp) }, [4]int64{2, 3, 2, 2})
	step(func() {
		repo.rotate(rotated...)
		repo.targets.Signed.Version, repo.snapshot.Signed.Version = 0, 0
		if rotated[0] == timestamp { // its old key could sign the old versions again
			repo.timestamp.Signed.Version = 0
		}
		repo.publish(root, targets, snapshot, timestamp)
	}, [4]int64{3, 0, 1, 1})
	floor[3][1] = repo.timestamp.Signed.Version
	step(func() { repo.publish(targets, snapshot, timestamp) }, [4]int64{3, floor[3][1] + 1, 2, 2})

	open := func(t testing.TB, d *disktest.Disk) *tuf.Client {
		c, err := openAt(d, steps[0]["1.root.json"], func() time.Time { return today })
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	run := func(t testing.TB, d *disktest.Disk, from int) {
		c := open(t, d)
		for i := from; i < len(steps); i++ {
			if _, err := c.Refresh(t.Context(), &server{files: steps[i]}); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			d.Mark(i)
		}
	}
	check := func(t testing.TB, state *disktest.Disk) int {
		done := len(state.Marks())
		c := open(t, state)
		got := versions(c.Status())
		recovering := done == 3 && got[0] == 3 // the root with the other keys is there
		if done > 0 && !recovering && below(got, floor[done-1]) {
			t.Errorf("after %d refreshes: %v, and %v was believed", done, got, floor[done-1])
		}
		if done > 1 && got[0] == floor[done-1][0] {
			if _, err := c.Refresh(t.Context(), &server{files: steps[done-2]}); !errors.Is(err, tuf.ErrRollback) && !errors.Is(err, tuf.ErrSignature) {
				t.Errorf("after %d refreshes, the one before is met by %v", done, err)
			}
		}
		return done
	}
	first, second := 0, 0
	states := disktest.Replay(t, func(d *disktest.Disk) { run(t, d, 0) }, func(t testing.TB, state *disktest.Disk) {
		done := check(t, state)
		if done >= len(steps) {
			return
		}
		run(t, state, done)
		if got := versions(open(t, state).Status()); got != floor[len(floor)-1] {
			t.Errorf("in the end %v", got)
		}
		if first++; twice && first%48 == 0 { // the second cut, of a sample
			for what, again := range state.CrashStates() {
				second++
				if _, err := openAt(again, steps[0]["1.root.json"], nil); err != nil {
					t.Errorf("second cut, %s: %v", what, err)
				}
				check(t, again)
			}
		}
	})
	t.Logf("%d states, %d more after a second cut", states, second)
}

// below says whether any of the versions is lower.
func below(got, want [4]int64) bool {
	return slices.ContainsFunc([]int{0, 1, 2}, func(i int) bool { return got[i] < want[i] })
}
