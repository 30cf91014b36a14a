package slot_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ferrule/firmware/slot"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/hint"
)

func TestRunning(t *testing.T) {
	for line, want := range map[string]slot.Slot{
		"console=ttyS0 ferrule.slot=a\n": slot.A, "ferrule.slot=a ferrule.slot=b": slot.B,
		"": "", "ferrule.slot=": "", "ferrule.slot=c": "", "xferrule.slot=a": "", "ferrule.slot=a ferrule.slot=A": "",
	} {
		got, err := slot.Running(line)
		if got != want || (err == nil) != (want != "") || err != nil && hint.Of(err) == "" {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
}

// Every mistake in the setting is named before anything is read.
func TestOpenRefuses(t *testing.T) {
	a := slot.A
	dir := t.TempDir()
	config := write(t, filepath.Join(dir, "fw_env.config"), []byte("/dev/x 0 0x4000\n"))
	broken := write(t, filepath.Join(dir, "broken.config"), []byte("/dev/x zero 0x4000\n"))
	overlap := write(t, filepath.Join(dir, "overlap.config"), []byte("/dev/x 0 0x4000\n/dev/x 0x3fff 0x4000\n"))
	for _, c := range []struct{ boot, environment, want string }{
		{"lilo", "/x", "not known"}, {"grub", "", "absolute path"}, {"grub", "boot/grubenv", "absolute path"},
		{"grub", "/x y=1", "y=1"}, {"grub", "/x y", "name=value"}, {"tryboot", "/x a=2 a=3", "name=value"},
		{"tryboot", "/x a=3", "two numbers"}, {"tryboot", "/x a=0", "two numbers"}, {"efi", "/x a=b b=b", "two names"},
		{"efi", "/x a=../b", "two names"}, {"uboot", "/not/there", "fw_env.config"}, {"uboot", config + " format=elf", "format=elf"},
		{"uboot", config + " format=script", "two copies"}, {"uboot", broken, "line 1"}, {"uboot", overlap, "overlap"},
		{"uboot", config + " format=script count=bootcount", "exclude"},
	} {
		_, err := slot.Open(slot.Config{Boot: c.boot, Environment: c.environment, Running: &a, BootID: "x"})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v", c.boot, c.environment, err)
		}
	}
}

// An environment that is gone or garbage is told with its repair, and comes back when it is mended.
func TestUnusableEnvironments(t *testing.T) {
	dir := t.TempDir()
	config := write(t, filepath.Join(dir, "fw_env.config"), []byte(dir+"/env 0 0x400\n"+dir+"/env 0x400 0x400\n"))
	write(t, filepath.Join(dir, "environment.0"), []byte("garbage"))
	for boot, environment := range map[string]string{
		"uboot": config, "tryboot": dir, "grub": filepath.Join(dir, "grubenv"), "efi": dir, "directory": dir,
	} {
		b := open(t, boot, environment, slot.A)
		for what, err := range map[string]error{"Try": b.Try(slot.B, 1), "Commit": b.Commit(slot.A), "Cancel": b.Cancel()} {
			if !errors.Is(err, slot.ErrEnvironment) || hint.Of(err) == "" {
				t.Errorf("%s, %s: %v, hint %q", boot, what, err, hint.Of(err))
			}
		}
	}
	b := open(t, "uboot", config, slot.A)
	write(t, filepath.Join(dir, "env"), append(make([]byte, 0x400), slottest.UBootEnv(0x400, 3, "ferrule_active=b")...))
	want(t, b, slot.State{Running: slot.A, Active: slot.B})
}

// A path below /dev that has vanished does not become a file.
func TestVanishedDevice(t *testing.T) {
	dir := t.TempDir()
	config := write(t, filepath.Join(dir, "fw_env.config"), []byte("/dev/ferrule-is-not-there 0 0x400\n"+dir+"/env 0 0x400\n"))
	write(t, filepath.Join(dir, "env"), slottest.UBootEnv(0x400, 3, "ferrule_active=a"))
	b := open(t, "uboot", config, slot.A)
	if err := b.Try(slot.B, 1); err == nil {
		t.Error("a trial was written to nowhere")
	}
	want(t, b, slot.State{Running: slot.A, Active: slot.A})
	if _, err := slot.OpenDevice("/dev/ferrule-is-not-there", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening a device that is not there: %v", err)
	}
	if _, err := os.Stat("/dev/ferrule-is-not-there"); err == nil {
		t.Error("it is a file now")
	}
}

func TestDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "part")
	if _, err := slot.OpenDevice(path, false); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("reading what is not there: %v", err)
	}
	d, err := slot.OpenDevice(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	data := bytes.Repeat([]byte("slot"), 5000)
	if _, err := d.WriteAt(data, 4096); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, len(data))
	if _, err := d.ReadAt(got, 4096); err != nil || !bytes.Equal(got, data) {
		t.Errorf("reading back: %v", err)
	}
	if d.Size() != 0 {
		t.Errorf("a file bounds itself: %d", d.Size())
	}
	if err := d.(*slot.File).Truncate(5000); err != nil {
		t.Error(err)
	}
	if info, _ := os.Stat(path); info.Size() != 5000 || info.Mode().Perm()&0o100 == 0 {
		t.Errorf("%v", info)
	}
}

// What is no medium is not opened, and what runs is not opened for writing.
func TestDeviceRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, "/dev/null", "relative"} {
		if d, err := slot.OpenDevice(path, true); err == nil {
			t.Errorf("%s was opened", path)
			_ = d.Close()
		}
	}
	part, link := write(t, filepath.Join(dir, "part"), []byte("x")), filepath.Join(dir, "link")
	if err := os.Symlink(part, link); err != nil {
		t.Fatal(err)
	}
	if _, err := slot.OpenDevice(link, true, filepath.Join(dir, "gone"), part); !errors.Is(err, slot.ErrRunning) {
		t.Errorf("the running slot's part was opened by another name: %v", err)
	}
	if d, err := slot.OpenDevice(link, false, part); err != nil {
		t.Errorf("reading it: %v", err)
	} else {
		_ = d.Close()
	}
	copyOf := filepath.Join(dir, "sleep")
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copyOf, sleep, 0o755); err != nil {
		t.Fatal(err)
	}
	stop := start(t, copyOf, "1000")
	defer stop()
	if d, err := slot.OpenDevice(copyOf, true); !errors.Is(err, slot.ErrRunning) {
		t.Errorf("a program that runs was opened for writing: %v", err)
		if err == nil {
			_ = d.Close()
		}
	}
}

// start runs a program until stop is called.
func start(t *testing.T, name string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}
