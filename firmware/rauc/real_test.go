package rauc_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/firmware/rauc"
	"ferrule/firmware/slot"
	"ferrule/internal/disk/disktest"
)

// newRealRAUC starts Debian's RAUC on a bus of its own, with a boot loader that is a program: it keeps its
// choice in files. What RAUC would mount to install a bundle it may not mount here.
func newRealRAUC(t *testing.T) (address, dir string) {
	t.Helper()
	program, err := exec.LookPath("rauc")
	if err != nil {
		t.Fatal("rauc is missing; run: make deps")
	}
	address, dir = newBus(t), t.TempDir()
	loader := `#!/bin/sh
cd ` + dir + `
case $1 in
get-primary) cat primary ;;
set-primary) echo "$2" >primary ;;
get-state) cat "state.$2" 2>/dev/null || echo good ;;
set-state) echo "$3" >"state.$2" ;;
*) exit 1 ;;
esac
`
	config := "[system]\ncompatible=gw\nbootloader=custom\n[handlers]\nbootloader-custom-backend=" + dir + "/loader\n[keyring]\npath=" + dir + "/keyring.pem\n"
	for i, name := range []string{"system0", "system1"} {
		config += "[slot.rootfs." + string(rune('0'+i)) + "]\ndevice=" + dir + "/" + name + "\ntype=raw\nbootname=" + name + "\n"
	}
	for name, text := range map[string]string{"loader": loader, "system.conf": config, "keyring.pem": "", "primary": "system0\n", "system0": "", "system1": "", "bad.raucb": "no bundle"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	service := exec.Command(program, "--conf="+dir+"/system.conf", "--override-boot-slot=system0", "service")
	service.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+address)
	var log strings.Builder
	service.Stdout, service.Stderr = &log, &log
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = service.Process.Kill()
		_ = service.Wait()
		if t.Failed() {
			t.Logf("RAUC said:\n%s", log.String())
		}
	})
	return address, dir
}

// answers waits until RAUC is on the bus.
func answers(t *testing.T, c *rauc.Client) []rauc.Slot {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 1200 {
		slots, err := c.Slots(t.Context())
		if err == nil {
			return slots
		}
		if !errors.Is(err, rauc.ErrAbsent) {
			t.Fatal(err)
		}
		<-tick.C
	}
	t.Fatal("RAUC did not start within a minute")
	return nil
}

func TestTheRealRAUC(t *testing.T) {
	address, dir := newRealRAUC(t)
	c := newClient(t, address)
	slots := answers(t, c)
	slices.SortFunc(slots, func(a, b rauc.Slot) int { return strings.Compare(a.Name, b.Name) })
	want := []rauc.Slot{
		{Name: "rootfs.0", Class: "rootfs", Bootname: "system0", State: "booted", BootStatus: "good", Device: dir + "/system0"},
		{Name: "rootfs.1", Class: "rootfs", Bootname: "system1", State: "inactive", BootStatus: "good", Device: dir + "/system1"},
	}
	if !slices.Equal(slots, want) {
		t.Errorf("slots %+v", slots)
	}
	if booted, err := c.BootSlot(t.Context()); err != nil || booted != "system0" {
		t.Errorf("boot slot %q, %v", booted, err)
	}
	err := c.Install(t.Context(), dir+"/bad.raucb", nil)
	if !errors.Is(err, rauc.ErrRefused) || !strings.Contains(err.Error(), "bundle") {
		t.Errorf("a file that is no bundle: %v", err)
	}
	fsys := disktest.New()
	if err := fsys.MkdirAll("/state", 0o700); err != nil {
		t.Fatal(err)
	}
	boot := rauc.NewBoot(c, fsys, "/state/rauc")
	for _, step := range []struct {
		name string
		do   func() error
		want slot.State
	}{
		{"nothing", func() error { return nil }, slot.State{Running: slot.A, Active: slot.A}},
		{"try", func() error { return boot.Try(slot.B, 3) }, slot.State{Running: slot.A, Active: slot.A, Trial: slot.B, Tries: 1}},
		{"cancel", boot.Cancel, slot.State{Running: slot.A, Active: slot.A}},
		{"commit", func() error { return boot.Commit(slot.A) }, slot.State{Running: slot.A, Active: slot.A}},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if got, err := boot.State(); err != nil || got != step.want {
			t.Errorf("after %s: %+v, %v", step.name, got, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "state.system1")); err != nil || string(text) != "bad\n" {
		t.Errorf("the slot that was given up: %q, %v", text, err)
	}
}
