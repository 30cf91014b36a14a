package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// deltaTools are the programs of testdata that make and apply objects, and nothing else, so that
// their memory is the encoder's and the decoder's.
type deltaTools struct{ dir, make, apply string }

func newDeltaTools(t *testing.T) *deltaTools {
	t.Helper()
	d := &deltaTools{dir: t.TempDir()}
	for program, path := range map[string]*string{"deltamake": &d.make, "deltaapply": &d.apply} {
		*path = filepath.Join(d.dir, program)
		command := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", *path, "ferrule/build/e2e/testdata/"+program)
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", program, err, out)
		}
	}
	return d
}

// figures are what one object costs.
type figures struct {
	name       string
	image      int64 // bytes
	object     int64 // bytes
	path       string
	kinds      string
	encodeCPU  time.Duration
	encodePeak int64 // bytes of memory
	applyCPU   time.Duration
	applyPeak  int64 // bytes of memory
}

func (f figures) String() string {
	return fmt.Sprintf("%-34s image %6.1f MB, object %9d B; made in %5.1f s of CPU, %3d MB; applied in %4.2f s of CPU, %4.1f MiB; %s",
		f.name, float64(f.image)/1e6, f.object, f.encodeCPU.Seconds(), f.encodePeak/1e6, f.applyCPU.Seconds(), float64(f.applyPeak)/(1<<20), f.kinds)
}

// object makes an object of old, or a full one where old is "-", applies it with the memory limit
// of a small gateway, and checks that what comes out is image.
func (d *deltaTools) object(t *testing.T, name, old, image string, flags ...string) figures {
	t.Helper()
	f := figures{name: name, image: bytesOf(t, image)}
	object, want, made := filepath.Join(t.TempDir(), "object"), filepath.Join(d.dir, "want"), filepath.Join(t.TempDir(), "made")
	out, state := d.run(t, nil, append([]string{d.make, old, image, object, want}, flags...)...)
	f.path = object
	f.encodeCPU, f.object = state.UserTime()+state.SystemTime(), bytesOf(t, object)
	f.encodePeak, f.kinds = peak(t, out)
	out, state = d.run(t, []string{"GOMEMLIMIT=14MiB"}, d.apply, old, object, want, made)
	f.applyCPU = state.UserTime() + state.SystemTime()
	f.applyPeak, _ = peak(t, out)
	if mustRun(t, "", "cmp", image, made) != "" {
		t.Fatal("what was applied is not what it was made of")
	}
	t.Log(f)
	if f.applyPeak > 16<<20 {
		t.Errorf("%s: applying it took %d bytes of memory", name, f.applyPeak)
	}
	if f.encodePeak > 600<<20 {
		t.Errorf("%s: making it took %d bytes of memory", name, f.encodePeak)
	}
	return f
}

// readAgain has another reader than ours, with zstd itself for the frames, read an object.
func (d *deltaTools) readAgain(t *testing.T, f figures, old, image string) {
	t.Helper()
	made := filepath.Join(t.TempDir(), "made")
	need(t, "zstd")
	mustRun(t, "", need(t, "python3"), "testdata/readobject.py", old, f.path, made)
	mustRun(t, "", "cmp", image, made)
}

// peak reads what the tools print: their peak memory, and else.
func peak(t *testing.T, out string) (int64, string) {
	t.Helper()
	number, rest, _ := strings.Cut(strings.TrimSpace(out), " ")
	kib, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10, rest
}

func (d *deltaTools) run(t *testing.T, env []string, argv ...string) (string, *os.ProcessState) {
	t.Helper()
	command := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	command.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, &stderr)
	}
	return string(out), command.ProcessState
}

func bytesOf(t *testing.T, name string) int64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// patchFrom is how many bytes zstd's own delta takes, whose decoder holds both images in memory.
func patchFrom(t *testing.T, d *deltaTools, old, image string) int64 {
	t.Helper()
	out := filepath.Join(t.TempDir(), "zst")
	d.run(t, nil, need(t, "zstd"), "-q", "-19", "--long=29", "-T2", "--patch-from="+old, image, "-o", out)
	return bytesOf(t, out)
}

// plain logs what the foreign zstd takes to decompress the whole image and to write it, without
// a look at what it is.
func (d *deltaTools) plain(t *testing.T, f figures, image string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "zst")
	d.run(t, nil, need(t, "zstd"), "-q", "-6", "-T2", image, "-o", out)
	_, state := d.run(t, nil, need(t, "zstd"), "-q", "-d", "--no-sparse", out, "-o", out+".image")
	cpu := state.UserTime() + state.SystemTime()
	t.Logf("%s: applied in %.2f of the CPU of zstd -d of the full image, which takes %.2f s", f.name, f.applyCPU.Seconds()/cpu.Seconds(), cpu.Seconds())
}

// releaseOfAgent builds the program as make cross does.
func releaseOfAgent(t *testing.T, name, version, tags string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	command := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", tags,
		"-ldflags", "-s -w -buildid= -X main.version="+version, "-o", path, "ferrule/cmd/ferrule")
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm", "GOARM=7")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, out)
	}
	return path
}

// Two releases of the agent: one that differs in its version alone, and one whose dependencies
// have changed, so that nearly every address in it has moved.
func TestDeltaOfTheAgent(t *testing.T) {
	t.Parallel()
	d := newDeltaTools(t)
	image := releaseOfAgent(t, "new", "v1.0.1", "nethttpomithttp2")
	full := d.object(t, "agent, full", "-", image)
	version := d.object(t, "agent, another version", releaseOfAgent(t, "version", "v1.0.0", "nethttpomithttp2"), image)
	if version.object > 4<<10 {
		t.Errorf("another version takes %d bytes", version.object)
	}
	old := releaseOfAgent(t, "old", "v1.0.0", "none")
	changed := d.object(t, "agent, other dependencies", old, image)
	if float64(changed.object) > 0.3*float64(full.object) {
		t.Errorf("other dependencies take %d bytes of %d: %.3f", changed.object, full.object, float64(changed.object)/float64(full.object))
	}
	d.readAgain(t, full, "-", image)
	d.readAgain(t, changed, old, image)
	t.Logf("other dependencies: %.3f of full; zstd -19 --patch-from takes %d bytes", float64(changed.object)/float64(full.object), patchFrom(t, d, old, image))
}

// rootOf is a root file system of Debian, without or with security updates.
func rootOf(t *testing.T, dir, packages string, security bool) string {
	t.Helper()
	const release = "bookworm"
	sources := []string{source(t, release)}
	if security {
		sources = append(sources, source(t, release+"-security"))
	}
	argv := []string{need(t, "mmdebstrap"), "--quiet", "--variant=extract", "--architectures=arm64", "--include=" + packages,
		release, dir}
	argv = append(argv, sources...)
	command := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	command.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return dir
}

// source is the line of apt for one suite, from where this machine has it.
func source(t *testing.T, suite string) string {
	t.Helper()
	targets := mustRun(t, "", "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages")
	for target := range strings.Lines(targets) {
		if address, name, _ := strings.Cut(strings.TrimSpace(target), " "); name == suite {
			return "deb " + address + " " + suite + " main"
		}
	}
	t.Fatalf("apt does not know %s; run: apt-get update", suite)
	return ""
}

func squashed(t *testing.T, dir string) string {
	t.Helper()
	image := dir + ".squashfs"
	command := exec.CommandContext(t.Context(), need(t, "mksquashfs"), dir, image, "-comp", "zstd", "-b", "128K", "-all-root", "-noappend", "-quiet", "-no-progress")
	command.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	return image
}

func ext4(t *testing.T, dir, size string) string {
	t.Helper()
	const id = "00000000-0000-0000-0000-00000000000"
	image := dir + ".ext4"
	mustRun(t, "", need(t, "mkfs.ext4"), "-q", "-F", "-U", id+"1", "-E", "hash_seed="+id+"2,root_owner=0:0", "-d", dir, image, size)
	return image
}

// Two root file systems of Debian, of which one has the security updates. E2E_DELTA=full makes
// them as large as those of gateways are, which takes minutes.
func TestDeltaOfAFileSystem(t *testing.T) {
	t.Parallel()
	d := newDeltaTools(t)
	packages, room, flags := "systemd,openssl,curl", "320M", []string{"quick"}
	if os.Getenv("E2E_DELTA") == "full" {
		flags = nil
		packages, room = "systemd,systemd-sysv,openssh-server,tpm2-tools,openssl,python3,modemmanager,rauc,ca-certificates,curl,iproute2,perl,udev,dbus,nano,mosquitto-clients", "400M"
	}
	old, updated := rootOf(t, filepath.Join(d.dir, "old"), packages, false), rootOf(t, filepath.Join(d.dir, "new"), packages, true)
	oldImage, image := squashed(t, old), squashed(t, updated)
	made := d.object(t, "squashfs", oldImage, image)
	theirs := patchFrom(t, d, oldImage, image)
	t.Logf("squashfs: %.4f of zstd -19 --patch-from, which takes %d bytes", float64(made.object)/float64(theirs), theirs)
	if float64(made.object) > 1.05*float64(theirs) {
		t.Errorf("%d bytes, and zstd -19 --patch-from takes %d", made.object, theirs)
	}
	d.plain(t, made, image)
	oldLarge, large := ext4(t, old, room), ext4(t, updated, room)
	d.plain(t, d.object(t, "ext4", oldLarge, large, flags...), large)
	if os.Getenv("E2E_DELTA") == "full" {
		d.object(t, "squashfs, full", "-", image)
		d.object(t, "ext4, full", "-", large)
		t.Logf("ext4: zstd -19 --patch-from takes %d bytes", patchFrom(t, d, oldLarge, large))
	}
}
