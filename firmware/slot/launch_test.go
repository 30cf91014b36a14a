package slot_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ferrule/firmware/slot"
	"ferrule/firmware/slot/slottest"
	"ferrule/internal/disk/disktest"
)

const launcher = "../../build/systemd/ferrule-launch"

// device is a folder that the launcher works in.
type device struct {
	t      testing.TB
	folder string
	shell  []string
}

// program says which slot it was started from; it can say its version.
const program = "#!/bin/sh\n[ \"$1\" = version ] && exec echo 1.0\necho \"started $FERRULE_SLOT $0 $*\"\n"

func newDevice(t testing.TB, shell ...string) *device {
	t.Helper()
	if _, err := exec.LookPath(shell[0]); err != nil {
		t.Fatalf("%s is missing; run: make deps", shell[0])
	}
	d := &device{t, filepath.Join(t.TempDir(), "program"), shell}
	for _, s := range []slot.Slot{slot.A, slot.B} {
		d.install(slot.Program(d.folder, s), program)
	}
	d.install(filepath.Join(d.folder, "packaged"), program)
	return d
}

func (d *device) install(path, text string) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) command(before []string, args ...string) *exec.Cmd {
	words := append(append(append(before, d.shell...), launcher), args...)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(os.Environ(), "FERRULE_DIRECTORY="+d.folder, "FERRULE_PACKAGED="+filepath.Join(d.folder, "packaged"))
	return cmd
}

// boot starts the launcher and returns which slot it started; "" is the packaged program.
func (d *device) boot() slot.Slot {
	d.t.Helper()
	out, err := d.command(nil, "run", "--config", "with a space").Output()
	if err != nil {
		d.t.Fatalf("%v: %s", err, err.(*exec.ExitError).Stderr)
	}
	found := regexp.MustCompile(`^started (a|b|packaged) (\S+) run --config with a space\n$`).FindSubmatch(out)
	if found == nil {
		d.t.Fatalf("it printed %q", out)
	}
	s := slot.Slot(found[1])
	want := slot.Program(d.folder, s)
	if s == "packaged" {
		s, want = "", filepath.Join(d.folder, "packaged")
	}
	if string(found[2]) != want {
		d.t.Fatalf("slot %q is %s", s, found[2])
	}
	return s
}

// write makes the environment what a disk holds.
func (d *device) write(content map[string][]byte) {
	d.t.Helper()
	old, _ := filepath.Glob(filepath.Join(d.folder, "environment.*"))
	for _, name := range old {
		_ = os.RemoveAll(name)
	}
	for name, data := range content {
		if err := os.WriteFile(filepath.Join(d.folder, name), data, 0o644); err != nil {
			d.t.Fatal(err)
		}
	}
}

func environmentOf(d *disktest.Disk) map[string][]byte {
	content := make(map[string][]byte)
	for _, name := range d.Names() {
		if base := filepath.Base(name); strings.HasPrefix(base, "environment.") && !strings.HasSuffix(base, ".new") && !strings.HasSuffix(base, ".tmp") {
			content[base], _ = d.Content(name)
		}
	}
	return content
}

func (d *device) environment() map[string][]byte {
	content := make(map[string][]byte)
	for _, name := range []string{"environment.0", "environment.1"} {
		if data, err := os.ReadFile(filepath.Join(d.folder, name)); err == nil {
			content[name] = data
		}
	}
	return content
}

func same(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name, data := range a {
		if !bytes.Equal(data, b[name]) {
			return false
		}
	}
	return true
}

// The fake that passes the suite stands for the launcher: on every disk that the suite meets, both
// start the same slot and leave the same environment, whatever shell runs the launcher.
func TestLauncherIsItsFake(t *testing.T) {
	h := slottest.Directory()
	var disks []*disktest.Disk
	seen := make(map[string]bool)
	h.Disks(t, func(_ string, d *disktest.Disk) {
		if key := fmt.Sprint(environmentOf(d)); !seen[key] {
			seen[key] = true
			disks = append(disks, d)
		}
	})
	t.Logf("%d environments", len(disks))
	for _, shell := range [][]string{{"dash"}, {"busybox", "sh"}, {"bash", "--posix"}} {
		t.Run(shell[0], func(t *testing.T) {
			t.Parallel()
			d := newDevice(t, shell...)
			for i, from := range disks {
				if shell[0] != "dash" && i%4 != 0 {
					continue
				}
				there := from.Kill()
				d.write(environmentOf(there))
				want, got := h.Boot(there, slottest.Power{}), d.boot()
				if got != want || !same(d.environment(), environmentOf(there)) {
					t.Errorf("disk %v: %q is started, want %q; it leaves %q, want %q", environmentOf(from), got, want, d.environment(), environmentOf(there))
				}
			}
		})
	}
}

// What the agent writes, the launcher reads, and the other way round; and what is no environment
// starts the packaged program.
func TestLauncherOnGarbage(t *testing.T) {
	d := newDevice(t, "dash")
	good := slottest.Note("seq=8\nactive=b\ntry=\ntries=0\n")
	for name, c := range map[string]struct {
		content map[string][]byte
		want    slot.Slot
	}{
		"nothing":            {nil, ""},
		"empty":              {map[string][]byte{"environment.0": nil, "environment.1": nil}, ""},
		"one good":           {map[string][]byte{"environment.0": good}, slot.B},
		"one of zeros":       {map[string][]byte{"environment.0": make([]byte, 700), "environment.1": good}, slot.B},
		"a flipped bit":      {map[string][]byte{"environment.1": bytes.Replace(good, []byte("=b"), []byte("=a"), 1)}, ""},
		"something behind":   {map[string][]byte{"environment.1": append(good[:len(good):len(good)], "x\n"...)}, ""},
		"without an end":     {map[string][]byte{"environment.1": good[:20]}, ""},
		"a hostile slot":     {map[string][]byte{"environment.0": slottest.Note("seq=9\nactive=$(reboot)\ntry=../../etc\ntries=3\n")}, ""},
		"hostile tries":      {map[string][]byte{"environment.0": slottest.Note("seq=9\nactive=a\ntry=b\ntries=08\n")}, slot.A},
		"an octal seq":       {map[string][]byte{"environment.0": slottest.Note("seq=010\nactive=a\n"), "environment.1": good}, slot.B},
		"a seq without end":  {map[string][]byte{"environment.0": slottest.Note("seq=99999999999999999999999\nactive=a\n"), "environment.1": good}, slot.B},
		"seq 0":              {map[string][]byte{"environment.0": slottest.Note("seq=0\nactive=a\n")}, ""},
		"a seq that is none": {map[string][]byte{"environment.0": slottest.Note("seq=a[$(id)]\nactive=a\n")}, ""},
	} {
		d.write(c.content)
		if got := d.boot(); got != c.want {
			t.Errorf("%s: %q is started, want %q", name, got, c.want)
		}
		running := c.want
		b, err := slot.Open(slot.Config{Boot: "directory", Environment: d.folder, Running: &running})
		if err != nil {
			t.Fatal(err)
		}
		if s, err := b.State(); err == nil && (s.Active != c.want || s.OnTrial()) || err != nil && !errors.Is(err, slot.ErrEnvironment) {
			t.Errorf("%s: the agent says %+v, %v", name, s, err)
		}
	}
}

// A program that is gone, is none, or cannot even say its version is passed over.
func TestLauncherFallsOver(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"gone":           os.Remove,
		"not executable": func(path string) error { return os.Chmod(path, 0o644) },
		"garbage":        func(path string) error { return os.WriteFile(path, []byte("\x7fELF\x02\x01rubbish"), 0o755) },
		"empty":          func(path string) error { return os.WriteFile(path, nil, 0o755) },
		"dies":           func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\nkill -9 $$\n"), 0o755) },
		"a folder":       func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t, "dash")
			d.write(map[string][]byte{"environment.1": slottest.Note("seq=3\nactive=a\ntry=\ntries=0\n")})
			expect := func(want slot.Slot) {
				t.Helper()
				if got := d.boot(); got != want {
					t.Errorf("%q is started, want %q", got, want)
				}
			}
			expect(slot.A)
			if err := spoil(slot.Program(d.folder, slot.A)); err != nil {
				t.Fatal(err)
			}
			expect(slot.B)
			if err := spoil(slot.Program(d.folder, slot.B)); err != nil {
				t.Fatal(err)
			}
			expect("")
		})
	}
}

// What cannot be counted is not tried.
func TestLauncherThatCannotWrite(t *testing.T) {
	d := newDevice(t, "dash")
	trial := slottest.Note("seq=3\nactive=a\ntry=b\ntries=2\n")
	d.write(map[string][]byte{"environment.0": trial})
	if err := os.Mkdir(filepath.Join(d.folder, "environment.1.new"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if got := d.boot(); got != slot.A {
			t.Fatalf("%q is started", got)
		}
	}
	d.write(map[string][]byte{"environment.0": trial})
	for i, want := range []slot.Slot{slot.B, slot.B, slot.A, slot.A} {
		if got := d.boot(); got != want {
			t.Errorf("start %d: %q, want %q", i, got, want)
		}
	}
}

func TestLauncherRevertsAndResets(t *testing.T) {
	d := newDevice(t, "dash")
	d.write(map[string][]byte{"environment.0": slottest.Note("seq=3\nactive=a\ntry=b\ntries=2\nkept=as it is\n")})
	if got := d.boot(); got != slot.B {
		t.Fatalf("%q is started", got)
	}
	for range 2 {
		if out, err := d.command(nil, "revert").CombinedOutput(); err != nil {
			t.Fatalf("revert: %v: %s", err, out)
		}
		if got := d.boot(); got != slot.A {
			t.Fatalf("after revert %q is started", got)
		}
	}
	if !bytes.Contains(d.environment()["environment.0"], []byte("kept=as it is\n")) {
		t.Errorf("a foreign line is gone: %q", d.environment())
	}
	if out, err := d.command(nil, "packaged").CombinedOutput(); err != nil {
		t.Fatalf("packaged: %v: %s", err, out)
	}
	for name := range d.environment() {
		if got := d.boot(); got != "" {
			t.Fatalf("after packaged %q is started", got)
		}
		_ = os.Remove(filepath.Join(d.folder, name))
	}
}

// The launcher is killed at each of its system calls that change something: what it leaves starts
// a slot, no try is gained, and the agent reads it.
func TestLauncherKilledAnywhere(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is missing; run: make deps")
	}
	d := newDevice(t, "dash")
	before := map[string][]byte{
		"environment.0": slottest.Note("seq=4\nactive=a\ntry=b\ntries=2\n"), "environment.1": slottest.Note("seq=3\nactive=a\ntry=\ntries=0\n"),
	}
	kills := 0
	seen := make(map[string]bool)
	for _, call := range []string{"openat", "write", "fsync", "rename,renameat,renameat2", "close", "execve", "wait4"} {
		for n := 1; ; n++ {
			d.write(before)
			inject := fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)
			err := d.command([]string{"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + call, "-e", inject}, "run").Run()
			if err == nil && n > 4 {
				break // the first ones may have killed a helper alone
			}
			if err != nil {
				kills++
			}
			if key := fmt.Sprint(d.environment()); seen[key] {
				continue
			} else {
				seen[key] = true
			}
			running := slot.A
			b, err := slot.Open(slot.Config{Boot: "directory", Environment: d.folder, Running: &running})
			if err != nil {
				t.Fatal(err)
			}
			s, err := b.State()
			if err != nil || s.Active != slot.A || s.Trial != slot.B || s.Tries < 1 || s.Tries > 2 {
				t.Fatalf("killed at %s %d: %+v, %v: %q", call, n, s, err, d.environment())
			}
			for i := range s.Tries + 1 {
				want := slot.B
				if i == s.Tries {
					want = slot.A
				}
				if got := d.boot(); got != want {
					t.Errorf("killed at %s %d, boot %d: %q is started, want %q", call, n, i, got, want)
				}
			}
		}
	}
	t.Logf("killed at %d calls", kills)
	if kills < 20 {
		t.Errorf("killed at %d calls only", kills)
	}
}

// The order that makes it atomic: the content is durable before it has its name, and the name before
// anything is started.
func TestLauncherSyncs(t *testing.T) {
	d := newDevice(t, "dash")
	d.write(map[string][]byte{"environment.0": slottest.Note("seq=4\nactive=a\ntry=b\ntries=2\n")})
	log := filepath.Join(t.TempDir(), "calls")
	trace := []string{"strace", "-f", "-qq", "-y", "-o", log, "-e", "trace=rename,renameat,renameat2,fsync,execve"}
	if out, err := d.command(trace, "run").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	calls, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	order := regexp.MustCompile(`(?s)fsync\(\d+<[^>]*environment\.1\.new>\) = 0.*rename[^\n]*environment\.1\.new[^\n]* = 0.*fsync\(\d+<[^>]*program>\) = 0.*execve\("[^"]*releases/b/ferrule`)
	if !order.Match(calls) {
		t.Errorf("want fsync, rename, fsync of the folder, execve in this order:\n%s", calls)
	}
}
