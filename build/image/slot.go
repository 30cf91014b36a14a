package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	mib      = 1 << 20
	slotSize = 56 * mib
	// Ids are constants: two builds are to be the same bytes, and no machine has two of these disks.
	slotUUID = "f3221e00-0000-4000-8000-00000000000a"
	dataUUID = "f3221e00-0000-4000-8000-00000000000d"
)

// slotArguments are the kernel's. A panic resets at once; what hangs is made to panic.
const slotArguments = "quiet panic=-1 oops=panic softlockup_panic=1 hung_task_panic=1"

// contents are the parts of a slot, whatever holds them.
type contents struct {
	kernel               *kernel
	image, initrd, agent []byte
	about                string // os-release(5): what the slot says of itself
}

func (b *builder) contents(ctx context.Context, f flavour) (c contents, err error) {
	if c.kernel, err = b.openKernel(ctx, f); err != nil {
		return c, err
	}
	init := filepath.Join(b.work, "init")
	if err := b.compile(ctx, init, "./build/image/init", "-s -w -buildid=", nil); err != nil {
		return c, err
	}
	agent := b.agent
	if agent == "" {
		agent = filepath.Join(b.work, "ferrule")
		flags := "-s -w -buildid= -X main.version=" + b.version + " -X main.built=" + b.epoch.Format("2006-01-02T15:04:05Z")
		device, err := deviceFlags()
		if err != nil {
			return c, err
		}
		if err := b.compile(ctx, agent, "./cmd/ferrule", flags, device); err != nil {
			return c, err
		}
	}
	if c.initrd, err = b.initrd(c.kernel, init); err != nil {
		return c, err
	}
	if c.image, err = os.ReadFile(c.kernel.image); err != nil {
		return c, fmt.Errorf("making the slot: %w", err)
	}
	if c.agent, err = os.ReadFile(agent); err != nil {
		return c, fmt.Errorf("making the slot: %w", err)
	}
	c.about = fmt.Sprintf("NAME=Ferrule\nID=ferrule\nIMAGE_ID=ferrule-%s\nIMAGE_VERSION=%s\nBUILD_EPOCH=%d\n", f.name, b.version, b.epoch.Unix())
	return c, nil
}

// slotAlone is the slot without a disk around it: what ferrule-release bundle takes as the part rootfs.
// It is ext4 without a journal and without what U-Boot cannot read.
func (b *builder) slotAlone(ctx context.Context) ([]string, error) {
	c, err := b.contents(ctx, cloud)
	if err != nil {
		return nil, err
	}
	tree := filepath.Join(b.work, "slot")
	bootEnv := fmt.Sprintf("kernel_sum=%s\ninitrd_sum=%s\nslot_args=console=ttyAMA0 %s\n", sum(c.image), sum(c.initrd), slotArguments)
	err = writeTree(tree, map[string]file{
		"boot/Image": {c.image, 0o644}, "boot/initrd": {c.initrd, 0o644}, "boot/boot.env": {[]byte(bootEnv), 0o644},
		"usr/bin/ferrule": {c.agent, 0o755}, "etc/os-release": {[]byte(c.about), 0o644},
	})
	if err != nil {
		return nil, err
	}
	name := filepath.Join(b.out, "ferrule-qemu-arm64.rootfs.ext4")
	return []string{name}, b.ext4(ctx, name, tree, slotUUID, slotSize, "^metadata_csum,^64bit,^has_journal,^resize_inode,^dir_index,^orphan_file,uninit_bg")
}

// sum is the CRC32 as U-Boot's crc32 leaves it in memory, and itest reads it there: the bytes the
// other way round.
func sum(content []byte) string {
	return strconv.FormatUint(uint64(bits.ReverseBytes32(crc32.ChecksumIEEE(content))), 16)
}

// deviceFlags are what the device binary is compiled with, one a line.
func deviceFlags() (flags []string, err error) {
	text, err := os.ReadFile("build/device.flags")
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			flags = append(flags, line)
		}
	}
	return flags, err
}

func (b *builder) compile(ctx context.Context, to, program, link string, flags []string) error {
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-tags", "nethttpomithttp2", "-ldflags", link}, flags...)
	command := exec.CommandContext(ctx, "go", append(args, "-o", to, program)...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w: %s", program, err, out)
	}
	return nil
}

// file is one file of a tree.
type file struct {
	content []byte
	mode    os.FileMode
}

func writeTree(dir string, files map[string]file) error {
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
		if err := os.WriteFile(path, f.content, f.mode); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}
