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

// flavour is one of Debian's kernels, and the modules that a machine needs of it; what those need
// comes with them.
type flavour struct {
	name    string // linux-image-NAME
	modules []string
}

// cloud has serial ports, ext4 and the TPM's core built in, and is the one that knows a TIS TPM on
// a plain bus.
var cloud = flavour{"cloud-arm64", []string{"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "tpm_tis", "softdog"}}

// generic is for boards. The modules are those of a Raspberry Pi 4: card, network, TPM on SPI, USB and
// what is plugged there, watchdog.
var generic = flavour{"arm64", []string{
	"sdhci_iproc", "bcm2835", "crc32c_generic", "ext4", "nls_ascii", "nls_cp437", "vfat", "broadcom", "genet", "reset_raspberrypi",
	"xhci_pci", "dwc2", "spi_bcm2835", "spi_bcm2835aux", "tpm_tis_spi", "usb_storage", "ftdi_sio", "cp210x", "ch341", "pl2303",
	"cdc_acm", "bcm2835_wdt", "bcm2835_rng",
}}

// kernel is what was taken out of Debian's package.
type kernel struct {
	dir     string            // what was unpacked
	image   string            // the file
	modules []string          // files, each after those that it needs
	names   map[string]string // module → file
}

// openKernel finds the package in the cache, or brings it there, and unpacks it.
func (b *builder) openKernel(ctx context.Context, f flavour) (*kernel, error) {
	// The version has digits alone where the name of another flavour goes on.
	pattern := filepath.Join(b.cache, "linux-image-*[0-9]-"+f.name+"_"+cmp.Or(b.kernel, "*")+"_arm64.deb")
	found, err := filepath.Glob(pattern)
	if err != nil {
		return nil, fmt.Errorf("looking for a kernel: %w", err)
	}
	if len(found) == 0 {
		if err := b.download(ctx, f); err != nil {
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
	return readKernel(dir, f)
}

// download has an apt of its own, with the machine's sources, for a foreign architecture that the
// machine need not know of.
func (b *builder) download(ctx context.Context, f flavour) error {
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
	if err := os.WriteFile(filepath.Join(apt, "status"), nil, 0o644); err != nil {
		return err
	}
	options := []string{"-q", "-o", "Dir::State=" + apt, "-o", "Dir::State::lists=" + apt + "/lists", "-o", "Dir::State::status=" + apt + "/status",
		"-o", "Dir::Cache=" + apt + "/cache",
		"-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64", "-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none"}
	if err := b.tool(ctx, "", append([]string{"apt-get"}, append(options, "update")...)...); err != nil {
		return err
	}
	depends, err := b.ask(ctx, "", append([]string{"apt-cache"}, append(options[1:], "depends", "--important", "linux-image-"+f.name)...)...)
	if err != nil {
		return err
	}
	_, name, found := strings.Cut(depends, "Depends: ")
	if !found {
		return fmt.Errorf("no linux-image-%s in Debian's archive", f.name)
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
func readKernel(dir string, f flavour) (*kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, errors.New("reading the kernel's package: there is not one boot/vmlinuz")
	}
	k := &kernel{dir: dir, image: images[0], names: make(map[string]string)}
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
	for _, module := range f.modules {
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
