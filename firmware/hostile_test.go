package firmware_test

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/firmware/slot/blocktest"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/disk/disktest"
)

// mended runs a world to its commit of 1.1.0, as it must be once nothing is in the way.
func (w *world) mended(t *testing.T) {
	t.Helper()
	m := w.live(30*time.Hour, func(m *machine, s firmware.Status) bool { return quiet(s) && m.version == "1.1.0" })
	if told := reportsOf(w.reports); told[len(told)-1] != "1.1.0 committed" || m.version != "1.1.0" {
		t.Errorf("the next attempt: %s runs, %+v", m.version, w.reports)
	}
}

// ills are what may be wrong with a repository or a disk. Every one is told with its reason, touches
// neither the slot that runs nor what boots, and the next attempt works once it is gone.
var ills = []struct {
	name string
	do   func(t *testing.T, w *world, m *manifest.Manifest) (undo func())
	says string // of the report, or of the status where nothing is reported
	fine bool   // it is got over at once
}{
	{name: "a damaged delta", fine: true, do: corrupt(true, 200)},
	{name: "a delta whose table is damaged", fine: true, do: corrupt(true, 20)},
	{name: "a delta that is not there", fine: true, do: remove(true)},
	{name: "a damaged full object and no delta", says: "segment 0", do: func(t *testing.T, w *world, m *manifest.Manifest) func() {
		undo := corrupt(false, 2000)(t, w, m)
		remove(true)(t, w, m)
		return undo
	}},
	{name: "neither object is there", says: "404 Not Found", do: func(t *testing.T, w *world, m *manifest.Manifest) func() {
		remove(true)(t, w, m)
		return remove(false)(t, w, m)
	}},
	{name: "no metadata", says: "timestamp.json", do: func(t *testing.T, w *world, m *manifest.Manifest) func() {
		before := w.handler
		w.handler = http.NotFoundHandler()
		return func() { w.handler = before }
	}},
	{name: "503 for objects", says: "503 Service Unavailable", do: answers(http.StatusServiceUnavailable)},
	{name: "403 for objects", says: "403 Forbidden", do: answers(http.StatusForbidden)},
	{name: "the slot is full", says: "no space left", do: failsAt(func(op disktest.Op) error {
		if strings.HasPrefix(op.Name, "/slots/b") && op.Kind == disktest.Write {
			return &disktest.ShortWrite{N: 700, Err: syscall.ENOSPC}
		}
		return nil
	})},
	{name: "the slot cannot be written", says: "input/output error", do: failsAt(func(op disktest.Op) error {
		if strings.HasPrefix(op.Name, "/slots/b") && op.Kind == disktest.Write {
			return syscall.EIO
		}
		return nil
	})},
	{name: "the slot cannot be synced", says: "input/output error", do: failsAt(func(op disktest.Op) error {
		if strings.HasPrefix(op.Name, "/slots/b") && op.Kind == disktest.Sync {
			return syscall.EIO
		}
		return nil
	})},
	{name: "the state directory is full", says: "no space left", do: failsAt(func(op disktest.Op) error {
		if strings.HasPrefix(op.Name, rootDir) && (op.Kind == disktest.Write || op.Kind == disktest.Create) {
			return syscall.ENOSPC
		}
		return nil
	})},
	{name: "the state directory is read only", says: "read-only", do: failsAt(func(op disktest.Op) error {
		if strings.HasPrefix(op.Name, rootDir) && op.Kind.Changes() {
			return syscall.EROFS
		}
		return nil
	})},
	{name: "the environment cannot be written", says: "input/output error", do: failsAt(func(op disktest.Op) error {
		if op.Name == "/dev/env" && op.Kind == disktest.Write {
			return syscall.EIO
		}
		return nil
	})},
	{name: "the slot does not keep what is written", says: "segment 0 differs", do: func(t *testing.T, w *world, m *manifest.Manifest) func() {
		w.open = func(s slot.Slot, part string, write bool) (slot.Device, error) {
			f, err := w.disk.OpenFile("/slots/"+string(s)+"/"+part, os.O_RDWR, 0)
			if err != nil {
				return nil, err
			}
			return &forgetful{device{f}}, nil
		}
		return func() { w.open = nil }
	}},
	{name: "a part that the device has no place for", says: "no such place", do: func(t *testing.T, w *world, m *manifest.Manifest) func() {
		w.open = func(slot.Slot, string, bool) (slot.Device, error) { return nil, errors.New("no such place") }
		return func() { w.open = nil }
	}},
}

// forgetful is a slot that loses a bit of every write.
type forgetful struct{ device }

func (f *forgetful) WriteAt(p []byte, off int64) (int, error) {
	p = bytes.Clone(p)
	p[17] ^= 4
	return f.device.WriteAt(p, off)
}

func objectOf(m *manifest.Manifest, delta bool) manifest.Object {
	if delta {
		return m.Parts()[0].Deltas[0].Object
	}
	return m.Parts()[0].Full
}

func corrupt(delta bool, at int64) func(*testing.T, *world, *manifest.Manifest) func() {
	return func(t *testing.T, w *world, m *manifest.Manifest) func() {
		o := objectOf(m, delta)
		flip := func() {
			if err := w.repo.Corrupt(o, min(at, o.Size-1)); err != nil {
				t.Fatal(err)
			}
		}
		flip()
		return flip
	}
}

func remove(delta bool) func(*testing.T, *world, *manifest.Manifest) func() {
	return func(t *testing.T, w *world, m *manifest.Manifest) func() {
		name := w.repo.File(objectOf(m, delta))
		if err := os.Rename(name, name+".away"); err != nil {
			t.Fatal(err)
		}
		return func() { _ = os.Rename(name+".away", name) }
	}
}

func answers(code int) func(*testing.T, *world, *manifest.Manifest) func() {
	return func(_ *testing.T, w *world, _ *manifest.Manifest) func() {
		before := w.handler
		w.handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/targets/") {
				rw.WriteHeader(code)
				return
			}
			before.ServeHTTP(rw, r)
		})
		return func() { w.handler = before }
	}
}

func failsAt(match func(disktest.Op) error) func(*testing.T, *world, *manifest.Manifest) func() {
	return func(_ *testing.T, w *world, _ *manifest.Manifest) func() {
		w.disk.Fail(match)
		return func() { w.disk.Fail(nil) }
	}
}

func TestIlls(t *testing.T) {
	for _, ill := range ills {
		t.Run(ill.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, slottest.UBootScript())
				w.publish("1.1.0", append(image(1, 4000), image(2, 1200)...), nil)
				release, err := w.repo.Manifest("1.1.0")
				if err != nil {
					t.Fatal(err)
				}
				s, version := w.power()
				undo := ill.do(t, w, release)
				if ill.fine {
					w.boots = 0
					w.mended(t)
					return
				}
				m := w.start(s, version)
				reason := func(s firmware.Status) string {
					if told := w.told(); len(told) > 0 {
						return told[0].Outcome + ": " + told[0].Reason
					}
					return s.Problem
				}
				if m.until(3*time.Hour, func(s firmware.Status) bool { return strings.Contains(reason(s), ill.says) }) {
					t.Fatal("it restarted")
				}
				t.Log(reason(m.engine.Status()))
				m.stop()
				state, err := w.env(s).State()
				if w.versionIn(slot.A) != "1.0.0" || err != nil || state != (slot.State{Running: slot.A, Active: slot.A}) {
					t.Errorf("slot a has %q, %+v, %v", w.versionIn(slot.A), state, err)
				}
				undo()
				w.mended(t)
			})
		})
	}
}

// Every single operation on the disk fails once, in turn, through a whole update: it ends well all the
// same, or says why and does so the next time.
func TestEveryOperationFailsOnce(t *testing.T) {
	for _, failure := range []error{syscall.EIO, &disktest.ShortWrite{N: 100, Err: syscall.ENOSPC}} {
		synctest.Test(t, func(t *testing.T) {
			master := newWorld(t, slottest.UBootScript())
			master.publish("1.1.0", image(2, 5200), func(r *bundletest.Release) { r.SecurityVersion = 2 })
			tried := 0
			for nth := 0; ; nth++ {
				w, _ := master.after(t, master.disk.Kill())
				n, failed := 0, false
				s, version := w.power()
				w.disk.Fail(func(op disktest.Op) error {
					if !op.Kind.Changes() && op.Kind != disktest.Sync && op.Kind != disktest.SyncDir && op.Kind != disktest.Read {
						return nil
					}
					if strings.HasPrefix(op.Name, "/etc/") { // which is read before the engine is
						return nil
					}
					if op.Kind == disktest.Read && errors.As(failure, new(*disktest.ShortWrite)) {
						return nil
					}
					if n++; n == nth+1 {
						failed = true
						return failure
					}
					return nil
				})
				m := w.start(s, version)
				restarted := m.until(30*time.Hour, func(st firmware.Status) bool { return quiet(st) && len(w.told()) > 1 })
				m.stop()
				if !restarted {
					t.Fatalf("operation %d: %+v", nth, w.reports)
				}
				m = w.live(30*time.Hour, func(m *machine, s firmware.Status) bool { return quiet(s) && m.version == "1.1.0" })
				if m.version != "1.1.0" || w.chip.value != 2 {
					t.Fatalf("operation %d: %s, floor %d, %+v", nth, m.version, w.chip.value, w.reports)
				}
				tried++
				if !failed {
					break
				}
			}
			t.Logf("%d operations failed with %v", tried-1, failure)
		})
	}
}

// A download that ends again and again, with the agent: what lies in the slot is not fetched again.
func TestWhatLiesInTheSlotIsNotFetchedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		next := image(7, 2<<20+700_000)
		w.publish("1.1.0", next, func(r *bundletest.Release) { r.NoDeltas = true })
		release, err := w.repo.Manifest("1.1.0")
		if err != nil {
			t.Fatal(err)
		}
		env, _ := w.disk.Content("/dev/env")
		medium := blocktest.New(blockFirst + 2*blockSlot)
		_, _ = medium.WriteAt(env, 0)
		_, _ = medium.WriteAt(w.images["1.0.0"], blockFirst)
		w.onBlocks(medium, int64(len(env)), func(bool) {})
		honest, sent := w.handler, new(atomic.Int64)
		w.handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if !strings.Contains(r.URL.Path, "/targets/") {
				honest.ServeHTTP(rw, r)
				return
			}
			cut := &cutResponse{ResponseWriter: rw, left: 100 << 10}
			honest.ServeHTTP(cut, r)
			sent.Add(cut.sent)
		})
		s, version := w.power()
		starts := 0
		for restarted := false; !restarted; starts++ {
			if starts > 60 {
				t.Fatal("it never ends")
			}
			m := w.start(s, version)
			before := sent.Load()
			restarted = m.until(3*time.Hour, func(firmware.Status) bool { return sent.Load()-before > 1200<<10 })
			m.stop()
		}
		full := release.Parts()[0].Full.Size
		t.Logf("%d starts, %d bytes sent of %d", starts, sent.Load(), full)
		// Each start reads the table again, and the segment that it had not finished.
		if most := full + int64(starts)*(1<<20+100<<10); sent.Load() > most {
			t.Errorf("%d bytes were sent for %d", sent.Load(), full)
		}
		w.mended(t)
	})
}

// Acceptance 5: a connection that is cut every 100 KiB costs less than two per cent.
func TestCutsEveryHundredKilobytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(7, 2<<20+900_000), func(r *bundletest.Release) { r.NoDeltas = true })
		release, err := w.repo.Manifest("1.1.0")
		if err != nil {
			t.Fatal(err)
		}
		env, _ := w.disk.Content("/dev/env")
		medium := blocktest.New(blockFirst + 2*blockSlot)
		_, _ = medium.WriteAt(env, 0)
		_, _ = medium.WriteAt(w.images["1.0.0"], blockFirst)
		w.onBlocks(medium, int64(len(env)), func(bool) {})
		honest, sent := w.handler, int64(0)
		w.handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			cut := &cutResponse{ResponseWriter: rw, left: 100 << 10}
			honest.ServeHTTP(cut, r)
			if strings.Contains(r.URL.Path, "/targets/") {
				sent += cut.sent
			}
		})
		w.mended(t)
		full := release.Parts()[0].Full.Size
		t.Logf("%d bytes sent of %d: %.2f %% twice", sent, full, 100*float64(sent-full)/float64(full))
		if sent > full*102/100 {
			t.Errorf("%d bytes were sent for %d", sent, full)
		}
	})
}

// cutResponse ends in the midst.
type cutResponse struct {
	http.ResponseWriter
	left int
	sent int64
}

func (c *cutResponse) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	c.sent += int64(n)
	if _, err := c.ResponseWriter.Write(p[:n]); err != nil || n < len(p) {
		return n, fs.ErrClosed
	}
	return n, nil
}
