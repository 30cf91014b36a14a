package slot_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ferrule/firmware/slot"
	"ferrule/firmware/slot/slottest"
)

// tool runs a foreign program.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing; run: make deps", name)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

func open(t *testing.T, boot, environment string, running slot.Slot) slot.Boot {
	t.Helper()
	b, err := slot.Open(slot.Config{Boot: boot, Environment: environment, Running: &running, BootID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func want(t *testing.T, b slot.Boot, want slot.State) {
	t.Helper()
	if got, err := b.State(); err != nil || got != want {
		t.Fatalf("%+v, %v; want %+v", got, err, want)
	}
}

// What fw_setenv of libubootenv writes we read, and the other way round, in turns, so that the flags
// go round once. Variables of others are kept.
func TestForeignUBoot(t *testing.T) {
	const size = 0x2000
	copyOf := func(flags int) []byte {
		return slottest.UBootEnv(size, flags, "bootcmd=run a; run b", "ethaddr=02:00:00:00:00:01", "ferrule_active=a")
	}
	for name, c := range map[string]struct {
		files  map[string][]byte
		config string
	}{
		"redundant on one device": {
			map[string][]byte{"env": append(append(make([]byte, 512), copyOf(250)...), copyOf(249)...)},
			"%[1]s/env 0x200 0x2000\n%[1]s/env 0x2200 0x2000\n",
		},
		"in two files": {
			map[string][]byte{"env": copyOf(0), "redund": copyOf(1)},
			"%[1]s/env 0x0 0x2000 0x200\n%[1]s/redund 0x0 0x2000 0x200\n",
		},
		"in one file": {map[string][]byte{"env": copyOf(-1)}, "%[1]s/env 0 2000\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, data := range c.files {
				write(t, filepath.Join(dir, file), data)
			}
			config := write(t, filepath.Join(dir, "fw_env.config"), fmt.Appendf(nil, c.config, dir))
			b := open(t, "uboot", config, slot.A)
			want(t, b, slot.State{Running: slot.A, Active: slot.A})
			print := func(name string) string {
				return strings.TrimSpace(tool(t, "fw_printenv", "-c", config, "-n", name))
			}
			for i := range 12 {
				if err := b.Try(slot.B, i%slot.MaxTries+1); err != nil {
					t.Fatal(err)
				}
				if got := print("ferrule_try") + print("ferrule_tries") + print("ethaddr"); got != fmt.Sprintf("b%d02:00:00:00:00:01", i%slot.MaxTries+1) {
					t.Fatalf("round %d: fw_printenv says %q", i, got)
				}
				tool(t, "fw_setenv", "-c", config, "ferrule_tries", "7")
				tool(t, "fw_setenv", "-c", config, "colour", fmt.Sprint("blue ", i))
				want(t, b, slot.State{Running: slot.A, Active: slot.A, Trial: slot.B, Tries: 7})
				if err := b.Cancel(); err != nil {
					t.Fatal(err)
				}
				if got := tool(t, "fw_printenv", "-c", config); strings.Contains(got, "ferrule_try") || !strings.Contains(got, fmt.Sprint("colour=blue ", i)) || !strings.Contains(got, "bootcmd=run a; run b") {
					t.Fatalf("round %d: fw_printenv says %q", i, got)
				}
			}
		})
	}
}

// One copy on a device is refused, until somebody accepts the risk.
func TestSingleCopy(t *testing.T) {
	dir := t.TempDir()
	env := write(t, filepath.Join(dir, "env"), append(make([]byte, 512), slottest.UBootEnv(0x400, -1, "ferrule_active=a")...))
	config := write(t, filepath.Join(dir, "fw_env.config"), []byte(env+" 0x200 0x400\n"))
	if err := open(t, "uboot", config, slot.A).Try(slot.B, 1); err == nil || !strings.Contains(err.Error(), "only copy") {
		t.Errorf("the only copy was overwritten: %v", err)
	}
	b := open(t, "uboot", config+" single=yes", slot.A)
	if err := b.Try(slot.B, 1); err != nil {
		t.Fatal(err)
	}
	want(t, b, slot.State{Running: slot.A, Active: slot.A, Trial: slot.B, Tries: 1})
}

// grub-editenv reads what we write and writes what we read; what stands in the block is kept.
func TestForeignGRUB(t *testing.T) {
	file := filepath.Join(t.TempDir(), "grubenv")
	tool(t, "grub-editenv", file, "create")
	tool(t, "grub-editenv", file, "set", "saved_entry=with space", `path=C:\boot`)
	b := open(t, "grub", file, slot.A)
	want(t, b, slot.State{Running: slot.A, Active: slot.A})
	for i := range 4 {
		if err := b.Try(slot.B, 3); err != nil {
			t.Fatal(err)
		}
		list := tool(t, "grub-editenv", file, "list")
		for _, line := range []string{"saved_entry=with space", `path=C:\boot`, "ferrule_active=a", "ferrule_try=b", "ferrule_tries=3"} {
			if !strings.Contains(list, line+"\n") {
				t.Fatalf("grub-editenv does not list %q: %q", line, list)
			}
		}
		tool(t, "grub-editenv", file, "set", "ferrule_tries=2", fmt.Sprint("round=", i))
		want(t, b, slot.State{Running: slot.A, Active: slot.A, Trial: slot.B, Tries: 2})
		if err := b.Cancel(); err != nil {
			t.Fatal(err)
		}
		want(t, b, slot.State{Running: slot.A, Active: slot.A})
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := os.Stat(file)
	if err := b.Try(slot.B, 1); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(file)
	if later, _ := os.Stat(file); !os.SameFile(info, later) || !bytes.Equal(before[512:], after[512:]) || len(after) != 1024 {
		t.Error("more than the first sector was written")
	}
	tool(t, "grub-editenv", file, "unset", "ferrule_active")
	want(t, b, slot.State{Running: slot.A, Active: slot.A, Trial: slot.B, Tries: 1})
}

// The checksum of the launcher's environment is that of cksum(1).
func TestForeignChecksum(t *testing.T) {
	dir := t.TempDir()
	running := slot.Slot("")
	b := open(t, "directory", dir, running)
	if err := b.Try(slot.A, 3); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "environment.0"))
	if err != nil {
		t.Fatal(err)
	}
	body, sum, ok := strings.Cut(string(raw), "sum=")
	got := strings.Fields(tool(t, "cksum", write(t, filepath.Join(dir, "body"), []byte(body))))
	if !ok || got[0]+"\n" != sum {
		t.Errorf("cksum says %s, the file %q", got, raw)
	}
}

// The snippets of docs/slots.md are scripts that their interpreters accept.
func TestDocumentedScripts(t *testing.T) {
	text, err := os.ReadFile("../../docs/slots.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	grub := block(t, string(text), "grub.cfg")
	tool(t, "grub-script-check", write(t, filepath.Join(dir, "grub.cfg"), []byte(grub)))
	for _, name := range []string{"fw_env.config", "autoboot.txt"} {
		snippet := block(t, string(text), name)
		switch name {
		case "fw_env.config":
			write(t, filepath.Join(dir, name), []byte(snippet))
			open(t, "uboot", filepath.Join(dir, name)+" format=script", slot.A)
		case "autoboot.txt":
			write(t, filepath.Join(dir, name), []byte(snippet))
			want(t, open(t, "tryboot", dir, slot.A), slot.State{Running: slot.A, Active: slot.A})
		}
	}
}

// block returns the first fenced block behind the line that names it.
func block(t *testing.T, text, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, "```"+name+"\n")
	snippet, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatalf("docs/slots.md has no block %s", name)
	}
	return snippet
}
