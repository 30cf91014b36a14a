package slot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// UBoot says how the environment lies that U-Boot and Linux share.
type UBoot struct {
	// Config is the path of fw_env.config.
	Config string
	// Script: a boot script counts by itself, in two copies without flags whose variable seq says
	// which is newer; for a U-Boot whose own environment Linux cannot see.
	Script bool
	// Bootcount: U-Boot counts (CONFIG_BOOTCOUNT_ENV), and its altbootcmd gives the trial up.
	Bootcount bool
	// Single: one copy that cannot be replaced atomically will do; a power cut while it is written
	// leaves U-Boot's built-in environment.
	Single bool
}

// NewUBoot returns the environment that fw_env.config describes.
func NewUBoot(fsys disk.FS, running Slot, u UBoot) (Boot, error) {
	if u.Script && u.Bootcount {
		return nil, errors.New("format=script and count=bootcount exclude each other: the script counts")
	}
	text, err := disk.ReadFile(fsys, u.Config, 64<<10)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading fw_env.config: %w", err), "docs/slots.md says what it must say")
	}
	places, err := parseConfig(string(text))
	if err != nil {
		return nil, hint.With(fmt.Errorf("%s: %w", u.Config, err), "a line is: /dev/mmcblk0p1 0x0 0x4000")
	}
	if u.Script && len(places) != 2 {
		return nil, fmt.Errorf("%s: format=script has two copies", u.Config)
	}
	store := &ubootStore{fs: fsys, places: places, script: u.Script, bootcount: u.Bootcount, single: u.Single,
		layout: layout{places[0].size, len(places) == 2 && !u.Script}}
	return &environment{store: store, running: running}, nil
}

type ubootStore struct {
	fs                        disk.FS
	places                    []place
	layout                    layout
	script, bootcount, single bool
}

// found is one copy as it was read.
type found struct {
	vars variables
	age  uint32 // flags, or seq
	err  error
}

// maxSeq keeps seq positive where U-Boot compares it as a signed number of 32 bits.
const maxSeq = 1<<31 - 2

func (u *ubootStore) read(p place) (f found) {
	raw := make([]byte, u.layout.size)
	if f.err = readAll(u.fs, p, raw); f.err != nil {
		return f
	}
	var flags byte
	if f.vars, flags, f.err = u.layout.decode(raw); f.err != nil {
		return f
	}
	f.age = uint32(flags)
	if u.script {
		seq, err := strconv.ParseUint(f.vars.get("seq"), 16, 32)
		if err != nil || seq < 1 || seq > maxSeq {
			f.err = fmt.Errorf("its seq is %q", f.vars.get("seq"))
		}
		f.age = uint32(seq)
	}
	return f
}

// copies reads all copies and says which one U-Boot goes by; -1: none. One that cannot be read is
// as good as spoilt, for U-Boot too, and is what the next save writes.
func (u *ubootStore) copies() (all []found, current int) {
	current = -1
	for i, p := range u.places {
		f := u.read(p)
		if f.err != nil {
			f.err = fmt.Errorf("%s at %#x: %w", p.path, p.offset, f.err)
		} else if current < 0 || u.newer(f.age, all[current].age) {
			current = i
		}
		all = append(all, f)
	}
	return all, current
}

// newer says that a copy of age a counts although there is one of age b before it. Flags are one byte that
// goes round (env_check_redund in env/common.c).
func (u *ubootStore) newer(a, b uint32) bool {
	switch {
	case u.script || !u.layout.flags:
		return a > b
	case a == 0 && b == 255:
		return true
	case a == 255 && b == 0:
		return false
	}
	return a > b
}

func (u *ubootStore) current() ([]found, int, error) {
	all, current := u.copies()
	if current >= 0 {
		return all, current, nil
	}
	var reasons []error
	for _, f := range all {
		reasons = append(reasons, f.err)
	}
	return nil, -1, unusable("have U-Boot write it once (saveenv), or see docs/slots.md for the first environment", "%w", errors.Join(reasons...))
}

func (u *ubootStore) load() (c choice, certain bool, err error) {
	all, current, err := u.current()
	if err != nil {
		return choice{}, false, err
	}
	certain = true
	for _, f := range all {
		certain = certain && f.err == nil
	}
	return u.choice(all[current].vars), certain, nil
}

// name is plain in an environment of our own, and marked in one that we share.
func (u *ubootStore) name(of string) string {
	if u.script {
		return of
	}
	return "ferrule_" + of
}

func (u *ubootStore) choice(v variables) choice {
	c := choice{active: slotOf(v.get(u.name("active"))), trial: trialOf(v.get(u.name("try")))}
	if c.trial == "" {
		return c
	}
	if !u.bootcount {
		c.tries = digit(v.get(u.name("tries")))
		return c
	}
	if v.get("upgrade_available") != "1" {
		return choice{active: c.active}
	}
	count, _ := strconv.ParseUint(v.get("bootcount"), 10, 31)
	limit, _ := strconv.ParseUint(v.get("bootlimit"), 10, 31)
	c.tries = int(min(max(0, int64(limit)-int64(count)), MaxTries))
	return c
}

func (u *ubootStore) set(v variables, c choice) variables {
	tries := ""
	if c.trial != "" {
		tries = strconv.Itoa(c.tries)
	}
	v = v.with(u.name("active"), string(c.active)).with(u.name("try"), string(c.trial))
	if !u.bootcount {
		return v.with(u.name("tries"), tries)
	}
	if c.trial == "" {
		return v.with("upgrade_available", "0").with("bootcount", "0")
	}
	return v.with("upgrade_available", "1").with("bootcount", "0").with("bootlimit", tries)
}

// save writes the copy that U-Boot does not go by, so that the other is there whatever happens.
func (u *ubootStore) save(c choice) error {
	all, current, err := u.current()
	if err != nil {
		return err
	}
	vars, age := u.set(all[current].vars, c), all[current].age+1
	if u.script {
		if age > maxSeq {
			return unusable("write a first environment anew, as docs/slots.md says", "seq has come to its end")
		}
		vars = vars.with("seq", strconv.FormatUint(uint64(age), 16))
	}
	raw, err := u.layout.encode(vars, byte(age))
	if err != nil {
		return unusable("remove variables from U-Boot's environment", "%w", err)
	}
	p := u.places[(current+1)%len(u.places)]
	if len(u.places) == 1 {
		return u.replace(p, raw)
	}
	return u.overwrite(p, raw)
}

// replace writes the one copy that there is.
func (u *ubootStore) replace(p place, raw []byte) error {
	f, err := u.fs.OpenFile(p.path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	_ = f.Close()
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() && p.offset == 0 && info.Size() == int64(len(raw)) {
		if err := atomicfile.Write(u.fs, p.path, raw, info.Mode().Perm()); err != nil {
			return err
		}
		return readBack(u.fs, p, raw)
	}
	if !u.single {
		return hint.With(fmt.Errorf("%w: %s holds the only copy, and a power cut while it is written would spoil it", ErrEnvironment, p.path),
			"build U-Boot with a redundant environment, or accept that with the setting single=yes")
	}
	return u.overwrite(p, raw)
}

func (u *ubootStore) overwrite(p place, raw []byte) error {
	flag := os.O_WRONLY
	if !strings.HasPrefix(p.path, "/dev/") && p.offset == 0 {
		flag |= os.O_CREATE // the second file of U-Boot on FAT comes into being when it is first written
	}
	f, err := u.fs.OpenFile(p.path, flag, 0o644)
	if err != nil {
		return fmt.Errorf("writing the boot loader's environment: %w", err)
	}
	if info, statErr := f.Stat(); statErr == nil && info.Mode()&fs.ModeCharDevice != 0 {
		_ = f.Close()
		return unusable("let U-Boot keep its environment on a block device or in a file", "%s is flash that must be erased first", p.path)
	}
	_, err = f.WriteAt(raw, p.offset)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil && flag&os.O_CREATE != 0 {
		err = u.fs.SyncDir(dir(p.path))
	}
	if err != nil {
		return fmt.Errorf("writing the boot loader's environment: %w", err)
	}
	return readBack(u.fs, p, raw)
}

// settled implements store: the other copy, too, has the active slot booted.
func (u *ubootStore) settled() bool {
	all, current, err := u.current()
	if err != nil {
		return true // the next load says so
	}
	want := u.choice(all[current].vars).normal("")
	for _, f := range all {
		if f.err != nil || u.choice(f.vars) != want {
			return false
		}
	}
	return true
}

// readAll reads one copy from the medium.
func readAll(fsys disk.FS, p place, into []byte) error {
	f, err := fsys.OpenFile(p.path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := f.ReadAt(into, p.offset)
	if n == len(into) {
		return nil
	}
	if errors.Is(err, io.EOF) || err == nil {
		return fmt.Errorf("it ends after %d of %d bytes", n, len(into))
	}
	return err
}

// readBack compares what the medium holds with what was written to it.
func readBack(fsys disk.FS, p place, want []byte) error {
	f, err := fsys.OpenFile(p.path, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("reading %s back: %w", p.path, err)
	}
	defer f.Close()
	forget(f)
	got := make([]byte, len(want))
	if n, err := f.ReadAt(got, p.offset); n < len(got) {
		return fmt.Errorf("reading %s back: %d of %d bytes: %w", p.path, n, len(got), err)
	}
	if !bytes.Equal(got, want) {
		return unusable("see whether the medium is failing or write-protected", "%s does not hold what was written to it", p.path)
	}
	return nil
}
