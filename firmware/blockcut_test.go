package firmware_test

import (
	"bytes"
	"io"
	"io/fs"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/slot"
	"ferrule/firmware/slot/blocktest"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// emmc is one medium with everything that boots: U-Boot's environment and both slots. The state
// directory is on another disk, as if it were a partition whose writes are not recorded in order
// with those of the others.
type emmc struct {
	*blocktest.Disk
	env  int64             // bytes of the environment, at 0
	note func(before bool) // around every write and sync
}

const (
	blockSlot  = 3 << 20
	blockFirst = 64 << 10 // where slot a begins
)

func blockOffset(s slot.Slot) int64 {
	if s == slot.B {
		return blockFirst + blockSlot
	}
	return blockFirst
}

// section is a range of the medium: a partition.
type section struct {
	m         *emmc
	off, size int64
}

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > s.size {
		return 0, io.EOF
	}
	return s.m.ReadAt(p, s.off+off)
}

func (s *section) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > s.size {
		return 0, fs.ErrInvalid
	}
	s.m.note(true)
	defer s.m.note(false)
	return s.m.WriteAt(p, s.off+off)
}

func (s *section) Sync() error {
	s.m.note(true)
	defer s.m.note(false)
	return s.m.Disk.Sync()
}

func (s *section) Size() int64  { return s.size }
func (s *section) Close() error { return nil }

// envFS has the environment's partition at /dev/env.
type envFS struct {
	*disktest.Disk
	m *emmc
}

func (f envFS) OpenFile(name string, flag int, perm fs.FileMode) (disk.File, error) {
	if name == "/dev/env" {
		return &envFile{section: &section{f.m, 0, f.m.env}}, nil
	}
	return f.Disk.OpenFile(name, flag, perm)
}

type envFile struct {
	*section
	at int64
}

func (f *envFile) Read(p []byte) (int, error) {
	if f.at >= f.size {
		return 0, io.EOF
	}
	n, err := f.ReadAt(p[:min(int64(len(p)), f.size-f.at)], f.at)
	f.at += int64(n)
	return n, err
}

func (f *envFile) Write([]byte) (int, error)  { return 0, fs.ErrInvalid }
func (f *envFile) Truncate(int64) error       { return fs.ErrInvalid }
func (f *envFile) Stat() (fs.FileInfo, error) { return envInfo{f.size}, nil }

type envInfo struct{ size int64 }

func (i envInfo) Name() string       { return "env" }
func (i envInfo) Size() int64        { return i.size }
func (i envInfo) Mode() fs.FileMode  { return 0o600 | fs.ModeDevice }
func (i envInfo) ModTime() time.Time { return time.Time{} }
func (i envInfo) IsDir() bool        { return false }
func (i envInfo) Sys() any           { return nil }

// onBlocks puts a world's environment and slots on a medium.
func (w *world) onBlocks(d *blocktest.Disk, env int64, note func(before bool)) {
	m := &emmc{Disk: d, env: env, note: note}
	w.harness.FS = func(data *disktest.Disk) disk.FS { return envFS{data, m} }
	w.open = func(s slot.Slot, part string, write bool) (slot.Device, error) {
		return &section{m, blockOffset(s), blockSlot}, nil
	}
	w.content = func(s slot.Slot) []byte {
		b := make([]byte, blockSlot)
		if _, err := m.ReadAt(b, blockOffset(s)); err != nil {
			w.t.Fatal(err)
		}
		return b
	}
}

// halves are what may be of the state directory around one request to the medium.
type halves struct{ before, after [2]*disktest.Disk }

// TestPowerCutsOfTheMedium cuts the power after every request to the medium that holds slots
// of several segments and the environment: sectors are torn, dropped and reordered; the state
// directory is what had been written by then, or only what had been synced.
func TestPowerCutsOfTheMedium(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		old := image(3, 2<<20+5000)
		next := append(append(bytes.Clone(old[:1<<20]), image(4, 600<<10)...), old[1<<20:]...)
		w.publish("1.0.1", old, nil)
		w.publish("1.1.0", next, func(r *bundletest.Release) { r.SecurityVersion = 2 })
		env, _ := w.disk.Content("/dev/env")
		first := blocktest.New(blockFirst + 2*blockSlot)
		for off, content := range map[int64][]byte{0: env, blockFirst: old, blockFirst + blockSlot: image(9, 70_000)} {
			if _, err := first.WriteAt(content, off); err != nil {
				t.Fatal(err)
			}
		}
		medium := first.Kill()
		var around []halves
		w.onBlocks(medium, int64(len(env)), func(before bool) {
			now := [2]*disktest.Disk{w.disk.PowerCut(), w.disk.Kill()}
			if before {
				around = append(around, halves{before: now})
			} else {
				around[len(around)-1].after = now
			}
		})
		w.config.CheckEvery = 0
		s := stories[0]
		told := func(m *machine, st firmware.Status) bool {
			if quiet(st) && m.version == "1.0.1" && st.LastCheck.IsZero() {
				_ = m.engine.Check(t.Context())
			}
			return quiet(st) && !st.LastCheck.IsZero() || quiet(st) && m.version == "1.1.0"
		}
		w.marksFloor()
		s.check(w, w.live(time.Hour, told), nil)
		n, states, skipped := 0, 0, 0
		for state := range medium.Log().States(blocktest.Options{Base: first.Kill(), Size: medium.Size()}) {
			if skipped++; skipped%blockEach != 0 && !*exhaustive || emulated && skipped%20 != 0 {
				continue
			}
			for i, data := range statesOfData(around, state.Cut()) {
				if i != n%4 && !*exhaustive {
					continue
				}
				states++
				d, err := state.Disk()
				if err != nil {
					t.Fatal(err)
				}
				next, before := w.after(t, data)
				next.onBlocks(d, int64(len(env)), func(bool) {})
				s.check(next, next.live(time.Hour, told), before)
				if t.Failed() {
					t.Fatalf("power cut %v, state directory %d", state, i)
				}
			}
			n++
		}
		t.Logf("%d requests to the medium, %d states, 0 bricks", len(around), states)
	})
}

// blockEach is every how many states are looked at.
const blockEach = 2

// statesOfData is what the state directory may be between two requests to the medium.
func statesOfData(around []halves, cut int) []*disktest.Disk {
	var out []*disktest.Disk
	if cut >= 0 {
		out = append(out, around[cut].after[:]...)
	}
	if cut+1 < len(around) {
		out = append(out, around[cut+1].before[:]...)
	}
	for len(out) < 4 {
		out = append(out, out[len(out)-1])
	}
	// Each is used once and written to.
	for i, d := range out {
		out[i] = d.Kill()
	}
	return out
}
