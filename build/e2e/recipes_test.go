package e2e

import (
	"crypto/md5"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	recipe    = "../yocto/recipes-ferrule/ferrule/ferrule_git.bb"
	buildroot = "../buildroot/package/ferrule/ferrule.mk"
)

// What the recipes install is in the tree, and everything that the packages have is in the recipes.
func TestRecipesInstallWhatThereIs(t *testing.T) {
	files := regexp.MustCompile(`(?:\$\{S\}|\$\(@D\))/(build/[A-Za-z0-9./-]*[A-Za-z0-9])`)
	units, err := filepath.Glob("../systemd/*")
	if err != nil || len(units) < 8 {
		t.Fatalf("units: %v, %v", units, err)
	}
	for _, path := range []string{recipe, buildroot} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		for _, found := range files.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join("../..", found[1])); err != nil {
				t.Errorf("%s installs what is not there: %v", path, err)
			}
		}
		for _, unit := range units {
			name := filepath.Base(unit)
			if !strings.Contains(text, name) && name != "ferrule.sysusers" { // they make users in ways of their own
				t.Errorf("%s leaves %s out", path, name)
			}
		}
	}
	licence, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(recipe)
	if sum := fmt.Sprintf("LICENSE;md5=%x", md5.Sum(licence)); !strings.Contains(string(text), sum) {
		t.Errorf("the recipe's digest of the licence is not %s", sum)
	}
}

// make reads Buildroot's files as Buildroot does, but that its own macros do nothing.
func TestBuildrootPackageIsRead(t *testing.T) {
	stub := filepath.Join(t.TempDir(), "Makefile")
	text := "golang-package =\nINSTALL = install\ninclude ../buildroot/external.mk\nall:\n\t$(foreach v,SITE_METHOD LICENSE_FILES GOMOD BUILD_TARGETS TAGS,$(info $(v)=$(FERRULE_$(v))))@:\n$(TREE)/files:\n\t$(FERRULE_INSTALL_FILES)\n\t$(FERRULE_INSTALL_INIT_SYSTEMD)\n\t$(FERRULE_INSTALL_INIT_OPENRC)\n\t$(FERRULE_INSTALL_INIT_SYSV)\n"
	if err := os.WriteFile(stub, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	external, err := filepath.Abs("../buildroot")
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "target")
	argv := []string{"make", "--no-print-directory", "--warn-undefined-variables", "-f", stub, "BR2_EXTERNAL_FERRULE_PATH=" + external, "TREE=" + filepath.Dir(filepath.Dir(external)), "TARGET_DIR=" + target}
	out, stderr, code := run(t, "", append(argv, "all")...)
	if code != 0 || !strings.Contains(out, "BUILD_TARGETS=cmd/ferrule\n") || !strings.Contains(out, "TAGS=nethttpomithttp2\n") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	mustRun(t, "", append(argv, filepath.Join(filepath.Dir(filepath.Dir(external)), "files"))...)
	for _, name := range []string{"usr/lib/ferrule/ferrule-launch", "usr/lib/systemd/system/ferrule-reboot.path", "etc/init.d/S90ferrule", "usr/lib/tmpfiles.d/ferrule.conf"} {
		if _, err := os.Stat(filepath.Join(target, name)); err != nil {
			t.Error(err)
		}
	}
	mustRun(t, "", "sh", "-n", filepath.Join(external, "package/ferrule/S90ferrule"))
}

// bitbake's files are not run here; a foreign parser of them finds no error in the recipe. It is no
// package of Debian's, so whoever has it names it by OELINT.
func TestRecipeIsRead(t *testing.T) {
	tool := os.Getenv("OELINT")
	if tool == "" {
		t.Log("OELINT is not set: the recipe was not looked at by oelint-adv (pip install oelint-adv)")
		return
	}
	out, _ := exec.Command(tool, "--release", "scarthgap", "--hide", "info", recipe).CombinedOutput()
	if strings.Contains(string(out), ":error:") {
		t.Errorf("%s", out)
	}
}
