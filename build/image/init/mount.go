package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// boot is what the boot loader says on the kernel's command line.
type boot struct {
	slot  string // a or b
	trial bool
	// labels of the partitions, in order, on a disk whose table has none (MBR).
	labels []string
}

// mountKernel mounts what the kernel shows as files.
func mountKernel() error {
	for _, m := range []struct {
		kind, at string
		flags    uintptr
		data     string
	}{
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=16m"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=16m"},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, ""},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return fmt.Errorf("mounting %s: %w", m.at, err)
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s: %w", m.at, err)
		}
	}
	return nil
}

func readCommandLine() (b boot, err error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return b, fmt.Errorf("reading the kernel's command line: %w", err)
	}
	if b, err = parseCommandLine(string(line)); err != nil {
		return b, err
	}
	// The Raspberry Pi's firmware says it there: a number, the most significant byte first.
	if flag, err := os.ReadFile("/proc/device-tree/chosen/bootloader/tryboot"); err == nil && len(bytes.Trim(flag, "\x00")) > 0 {
		b.trial = true
	}
	return b, nil
}

func parseCommandLine(line string) (b boot, err error) {
	for _, word := range strings.Fields(line) {
		switch key, value, _ := strings.Cut(word, "="); key {
		case "ferrule.slot":
			b.slot = value
		case "ferrule.trial":
			b.trial = value == "1"
		case "ferrule.partitions":
			b.labels = strings.Split(value, ",")
		}
	}
	if b.slot != "a" && b.slot != "b" {
		return b, fmt.Errorf("the kernel's command line names no slot: %s", line)
	}
	return b, nil
}

// mountDisk mounts the running slot and the data partition, and gives the agent what it may write.
func mountDisk(log *slog.Logger, b boot) error {
	partitions, err := findPartitions(b.labels, []string{"slot-a", "slot-b", "data"})
	if err != nil {
		return err
	}
	if err := linkPartitions(partitions); err != nil {
		return err
	}
	if err := mount(partitions["slot-"+b.slot], slotDir, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, 0); err != nil {
		return err
	}
	if err := mount(partitions["data"], dataDir, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, owner); err != nil {
		return err
	}
	// The agent asks it which version runs.
	if err := os.Symlink(slotDir+"/etc/os-release", "/etc/os-release"); err != nil {
		return fmt.Errorf("naming the release: %w", err)
	}
	if firmware := partitions["firmware"]; firmware != "" { // autoboot.txt is there
		if err := mount(firmware, firmwareDir, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_SYNCHRONOUS, owner); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{"lib": stateDir, "etc": confDir} {
		if err := bind(filepath.Join(dataDir, from), to); err != nil {
			return err
		}
	}
	// A host that no name server knows: the factory's, or that of a test.
	if hosts, err := os.ReadFile(confDir + "/hosts"); err == nil {
		if err := os.WriteFile("/etc/hosts", hosts, 0o644); err != nil {
			log.Error("no /etc/hosts", "err", err)
		}
	}
	return giveAway(partitions, b)
}

// mount mounts what is ext4, or FAT, of which everything belongs to owner.
func mount(device, at string, flags uintptr, owner int) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return fmt.Errorf("mounting %s: %w", device, err)
	}
	err := unix.Mount(device, at, "ext4", flags, "")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount(device, at, "vfat", flags, fmt.Sprintf("uid=%d,gid=%d,umask=022", owner, owner))
	}
	if err != nil {
		return fmt.Errorf("mounting %s at %s: %w", device, at, err)
	}
	return nil
}

func bind(from, to string) error {
	for _, dir := range []string{from, to} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("mounting %s: %w", to, err)
		}
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", from, to, err)
	}
	return nil
}

// findPartitions maps PARTLABEL to device; it waits for those in need, whose driver may be at work yet.
func findPartitions(labels, need []string) (map[string]string, error) {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		found := partitions(labels)
		missing := ""
		for _, label := range need {
			if _, ok := found[label]; !ok {
				missing = label
			}
		}
		if missing == "" {
			return found, nil
		}
		if time.Since(began) > diskPatience {
			return nil, fmt.Errorf("there is no partition %s", missing)
		}
	}
}

func partitions(labels []string) map[string]string {
	found := make(map[string]string)
	events, _ := filepath.Glob("/sys/class/block/*/uevent") // the pattern is sound
	for _, name := range events {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // gone again
		}
		var device, label, number string
		for line := range strings.Lines(string(text)) {
			switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
			case "DEVNAME":
				device = value
			case "PARTNAME":
				label = value
			case "PARTN":
				number = value
			}
		}
		if n, err := strconv.Atoi(number); label == "" && err == nil && 0 < n && n <= len(labels) {
			label = labels[n-1]
		}
		if _, twice := found[label]; label != "" && !twice {
			found[label] = "/dev/" + device
		}
	}
	return found
}

// linkPartitions makes /dev/disk/by-partlabel, as udev does.
func linkPartitions(partitions map[string]string) error {
	const dir = "/dev/disk/by-partlabel"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("naming the partitions: %w", err)
	}
	for label, device := range partitions {
		if label != filepath.Base(label) {
			continue
		}
		if err := os.Symlink(device, filepath.Join(dir, label)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("naming the partitions: %w", err)
		}
	}
	return nil
}

// giveAway lets the agent have its state, its run-time folder, the TPM, the serial lines, the other
// slot and the boot loader's environment; not the running slot, nor the disk as a whole.
func giveAway(partitions map[string]string, b boot) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("preparing the agent's folders: %w", err)
	}
	own := []string{stateDir, runDir, "/dev/tpmrm0", partitions["env"], partitions["slot-"+other(b.slot)]}
	for _, pattern := range []string{"/dev/ttyS*", "/dev/ttyUSB*", "/dev/ttyACM*"} {
		lines, _ := filepath.Glob(pattern) // the pattern is sound
		own = append(own, lines...)
	}
	for _, name := range own {
		if err := os.Chown(name, owner, owner); err != nil && name != "" && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("preparing the agent's folders: %w", err)
		}
	}
	// The running slot is what a delta is made from: the agent may read it.
	running := partitions["slot-"+b.slot]
	if err := errors.Join(os.Chown(running, 0, owner), os.Chmod(running, 0o640)); err != nil {
		return fmt.Errorf("preparing the agent's folders: %w", err)
	}
	return ownState()
}

// ownState mends what the image builder, who is nobody in particular, put below the state folder.
func ownState() error {
	return filepath.WalkDir(stateDir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("preparing the agent's folders: %w", err)
		}
		var info unix.Stat_t
		if err := unix.Lstat(name, &info); err != nil || info.Uid == owner {
			return nil
		}
		if err := os.Lchown(name, owner, owner); err != nil {
			return fmt.Errorf("preparing the agent's folders: %w", err)
		}
		return nil
	})
}

func other(slot string) string {
	if slot == "a" {
		return "b"
	}
	return "a"
}
