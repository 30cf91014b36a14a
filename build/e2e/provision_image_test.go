package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// flashing is one call of build/provision.sh with an image, and the gateway that it is for.
type flashing struct {
	*provisioning
	image, card string
}

// newFlashing makes a small image of the form of docs/image.md: what is in its slots is nobody's business
// here.
func newFlashing(t *testing.T) *flashing {
	t.Helper()
	p := newProvisioning(t)
	f := &flashing{provisioning: p, image: filepath.Join(p.dir, "gw.img"), card: filepath.Join(p.dir, "card")}
	data := filepath.Join(p.dir, "data.ext4")
	mustRun(t, "", "bash", "-c", `set -e; mkdir -p "$1.d/etc" "$1.d/lib"; truncate -s 4M "$1"
"$2" -q -F -d "$1.d" "$1"; truncate -s 8M "$3"
printf 'label: gpt\nstart=2048, size=2048, name="boot"\nstart=4096, size=2048, name="slot-a"\nstart=6144, size=8192, name="data"\n' | "$4" --quiet "$3"
head -c 1M /dev/urandom | dd of="$3" bs=1M seek=2 conv=notrunc status=none
dd if="$1" of="$3" bs=1M seek=3 conv=notrunc status=none`, "bash", data, need(t, "mkfs.ext4"), f.image, need(t, "sfdisk"))
	f.argv = []string{"sh", "../provision.sh", "--device", "gw-1", "--image", f.image, "--to", f.card, "--ca", p.ca,
		"--registrar", p.registrar, "--broker", p.broker, "--records", p.records, "--tpm", p.tpm.Address(), "--factory", p.factory[0]}
	return f
}

// on shows a file of the card's data partition; "" where there is none.
func (f *flashing) on(t *testing.T, name string) string {
	t.Helper()
	out, _, _ := run(t, "", need(t, "debugfs"), "-R", "cat /etc/"+name, f.card+"?offset="+strconv.Itoa(3<<20))
	return out
}

// boots is the gateway's first start, as far as it matters: it enrolls with what it finds.
func (f *flashing) boots(t *testing.T) {
	t.Helper()
	etc := filepath.Join(f.root, "etc/ferrule")
	if err := os.MkdirAll(etc, 0o700); err != nil {
		t.Fatal(err)
	}
	config := strings.NewReplacer(`"/etc/ferrule`, `"`+etc, `"/var/lib/`, `"`+f.root+"/var/lib/", `"/run/`, `"`+f.root+"/run/").Replace(f.on(t, "ferrule.toml"))
	for name, text := range map[string]string{"ferrule.toml": config, "root.crt": f.on(t, "root.crt")} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, f.on(t, "token"), append(build(t, "ferrule", native), "enroll", "--config", filepath.Join(etc, "ferrule.toml"), "--token", "-")...)
}

// holds checks that the card is the image but for its data partition.
func (f *flashing) holds(t *testing.T) {
	t.Helper()
	image, err := os.ReadFile(f.image)
	if err != nil {
		t.Fatal(err)
	}
	card, err := os.ReadFile(f.card)
	if err != nil {
		t.Fatal(err)
	}
	if len(card) != len(image) || string(card[:3<<20]) != string(image[:3<<20]) || string(card[7<<20:]) != string(image[7<<20:]) {
		t.Error("the card is not the image")
	}
	mustRun(t, "", need(t, "e2fsck"), "-fn", f.card+"?offset="+strconv.Itoa(3<<20))
}

func TestFlash(t *testing.T) {
	f := newFlashing(t)
	said := mustRun(t, "", f.argv...)
	if !strings.Contains(said, "written and read back") || !strings.Contains(said, "start the gateway") {
		t.Errorf("the script said:\n%s", said)
	}
	f.holds(t)
	before := sumOf(t, f.card)
	if said := mustRun(t, "", f.argv...); strings.Contains(said, "written") || sumOf(t, f.card) != before {
		t.Errorf("a second run wrote:\n%s", said)
	}
	if _, err := os.Stat(f.records); err == nil {
		t.Error("a gateway that never started is on record")
	}
	old, long := f.on(t, "token"), time.Now().Add(-48*time.Hour)
	if err := os.Chtimes(f.records+".tokens/gw-1", long, long); err != nil {
		t.Fatal(err)
	}
	if said := mustRun(t, "", f.argv...); f.on(t, "token") == old || !strings.Contains(said, "token written") {
		t.Errorf("a token of the day before yesterday is still there:\n%s", said)
	}
	f.holds(t)
	before = sumOf(t, f.card)
	f.boots(t)
	mustRun(t, "", f.argv...)
	f.converged(t)
	if sumOf(t, f.card) != before {
		t.Error("the disk of a gateway that has enrolled was written to")
	}
	if err := os.Remove(f.card); err != nil { // it is in the gateway
		t.Fatal(err)
	}
	mustRun(t, "", f.argv...)
	f.converged(t)
	if _, err := os.Stat(f.card); err == nil {
		t.Error("a new card was written for a gateway that has enrolled")
	}
}

// One run from the empty card to the record: the gateway starts while the script waits.
func TestFlashAndWait(t *testing.T) {
	f := newFlashing(t)
	p := start(t, "provision.sh", append(f.argv, "--wait", "120")...)
	for line := range p.lines {
		if strings.Contains(line, "may be started") {
			break
		}
	}
	f.boots(t)
	<-p.ended
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	f.converged(t)
}

func TestFlashRefuses(t *testing.T) {
	f := newFlashing(t)
	cases := map[string][]string{
		"is neither a disk nor a file":           {"--to", f.dir},
		"there is no folder":                     {"--to", filepath.Join(f.dir, "no/card")},
		"there is no disk /dev/nothing-of-yours": {"--to", "/dev/nothing-of-yours"},
		"the image would be written to itself":   {"--to", f.image},
		"there is no image":                      {"--image", filepath.Join(f.dir, "nothing.img")},
		"is neither a disk":                      {"--to", "/dev/null"},
		"whole numbers":                          {"--wait", "long"},
		"leave --collect":                        {"--collect", f.dir},
	}
	image := sumOf(t, f.image)
	for want, flags := range cases {
		out, stderr, code := run(t, "", append(f.argv, flags...)...)
		if code != 1 || !strings.Contains(stderr, want) || !strings.Contains(stderr, "hint:") {
			t.Errorf("%q: exit code %d: %s%s", flags, code, out, stderr)
		}
	}
	if sumOf(t, f.image) != image {
		t.Error("the image was written to")
	}
}

// Disks that are none: nodes whose numbers no driver has, so that a mistake here writes to nothing.
func TestFlashRefusesDisks(t *testing.T) {
	f := newFlashing(t)
	stand := t.TempDir()
	if err := os.WriteFile(filepath.Join(stand, "blockdev"), []byte("#!/bin/sh\necho $ROOM\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat("/proc", &st); err != nil { // of major 0, and mounted
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, room, want string
		number           int
		flags            []string
	}{
		{"sdx", "1000", "take a larger card", 0, nil},
		{"sdx", "1000", "take a larger card", 0, []string{"--force"}},
		{"sdx", "100000000", "cannot be taken out", 0, nil},
		{"sdx", "100000000", "cannot be written", 0, []string{"--force"}},
		{"mmcblk7", "100000000", "cannot be written", 0, nil},
		{"mmcblk8", "100000000", "is in use", int(st.Dev), nil},
	} {
		node := filepath.Join(f.dir, c.name)
		if err := syscall.Mknod(node, syscall.S_IFBLK|0o600, c.number); err != nil {
			t.Fatal(err)
		}
		argv := append([]string{"env", "ROOM=" + c.room, "PATH=" + stand + string(os.PathListSeparator) + os.Getenv("PATH")}, append(f.argv, append(c.flags, "--to", node)...)...)
		_, stderr, code := run(t, "", argv...)
		if code != 1 || !strings.Contains(stderr, c.want) {
			t.Errorf("%s %v: exit code %d, want %q: %s", c.name, c.flags, code, c.want, stderr)
		}
		if err := os.Remove(node); err != nil {
			t.Fatal(err)
		}
	}
}

// A card that keeps something else than what was written to it is found out: what is read back is
// zeros.
func TestFlashReadsBack(t *testing.T) {
	f := newFlashing(t)
	stand := t.TempDir()
	liar := "#!/bin/sh\ncase \"$*\" in *iflag=*) head -c 8388608 /dev/zero ;; *) exec " + need(t, "dd") + " \"$@\" ;; esac\n"
	if err := os.WriteFile(filepath.Join(stand, "dd"), []byte(liar), 0o700); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := run(t, "", append([]string{"env", "PATH=" + stand + string(os.PathListSeparator) + os.Getenv("PATH")}, f.argv...)...)
	if code != 1 || !strings.Contains(stderr, "does not hold what was written") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
}

// The script is ended before every single program that it starts; the run after it makes a card that is
// whole, from which the gateway enrolls.
func TestFlashCutBeforeEveryProgram(t *testing.T) {
	steps := flashCutBefore(t, 0)
	t.Logf("%d programs", steps)
	if steps < 40 {
		t.Errorf("the script was cut at %d places only: are its programs still found by name?", steps)
	}
	for step := range steps {
		t.Run(fmt.Sprint(step+1), func(t *testing.T) { t.Parallel(); flashCutBefore(t, step+1) })
	}
}

func flashCutBefore(t *testing.T, step int) (programs int) {
	f := newFlashing(t)
	stand, count := t.TempDir(), filepath.Join(t.TempDir(), "count")
	for _, name := range strings.Fields("awk blockdev cat chmod cp cut date dd debugfs dirname e2fsck ferrule-factory find flock grep head mkdir mktemp mv openssl realpath rm sed sfdisk sha256sum stat sync touch tr truncate") {
		if err := os.WriteFile(filepath.Join(stand, name), []byte(killer), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	factory := filepath.Join(t.TempDir(), "ferrule-factory")
	if err := os.Symlink(f.factory[0], factory); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/bin/sh", append(f.argv[1:], "--factory", "ferrule-factory")...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Env = append(os.Environ(), "TMPDIR="+f.dir, "PATH="+stand, fmt.Sprintf("KILL_AT=%d", step), "KILL_COUNT="+count,
		"KILL_PATH="+strings.Join([]string{filepath.Dir(factory), os.Getenv("PATH"), "/usr/sbin", "/sbin"}, string(os.PathListSeparator)))
	out, err := command.CombinedOutput()
	if step == 0 && err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var exit *exec.ExitError
	if step > 0 && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
		t.Fatalf("%v\n%s", err, out)
	}
	mustRun(t, "", f.argv...)
	f.holds(t)
	for _, name := range []string{"root.crt", "ferrule.toml", "token", "provisioned"} {
		if f.on(t, name) == "" {
			t.Errorf("%s is not on the card", name)
		}
	}
	if step%5 == 0 { // enrolling takes longest, and the token is what it was
		f.boots(t)
		mustRun(t, "", f.argv...)
		f.converged(t)
	}
	started, err := os.ReadFile(count)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(started), "\n")
}
