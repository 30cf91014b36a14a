package slot

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Tryboot says where the firmware of a Raspberry Pi finds which partition to boot.
type Tryboot struct {
	File   string // autoboot.txt
	A, B   string // the numbers of the partitions that hold the slots
	BootID string // another one after each boot
}

// NewTryboot returns the autoboot.txt of a Raspberry Pi. The firmware boots a trial once, and only by a restart that asks
// for it (reboot "0 tryboot"), and does not say that it did. So the boot in which a trial was armed is noted beside
// it: in any other boot the trial runs, or is over.
func NewTryboot(fsys disk.FS, running Slot, t Tryboot) (Boot, error) {
	if !partition(t.A) || !partition(t.B) || t.A == t.B {
		return nil, hint.With(fmt.Errorf("a=%s and b=%s are not two numbers of partitions", t.A, t.B), "such as a=2 b=3")
	}
	if !sound(t.BootID) {
		return nil, fmt.Errorf("%q is no boot id", t.BootID)
	}
	store := &trybootStore{fs: fsys, t: t, running: running}
	return &environment{store: store, running: running, once: true}, nil
}

func partition(s string) bool {
	return len(s) == 1 && s[0] >= '1' && s[0] <= '9' || len(s) == 2 && s[0] >= '1' && s[0] <= '9' && s[1] >= '0' && s[1] <= '9'
}

type trybootStore struct {
	fs      disk.FS
	t       Tryboot
	running Slot
}

const (
	// autobootMax is all that the firmware reads of autoboot.txt, in bytes.
	autobootMax = 512
	noteHead    = "# ferrule: trial="
)

// autoboot is what autoboot.txt says. Lines that are not ours are kept with their section.
type autoboot struct {
	plain, try string // boot_partition without and with the flag tryboot
	note       string // of a trial: "b boot=ID"
	sections   []string
	lines      map[string][]string // by section: "all", "tryboot", "none" …
}

var errAutoboot = errors.New("it is no autoboot.txt")

// parseAutoboot reads it as the firmware does: a filter in brackets holds until the next one, and of two
// settings that pass, the later counts.
func parseAutoboot(raw []byte) (autoboot, error) {
	a := autoboot{lines: make(map[string][]string)}
	if len(raw) > autobootMax {
		return a, fmt.Errorf("%w: the firmware reads %d bytes, and it has more", errAutoboot, autobootMax)
	}
	section := "all"
	for line := range strings.SplitSeq(string(raw), "\n") {
		line = strings.TrimSpace(line)
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r > '~' }) {
			return a, fmt.Errorf("%w: %q", errAutoboot, line)
		}
		name, value, _ := strings.Cut(line, "=")
		switch name, value = strings.TrimSpace(name), strings.TrimSpace(value); {
		case line == "":
		case strings.HasPrefix(line, noteHead):
			a.note = line[len(noteHead):]
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case name == "boot_partition":
			if section == "all" {
				a.plain = value
			}
			if section == "all" || section == "tryboot" {
				a.try = value
			}
		case name == "tryboot_a_b" && section == "all":
		default:
			if a.lines[section] == nil {
				a.sections = append(a.sections, section)
			}
			a.lines[section] = append(a.lines[section], line)
		}
	}
	return a, nil
}

// format is the inverse of parseAutoboot.
func (a autoboot) format() ([]byte, error) {
	var b strings.Builder
	write := func(section, ours string) {
		fmt.Fprintf(&b, "[%s]\n%s", section, ours)
		for _, line := range a.lines[section] {
			b.WriteString(line + "\n")
		}
	}
	if a.note != "" {
		b.WriteString(noteHead + a.note + "\n")
	}
	write("all", "tryboot_a_b=1\nboot_partition="+a.plain+"\n")
	write("tryboot", "boot_partition="+a.try+"\n")
	for _, section := range slices.Compact(a.sections) {
		if section != "all" && section != "tryboot" {
			write(section, "")
		}
	}
	if b.Len() > autobootMax {
		return nil, fmt.Errorf("%w: the firmware reads %d bytes, and it would have %d", errFull, autobootMax, b.Len())
	}
	return []byte(b.String()), nil
}

func (s *trybootStore) slot(partition string) Slot {
	switch partition {
	case s.t.A:
		return A
	case s.t.B:
		return B
	}
	return ""
}

func (s *trybootStore) partition(of Slot) string {
	if of == B {
		return s.t.B
	}
	return s.t.A
}

func (s *trybootStore) read() (a autoboot, active Slot, err error) {
	const repair = "docs/slots.md shows an autoboot.txt"
	raw, err := disk.ReadFile(s.fs, s.t.File, 4096)
	if err == nil {
		a, err = parseAutoboot(raw)
	}
	if err != nil {
		return a, "", unusable(repair, "%s: %w", s.t.File, err)
	}
	if active = s.slot(a.plain); active == "" {
		return a, "", unusable(repair, "%s: boot_partition %q is neither slot's", s.t.File, a.plain)
	}
	return a, active, nil
}

func (s *trybootStore) load() (c choice, certain bool, err error) {
	a, active, err := s.read()
	if err != nil {
		return choice{}, false, err
	}
	c = choice{active: active}
	name, boot, _ := strings.Cut(a.note, " boot=")
	trial := trialOf(name)
	switch {
	case trial == "" || trial == active || s.slot(a.try) != trial:
	case boot == s.t.BootID:
		c.trial, c.tries = trial, 1 // nothing was restarted since
	case s.running == trial:
		c.trial = trial
	}
	return c, true, nil // in any other boot it ran, or the power was cut first
}

func (s *trybootStore) save(c choice) error {
	a, _, err := s.read()
	if err != nil {
		return err
	}
	a.plain, a.try, a.note = s.partition(c.active), s.partition(c.active), ""
	if c.trial != "" {
		a.try, a.note = s.partition(c.trial), string(c.trial)+" boot="+s.t.BootID
	}
	raw, err := a.format()
	if err != nil {
		return unusable("remove lines from it", "%s: %w", s.t.File, err)
	}
	if err := atomicfile.Write(s.fs, s.t.File, raw, 0o644); err != nil {
		return err
	}
	return readBack(s.fs, place{s.t.File, 0, len(raw)}, raw)
}

// settled implements store: not even a restart with the flag boots the other slot.
func (s *trybootStore) settled() bool {
	a, _, err := s.read()
	return err != nil || a.note == "" && a.try == a.plain
}
