package firmware_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
	"ferrule/firmware/manifest"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/hint"
)

// propose is what a device answers to a request.
func (w *world) propose(t *testing.T, r firmware.Request) (version string, err error) {
	t.Helper()
	m := w.start(w.power())
	defer m.stop()
	m.until(time.Minute, func(s firmware.Status) bool { return true })
	err = m.engine.Propose(t.Context(), r)
	if s := m.engine.Status(); s.Target != nil && err == nil {
		version = s.Target.Version
	}
	return version, err
}

var choices = []struct {
	name    string
	edit    func(w *world, r *bundletest.Release)
	request firmware.Request
	version string
	is      error
	says    string
}{
	{name: "plain", version: "1.1.0"},
	{name: "by name", request: firmware.Request{Version: "1.1.0"}, version: "1.1.0"},
	{name: "by a name that is not there", request: firmware.Request{Version: "7"}, is: firmware.ErrNothing, says: "no version 7"},
	{name: "what runs", request: firmware.Request{Version: "1.0.0"}, is: firmware.ErrNothing, says: "1.0.0 runs"},
	{name: "another product", edit: func(_ *world, r *bundletest.Release) { r.Product = "hub" }, is: firmware.ErrNothing},
	{name: "another channel", edit: func(_ *world, r *bundletest.Release) { r.Channel = "beta" }, is: firmware.ErrNothing},
	{name: "another channel, by name", edit: func(_ *world, r *bundletest.Release) { r.Channel = "beta" }, request: firmware.Request{Version: "1.1.0"}, is: firmware.ErrNothing},
	{name: "our channel", edit: func(w *world, r *bundletest.Release) { r.Channel, w.config.Channel = "beta", "beta" }, version: "1.1.0"},
	{name: "our hardware", edit: func(w *world, r *bundletest.Release) {
		r.Hardware, w.config.Hardware = []string{"revA", "revB"}, "revB"
	}, version: "1.1.0"},
	{name: "other hardware", edit: func(w *world, r *bundletest.Release) { r.Hardware = []string{"revA"} }, is: firmware.ErrRefused, says: "hardware revA"},
	{name: "below the TPM's floor", edit: func(w *world, r *bundletest.Release) { r.SecurityVersion, w.chip.value = 2, 3 }, is: firmware.ErrRefused, says: "floor of this device is 3"},
	{name: "at the floor", edit: func(w *world, r *bundletest.Release) { r.SecurityVersion, w.chip.value = 3, 3 }, version: "1.1.0"},
	{name: "a newer agent needed", edit: func(_ *world, r *bundletest.Release) { r.MinAgent = "1.0.1" }, is: firmware.ErrRefused, says: "at least agent 1.0.1"},
	{name: "this agent needed", edit: func(_ *world, r *bundletest.Release) { r.MinAgent = "1.0.0" }, version: "1.1.0"},
	{name: "paused", edit: func(_ *world, r *bundletest.Release) { r.Rollout.Paused = true }, is: firmware.ErrNothing, says: "paused"},
	{name: "paused, by name", edit: func(_ *world, r *bundletest.Release) { r.Rollout.Paused = true }, request: firmware.Request{Version: "1.1.0"}, is: firmware.ErrNothing, says: "paused"},
	{name: "not rolled out yet", edit: func(_ *world, r *bundletest.Release) {
		r.Rollout.Steps = []manifest.Step{{Percent: 100, From: time.Now().Add(time.Hour)}}
	}, is: firmware.ErrNothing, says: "not been rolled out"},
	{name: "not rolled out yet, by name", edit: func(_ *world, r *bundletest.Release) {
		r.Rollout.Steps = []manifest.Step{{Percent: 100, From: time.Now().Add(time.Hour)}}
	}, request: firmware.Request{Version: "1.1.0"}, version: "1.1.0"},
	{name: "rolled out to all", edit: func(_ *world, r *bundletest.Release) {
		r.Rollout.Steps = []manifest.Step{{Percent: 100, From: time.Now()}}
	}, version: "1.1.0"},
	{name: "TPM demanded and broken", edit: func(w *world, _ *bundletest.Release) {
		w.config.Floor, w.chip.fail = firmware.FloorTPM, errors.New("lockout")
	}, says: "lockout"},
	{name: "TPM demanded and not there", edit: func(w *world, _ *bundletest.Release) { w.config.Floor, w.chip = firmware.FloorTPM, nil }, says: "no TPM"},
	{name: "TPM broken", edit: func(w *world, _ *bundletest.Release) { w.chip.fail = errors.New("lockout") }, version: "1.1.0"},
	{name: "the network is out", edit: func(w *world, _ *bundletest.Release) { w.handler = nil }, says: "network is unreachable"},
	{name: "the slot is too small", edit: func(w *world, r *bundletest.Release) { w.images["1.1.0"] = image(2, slotSize+1) }, version: "1.1.0"},
}

func TestChoosing(t *testing.T) {
	for _, c := range choices {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, slottest.UBootScript())
				w.config.CheckEvery = 0
				release := bundletest.Release{Version: "1.1.0"}
				w.images["1.1.0"] = image(2, 5200)
				if c.edit != nil {
					c.edit(w, &release)
				}
				if _, err := w.repo.Publish(release, bundletest.Part{Image: w.images["1.1.0"]}); err != nil {
					t.Fatal(err)
				}
				version, err := w.propose(t, c.request)
				if version != c.version || c.version == "" && err == nil || c.is != nil && !errors.Is(err, c.is) {
					t.Fatalf("%q, %v", version, err)
				}
				if c.says != "" && !strings.Contains(err.Error(), c.says) || errors.Is(err, firmware.ErrRefused) && hint.Of(err) == "" {
					t.Errorf("%v (%s)", err, hint.Of(err))
				}
			})
		})
	}
}

func TestTheHighestReleaseThatMayBeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.config.CheckEvery = 0
		w.publish("1.1.0", image(2, 5200), nil)
		w.publish("1.2.0", image(3, 5200), nil)
		w.publish("1.3.0", image(4, 5200), func(r *bundletest.Release) { r.Rollout.Paused = true })
		if version, err := w.propose(t, firmware.Request{}); version != "1.2.0" {
			t.Errorf("%q, %v", version, err)
		}
	})
}

// Older releases are for those who ask for them by name, and only down to the floor.
func TestGoingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), nil)
		w.publish("1.2.0", image(3, 5200), func(r *bundletest.Release) { r.SecurityVersion = 1 })
		w.live(3*time.Hour, settled(w))
		w.config.CheckEvery = 0
		if version, err := w.propose(t, firmware.Request{}); version != "" || !errors.Is(err, firmware.ErrNothing) {
			t.Errorf("unasked: %q, %v", version, err)
		}
		if version, err := w.propose(t, firmware.Request{Version: "1.1.0"}); version != "" || !errors.Is(err, firmware.ErrRefused) {
			t.Errorf("below the floor: %q, %v", version, err)
		}
		// Acceptance 6: neither a cleared TPM nor a wiped state directory lowers it.
		w.chip.value = 0
		if version, err := w.propose(t, firmware.Request{Version: "1.1.0"}); version != "" || !errors.Is(err, firmware.ErrRefused) || w.chip.value != 1 {
			t.Errorf("TPM cleared: %q, %v; now %d", version, err, w.chip.value)
		}
		for _, name := range w.disk.Names() {
			if strings.HasPrefix(name, rootDir) {
				_ = w.disk.Remove(name)
			}
		}
		if version, err := w.propose(t, firmware.Request{Version: "1.1.0"}); version != "" || !errors.Is(err, firmware.ErrRefused) {
			t.Errorf("state directory wiped: %q, %v", version, err)
		}
		w.publish("1.1.1", image(5, 5200), func(r *bundletest.Release) { r.SecurityVersion = 1 })
		if version, err := w.propose(t, firmware.Request{Version: "1.1.1"}); version != "1.1.1" {
			t.Errorf("at the floor: %q, %v", version, err)
		}
	})
}

// A device that came with a version that was never published does not go back to an older one.
func TestAFactoryVersionThatIsNotPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.config.CheckEvery = 0
		w.images["1.5.0"] = image(8, 5000)
		w.put("/slots/a/rootfs", append(image(8, 5000), make([]byte, slotSize-5000)...))
		if version, err := w.propose(t, firmware.Request{}); version != "" || !errors.Is(err, firmware.ErrNothing) {
			t.Errorf("%q, %v", version, err)
		}
		w.publish("1.6.0", image(9, 5000), nil)
		if version, err := w.propose(t, firmware.Request{}); version != "1.6.0" {
			t.Errorf("%q, %v", version, err)
		}
	})
}

// What rolled back is tried again once it is published anew, and not because its rollout goes on.
func TestAQuarantineEndsWithANewRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.publish("1.1.0", image(2, 5200), nil)
		w.hangs["1.1.0"] = true
		w.live(3*time.Hour, settled(w))
		w.config.CheckEvery = 0
		if err := w.repo.Rollout("1.1.0", manifest.Rollout{Seed: "x"}); err != nil {
			t.Fatal(err)
		}
		if version, err := w.propose(t, firmware.Request{Version: "1.1.0"}); version != "" || !errors.Is(err, firmware.ErrRefused) || !strings.Contains(err.Error(), "given up before") {
			t.Errorf("%q, %v", version, err)
		}
		if err := w.repo.Again("1.1.0"); err != nil {
			t.Fatal(err)
		}
		if version, err := w.propose(t, firmware.Request{}); version != "1.1.0" {
			t.Errorf("%q, %v", version, err)
		}
	})
}

func TestNoRepository(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slottest.UBootScript())
		w.config = firmware.Default()
		m := w.start(w.power())
		defer m.stop()
		if err := m.engine.Check(t.Context()); !errors.Is(err, firmware.ErrOff) {
			t.Error(err)
		}
		if s := m.engine.Status(); s.State != firmware.Idle || s.Version != "1.0.0" || s.Slot != "a" || w.asked.Load() != 0 {
			t.Errorf("%+v, %d requests", s, w.asked.Load())
		}
	})
}
