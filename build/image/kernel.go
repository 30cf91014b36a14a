package main

import (
	"cmp"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// wanted are the modules of the appliance; what they need comes with them. Serial ports, ext4 and
// the TPM's core are built into this kernel, and it is the one of Debian's that knows a TIS TPM.
var wanted = []string{"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "tpm_tis", "softdog"}

// kernel is what was taken out of Debian's package.
type kernel struct {
	image   string            // the file
	modules []string          // files, each after those that it needs
	names   map[string]string // module → file
}

// sources are Debian's, and apt checks their signatures with the machine's keyring.
const sources = `Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`

// openKernel finds the package in the cache, or brings it there, and unpacks it.
func (b *builder) openKernel(ctx context.Context) (*kernel, error) {
	pattern := filepath.Join(b.cache, "linux-image-*-cloud-arm64_"+cmp.Or(b.kernel, "*")+"_arm64.deb")
	found, err := filepath.Glob(pattern)
	if err != nil {
		return nil, fmt.Errorf("looking for a kernel: %w", err)
	}
	if len(found) == 0 {
		if err := b.download(ctx); err != nil {
			return nil, fmt.Errorf("downloading a kernel: %w", err)
		}
		if found, err = filepath.Glob(pattern); err != nil || len(found) == 0 {
			return nil, fmt.Errorf("downloading a kernel: there is no %s: %w", pattern, err)
		}
	}
	dir := filepath.Join(b.work, "kernel")
	if err := b.tool(ctx, "", "dpkg-deb", "-x", found[len(found)-1], dir); err != nil {
		return nil, err
	}
	return readKernel(dir)
}

// download has an apt of its own, for a foreign architecture that this machine need not know of.
func (b *builder) download(ctx context.Context) error {
	dir, err := filepath.Abs(b.cache)
	if err != nil {
		return err
	}
	apt := filepath.Join(b.work, "apt")
	for _, name := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(apt, name), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"status": "", "debian.sources": sources} {
		if err := os.WriteFile(filepath.Join(apt, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	options := []string{"-q", "-o", "Dir::State=" + apt, "-o", "Dir::State::lists=" + apt + "/lists", "-o", "Dir::State::status=" + apt + "/status",
		"-o", "Dir::Cache=" + apt + "/cache", "-o", "Dir::Etc::sourcelist=" + apt + "/debian.sources", "-o", "Dir::Etc::sourceparts=-",
		"-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64", "-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none"}
	if err := b.tool(ctx, "", append([]string{"apt-get"}, append(options, "update")...)...); err != nil {
		return err
	}
	depends, err := b.ask(ctx, "", append([]string{"apt-cache"}, append(options[1:], "depends", "--important", "linux-image-cloud-arm64")...)...)
	if err != nil {
		return err
	}
	_, name, found := strings.Cut(depends, "Depends: ")
	if !found {
		return errors.New("Debian's archive has no linux-image-cloud-arm64")
	}
	name, _, _ = strings.Cut(strings.TrimSpace(name), "\n")
	if b.kernel != "" {
		name += "=" + b.kernel
	}
	command := exec.CommandContext(ctx, "apt-get", append(options, "download", name)...)
	command.Dir = dir
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// readKernel finds the image and orders the modules.
func readKernel(dir string) (*kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, errors.New("reading the kernel's package: there is not one boot/vmlinuz")
	}
	k := &kernel{image: images[0], names: make(map[string]string)}
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if module, ok := strings.CutSuffix(filepath.Base(name), ".ko"); ok {
			k.names[strings.ReplaceAll(module, "-", "_")] = name
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's package: %w", err)
	}
	done := make(map[string]bool)
	for _, module := range wanted {
		if err := k.add(module, done); err != nil {
			return nil, fmt.Errorf("reading the kernel's modules: %w", err)
		}
	}
	return k, nil
}

// add appends what a module needs, and the module.
func (k *kernel) add(module string, done map[string]bool) error {
	if done[module] {
		return nil
	}
	done[module] = true
	path, ok := k.names[module]
	if !ok {
		return fmt.Errorf("there is no module %s", module)
	}
	needs, err := needsOf(path)
	if err != nil {
		return err
	}
	for _, need := range needs {
		if err := k.add(strings.ReplaceAll(need, "-", "_"), done); err != nil {
			return err
		}
	}
	k.modules = append(k.modules, path)
	return nil
}

// needsOf reads "depends=a,b" in the section .modinfo, where every entry ends with a zero byte.
func needsOf(path string) ([]string, error) {
	file, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s is no kernel module", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
