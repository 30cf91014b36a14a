package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// debian is a minimal Debian with systemd in a folder.
type debian struct{ root string }

// newDebian makes one by mmdebstrap, which takes most of a minute.
func newDebian(t *testing.T) *debian {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("packages are installed in a root of their own, which needs root")
	}
	d := &debian{root: filepath.Join(t.TempDir(), "root")}
	command := exec.CommandContext(t.Context(), need(t, "mmdebstrap"), "--quiet", "--variant=essential", "--include=systemd,passwd", "--dpkgopt=force-unsafe-io", "bookworm", d.root)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	return d
}

// do runs a command in it.
func (d *debian) do(t *testing.T, argv ...string) string {
	t.Helper()
	out, stderr, code := d.try(t, argv...)
	if code != 0 {
		t.Fatalf("%q ended with %d:\n%s%s", argv, code, out, stderr)
	}
	return out + stderr
}

func (d *debian) try(t *testing.T, argv ...string) (stdout, stderr string, code int) {
	t.Helper()
	words := append([]string{"chroot", d.root, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"}, argv...)
	return run(t, "", words...)
}

// install installs a package that lies outside.
func (d *debian) install(t *testing.T, deb string) string {
	t.Helper()
	mustRun(t, "", "cp", deb, filepath.Join(d.root, "tmp/ferrule.deb"))
	out := d.do(t, "dpkg", "--install", "/tmp/ferrule.deb")
	if audit := d.do(t, "dpkg", "--audit"); audit != "" {
		t.Errorf("dpkg --audit: %s", audit)
	}
	return out
}

func (d *debian) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.root, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (d *debian) has(name string) bool {
	_, err := os.Lstat(filepath.Join(d.root, name))
	return err == nil
}

// mode is what stat says of a file: rights, owner, group.
func (d *debian) mode(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(d.do(t, "stat", "--format=%a %U %G", name))
}

// next is the package of a later version.
func next(t *testing.T) string {
	t.Helper()
	p := first(t)
	dir := filepath.Join(t.TempDir(), "next")
	copyTree(t, dir)
	mustRun(t, "", "bash", "-c", `mkdir "$1/dist" && cp "$0" "$1/dist/" && printf '\n# New in this version.\n' >>"$1/build/packages/default" && SOURCE_DATE_EPOCH=1795219201 "$1/build/packages/build.sh" v1.2.4 amd64`,
		filepath.Join(p.dir, "dist/ferrule-amd64"), dir)
	return (&packaged{dir: dir}).one(t, ".deb")
}

const enabled = "etc/systemd/system/multi-user.target.wants/ferrule.service"

func TestPackageInDebian(t *testing.T) {
	deb, later := first(t).one(t, ".deb"), next(t)
	d := newDebian(t)
	d.install(t, deb)
	d.installed(t)
	d.verifies(t)
	d.boots(t)

	// What somebody changed, and what the device has made, outlives an upgrade; so does a service that
	// was switched off.
	d.write(t, "etc/ferrule/example.toml", "# mine\n")
	d.write(t, "etc/ferrule/ferrule.toml", "# the device's\n")
	d.write(t, "var/lib/ferrule/device.key", "key\n")
	d.do(t, "systemctl", "disable", "ferrule.service")
	d.install(t, later)
	if version := d.do(t, "dpkg-query", "--show", "--showformat=${Version}", "ferrule"); version != "1.2.4-1" {
		t.Errorf("version %s", version)
	}
	if text := d.do(t, "cat", "/etc/ferrule/example.toml", "/etc/ferrule/ferrule.toml", "/var/lib/ferrule/device.key"); text != "# mine\n# the device's\nkey\n" {
		t.Errorf("after the upgrade: %q", text)
	}
	if text := d.do(t, "cat", "/etc/default/ferrule"); !strings.Contains(text, "New in this version") {
		t.Errorf("an unchanged conffile was not replaced: %s", text)
	}
	if d.has(enabled) {
		t.Error("the upgrade has switched the service on")
	}

	d.do(t, "dpkg", "--remove", "ferrule")
	if d.has("usr/bin/ferrule") || !d.has("var/lib/ferrule/device.key") || !d.has("etc/ferrule/ferrule.toml") {
		t.Error("removing takes the program, and leaves identity and configuration")
	}
	d.install(t, deb) // somebody comes back
	if !d.has("var/lib/ferrule/device.key") || d.mode(t, "/var/lib/ferrule") != "700 ferrule ferrule" {
		t.Error("the state is not what it was")
	}
	d.do(t, "dpkg", "--purge", "ferrule")
	for _, name := range []string{"var/lib/ferrule", "etc/ferrule", "etc/default/ferrule", enabled, "etc/systemd/system/ferrule.service"} {
		if d.has(name) {
			t.Errorf("purging leaves %s", name)
		}
	}
	d.installsWithoutSystemd(t, deb)
}

// installed checks what installing has made.
func (d *debian) installed(t *testing.T) {
	t.Helper()
	groups := strings.Fields(d.do(t, "id", "--name", "--groups", "ferrule"))
	for _, want := range []string{"ferrule", "tss", "dialout"} {
		if !strings.Contains(" "+strings.Join(groups, " ")+" ", " "+want+" ") {
			t.Errorf("ferrule is in %q, and not in %s", groups, want)
		}
	}
	if line := d.do(t, "getent", "passwd", "ferrule"); !strings.Contains(line, ":/var/lib/ferrule:/usr/sbin/nologin") {
		t.Errorf("the user: %s", line)
	}
	for name, want := range map[string]string{
		"/etc/ferrule": "770 root ferrule", "/var/lib/ferrule": "700 ferrule ferrule", "/usr/bin/ferrule": "755 root root",
		"/usr/lib/ferrule/ferrule-launch": "755 root root", "/etc/ferrule/example.toml": "644 root root",
	} {
		if got := d.mode(t, name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if !d.has(enabled) || !d.has("etc/systemd/system/multi-user.target.wants/ferrule-reboot.path") {
		t.Error("the units are not enabled")
	}
	if version := d.do(t, "/usr/lib/ferrule/ferrule-launch", "version"); !strings.HasPrefix(version, "ferrule v1.2.3 ") {
		t.Errorf("through the launcher: %s", version)
	}
	// The example is a configuration, once it has its own files.
	if out, stderr, _ := d.try(t, "/usr/bin/ferrule", "check", "--config", "/etc/ferrule/example.toml"); strings.Contains(stderr, "unknown") {
		t.Errorf("the example: %s%s", out, stderr)
	}
}

func (d *debian) verifies(t *testing.T) {
	t.Helper()
	units, err := filepath.Glob(filepath.Join(d.root, "usr/lib/systemd/system/ferrule*"))
	if err != nil || len(units) != 4 {
		t.Fatalf("units: %v, %v", units, err)
	}
	for _, unit := range units {
		out, stderr, code := d.try(t, "systemd-analyze", "verify", "--man=no", "--recursive-errors=one", "/usr/lib/systemd/system/"+filepath.Base(unit))
		if code != 0 || out+stderr != "" {
			t.Errorf("verifying %s, exit code %d:\n%s%s", filepath.Base(unit), code, out, stderr)
		}
	}
}

// installsWithoutSystemd takes what systemd brings away, as on a Debian with another init.
func (d *debian) installsWithoutSystemd(t *testing.T, deb string) {
	t.Helper()
	d.do(t, "userdel", "ferrule")
	for _, program := range []string{"usr/bin/systemd-sysusers", "usr/bin/systemctl", "usr/bin/deb-systemd-helper"} {
		path := filepath.Join(d.root, program)
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
		if err := exec.Command("mv", path, path+".away").Run(); err != nil {
			t.Fatal(err)
		}
	}
	d.install(t, deb)
	if groups := d.do(t, "id", "--name", "--groups", "ferrule"); strings.TrimSpace(groups) != "ferrule tss dialout" && strings.TrimSpace(groups) != "ferrule dialout tss" {
		t.Errorf("ferrule is in %q", groups)
	}
	if got := d.mode(t, "/var/lib/ferrule"); got != "700 ferrule ferrule" {
		t.Errorf("/var/lib/ferrule: %s", got)
	}
	d.do(t, "dpkg", "--purge", "ferrule")
}
