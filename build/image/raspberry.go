package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The Raspberry Pi's firmware chooses between whole partitions (autoboot.txt, "tryboot"). A slot is a
// FAT file system with everything in it; what differs between A and B is chosen in config.txt by
// where it was read from, so that one image fits both.
const (
	firmwareSize = 16 * mib
	piSlotSize   = 128 * mib
	autoboot     = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"
	piConfig     = `[all]
arm_64bit=1
enable_uart=1
kernel=Image
initramfs initrd followkernel
dtparam=spi=on
dtoverlay=tpm-slb9670
dtparam=watchdog=on
[boot_partition=2]
cmdline=cmdline-a.txt
[boot_partition=3]
cmdline=cmdline-b.txt
`
	piArguments = "console=ttyS1,115200 " + slotArguments + " ferrule.partitions=firmware,slot-a,slot-b,data ferrule.slot=%s\n"
)

// raspberry builds the disk of a Raspberry Pi 4, and its slot alone.
func (b *builder) raspberry(ctx context.Context) ([]string, error) {
	slot := filepath.Join(b.out, "ferrule-rpi-arm64.rootfs.vfat")
	if err := b.piSlot(ctx, slot); err != nil {
		return nil, err
	}
	first := filepath.Join(b.work, "firmware.fat")
	if err := b.fat(ctx, first, "FIRMWARE", firmwareSize, map[string]file{"autoboot.txt": {[]byte(autoboot), 0o644}}); err != nil {
		return nil, err
	}
	data, err := b.data(ctx)
	if err != nil {
		return nil, err
	}
	image := filepath.Join(b.out, "ferrule-rpi-arm64.img")
	return []string{image, slot}, b.disk(ctx, image, "dos", []partition{
		{label: "firmware", kind: "c", size: firmwareSize, content: first, active: true},
		{label: "slot-a", kind: "c", size: piSlotSize, content: slot},
		{label: "slot-b", kind: "c", size: piSlotSize, content: slot},
		{label: "data", kind: "83", size: b.dataMiB * mib, content: data},
	})
}

// piSlot makes the FAT file system of a slot.
func (b *builder) piSlot(ctx context.Context, name string) error {
	c, err := b.contents(ctx, generic)
	if err != nil {
		return err
	}
	files := map[string]file{
		"config.txt": {[]byte(piConfig), 0o644}, "Image": {c.image, 0o644}, "initrd": {c.initrd, 0o644},
		"usr/bin/ferrule": {c.agent, 0o755}, "etc/os-release": {[]byte(c.about), 0o644},
		"cmdline-a.txt": {fmt.Appendf(nil, piArguments, "a"), 0o644}, "cmdline-b.txt": {fmt.Appendf(nil, piArguments, "b"), 0o644},
	}
	trees, err := filepath.Glob(filepath.Join(c.kernel.dir, "usr/lib/linux-image-*/broadcom/bcm2711-*.dtb"))
	if err != nil || len(trees) == 0 {
		return fmt.Errorf("making the slot: the kernel's package has no device tree of a Raspberry Pi 4")
	}
	if err := read(files, trees, c.kernel.dir, true); err != nil {
		return err
	}
	if b.firmware != "" {
		blobs, err := listed(b.firmware)
		if err != nil {
			return err
		}
		if err := read(files, blobs, b.firmware, false); err != nil {
			return err
		}
	}
	return b.fat(ctx, name, "SLOT", piSlotSize, files)
}

// read adds files that lie below dir, by their path there or, flat, by their name alone.
func read(files map[string]file, names []string, dir string, flat bool) error {
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("making the slot: %w", err)
		}
		to := filepath.Base(name)
		if !flat {
			to = strings.TrimPrefix(strings.TrimPrefix(name, dir), "/")
		}
		if _, taken := files[to]; taken {
			return fmt.Errorf("making the slot: %s would replace what is ours", name)
		}
		files[to] = file{content, 0o644}
	}
	return nil
}

// listed are the files below a folder.
func listed(dir string) (names []string, err error) {
	err = filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the firmware: %w", err)
	}
	return names, nil
}
