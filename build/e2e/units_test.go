package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// The most that "systemd-analyze security" may say, of 10: what is left is said in each unit.
const mostExposed = 2.0

func TestUnitsAreShutIn(t *testing.T) {
	analyze := need(t, "systemd-analyze")
	exposure := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)
	for _, unit := range []string{"ferrule.service", "ferrule-revert.service", "ferrule-reboot.service"} {
		out, stderr, _ := run(t, "", analyze, "security", "--no-pager", "--offline=true", "../systemd/"+unit)
		found := exposure.FindStringSubmatch(out)
		if found == nil {
			t.Fatalf("%s: %s%s", unit, out, stderr)
		}
		level, err := strconv.ParseFloat(found[1], 64)
		if err != nil || level > mostExposed {
			t.Errorf("%s is exposed: %s\n%s", unit, found[1], out)
		}
		t.Logf("%s: %s", unit, found[1])
	}
}

// obeys runs ferrule-reboot over a wish and returns what systemctl was told, "" for nothing.
func obeys(t *testing.T, wish func(path string) error) string {
	t.Helper()
	dir := t.TempDir()
	path, told := filepath.Join(dir, "reboot"), filepath.Join(dir, "told")
	// systemctl finds the wish gone already.
	stand := fmt.Sprintf("#!/bin/sh\n[ ! -e %s ] || exit 9\nfor word; do printf '<%%s>' \"$word\"; done >%s\n", path, told)
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(stand), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := wish(path); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := run(t, "", "sh", "../systemd/ferrule-reboot", path, filepath.Join(dir, "systemctl"))
	if _, err := os.Lstat(path); err == nil {
		t.Errorf("the wish is still there: %s%s", out, stderr)
	}
	if strings.Contains(out+stderr, "secret") {
		t.Errorf("the wish is shown: %s%s", out, stderr)
	}
	text, err := os.ReadFile(told)
	if (err == nil) != (code == 0) {
		t.Errorf("exit code %d, told %q", code, text)
	}
	return string(text)
}

func TestRebootObeysWhatIsKnownAlone(t *testing.T) {
	written := func(text string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }
	}
	for text, want := range map[string]string{
		"":                                     "<reboot>",
		"\n":                                   "<reboot>",
		"0 tryboot":                            "<reboot><--reboot-argument=0 tryboot>",
		"0 tryboot\n":                          "<reboot><--reboot-argument=0 tryboot>",
		"0 tryboot; id":                        "",
		"--force":                              "",
		"secret":                               "",
		"0 tryboot\x00x":                       "",
		"\x00":                                 "",
		strings.Repeat("\n", 63) + "0 tryboot": "",
		strings.Repeat("secret", 1<<16):        "",
	} {
		if got := obeys(t, written(text)); got != want {
			t.Errorf("%.40q: systemctl was told %q, want %q", text, got, want)
		}
	}
	secret := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := obeys(t, func(path string) error { return os.Symlink(secret, path) }); got != "" {
		t.Errorf("a link is obeyed: %q", got)
	}
	if _, err := os.Stat(secret); err != nil {
		t.Error("what the link led to is gone")
	}
	if got := obeys(t, func(path string) error { return os.Mkdir(path, 0o700) }); got != "" {
		t.Errorf("a folder is obeyed: %q", got)
	}
}

// An agent that dies on trial, before it can count, takes the device down with it: the boot loader counts.
func TestAgainRestartsADeviceOnTrial(t *testing.T) {
	const again = "reset-failed ferrule.service\nstart --no-block ferrule.service\n"
	for _, c := range []struct{ cmdline, mark, want string }{
		{"quiet ferrule.slot=b ro\n", "b\n", "reboot\n"},
		{"quiet ferrule.slot=a ro\n", "b\n", again},
		{"quiet ferrule.slot=b ro\n", "", again},
		{"quiet ro\n", "b\n", again},
	} {
		root := t.TempDir()
		for name, text := range map[string]string{
			"proc/cmdline": c.cmdline, "var/lib/ferrule/update/trial": c.mark,
			"systemctl": "#!/bin/sh\n[ \"$1\" = show ] || echo \"$*\" >>" + root + "/told\n",
		} {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		mustRun(t, "", "sh", "../systemd/ferrule-again", "0", filepath.Join(root, "systemctl"), root)
		if told, _ := os.ReadFile(filepath.Join(root, "told")); string(told) != c.want {
			t.Errorf("started with %q and the mark %q, systemctl was told %q, want %q", c.cmdline, c.mark, told, c.want)
		}
	}
}

// What failed for good is started again, but for a device that must not be.
func TestAgainMindsTheExitCode(t *testing.T) {
	for code, want := range map[string]string{"78": "", "1": "reset-failed ferrule.service\nstart --no-block ferrule.service\n", "": "reset-failed ferrule.service\nstart --no-block ferrule.service\n"} {
		dir := t.TempDir()
		stand := "#!/bin/sh\nif [ \"$1\" = show ]; then echo " + code + "; else echo \"$*\" >>" + dir + "/told; fi\n"
		if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(stand), 0o700); err != nil {
			t.Fatal(err)
		}
		mustRun(t, "", "sh", "../systemd/ferrule-again", "0", filepath.Join(dir, "systemctl"))
		if told, _ := os.ReadFile(filepath.Join(dir, "told")); string(told) != want {
			t.Errorf("after exit code %q systemctl was told %q, want %q", code, told, want)
		}
	}
}
