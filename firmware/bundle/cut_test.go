package bundle_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"ferrule/firmware/bundle"
	"ferrule/firmware/manifest"
	"ferrule/firmware/tuf"
	"ferrule/internal/disk/disktest"
)

func sum(b []byte) [32]byte { return sha256.Sum256(b) }

// step is one thing that a release engineer does, and what devices see afterwards.
type step struct {
	do   func(w *world) error
	sees string
	// rotates: a device may see the new root a moment before what the new keys have signed.
	rotates bool
}

func life() []step {
	old := noise(1, 5000)
	fresh := append(noise(2, 100), old...)
	ctx := context.Background()
	publish := func(p bundle.Publication) func(w *world) error {
		return func(w *world) error {
			p.Keys = w.keys("keys")
			_, err := w.open().Publish(ctx, p)
			return err
		}
	}
	make := func(version string, image []byte) func(w *world) error {
		return func(w *world) error {
			_, _, err := w.open().Bundle(ctx, w.spec(version, image))
			return err
		}
	}
	rotate := func(role string) func(w *world) error {
		return func(w *world) error {
			_, err := w.open().Rotate(bundle.Rotation{Role: role, Folder: w.path("keys"), Keys: w.keys("keys", "root")})
			return err
		}
	}
	return []step{
		{make("1.0.0", old), "", false},
		{publish(bundle.Publication{}), "1.0.0", false},
		{make("1.1.0", fresh), "1.0.0", false},
		{publish(bundle.Publication{}), "1.0.0 1.1.0", false},
		{publish(bundle.Publication{Refresh: true}), "1.0.0 1.1.0", false},
		{func(w *world) error {
			_, _, err := w.open().Rollout("1.1.0", func(r manifest.Rollout) manifest.Rollout { r.Paused = true; return r }, w.keys("keys"))
			return err
		}, "1.0.0 1.1.0(paused)", false},
		{rotate("targets"), "1.0.0 1.1.0(paused)", true},
		{rotate("timestamp"), "1.0.0 1.1.0(paused)", true},
		{publish(bundle.Publication{Keep: 1}), "1.1.0(paused)", false},
	}
}

// At whatever write the power is cut, a device sees the repository of before or after a step, whole;
// the step done again finishes it; and a device that had seen the next one a moment before the cut
// goes on too.
func TestPowerCuts(t *testing.T) {
	steps := life()
	var root []byte
	build := func(d *disktest.Disk) {
		w := &world{t: t, fs: d, dir: "/", now: epoch}
		w.init(w.setup())
		root = w.read("repo/metadata/1.root.json")
		d.Mark(0)
		for i, s := range steps {
			if err := s.do(w); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			d.Mark(i + 1)
		}
	}
	again := 0
	n := disktest.Replay(t, build, func(t testing.TB, state *disktest.Disk) {
		w := &world{t: t, fs: state, dir: "/", now: epoch.Add(time.Minute)}
		done := len(state.Marks())
		if done == 0 { // the making itself was cut: devices have no root yet
			if r, err := bundle.Init(w.options(), w.setup()); err != nil || r == nil {
				t.Fatalf("making it again: %v", err)
			}
			if got := versions(w.view()); got != "" {
				t.Errorf("a new repository has %s", got)
			}
			return
		}
		sees := []string{before(steps, done-1)}
		rotates := false
		if done <= len(steps) {
			sees = append(sees, steps[done-1].sees)
			rotates = steps[done-1].rotates
		}
		d := newDevice(root)
		view, err := d.refresh(bundle.FolderSite(state, "/repo"), w.now)
		if rotates && errors.Is(err, tuf.ErrSignature) {
			view, err = nil, nil
		} else if got := versions(view); err == nil && got != sees[0] && got != sees[len(sees)-1] {
			t.Errorf("after %d steps a device sees %q, want one of %q", done-1, got, sees)
		}
		if err != nil {
			t.Fatalf("after %d steps: %v", done-1, err)
		}
		if done > len(steps) || again%7 != 0 {
			again++
			return
		}
		again++
		if err := steps[done-1].do(w); err != nil && !published(err, view) {
			t.Fatalf("step %d again: %v", done-1, err)
		}
		if steps[done-1].sees == "" || done%2 == 1 { // what was bundled twice is as good
			return
		}
		view, err = d.refresh(bundle.FolderSite(state, "/repo"), w.now)
		if got := versions(view); err != nil || got != steps[done-1].sees {
			t.Errorf("after step %d again a device sees %q, want %q: %v", done-1, got, steps[done-1].sees, err)
		}
	})
	t.Logf("%d states", n)
}

func before(steps []step, i int) string {
	if i == 0 {
		return ""
	}
	return steps[i-1].sees
}

// published says that a step could not be done again because it had been done.
func published(err error, view map[string]*manifest.Manifest) bool {
	return errors.Is(err, bundle.ErrUnknown) && len(view) > 0
}
