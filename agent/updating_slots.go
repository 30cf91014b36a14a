package agent

import (
	"fmt"
	"os"
	"path/filepath"

	"ferrule/firmware"
	"ferrule/firmware/rauc"
	"ferrule/firmware/slot"
	"ferrule/internal/hint"
)

// openSlots gives the engine the slots that are configured.
func openSlots(o *firmware.Options) (err error) {
	c := o.Config
	if c.Boot == firmware.BootRAUC {
		bundle := filepath.Join(o.Dir, "bundle.raucb")
		boot := rauc.NewBoot(rauc.New(rauc.Options{Log: o.Log}), o.FS, filepath.Join(o.Dir, "rauc-committed"))
		o.Boot, o.Installer = boot, rauc.NewBundle(boot, bundle)
		o.Open = func(_ slot.Slot, _ string, write bool) (slot.Device, error) { return slot.OpenDevice(bundle, write) }
		return nil
	}
	if o.Boot, err = slot.Open(slot.Config{Boot: c.Boot, Environment: c.Environment, FS: o.FS}); err != nil {
		return err
	}
	o.Open = func(s slot.Slot, part string, write bool) (slot.Device, error) {
		path, err := partPath(c, s, part)
		if err == nil && write && c.Boot == firmware.BootDirectory {
			err = os.MkdirAll(filepath.Dir(path), 0o755) // of the first update
		}
		if err != nil {
			return nil, err
		}
		return slot.OpenDevice(path, write, runningPart(c, o.Boot, part)...)
	}
	return nil
}

// runningPart is where the same part of the slot that runs lies: a configuration that names one partition
// for both slots must not have it written.
func runningPart(c firmware.Config, boot slot.Boot, part string) []string {
	env, err := boot.State()
	if err != nil {
		return nil // the engine asks, too, and writes nothing
	}
	path, err := partPath(c, env.Running, part)
	if err != nil {
		return nil
	}
	return []string{path}
}

// program is the one part that boot directory has.
const program = "agent"

// partPath is where one part of one slot lies.
func partPath(c firmware.Config, s slot.Slot, part string) (string, error) {
	if c.Boot == firmware.BootDirectory {
		switch {
		case part != program:
			return "", fmt.Errorf("the update has the part %q; boot directory has the program alone, as part %s", part, program)
		case s == "": // neither slot runs, but the program that was packaged
			return os.Executable()
		}
		return slot.Program(c.Environment, s), nil
	}
	parts := c.Slots.A
	if s == slot.B {
		parts = c.Slots.B
	}
	if path := parts[part]; path != "" {
		return path, nil
	}
	return "", hint.With(fmt.Errorf("the update has the part %q, and this device has no place for it", part),
		"name its partitions in update.slots, or build the bundle without it")
}
