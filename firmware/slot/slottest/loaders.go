package slottest

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"ferrule/firmware/slot"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

func plain(d *disktest.Disk) disk.FS { return d }

// diskWith is a disk on which everything is durable.
func diskWith(content map[string][]byte) *disktest.Disk {
	d := disktest.New()
	for name, data := range content {
		_ = d.MkdirAll(path.Dir(name), 0o755)
		if f, err := d.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644); err == nil {
			_, _ = f.Write(data)
			_ = f.Close()
		}
	}
	return d.Kill()
}

// inPlace is a disk whose file system overwrites a file where it lies, as ext4 and FAT do: each
// sector becomes the new one or stays the old one. disktest alone would let an overwritten sector become rubbish.
type inPlace struct{ *disktest.Disk }

func (p inPlace) OpenFile(name string, flag int, perm os.FileMode) (disk.File, error) {
	f, err := p.Disk.OpenFile(name, flag, perm)
	if err != nil || flag&(os.O_CREATE|os.O_TRUNC) != 0 || flag&os.O_WRONLY == 0 {
		return f, err
	}
	return &overwritten{f, p.Disk, name}, nil
}

type overwritten struct {
	disk.File
	d    *disktest.Disk
	name string
}

// WriteAt writes sector by sector, the last one first: nobody promises an order.
func (o *overwritten) WriteAt(p []byte, off int64) (int, error) {
	const sector = 512
	old, _ := o.d.Content(o.name)
	if off%sector != 0 || off+int64(len(p)) > int64(len(old)) {
		return o.File.WriteAt(p, off)
	}
	for end := len(p); end > 0; {
		start := (end - 1) / sector * sector
		next := slices.Clone(old)
		copy(next[off+int64(start):], p[start:end])
		if !bytes.Equal(next, old) {
			if err := o.swap(next); err != nil {
				return 0, err
			}
		}
		old, end = next, start
	}
	return len(p), nil
}

// swap leaves the old content or the new one.
func (o *overwritten) swap(content []byte) error {
	temp := o.name + ".sector"
	f, err := o.d.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = o.d.Rename(temp, o.name)
	}
	if err != nil {
		return err
	}
	return o.d.SyncDir(path.Dir(o.name))
}

// GRUB is a GRUB with the grub.cfg of docs/slots.md.
func GRUB() Harness {
	return Harness{
		Disk: func() *disktest.Disk {
			block := []byte("# GRUB Environment Block\nsaved_entry=0\nferrule_active=a\nother=with \\\\ and \\\n a new line\n")
			return diskWith(map[string][]byte{"/boot/grub/grubenv": append(block, bytes.Repeat([]byte("#"), 1024-len(block))...)})
		},
		FS:     func(d *disktest.Disk) disk.FS { return inPlace{d} },
		Config: slot.Config{Boot: "grub", Environment: "/boot/grub/grubenv"},
		Boot:   bootGRUB, Last: Nothing,
	}
}

func bootGRUB(fsys disk.FS, p Power) slot.Slot {
	const file = "/boot/grub/grubenv"
	block, _ := disk.ReadFile(fsys, file, 4096)
	get := func(name string) string {
		_, rest, ok := bytes.Cut(block, []byte("\n"+name+"="))
		if !ok {
			return ""
		}
		value, _, _ := bytes.Cut(rest, []byte("\n"))
		return string(value)
	}
	active := slot.A
	if get("ferrule_active") == "b" {
		active = slot.B
	}
	boot := active
	if try := get("ferrule_try"); try == "a" || try == "b" {
		tries := get("ferrule_tries")
		if len(tries) == 1 && tries >= "1" && tries <= "9" {
			tries, boot = string(tries[0]-1), slot.Slot(try)
		} else {
			tries, try = "0", "-"
		}
		if !saveEnv(fsys, file, block, "ferrule_try", try) || !saveEnv(fsys, file, block, "ferrule_tries", tries) {
			boot = active
		}
	}
	return first(p, Nothing, boot, active, active.Other())
}

// saveEnv is save_env: it changes the block in memory, and writes all of it where it lies. Where
// the new value is as long as the old one, nothing else moves (grub_envblk_set).
func saveEnv(fsys disk.FS, file string, block []byte, name, value string) bool {
	at := bytes.Index(block, []byte("\n"+name+"="))
	if at < 0 {
		return false
	}
	copy(block[at+len(name)+2:], value)
	f, err := fsys.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = f.WriteAt(block, 0)
	return err == nil && f.Sync() == nil
}

// Tryboot is the firmware of a Raspberry Pi with PARTITION_WALK=1.
func Tryboot() Harness {
	return Harness{
		Disk: func() *disktest.Disk {
			return diskWith(map[string][]byte{"/boot/autoboot.txt": []byte("[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n")})
		},
		FS:     plain,
		Config: slot.Config{Boot: "tryboot", Environment: "/boot"},
		Boot:   bootTryboot, Last: Nothing, Once: true, Asked: slot.B,
	}
}

func bootTryboot(fsys disk.FS, p Power) slot.Slot {
	text, _ := disk.ReadFile(fsys, "/boot/autoboot.txt", 512)
	partition, filter := "", true
	for _, line := range strings.Split(string(text), "\n") {
		switch name, value, _ := strings.Cut(line, "="); {
		case strings.HasPrefix(line, "["):
			filter = line == "[all]" || line == "[tryboot]" && p.Asked
		case filter && name == "boot_partition":
			partition = value
		}
	}
	slots := map[string]slot.Slot{"2": slot.A, "3": slot.B}
	// A partition without a system is passed over for the next one.
	return first(p, Nothing, slots[partition], slot.A, slot.B)
}

// EFI is systemd-boot, behind which the firmware's BootOrder names the kernels of both slots.
func EFI() Harness {
	entryOf := func(s string, version int) []byte {
		return fmt.Appendf(nil, "title Ferrule %s\nsort-key ferrule\nversion %d\nlinux /%s/linux\noptions ferrule.slot=%s\n", s, version, s, s)
	}
	return Harness{
		Disk: func() *disktest.Disk {
			return diskWith(map[string][]byte{
				"/efi/loader/entries/ferrule-a.conf": entryOf("a", 9),
				"/efi/loader/entries/ferrule-b.conf": entryOf("b", 8),
				"/efi/loader/entries/memtest.conf":   []byte("title Memory test\nefi /memtest.efi\n"),
				"/efi/loader/loader.conf":            []byte("default ferrule-*\ntimeout 0\n"),
			})
		},
		FS:     plain,
		Config: slot.Config{Boot: "efi", Environment: "/efi"},
		Boot:   bootEFI, Last: Nothing,
	}
}

// sdEntry is an entry as systemd-boot 252 has it.
type sdEntry struct {
	file, id, sortKey string
	version           int
	left, done        int // left < 0: no counter
}

// bootEFI sorts the entries as config_entry_compare does, takes the first that matches the
// default of loader.conf, and counts it down by renaming it.
func bootEFI(fsys disk.FS, p Power) slot.Slot {
	const folder = "/efi/loader/entries"
	list, _ := fsys.ReadDir(folder)
	var entries []sdEntry
	for _, f := range list {
		stem, ok := strings.CutSuffix(f.Name(), ".conf")
		if !ok {
			continue
		}
		e := sdEntry{file: f.Name(), left: -1}
		id, counter, counted := strings.Cut(stem, "+")
		if e.id = id + ".conf"; counted {
			left, done, _ := strings.Cut(counter, "-")
			e.left, _ = strconv.Atoi(left)
			e.done, _ = strconv.Atoi(done)
		}
		text, _ := disk.ReadFile(fsys, path.Join(folder, f.Name()), 4096)
		for _, line := range strings.Split(string(text), "\n") {
			if words := strings.Fields(line); len(words) == 2 && words[0] == "sort-key" {
				e.sortKey = words[1]
			} else if len(words) == 2 && words[0] == "version" {
				e.version, _ = strconv.Atoi(words[1])
			}
		}
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, compareEntries)
	for _, e := range entries {
		if !strings.HasPrefix(e.id, "ferrule-") {
			continue
		}
		s := slot.Slot(strings.TrimSuffix(strings.TrimPrefix(e.id, "ferrule-"), ".conf"))
		if !countDown(fsys, folder, e) || p.Broken[s] {
			break // systemd-boot ends with an error
		}
		return s
	}
	return first(p, Nothing, slot.A, slot.B) // BootOrder: systemd-boot, slot a, slot b
}

// countDown is config_entry_bump_counters. Where it fails the real one boots all the same; a
// file system that cannot be written is beyond it.
func countDown(fsys disk.FS, folder string, e sdEntry) bool {
	if e.left <= 0 {
		return true
	}
	name := fmt.Sprintf("%s+%d-%d.conf", strings.TrimSuffix(e.id, ".conf"), e.left-1, e.done+1)
	_ = fsys.Rename(path.Join(folder, e.file), path.Join(folder, name))
	_ = fsys.SyncDir(folder)
	return true
}

func compareEntries(a, b sdEntry) int {
	less := func(is, isNot bool) int {
		switch {
		case is == isNot:
			return 0
		case isNot:
			return -1
		}
		return 1
	}
	for _, c := range []int{
		less(a.left == 0, b.left == 0),
		less(a.sortKey == "", b.sortKey == ""),
		strings.Compare(a.sortKey, b.sortKey),
		b.version - a.version,
		-strings.Compare(a.id, b.id),
	} {
		if c != 0 {
			return c
		}
	}
	if a.left < 0 || b.left < 0 {
		return 0
	}
	return (b.left - a.left) | (a.done - b.done)
}
