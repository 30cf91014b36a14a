package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

//go:embed boot.cmd
var bootScript []byte

// U-Boot's own settings, which on the virtual machine lie in its second flash. It waits for nobody at
// its console, and reads the script of the first disk; addresses are those of its default environment.
const (
	flashSize    = 64 * mib
	flashEnvSize = 256 << 10
)

var flashEnvironment = []string{
	"bootcmd=virtio scan; load virtio 0:1 ${scriptaddr} boot.scr; source ${scriptaddr}; reset",
	"bootdelay=-2",
	"fdt_high=0xffffffff",
	"kernel_addr_r=0x40400000",
	"ramdisk_addr_r=0x44000000",
	"scriptaddr=0x40200000",
	"stderr=pl011@9000000",
	"stdin=pl011@9000000",
	"stdout=pl011@9000000",
}

// qemu builds the disk of the virtual machine, the flash with U-Boot's settings, and the slot alone.
func (b *builder) qemu(ctx context.Context) ([]string, error) {
	slots, err := b.slotAlone(ctx)
	if err != nil {
		return nil, err
	}
	script, err := b.script(ctx)
	if err != nil {
		return nil, err
	}
	boot := filepath.Join(b.work, "boot.fat")
	if err := b.fat(ctx, boot, "BOOT", 8*mib, map[string]file{"boot.scr": {script, 0o644}}); err != nil {
		return nil, err
	}
	env := filepath.Join(b.work, "env")
	if err := os.WriteFile(env, environment("seq=1", "active=a"), 0o644); err != nil {
		return nil, fmt.Errorf("writing the environment: %w", err)
	}
	data, err := b.data(ctx)
	if err != nil {
		return nil, err
	}
	image := filepath.Join(b.out, "ferrule-qemu-arm64.img")
	err = b.disk(ctx, image, "gpt", []partition{
		{label: "boot", kind: typeBasic, size: 8 * mib, content: boot, active: true},
		{label: "env", kind: typeLinux, size: mib, content: env},
		{label: "slot-a", kind: typeLinux, size: slotSize, content: slots[0]},
		{label: "slot-b", kind: typeLinux, size: slotSize, content: slots[0]},
		{label: "data", kind: typeLinux, size: b.dataMiB * mib, content: data},
	})
	if err != nil {
		return nil, err
	}
	flash := filepath.Join(b.out, "ferrule-qemu-arm64.flash")
	return append([]string{image, flash}, slots...), writeFlash(flash)
}

// script compiles boot.cmd.
func (b *builder) script(ctx context.Context) ([]byte, error) {
	source, compiled := filepath.Join(b.work, "boot.cmd"), filepath.Join(b.work, "boot.scr")
	if err := os.WriteFile(source, bootScript, 0o644); err != nil {
		return nil, fmt.Errorf("compiling boot.cmd: %w", err)
	}
	if err := b.tool(ctx, "", "mkimage", "-A", "arm64", "-T", "script", "-C", "none", "-n", "ferrule", "-d", source, compiled); err != nil {
		return nil, err
	}
	return os.ReadFile(compiled)
}

// data makes the data partition: etc is the agent's configuration, lib its state. It is without
// metadata_csum: with it the commit block of ext4's journal has a sum over 4 KiB, and where a power cut
// leaves some sectors of it the kernel refuses the whole file system as corrupt.
func (b *builder) data(ctx context.Context) (string, error) {
	name, tree := filepath.Join(b.work, "data.ext4"), filepath.Join(b.work, "data")
	for _, dir := range []string{"etc", "lib"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return "", fmt.Errorf("making the data partition: %w", err)
		}
	}
	return name, b.ext4(ctx, name, tree, dataUUID, b.dataMiB*mib, "^metadata_csum,uninit_bg,^orphan_file")
}

const copySize = 16 << 10

// environment is the partition env as boot.cmd reads it: two copies, of which the first is sound.
func environment(variables ...string) []byte {
	return seal(make([]byte, copySize), variables)
}

// seal writes U-Boot's format: CRC32 of all that follows, then NAME=VALUE with zeros between.
func seal(area []byte, variables []string) []byte {
	at := 4
	for _, v := range variables {
		at += copy(area[at:], v) + 1
	}
	binary.LittleEndian.PutUint32(area, crc32.ChecksumIEEE(area[4:]))
	return area
}

func writeFlash(name string) error {
	area := seal(bytes.Repeat([]byte{0}, flashEnvSize), flashEnvironment)
	if err := os.WriteFile(name, area, 0o644); err != nil {
		return fmt.Errorf("writing the flash: %w", err)
	}
	if err := os.Truncate(name, flashSize); err != nil {
		return fmt.Errorf("writing the flash: %w", err)
	}
	return nil
}
