package outbox_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/disk/disktest"
)

func refuse(err error, kinds ...disktest.Kind) func(disktest.Op) error {
	return func(op disktest.Op) error {
		if slices.Contains(kinds, op.Kind) {
			return err
		}
		return nil
	}
}

func readOnly(op disktest.Op) error {
	if op.Kind.Changes() {
		return syscall.EROFS
	}
	return nil
}

func full(op disktest.Op) error {
	if op.Kind == disktest.Write {
		return &disktest.ShortWrite{N: op.Size / 2, Err: syscall.ENOSPC}
	}
	return nil
}

// segments lists the files of the log, damaged ones not included.
func segments(d *disktest.Disk) (names []string) {
	for _, name := range d.Names() {
		if strings.HasSuffix(name, ".log") {
			names = append(names, name)
		}
	}
	return names
}

// While the disk refuses, entries pass through memory; when it takes them again, they are written.
func TestADiskThatRefusesIsToldAndOutlived(t *testing.T) {
	for name, fail := range map[string]func(disktest.Op) error{
		"read only":    readOnly,
		"full":         full,
		"no folder":    refuse(syscall.EACCES, disktest.Mkdir, disktest.Create),
		"broken sync":  refuse(syscall.EIO, disktest.Sync),
		"broken names": refuse(syscall.EIO, disktest.SyncDir),
		"dead":         func(disktest.Op) error { return syscall.EIO },
	} {
		for _, from := range []string{"start", "later"} {
			t.Run(name+" from "+from, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d := newDisk(t)
					if from == "start" {
						d.Fail(fail)
					}
					o := open(t, d, small())
					stop := start(t, o)
					if from == "later" {
						add(t, o, 10)
						time.Sleep(2 * time.Second)
						d.Fail(fail)
					}
					add(t, o, 20)
					time.Sleep(5 * time.Second)
					if s := o.Status(); s.Problem == "" || s.Dropped > 0 || s.Depth < 20 {
						t.Errorf("while it refuses: %+v", s)
					}
					if from == "start" && o.Boot() < 1<<40 {
						t.Errorf("boot %d cannot have been stored", o.Boot())
					}
					run, err := o.Next(t.Context(), 5, 1<<20)
					if err != nil || len(run) == 0 {
						t.Fatalf("%d entries, %v", len(run), err)
					}
					o.Ack(run[len(run)-1].ID)
					d.Fail(nil)
					time.Sleep(time.Minute)
					s := o.Status()
					if s.Problem != "" || s.UnsavedBytes > 0 {
						t.Errorf("after it recovered: %+v", s)
					}
					again := open(t, d.PowerCut(), small())
					if got := again.Status().Depth; got < s.Depth {
						t.Errorf("a power cut leaves %d of %d entries", got, s.Depth)
					}
					stop()
					closeBox(t, o)
				})
			})
		}
	}
}

func TestADiskThatRefusesForGoodKeepsMemoryBounded(t *testing.T) {
	for _, policy := range []string{outbox.DropOldest, outbox.DropNewest} {
		t.Run(policy, func(t *testing.T) {
			d := newDisk(t)
			c := small()
			c.WhenFull = policy
			o := open(t, d, c)
			add(t, o, 20)
			if err := o.Sync(); err != nil {
				t.Fatal(err)
			}
			d.Fail(readOnly)
			if err := o.Sync(); err != nil {
				t.Errorf("nothing had to be synced: %v", err)
			}
			run, err := o.Next(t.Context(), 25, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			add(t, o, 2000)
			s := o.Status()
			if s.UnsavedBytes > 64<<10 || s.Dropped == 0 || s.Depth+int(s.Dropped) != 2020 || s.InFlight != len(run) {
				t.Errorf("status %+v", s)
			}
			if err := o.Sync(); !errors.Is(err, syscall.EROFS) {
				t.Errorf("sync: %v", err)
			}
			s = o.Status() // what was dropped unread is named by now
			// In flight and not dropped; what was dropped is named.
			o.Rewind()
			got := drain(t, o, 50)
			lost := 0
			for _, r := range s.DroppedRanges {
				lost += int(r.To - r.From + 1)
				for _, k := range got {
					if r.From <= k.seq && k.seq <= r.To {
						t.Fatalf("%v is called dropped and handed out", k)
					}
				}
			}
			if lost != int(s.Dropped) || len(got)+lost != 2020 {
				t.Errorf("%d handed out, %d dropped, %d named: %v", len(got), s.Dropped, lost, s.DroppedRanges)
			}
			for i, e := range run {
				if got[i] != parse(t, e) {
					t.Fatalf("entry %v in flight is not the first again: %v", parse(t, e), got[i])
				}
			}
			if err := o.Close(); err != nil {
				t.Errorf("closing with nothing left: %v", err)
			}
		})
	}
}

// The disk is full before the outbox is, because of others: what is new replaces what is old on it.
func TestAFullDiskMakesRoomForWhatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		capacity := 24 << 10
		d.Fail(func(op disktest.Op) error {
			used := 0
			for _, name := range d.Names() {
				data, _ := d.Content(name)
				used += len(data)
			}
			if op.Kind == disktest.Write && used+op.Size > capacity {
				return &disktest.ShortWrite{N: max(0, capacity-used), Err: syscall.ENOSPC}
			}
			return nil
		})
		o := open(t, d, small())
		stop := start(t, o)
		for range 1000 {
			add(t, o, 1)
			time.Sleep(time.Second)
		}
		again := open(t, d.PowerCut(), small())
		got := drain(t, again, 100)
		if len(got) < 40 || got[len(got)-1].seq < 700 {
			t.Errorf("on disk are %d entries, the last %v", len(got), got[len(got)-1])
		}
		closeBox(t, again)
		d.Fail(nil)
		stop()
		s := o.Status()
		if left := drain(t, o, 100); len(left)+int(s.Dropped) != 1000 || s.Dropped == 0 {
			t.Errorf("%d left, %d dropped", len(left), s.Dropped)
		}
		closeBox(t, o)
	})
}

// A sync that failed is never asked of the same file again.
func TestAFailedSyncCondemnsTheSegment(t *testing.T) {
	d := newDisk(t)
	o := open(t, d, small())
	add(t, o, 5)
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	run, err := o.Next(t.Context(), 2, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	o.Ack(run[0].ID)
	first := segments(d)
	syncs := map[string]int{}
	d.Fail(func(op disktest.Op) error {
		if op.Kind == disktest.Sync {
			if syncs[op.Name]++; op.Name == first[0] {
				return syscall.EIO
			}
		}
		return nil
	})
	add(t, o, 5)
	if err := o.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("sync: %v", err)
	}
	if p := o.Status().Problem; !strings.Contains(p, "syncing a segment") {
		t.Errorf("problem %q", p)
	}
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	if now := segments(d); len(now) != 1 || now[0] == first[0] || syncs[first[0]] != 1 {
		t.Errorf("segments %v, were %v; syncs %v", now, first, syncs)
	}
	again := open(t, d.PowerCut(), small())
	wantRange(t, drain(t, again, 100), o.Boot(), 2, 10)
	o.Rewind()
	wantRange(t, drain(t, o, 100), o.Boot(), 2, 10)
	closeBox(t, o)
	if left := segments(d); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// backlog is a disk with one segment of n entries, its path and its content.
func backlog(t *testing.T, n int, clean bool) (d *disktest.Disk, boot uint64, path string, data []byte) {
	d = newDisk(t)
	o := open(t, d, small())
	add(t, o, n)
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	if clean {
		closeBox(t, o)
	}
	names := segments(d)
	if len(names) != 1 {
		t.Fatalf("segments %v", names)
	}
	data, _ = d.Content(names[0])
	return d.Kill(), o.Boot(), names[0], data
}

// spoil opens the backlog with its segment replaced, and returns what is handed out.
func spoil(t *testing.T, d *disktest.Disk, path string, data []byte) (got []key, s outbox.Status, after *disktest.Disk) {
	d = d.Kill()
	d.SetContent(path, data)
	o := open(t, d, small())
	got = drain(t, o, 64)
	s = o.Status()
	closeBox(t, o)
	for i := 1; i < len(got); i++ {
		if got[i].seq <= got[i-1].seq {
			t.Fatalf("order lost: %v", got)
		}
	}
	return got, s, d
}

func TestDamageCostsOnlyTheEntriesItHits(t *testing.T) { synctest.Test(t, damageCostsOnlyWhatItHits) }

func damageCostsOnlyWhatItHits(t *testing.T) {
	const n = 12
	for _, clean := range []bool{true, false} {
		d, _, path, sound := backlog(t, n, clean)
		for i := range sound {
			broken := bytes.Clone(sound)
			broken[i] ^= 1 << (i % 8)
			got, s, after := spoil(t, d, path, broken)
			if len(got) < n-1 || s.Damaged != 1 && len(got) < n {
				t.Fatalf("bit flip in byte %d: %d entries, %+v", i, len(got), s)
			}
			if bad, ok := after.Content(path + ".bad"); len(got) < n && (!ok || !bytes.Equal(bad, broken)) {
				t.Fatalf("bit flip in byte %d: the segment was not set aside: %v", i, after.Names())
			}
			if len(segments(after)) != 0 {
				t.Fatalf("left %v", after.Names())
			}
		}
		for i := range sound {
			got, _, _ := spoil(t, d, path, sound[:i])
			filled, _, _ := spoil(t, d, path, append(bytes.Clone(sound[:i]), make([]byte, len(sound)-i)...))
			if len(got) < i/260-1 || !slices.Equal(got, filled) {
				t.Fatalf("cut at %d: %d entries, with zeros %d", i, len(got), len(filled))
			}
		}
		if got, _, _ := spoil(t, d, path, bytes.Repeat([]byte{0xFF}, len(sound))); len(got) != 0 {
			t.Fatalf("%d entries came out of nothing", len(got))
		}
		got, _, _ := spoil(t, d, path, append(append(bytes.Clone(sound), sound...), sound...))
		if len(got) != n {
			t.Fatalf("%d entries with a second copy and a third behind them", len(got))
		}
	}
}

func TestDamagedSegmentsAreKeptWithinABound(t *testing.T) {
	synctest.Test(t, damagedSegmentsAreKeptWithinABound)
}

func damagedSegmentsAreKeptWithinABound(t *testing.T) {
	d := newDisk(t)
	o := open(t, d, small())
	add(t, o, 180)
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	names := segments(d)
	d = d.Kill()
	for _, name := range names {
		data, _ := d.Content(name)
		data[len(data)/2] ^= 1
		d.SetContent(name, data)
	}
	for range 2 { // the files of the start before count, too
		o = open(t, d, small())
		add(t, o, 1)
		drain(t, o, 64)
		closeBox(t, o)
	}
	kept := 0
	for _, name := range d.Names() {
		if data, _ := d.Content(name); strings.HasSuffix(name, ".bad") {
			kept += len(data)
		}
	}
	if kept == 0 || kept > 4*4096 {
		t.Errorf("%d bytes of damaged segments are kept of %d segments", kept, len(names))
	}
	if s := o.Status(); s.DiskBytes > 5*4096 {
		t.Errorf("status %+v", s)
	}
}

func TestAReadErrorIsTriedAgainAndThenPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, boot, path, _ := backlog(t, 10, true)
		o := open(t, d, small())
		fails := 2
		d.Fail(func(op disktest.Op) error {
			if op.Kind == disktest.Read && op.Name == path && fails > 0 {
				fails--
				return syscall.EIO
			}
			return nil
		})
		wantRange(t, drain(t, o, 64), boot, 1, 10)
		if s := o.Status(); s.Problem != "" || s.Damaged != 0 {
			t.Errorf("after two errors: %+v", s)
		}
		closeBox(t, o)

		d, _, path, _ = backlog(t, 10, true)
		o = open(t, d, small())
		d.Fail(func(op disktest.Op) error {
			if op.Kind == disktest.Read && op.Name == path {
				return syscall.EIO
			}
			return nil
		})
		add(t, o, 1)
		got := drain(t, o, 64)
		if s := o.Status(); len(got) != 1 || s.Damaged != 1 || !strings.Contains(s.Problem, "input/output error") {
			t.Errorf("%v handed out, %+v", got, s)
		}
		closeBox(t, o)
		if p := o.Status().Problem; p != "" {
			t.Errorf("still a problem: %s", p)
		}
		if _, ok := d.Content(path + ".bad"); !ok {
			t.Errorf("not set aside: %v", d.Names())
		}
	})
}

func TestStartsNeverShareANumber(t *testing.T) {
	d := newDisk(t)
	seen := map[uint64]bool{}
	next := func(what string) uint64 {
		o := open(t, d, small())
		closeBox(t, o)
		if seen[o.Boot()] || o.Boot() == 0 || o.Boot() >= 1<<53 {
			t.Errorf("%s: boot %d", what, o.Boot())
		}
		seen[o.Boot()] = true
		return o.Boot()
	}
	first := next("first")
	if now := uint64(time.Now().Unix()); first < now-100 || first > now+100 {
		t.Errorf("a new counter begins at %d", first)
	}
	if second := next("second"); second != first+1 {
		t.Errorf("boot %d follows %d", second, first)
	}
	data, _ := d.Content(dir + "/boot")
	for i := range data {
		broken := bytes.Clone(data)
		broken[i] ^= 1
		state := d.Kill()
		state.SetContent(dir+"/boot", broken)
		o := open(t, state, small())
		if o.Boot() < 1<<40 {
			t.Errorf("byte %d of the counter spoilt: boot %d", i, o.Boot())
		}
	}
	d.Fail(refuse(syscall.ENOSPC, disktest.Write))
	if boot := next("not stored"); boot < 1<<40 {
		t.Errorf("boot %d was not stored", boot)
	}
	d.Fail(nil)
	next("stored again")
}
