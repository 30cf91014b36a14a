package gateway

import (
	"os"
	"sync"
	"testing"
	"time"
)

// cut is one moment at which the power goes.
type cut struct {
	name string
	wait func(t *testing.T, w *world, m *machine, r *releases)
}

// console is the moment at which the console says text.
func console(text string) cut {
	return cut{text, func(t *testing.T, _ *world, m *machine, _ *releases) { m.next(t, text) }}
}

// state is the moment at which the cloud hears of a state of the update.
func state(name string) cut {
	return cut{name, func(t *testing.T, w *world, m *machine, _ *releases) {
		w.status(t, m.from, func(n news) bool { return n.Update.State == name })
	}}
}

// environment is the moment at which the boot loader's environment is one that ok takes, as it lies on
// the disk.
func environment(name string, ok func(choice) bool) cut {
	return cut{name, func(t *testing.T, _ *world, m *machine, _ *releases) {
		disk, err := os.Open(m.disk)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		waitFor(t, name, func() bool {
			env := make([]byte, 2*copySize)
			if _, err := disk.ReadAt(env, envAt); err != nil {
				t.Fatal(err)
			}
			return ok(choose(env))
		})
	}}
}

// bytesOf is the moment at which so many bytes of objects were handed out since the power came on. The
// rest is held back until the power is gone.
func bytesOf(name string, size int64) cut {
	return cut{name, func(t *testing.T, _ *world, m *machine, r *releases) {
		reached, once := make(chan struct{}), sync.Once{}
		off := m.qemu.ended
		r.hold(func(served int64) {
			if served >= size {
				once.Do(func() { close(reached) })
				<-off
			}
		})
		select {
		case <-reached:
		case <-time.After(patience):
			t.Fatalf("%d bytes were not asked for:\n%s", size, m.qemu.tail(40))
		}
	}}
}

// served is the moment at which the last byte of an object has been handed out.
func served(name string) cut {
	return cut{name, func(t *testing.T, _ *world, _ *machine, r *releases) {
		waitFor(t, name, func() bool { return r.finished() })
	}}
}

// TestPowerCuts takes one update and one rollback through a cut at every step, one after the other: each
// cut meets a machine that recovers from the one before.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	w, m := newWorld(t), newMachine(t)
	r := newReleases(t, w)
	good := verified{}
	for _, k := range []kind{flashed, goodRelease, panics} {
		good.add(t, k.version, build(t, k))
	}
	r.publish(t, flashed)
	// Every cut during a trial costs one try.
	w.provision(t, m, r.table(9), map[string]string{"root.json": r.root})
	m.scramble(t)
	m.on(t)
	w.reading(t, 0)
	r.publish(t, goodRelease, "--deltas", "0", "--security-version", "2", "--allow", "security-jump", "--within", "60s")
	m.from = w.heard()
	w.apply(t)
	for n, c := range []cut{
		bytesOf("a tenth of the download", 3*mib/2), bytesOf("half of the download", 6*mib), bytesOf("three quarters of the download", 3*mib),
		served("the end of the download"), environment("armed", func(c choice) bool { return c.try == "b" }),
		console("ferrule: trial b tries"), console("Starting kernel"), console("slot b, agent started"), state("trial"),
		environment("committed", func(c choice) bool { return c.active == "b" }), state("reporting"),
	} {
		m.cutAt(t, w, r, good, n, c)
	}
	w.outcome(t, "committed", "1.1.0")
	w.runs(t, "1.1.0", "b")

	r.publish(t, panics, "--within", "60s")
	m.from = w.heard()
	w.apply(t)
	for n, c := range []cut{
		served("the end of the delta's download"), console("the agent wants a reboot"), console("ferrule: trial a tries"), console("Starting kernel"), console("Kernel panic"), console("ferrule: slot b"),
		state("reporting"),
	} {
		m.cutAt(t, w, r, good, n, c)
	}
	w.outcome(t, "rolled-back", "1.2.0")
	w.runs(t, "1.1.0", "b")
	w.judge(t, m)
}

// cutAt cuts the power at c, holds the disk against what may boot, and switches on again.
func (m *machine) cutAt(t *testing.T, w *world, r *releases, good verified, n int, c cut) {
	t.Helper()
	c.wait(t, w, m, r)
	m.cut()
	r.hold(nil)
	disk, err := os.Open(m.disk)
	if err != nil {
		t.Fatal(err)
	}
	slot, version, err := good.sound(t, disk)
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatalf("cut %d, at %q: %v", n+1, c.name, err)
	}
	t.Logf("cut %d, at %q: boots slot %s, %s", n+1, c.name, slot, version)
	m.from = w.heard()
	m.on(t)
	// The first line of these, whatever comes after.
	if l, _ := m.qemu.wait(t, 0, "ferrule: slot "); l.text != "ferrule: slot "+slot {
		t.Fatalf("U-Boot said %q, want slot %s", l.text, slot)
	}
}
