package gateway

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The image's partitions, as build/image lays them out; TestLayout holds them against its table.
const (
	mib      = 1 << 20
	envAt    = 9 * mib
	slotAAt  = 10 * mib
	slotSize = 56 * mib
	slotBAt  = slotAAt + slotSize
	dataAt   = slotBAt + slotSize
	dataSize = 64 * mib
	copySize = 16 << 10
)

// sealed is one copy of the environment, as U-Boot reads it.
func sealed(variables ...string) []byte {
	area := make([]byte, copySize)
	at := 4
	for _, v := range variables {
		at += copy(area[at:], v) + 1
	}
	binary.LittleEndian.PutUint32(area, crc32.ChecksumIEEE(area[4:]))
	return area
}

// opened is what a copy says, sorted; nil if its sum is wrong.
func opened(area []byte) []string {
	if crc32.ChecksumIEEE(area[4:]) != binary.LittleEndian.Uint32(area) {
		return nil
	}
	text, _, _ := bytes.Cut(area[4:], []byte{0, 0})
	variables := strings.Split(string(text), "\x00")
	slices.Sort(variables)
	return variables
}

var spoilt = bytes.Repeat([]byte{0x5a}, copySize)

// TestBootScript has the real U-Boot choose from environments good and bad, and stops it where it
// starts a kernel.
func TestBootScript(t *testing.T) {
	tools(t)
	torn := append(sealed("seq=3", "active=b")[:512:512], sealed("seq=2", "active=a")[512:]...)
	torn[600] = 'x'
	for name, c := range map[string]struct {
		copies [2][]byte
		spoil  []int64 // where a byte of the disk is turned over
		slot   string  // that is started; "": none
		trial  bool
		after  [2][]string // what the copies say then; nil: as before
	}{
		"as flashed":             {copies: [2][]byte{sealed("seq=1", "active=a"), make([]byte, copySize)}, slot: "a"},
		"the second is newer":    {copies: [2][]byte{sealed("seq=1", "active=a"), sealed("seq=2", "active=b")}, slot: "b"},
		"the first is newer":     {copies: [2][]byte{sealed("seq=3", "active=b"), sealed("seq=2", "active=a")}, slot: "b"},
		"numbers are hex":        {copies: [2][]byte{sealed("seq=a", "active=b"), sealed("seq=9", "active=a")}, slot: "b"},
		"large numbers":          {copies: [2][]byte{sealed("seq=fffe", "active=a"), sealed("seq=10000", "active=b")}, slot: "b"},
		"the newer is torn":      {copies: [2][]byte{torn, sealed("seq=2", "active=b")}, slot: "b"},
		"both are spoilt":        {copies: [2][]byte{spoilt, spoilt}, slot: "a"},
		"both are blank":         {copies: [2][]byte{make([]byte, copySize), make([]byte, copySize)}, slot: "a"},
		"no number":              {copies: [2][]byte{sealed("active=b"), sealed("seq=1", "active=b")}, slot: "b"},
		"a slot that is none":    {copies: [2][]byte{sealed("seq=1", "active=c"), spoilt}, slot: "a"},
		"kernel of A is spoilt":  {copies: [2][]byte{sealed("seq=1", "active=a"), spoilt}, spoil: []int64{slotAAt + 8*mib}, slot: "b"},
		"both kernels spoilt":    {copies: [2][]byte{sealed("seq=1", "active=a"), spoilt}, spoil: []int64{slotAAt + 8*mib, slotBAt + 8*mib}},
		"file system of A is no": {copies: [2][]byte{sealed("seq=1", "active=a"), spoilt}, spoil: []int64{slotAAt + 1024 + 56}, slot: "b"},
		"on trial": {
			copies: [2][]byte{sealed("seq=9", "active=a", "try=b", "tries=3"), sealed("seq=8", "active=a")}, slot: "b", trial: true,
			after: [2][]string{nil, {"active=a", "seq=a", "tries=2", "try=b"}},
		},
		"the last try": {
			copies: [2][]byte{sealed("seq=8", "active=a"), sealed("seq=9", "active=a", "try=b", "tries=1")}, slot: "b", trial: true,
			after: [2][]string{{"active=a", "seq=a", "tries=0", "try=b"}, nil},
		},
		"no try is left": {
			copies: [2][]byte{sealed("seq=9", "active=a", "try=b", "tries=0"), spoilt}, slot: "a",
			after: [2][]string{nil, {"active=a", "seq=a"}},
		},
		"tries are no number":   {copies: [2][]byte{sealed("seq=9", "active=a", "try=b", "tries=many"), spoilt}, slot: "a", after: [2][]string{nil, {"active=a", "seq=a"}}},
		"a trial without tries": {copies: [2][]byte{sealed("seq=9", "active=a", "try=b"), spoilt}, slot: "a", after: [2][]string{nil, {"active=a", "seq=a"}}},
		"a trial of no slot": {
			copies: [2][]byte{sealed("seq=9", "active=a", "try=../x", "tries=2"), spoilt}, slot: "a",
			after: [2][]string{nil, {"active=a", "seq=a", "tries=1", "try=../x"}},
		},
		"the trial cannot be loaded": {
			copies: [2][]byte{sealed("seq=1", "active=a", "try=b", "tries=3"), spoilt}, spoil: []int64{slotBAt + 8*mib}, slot: "a",
			after: [2][]string{nil, {"active=a", "seq=2", "tries=2", "try=b"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := scriptDisk(t, c.copies, c.spoil)
			qemu := start(t, "U-Boot", bootWords(t, "-m", "256", "-nic", "none", "-blockdev", "driver=file,node-name=d0,filename="+disk, "-device", "virtio-blk-device,drive=d0")...)
			end, n := qemu.wait(t, 0, "Starting kernel", "no slot can be booted")
			qemu.kill()
			if started := strings.Contains(end.text, "Starting kernel"); started != (c.slot != "") {
				t.Fatalf("started a kernel: %v\n%s", started, qemu.tail(60))
			}
			said, _ := qemu.lines(0)
			chosen := ""
			for _, l := range said[:n] {
				if slot, ok := strings.CutPrefix(l.text, "ferrule: slot "); ok && len(slot) == 1 {
					chosen = slot
				}
			}
			if c.slot != "" && chosen != c.slot {
				t.Errorf("U-Boot started slot %s, want %s\n%s", chosen, c.slot, qemu.tail(60))
			}
			checkCopies(t, disk, c.copies, c.after)
		})
	}
}

// scriptDisk is a fresh disk with these copies of the environment, and one byte spoilt at each place.
func scriptDisk(t *testing.T, copies [2][]byte, spoil []int64) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.img")
	mustRun(t, "cp", "--sparse=always", filepath.Join(made.dir, "A", "ferrule-qemu-arm64.img"), disk)
	file, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for n, area := range copies {
		if _, err := file.WriteAt(area, envAt+int64(n)*copySize); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range spoil {
		var b [1]byte
		if _, err := file.ReadAt(b[:], at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0xff
		if _, err := file.WriteAt(b[:], at); err != nil {
			t.Fatal(err)
		}
	}
	return disk
}

// checkCopies holds the environment after a boot against what was before, and what is to have changed.
func checkCopies(t *testing.T, disk string, before [2][]byte, after [2][]string) {
	t.Helper()
	file, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for n := range before {
		area := make([]byte, copySize)
		if _, err := file.ReadAt(area, envAt+int64(n)*copySize); err != nil {
			t.Fatal(err)
		}
		switch want := after[n]; {
		case want == nil && !bytes.Equal(area, before[n]):
			t.Errorf("copy %d was written: %q", n, opened(area))
		case want != nil && !slices.Equal(opened(area), want):
			t.Errorf("copy %d says %q, want %q", n, opened(area), want)
		}
	}
}

// bootWords are QEMU's for a machine with U-Boot and a console, and what a caller adds.
func bootWords(t *testing.T, more ...string) []string {
	t.Helper()
	flash := filepath.Join(made.dir, "A", "ferrule-qemu-arm64.flash")
	return append([]string{need(t, "qemu-system-aarch64"), "-M", "virt", "-cpu", "cortex-a53", "-display", "none", "-monitor", "none", "-serial", "stdio",
		"-bios", "/usr/lib/u-boot/qemu_arm64/u-boot.bin", "-drive", "if=pflash,format=raw,unit=1,readonly=on,file=" + flash}, more...)
}

// TestLayout: the partitions are where the tests look for them.
func TestLayout(t *testing.T) {
	tools(t)
	table := mustRun(t, need(t, "sfdisk"), "-d", filepath.Join(made.dir, "A", "ferrule-qemu-arm64.img"))
	for label, at := range map[string]int64{"env": envAt, "slot-a": slotAAt, "slot-b": slotBAt, "data": dataAt} {
		found := false
		for _, row := range strings.Split(table, "\n") {
			fields := strings.Join(strings.Fields(row), " ")
			found = found || strings.Contains(fields, fmt.Sprintf("start= %d,", at/512)) && strings.Contains(fields, fmt.Sprintf("name=%q", label))
		}
		if !found {
			t.Errorf("the partition %s is not at %d:\n%s", label, at, table)
		}
	}
}
