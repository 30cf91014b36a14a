package gateway

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestReproducible builds every image from two folders, by umasks and at times of their own: the bytes are
// the same.
func TestReproducible(t *testing.T) {
	t.Parallel()
	tools(t)
	sums := map[string]string{}
	for n, umask := range []string{"022", "077"} {
		tree, out := filepath.Join(t.TempDir(), strings.Repeat("deep/", n)+"tree"), t.TempDir()
		copyTree(t, tree)
		cache := filepath.Join(root(t), ".cache", "image")
		for _, target := range []string{"qemu-arm64", "rpi-arm64"} {
			command := exec.CommandContext(t.Context(), "sh", "-c", "umask "+umask+" && exec \"$@\"", "sh",
				"go", "run", "./build/image", "-o", out, "-cache", cache, "-version", "1.0.0", target)
			command.Dir = tree
			command.Env = append(os.Environ(), "CGO_ENABLED=0", "SOURCE_DATE_EPOCH=1790000000")
			if said, err := command.CombinedOutput(); err != nil {
				t.Fatalf("building %s: %v\n%s", target, err, said)
			}
		}
		for _, name := range []string{"ferrule-qemu-arm64.img", "ferrule-qemu-arm64.flash", "ferrule-qemu-arm64.rootfs.ext4", "ferrule-rpi-arm64.img", "ferrule-rpi-arm64.rootfs.vfat"} {
			sum := fileSum(t, filepath.Join(out, name))
			if n == 0 {
				sums[name] = sum
			} else if sums[name] != sum {
				t.Errorf("%s is %s in one folder and %s in the other", name, sums[name], sum)
			}
		}
		if n == 0 {
			checkRaspberry(t, filepath.Join(out, "ferrule-rpi-arm64.img"))
		}
	}
}

// copyTree copies what git knows of, and what it would take.
func copyTree(t *testing.T, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := inRoot(t, "sh", "-c", "git ls-files -z -co --exclude-standard | tar --null --ignore-failed-read -cT - | tar -xC "+to); err != nil {
		t.Fatal(err)
	}
}

func fileSum(t *testing.T, name string) string {
	t.Helper()
	file, err := os.Open(name)
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

// checkRaspberry looks at the disk of a Raspberry Pi with other people's tools: nobody boots it here.
func checkRaspberry(t *testing.T, image string) {
	t.Helper()
	table := mustRun(t, need(t, "sfdisk"), "-d", image)
	for _, want := range []string{"label: dos", "start=        2048, size=       32768, type=c, bootable", "size=      262144, type=c", "type=83"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table does not say %q:\n%s", want, table)
		}
	}
	part := filepath.Join(t.TempDir(), "part")
	for n, p := range []struct{ at, size int64 }{{1, 16}, {17, 128}, {145, 128}} {
		mustRun(t, "dd", "status=none", "bs=1M", "if="+image, "of="+part, fmt.Sprintf("skip=%d", p.at), fmt.Sprintf("count=%d", p.size))
		mustRun(t, need(t, "fsck.vfat"), "-n", part)
		files := mustRun(t, need(t, "mdir"), "-b", "-/", "-i", part, "::/")
		wants := []string{"::/autoboot.txt"}
		if n > 0 {
			wants = []string{"::/config.txt", "::/cmdline-a.txt", "::/cmdline-b.txt", "::/Image", "::/initrd", "::/bcm2711-rpi-4-b.dtb", "::/usr/bin/ferrule", "::/etc/os-release"}
		}
		for _, want := range wants {
			if !strings.Contains(files, want+"\n") {
				t.Errorf("partition %d has no %s:\n%s", n+1, want, files)
			}
		}
		if err := os.Remove(part); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, "dd", "status=none", "bs=1M", "if="+image, "of="+part, "skip=273", "count=64")
	mustRun(t, need(t, "e2fsck"), "-fn", part)
}
