package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// packaged is a copy of this tree in which programs and packages of one architecture were built.
type packaged struct {
	dir, version string
}

var oncePackaged struct {
	sync.Mutex
	made map[string]*packaged
}

// packagesOf builds the packages of a version once in a copy of the tree. environment is what the
// builder's machine has of its own.
func packagesOf(t *testing.T, folder, version string, environment ...string) *packaged {
	t.Helper()
	oncePackaged.Lock()
	defer oncePackaged.Unlock()
	if p := oncePackaged.made[folder]; p != nil {
		return p
	}
	p := &packaged{dir: filepath.Join(builds.dir, folder), version: version}
	copyTree(t, p.dir)
	script := `set -e; umask ${UMASK:-022}
build/cross.sh "-s -w -buildid= -X main.version=$1 -X main.built=2026-11-21T00:00:00Z" nethttpomithttp2 amd64
build/packages/build.sh "$1" amd64`
	command := exec.CommandContext(t.Context(), "bash", "-c", script, "bash", version)
	command.Dir = p.dir
	command.Env = append(append(os.Environ(), "SOURCE_DATE_EPOCH=1795219200"), environment...)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("building the packages: %v\n%s", err, out)
	}
	if oncePackaged.made == nil {
		oncePackaged.made = map[string]*packaged{}
	}
	oncePackaged.made[folder] = p
	return p
}

// copyTree copies what git has, or would have, of this tree; .cache is shared.
func copyTree(t *testing.T, to string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, ".cache"), 0o755); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "", "bash", "-c", `mkdir -p "$2" && cd "$1" && git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -cf - -T - 2>/dev/null | tar -xf - -m -C "$2" && rm -rf "$2/.cache" && ln -s "$1/.cache" "$2/.cache"`, "bash", root, to)
}

// one is the package of a kind, such as .deb.
func (p *packaged) one(t *testing.T, kind string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.dir, "dist/packages/*"+kind))
	if err != nil || len(found) != 1 {
		t.Fatalf("packages of kind %s: %v, %v", kind, found, err)
	}
	return found[0]
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func first(t *testing.T) *packaged { return packagesOf(t, "first", "v1.2.3") }

// Program and packages are the same bytes, whoever builds them where and when.
func TestPackagesAreReproducible(t *testing.T) {
	one := first(t)
	other := packagesOf(t, "another-folder/with a longer path", "v1.2.3",
		"UMASK=077", "TZ=Asia/Tokyo", "LANG=de_DE.UTF-8", "GOFLAGS=-buildvcs=true", "GOAMD64=v3", "HOSTNAME=elsewhere")
	for _, name := range []string{"dist/ferrule-amd64", "dist/packages/SHA256SUMS"} {
		if a, b := sumOf(t, filepath.Join(one.dir, name)), sumOf(t, filepath.Join(other.dir, name)); a != b {
			t.Errorf("%s differs: %s, %s", name, a, b)
		}
	}
	sums, err := os.ReadFile(filepath.Join(one.dir, "dist/packages/SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"ferrule_1.2.3-1_amd64.deb", "ferrule-1.2.3-1.x86_64.rpm", "ferrule-1.2.3-r1.x86_64.apk", "ferrule_1.2.3-1_x86_64.ipk"}
	for _, name := range want {
		if !strings.Contains(string(sums), "  "+name+"\n") {
			t.Errorf("%s is missing in\n%s", name, sums)
		}
	}
}

// What other programs say of the packages.
func TestPackagesAreSound(t *testing.T) {
	p := first(t)
	deb, rpm, apk, ipk := p.one(t, ".deb"), p.one(t, ".rpm"), p.one(t, ".apk"), p.one(t, ".ipk")
	files := map[string]string{
		"deb": mustRun(t, "", need(t, "dpkg-deb"), "--contents", deb),
		"rpm": mustRun(t, "", need(t, "rpm"), "-qpl", rpm),
		"apk": mustRun(t, "", "tar", "--warning=no-unknown-keyword", "-tzf", apk),
		"ipk": mustRun(t, "", "bash", "-c", `tar -xzOf "$0" ./data.tar.gz | tar -tz`, ipk),
	}
	for kind, list := range files {
		for _, name := range []string{"usr/bin/ferrule", "usr/lib/ferrule/ferrule-launch", "etc/ferrule/example.toml", "etc/default/ferrule", "usr/share/doc/ferrule/copyright"} {
			if !strings.Contains(list, name) {
				t.Errorf("%s has no %s:\n%s", kind, name, list)
			}
		}
		systemd := kind == "deb" || kind == "rpm"
		if strings.Contains(list, "ferrule-reboot.path") != systemd || strings.Contains(list, "udev/rules.d/60-ferrule.rules") != systemd || strings.Contains(list, "init.d/ferrule") == systemd {
			t.Errorf("what starts %s:\n%s", kind, list)
		}
	}
	if out, stderr, code := run(t, "", need(t, "lintian"), "--allow-root", "--fail-on", "error,warning", deb); code != 0 {
		t.Errorf("lintian: %s%s", out, stderr)
	}
	if out := mustRun(t, "", "rpm", "-K", "--nosignature", rpm); !strings.Contains(out, "digests OK") {
		t.Errorf("rpm -K: %s", out)
	}
	if out := mustRun(t, "", "rpm", "-qp", "--configfiles", rpm); out != "/etc/default/ferrule\n/etc/ferrule/example.toml\n" {
		t.Errorf("configuration files of the rpm: %q", out)
	}
	// rpm2cpio ends with 1, after the whole archive: nfpm's library counts its bytes in another way.
	if list := mustRun(t, "", "bash", "-c", `rpm2cpio "$0" | cpio --quiet --list`, rpm); !strings.Contains(list, "/usr/bin/ferrule\n") {
		t.Errorf("rpm2cpio: %s", list)
	}
	root := t.TempDir()
	mustRun(t, "", "rpm", "--root", root, "--install", "--nodeps", "--noscripts", rpm)
	if out, stderr, code := run(t, "", "rpm", "--root", root, "--verify", "--nodeps", "--noscripts", "ferrule"); code != 0 {
		t.Errorf("what rpm installed is not what the package says: %s%s", out, stderr)
	}
	info := mustRun(t, "", "tar", "--warning=no-unknown-keyword", "-xzOf", apk, ".PKGINFO")
	if !strings.Contains(info, "pkgver = 1.2.3-r1\n") || !strings.Contains(info, "arch = x86_64\n") {
		t.Errorf(".PKGINFO: %s", info)
	}
	for _, script := range []string{"postinstall.sh", "preremove.sh", "postremove.sh", "openrc", "procd"} {
		mustRun(t, "", "sh", "-n", filepath.Join(p.dir, "build/packages", script))
	}
}

// The versions of packages rise as those of git do.
func TestPackageVersionsRise(t *testing.T) {
	text, err := os.ReadFile("../packages/build.sh")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "# --- The version")
	part, _, ok := strings.Cut(rest, "# --- What every")
	if !ok {
		t.Fatal("build.sh has no such parts")
	}
	script := "describe=$0\n#" + part + "\n" + `echo "$version${pre:+~$pre}${after:++$after}-1"`
	var before string
	for _, described := range []string{"0123abc", "v1.2.3-rc1", "v1.2.3-rc1-4-gabcdef0", "v1.2.3-rc2", "v1.2.3", "v1.2.3-2-g0123abc", "v1.2.3-10-g0123abc", "v1.2.3-10-g0123abc-dirty", "v1.2.4"} {
		command := exec.Command("bash", "-c", "set -eu\n"+script, described)
		command.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1795219200")
		out, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", described, err, out)
		}
		version := strings.TrimSpace(string(out))
		if before != "" {
			if err := exec.Command("dpkg", "--compare-versions", version, "gt", before).Run(); err != nil {
				t.Errorf("%s (%s) is not above %s", version, described, before)
			}
		}
		before = version
	}
}
