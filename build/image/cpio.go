package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// archive is an initrd in the kernel's format "newc" (Documentation/driver-api/early-userspace/
// buffer-format.rst): owners are root, times are zero, inodes count up.
type archive struct {
	out   bytes.Buffer
	inode int
	made  map[string]bool
}

const (
	modeDir   = 0o040755
	modeFile  = 0o100755
	modePlain = 0o100644
	modeChar  = 0o020600
)

// fwEnv tells the agent, and fw_printenv, where boot.cmd looks (fw_env.config).
const fwEnv = "/dev/disk/by-partlabel/env 0x0 0x4000\n/dev/disk/by-partlabel/env 0x4000 0x4000\n"

// file adds a file, and the folders above it.
func (a *archive) file(name string, content []byte) {
	a.folders(filepath.Dir(name))
	a.entry(name, modeFile, 0, 0, content)
}

func (a *archive) folders(dir string) {
	if dir == "." || a.made[dir] {
		return
	}
	a.folders(filepath.Dir(dir))
	if a.made == nil {
		a.made = make(map[string]bool)
	}
	a.made[dir] = true
	a.entry(dir, modeDir, 0, 0, nil)
}

func (a *archive) device(name string, major, minor int) {
	a.folders(filepath.Dir(name))
	a.entry(name, modeChar, major, minor, nil)
}

func (a *archive) entry(name string, mode, major, minor int, content []byte) {
	a.inode++
	links := 1
	fmt.Fprintf(&a.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, links, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name)
	a.pad()
	a.out.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.out.Len()%4 != 0 {
		a.out.WriteByte(0)
	}
}

// bytes ends the archive.
func (a *archive) bytes() []byte {
	a.inode = -1
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	return slices.Clone(a.out.Bytes())
}

// initrd holds init and the modules; all else is read from the slot. Uncompressed: a delta sees what
// changed.
func (b *builder) initrd(k *kernel, init string) ([]byte, error) {
	var a archive
	for _, dir := range []string{"dev", "etc/ferrule", "proc", "run", "slot", "data", "sys", "tmp", "var/lib/ferrule", "modules"} {
		a.folders(dir)
	}
	a.device("dev/console", 5, 1)
	a.entry("etc/fw_env.config", modePlain, 0, 0, []byte(fwEnv))
	a.device("dev/null", 1, 3)
	for n, module := range k.modules {
		content, err := os.ReadFile(module)
		if err != nil {
			return nil, fmt.Errorf("making the initrd: %w", err)
		}
		a.file(fmt.Sprintf("modules/%02d-%s", n, filepath.Base(module)), content)
	}
	if b.broken == "panic" {
		return a.bytes(), nil // the kernel finds nothing to run, and panics
	}
	content, err := os.ReadFile(init)
	if err != nil {
		return nil, fmt.Errorf("making the initrd: %w", err)
	}
	a.file("init", content)
	return a.bytes(), nil
}
