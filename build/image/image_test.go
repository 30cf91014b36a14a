package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSumIsAsUBootReadsIt(t *testing.T) {
	// U-Boot stores the most significant byte first, and itest.l reads the least significant first.
	content := []byte("123456789") // whose CRC32 is cbf43926
	if got := sum(content); got != "2639f4cb" {
		t.Errorf("sum is %s, want 2639f4cb", got)
	}
}

func TestEnvironmentIsSound(t *testing.T) {
	area := environment("seq=1", "active=a")
	if len(area) != copySize || binary.LittleEndian.Uint32(area) != crc32.ChecksumIEEE(area[4:]) {
		t.Error("the sum is wrong")
	}
	if !bytes.HasPrefix(area[4:], []byte("seq=1\x00active=a\x00\x00")) {
		t.Errorf("the environment begins with %q", area[4:40])
	}
}

// The archive is read back by the kernel's own rules.
func TestArchive(t *testing.T) {
	var a archive
	a.file("x/y/init", []byte("12345"))
	a.device("dev/null", 1, 3)
	a.file("x/y/more", nil)
	raw := a.bytes()
	var names []string
	for at := 0; ; {
		var inode, mode, size, nameSize int
		header := string(raw[at : at+110])
		if _, err := fmt.Sscanf(header[:22], "070701%08x%08x", &inode, &mode); err != nil {
			t.Fatalf("at %d: %v", at, err)
		}
		if _, err := fmt.Sscanf(header[54:62], "%08x", &size); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(header[94:102], "%08x", &nameSize); err != nil {
			t.Fatal(err)
		}
		name := string(raw[at+110 : at+110+nameSize-1])
		at += (110 + nameSize + 3) / 4 * 4
		if name == "TRAILER!!!" {
			break
		}
		names = append(names, fmt.Sprintf("%s %o %q", name, mode, raw[at:at+size]))
		at += (size + 3) / 4 * 4
	}
	const want = `x 40755 ""|x/y 40755 ""|x/y/init 100755 "12345"|dev 40755 ""|dev/null 20600 ""|x/y/more 100755 ""`
	if got := strings.Join(names, "|"); got != want {
		t.Errorf("the archive has\n%s, want\n%s", got, want)
	}
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	k := &kernel{names: map[string]string{"a": "a.ko"}}
	if err := k.add("b", map[string]bool{}); err == nil || !strings.Contains(err.Error(), "no module b") {
		t.Errorf("a module that is not there: %v", err)
	}
	path := filepath.Join(t.TempDir(), "a.ko")
	if err := os.WriteFile(path, []byte("no ELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := needsOf(path); err == nil {
		t.Error("what is no ELF file was read as a module")
	}
}

func TestFirmwareReplacesNothing(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"start4.elf", "overlays/tpm.dtbo", "Image"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]file{}
	names, err := listed(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := read(files, names, dir, false); err != nil || len(files) != 3 || string(files["overlays/tpm.dtbo"].content) != "overlays/tpm.dtbo" {
		t.Errorf("read %d files: %v", len(files), err)
	}
	if err := read(map[string]file{"Image": {}}, names, dir, false); err == nil {
		t.Error("the firmware replaced the kernel")
	}
}
