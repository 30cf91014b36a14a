package firmware

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

// Config is the [update] table of the configuration.
type Config struct {
	// Repository is the URL below which metadata/ and targets/ lie. Without one nothing is ever
	// updated.
	Repository string `toml:"repository"`
	// Root is the first root.json of the repository, a file. It is what all trust in updates comes
	// from, so it is brought to the device in the factory, not over the network.
	Root string `toml:"root"`
	// File with the PEM certificates of the authorities that the repository's server is checked
	// against. Empty: those that brokers are checked against (session.roots). What is installed is
	// vouched for by Root, whoever the server is.
	Roots string `toml:"roots"`
	// Product, as manifests name it. Updates of any other product are refused.
	Product string `toml:"product"`
	// Hardware is the revision of this device; a manifest lists those that it is for.
	Hardware string `toml:"hardware"`
	// Channel that this device follows.
	Channel string `toml:"channel"`
	// CheckEvery is how often the repository is asked for something new, a tenth more or less at
	// random; "0s": only when told.
	CheckEvery quantity.Duration `toml:"check_every"`
	// Window is the local time of day, such as 02:00-04:00, in which updates are downloaded and the
	// device is restarted into them; it may reach over midnight. Empty: at once.
	Window Window `toml:"window"`
	// Rate is the most that is downloaded in one second; 0: no limit.
	Rate quantity.Size `toml:"rate"`
	// Boot is what chooses between the slots: none, uboot, tryboot, grub, efi, directory (the
	// agent's own program alone is updated) or rauc. With none nothing is installed.
	Boot string `toml:"boot"`
	// Environment is where the boot loader keeps its choice: the fw_env.config of uboot, the folder
	// with autoboot.txt of tryboot, the grubenv of grub, the mounted ESP of efi, the folder of
	// releases of directory.
	Environment string `toml:"environment"`
	// Slots says which partition, or file, each part of each slot is.
	Slots SlotPaths `toml:"slots"`
	// Tries is how often a new slot may start without becoming healthy; a power cut while it is on
	// trial costs one.
	Tries int `toml:"tries"`
	// HealthCommand is a program with its arguments that must end with 0 before a trial is
	// committed, besides what the manifest demands. It may take a minute.
	HealthCommand []string `toml:"health_command"`
	// Reboot is the file that is written to ask for a restart of the device; ferrule-reboot.path,
	// or the appliance's init, obeys it.
	Reboot string `toml:"reboot"`
	// Floor is what remembers the least security version that may be installed: tpm, file (weak:
	// whoever can write state_dir can lower it), or auto: the TPM where it can be used.
	Floor string `toml:"floor"`
}

// SlotPaths is the [update.slots] table.
type SlotPaths struct {
	// A has a path for each part of slot a, such as { rootfs = "/dev/mmcblk0p2" }.
	A map[string]string `toml:"a"`
	// B has a path for each part of slot b.
	B map[string]string `toml:"b"`
}

// The values of Config.Boot.
const (
	BootNone      = "none"
	BootUBoot     = "uboot"
	BootTryboot   = "tryboot"
	BootGRUB      = "grub"
	BootEFI       = "efi"
	BootDirectory = "directory"
	BootRAUC      = "rauc"
)

// The values of Config.Floor.
const (
	FloorAuto = "auto"
	FloorTPM  = "tpm"
	FloorFile = "file"
)

// maxTries bounds Config.Tries: a device that hangs in each of them is away for that long.
const maxTries = 9

// Default is what an absent [update] table means: no updates.
func Default() Config {
	return Config{
		Root:       "/etc/ferrule/root.json",
		Channel:    "stable",
		CheckEvery: quantity.Duration(6 * time.Hour),
		Boot:       BootNone,
		Tries:      3,
		Reboot:     "/run/ferrule/reboot",
		Floor:      FloorAuto,
	}
}

// Enabled reports whether there is a repository to update from.
func (c Config) Enabled() bool { return c.Repository != "" }

// Validate says what is wrong with c.
func (c Config) Validate() error {
	var problems []error
	complain := func(advice, format string, args ...any) {
		problems = append(problems, hint.With(fmt.Errorf("update."+format, args...), advice))
	}
	if !slices.Contains([]string{BootNone, BootUBoot, BootTryboot, BootGRUB, BootEFI, BootDirectory, BootRAUC}, c.Boot) {
		complain("it is none, uboot, tryboot, grub, efi, directory or rauc", "boot %q is not known", c.Boot)
	}
	if !slices.Contains([]string{FloorAuto, FloorTPM, FloorFile}, c.Floor) {
		complain("it is auto, tpm or file", "floor %q is not known", c.Floor)
	}
	if c.Tries < 1 || c.Tries > maxTries {
		complain("3 allows for two power cuts in a trial", "tries %d is not between 1 and %d", c.Tries, maxTries)
	}
	if c.CheckEvery != 0 && c.CheckEvery.Std() < time.Minute {
		complain(`"0s" checks only when told`, "check_every %v is shorter than a minute", c.CheckEvery)
	}
	if len(c.HealthCommand) > 0 && c.HealthCommand[0] == "" {
		complain(`write it as ["/usr/bin/my-check", "--fast"]`, "health_command has no program")
	}
	if c.Enabled() {
		c.validateEnabled(complain)
	}
	return errors.Join(problems...)
}

func (c Config) validateEnabled(complain func(advice, format string, args ...any)) {
	if u, err := url.Parse(c.Repository); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		complain("such as https://updates.example/ferrule", "repository %q is not an http or https URL", c.Repository)
	} else if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		complain("the device shows its certificate; there is nothing else to say", "repository %q has a query, a fragment or a password", c.Repository)
	}
	if c.Product == "" {
		complain("it must be the product that the manifests name", "product is missing")
	}
	if c.Root == "" {
		complain("it is metadata/1.root.json of the repository", "root is missing")
	}
	if c.Channel == "" {
		complain("stable is the usual one", "channel is missing")
	}
	switch c.Boot {
	case BootNone:
		complain("say what chooses between the slots, such as uboot or directory", "boot is none, so updates could not be installed")
	case BootUBoot, BootTryboot, BootGRUB, BootEFI:
		if c.Environment == "" {
			complain("see docs/updates.md for each boot loader", "environment is missing for boot %q", c.Boot)
		}
		c.validateSlots(complain)
	case BootDirectory:
		if c.Environment == "" {
			complain("such as /var/lib/ferrule/program", "environment is missing: the folder of the releases")
		}
	}
	if c.Boot == BootTryboot && c.Tries > 1 && c.Reboot == "" || c.Boot != BootDirectory && c.Boot != BootNone && c.Reboot == "" {
		complain("the default is /run/ferrule/reboot", "reboot is missing")
	}
}

func (c Config) validateSlots(complain func(advice, format string, args ...any)) {
	const advice = `such as a = { rootfs = "/dev/mmcblk0p2" } and b = { rootfs = "/dev/mmcblk0p3" }`
	if len(c.Slots.A) == 0 || len(c.Slots.B) == 0 {
		complain(advice, "slots must name the parts of a and of b")
		return
	}
	taken := make(map[string]string)
	for name, parts := range map[string]map[string]string{"a": c.Slots.A, "b": c.Slots.B} {
		other := c.Slots.B
		if name == "b" {
			other = c.Slots.A
		}
		for part, path := range parts {
			if _, both := other[part]; !both {
				complain(advice, "slots: part %q is in one slot only", part)
			}
			if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
				complain(advice, "slots.%s.%s %q is not an absolute path", name, part, path)
			}
			if earlier, twice := taken[filepath.Clean(path)]; twice {
				complain("a slot must not overwrite what runs", "slots: %s is %s.%s and %s", path, name, part, earlier)
			}
			taken[filepath.Clean(path)] = name + "." + part
		}
	}
}
