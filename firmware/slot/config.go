package slot

import (
	"fmt"
	"os"
	"path"
	"strings"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Config says which boot loader there is and where it keeps its choice.
type Config struct {
	// Boot is uboot, tryboot, grub, efi or directory.
	Boot string
	// Environment is a path, and settings behind it that are separated by spaces (docs/slots.md):
	//	uboot      fw_env.config [format=script] [count=bootcount] [single=yes]
	//	tryboot    the folder of autoboot.txt, or the file [a=2] [b=3]
	//	grub       the grubenv
	//	efi        the mounted ESP [a=ferrule-a] [b=ferrule-b]
	//	directory  the folder of releases
	Environment string
	// Running is the slot that runs; nil: what the kernel's command line or the launcher says.
	Running *Slot
	// BootID is another one after each boot; "": the kernel's.
	BootID string
	// FS is where all of it lies; nil: the machine's.
	FS disk.FS
}

// Open returns the boot loader's environment. It says what is wrong with the configuration; what
// is wrong with the environment is said by State, which may be asked again.
func Open(c Config) (Boot, error) {
	if c.FS == nil {
		c.FS = disk.OS()
	}
	where, settings, err := split(c.Environment)
	if err != nil {
		return nil, err
	}
	running, err := c.running()
	if err != nil {
		return nil, err
	}
	var boot Boot
	switch c.Boot {
	case "uboot":
		u := UBoot{Config: where, Script: settings.is("format", "script"),
			Bootcount: settings.is("count", "bootcount"), Single: settings.is("single", "yes")}
		boot, err = NewUBoot(c.FS, running, u)
	case "tryboot":
		if path.Ext(where) != ".txt" {
			where = path.Join(where, "autoboot.txt")
		}
		if c.BootID == "" {
			c.BootID, err = bootID()
		}
		t := Tryboot{File: where, A: settings.take("a", "2"), B: settings.take("b", "3"), BootID: c.BootID}
		if err == nil {
			boot, err = NewTryboot(c.FS, running, t)
		}
	case "grub":
		boot = NewGRUB(c.FS, running, where)
	case "efi":
		boot, err = NewEFI(c.FS, running, EFI{ESP: where, A: settings.take("a", "ferrule-a"), B: settings.take("b", "ferrule-b")})
	case "directory":
		boot = NewDirectory(c.FS, running, where)
	default:
		err = hint.With(fmt.Errorf("boot loader %q is not known", c.Boot), "it is uboot, tryboot, grub, efi or directory")
	}
	if err == nil {
		err = settings.rest()
	}
	if err != nil {
		return nil, fmt.Errorf("update.environment: %w", err)
	}
	return boot, nil
}

type settings map[string]string

// take removes a setting and returns its value, or what it is without.
func (s settings) take(name, without string) string {
	value, ok := s[name]
	if !ok {
		return without
	}
	delete(s, name)
	return value
}

// is removes a setting that has the one value that it may have.
func (s settings) is(name, value string) bool {
	if s[name] != value {
		return false
	}
	delete(s, name)
	return true
}

func (s settings) rest() error {
	for name, value := range s {
		return hint.With(fmt.Errorf("%s=%s is not known here", name, value), "docs/slots.md lists the settings of each boot loader")
	}
	return nil
}

func split(environment string) (where string, s settings, err error) {
	words := strings.Fields(environment)
	if len(words) == 0 || !path.IsAbs(words[0]) {
		return "", nil, hint.With(fmt.Errorf("update.environment: %q does not begin with an absolute path", environment),
			"docs/slots.md says what it is for each boot loader")
	}
	s = make(settings)
	for _, word := range words[1:] {
		name, value, ok := strings.Cut(word, "=")
		if _, twice := s[name]; !ok || twice || value == "" {
			return "", nil, fmt.Errorf("update.environment: %q is not one setting as in name=value", word)
		}
		s[name] = value
	}
	return words[0], s, nil
}

// Variable is what the launcher of the directory backend sets: a, b or packaged.
const Variable = "FERRULE_SLOT"

func (c Config) running() (Slot, error) {
	if c.Running != nil {
		return *c.Running, nil
	}
	if c.Boot == "directory" {
		switch value := os.Getenv(Variable); value {
		case "a", "b":
			return Slot(value), nil
		case "packaged":
			return "", nil
		default:
			return "", hint.With(fmt.Errorf("%s is %q, so ferrule-launch did not start this program", Variable, value),
				"let the service run ferrule-launch, as docs/slots.md shows, or set update.boot to none")
		}
	}
	line, err := proc("/proc/cmdline")
	if err != nil {
		return "", fmt.Errorf("reading the kernel's command line: %w", err)
	}
	return Running(line)
}

// Running reads which slot runs from the kernel's command line: the last ferrule.slot= counts.
func Running(cmdline string) (Slot, error) {
	var found string
	for word := range strings.FieldsSeq(cmdline) {
		if value, ok := strings.CutPrefix(word, "ferrule.slot="); ok {
			found = value
		}
	}
	if s := trialOf(found); s != "" {
		return s, nil
	}
	return "", hint.With(fmt.Errorf("the kernel's command line does not say which slot runs: ferrule.slot=%q", found),
		"the boot loader adds ferrule.slot=a or ferrule.slot=b; see docs/slots.md")
}

func bootID() (string, error) {
	id, err := proc("/proc/sys/kernel/random/boot_id")
	id = strings.TrimSpace(id)
	if err == nil && !sound(id) {
		err = fmt.Errorf("%q is no boot id", id)
	}
	if err != nil {
		return "", fmt.Errorf("reading the kernel's boot id: %w", err)
	}
	return id, nil
}

func proc(name string) (string, error) {
	data, err := disk.ReadFile(disk.OS(), name, 64<<10)
	return string(data), err
}

// sound says that a word can stand in an environment: short, and letters, digits, dots and dashes alone.
func sound(word string) bool {
	ok := len(word) > 0 && len(word) <= 64
	for _, r := range word {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}
	return ok
}
