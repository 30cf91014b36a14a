package slot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"ferrule/internal/disk"
)

// EFI says where systemd-boot finds its entries.
type EFI struct {
	ESP  string // the mounted EFI system partition
	A, B string // the names of the entries, without the counter and .conf
}

// NewEFI returns the entries of systemd-boot. One with a counter in its name (ferrule-b+3.conf)
// is on trial: systemd-boot takes one off before it boots it, and puts it behind all others at 0. The
// entry of the highest version comes first, so versions say which slot is active.
func NewEFI(fsys disk.FS, running Slot, e EFI) (Boot, error) {
	if !sound(e.A) || !sound(e.B) || e.A == e.B {
		return nil, fmt.Errorf("a=%s and b=%s are not two names of entries", e.A, e.B)
	}
	store := &efiStore{fs: fsys, folder: path.Join(e.ESP, "loader/entries"), names: map[Slot]string{A: e.A, B: e.B}, running: running}
	return &environment{store: store, running: running}, nil
}

type efiStore struct {
	fs      disk.FS
	folder  string
	names   map[Slot]string
	running Slot
}

// entryMax bounds an entry, in bytes.
const entryMax = 16 << 10

// entry is one file of systemd-boot's folder.
type entry struct {
	file    string
	slot    Slot
	counted bool
	left    int  // tries
	done    bool // the name tells of tries that were made
	version int
	text    string
}

// parseEntryName splits ID[+LEFT[-DONE]].conf (systemd-boot(7), boot counting).
func parseEntryName(file string) (id string, left int, done, counted, ok bool) {
	stem, ok := strings.CutSuffix(file, ".conf")
	if !ok || stem == "" || len(file) > 255 {
		return "", 0, false, false, false
	}
	id, counter, counted := strings.Cut(stem, "+")
	if !counted {
		return id, 0, false, false, true
	}
	digits, tried, done := strings.Cut(counter, "-")
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return "", 0, false, false, false
	}
	if _, err := strconv.ParseUint(tried, 10, 16); done && err != nil {
		return "", 0, false, false, false
	}
	return id, int(n), done, true, true
}

// entryVersion reads the line version of an entry; anything but a number counts as 0, as
// systemd-boot sorts it first.
func entryVersion(text string) int {
	version := 0
	for line := range strings.SplitSeq(text, "\n") {
		if words := strings.Fields(line); len(words) == 2 && words[0] == "version" {
			n, err := strconv.ParseUint(words[1], 10, 31)
			if err != nil {
				n = 0
			}
			version = int(n)
		}
	}
	return version
}

// withVersion sets the line version, and gives the entry the sort-key without which versions do not count.
func withVersion(text string, version int) string {
	var b strings.Builder
	sorted := false
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		words := strings.Fields(line)
		if len(words) > 0 && words[0] == "version" {
			continue
		}
		sorted = sorted || len(words) > 1 && words[0] == "sort-key"
		b.WriteString(line + "\n")
	}
	if !sorted {
		b.WriteString("sort-key ferrule\n")
	}
	return b.String() + "version " + strconv.Itoa(version) + "\n"
}

func (e *efiStore) entries() ([]entry, error) {
	const repair = "docs/slots.md shows the two entries"
	list, err := e.fs.ReadDir(e.folder)
	if err != nil {
		return nil, unusable(repair, "%w", err)
	}
	var found []entry
	for _, f := range list {
		id, left, done, counted, ok := parseEntryName(f.Name())
		s := e.slot(id)
		if !ok || s == "" {
			continue
		}
		text, err := disk.ReadFile(e.fs, path.Join(e.folder, f.Name()), entryMax)
		if err != nil {
			return nil, unusable(repair, "%w", err)
		}
		found = append(found, entry{f.Name(), s, counted, left, done, entryVersion(string(text)), string(text)})
	}
	return found, nil
}

func (e *efiStore) slot(id string) Slot {
	switch id {
	case e.names[A]:
		return A
	case e.names[B]:
		return B
	}
	return ""
}

// pick says which entry without a counter comes first, and which of the other slot with one.
// Equal versions are sorted by name, the later first.
func pick(entries []entry) (active, trial *entry) {
	for i := range entries {
		if n := &entries[i]; !n.counted && (active == nil || n.version > active.version || n.version == active.version && n.slot == B) {
			active = n
		}
	}
	for i := range entries {
		n := &entries[i]
		if active == nil || !n.counted || n.slot == active.slot || n.version <= active.version {
			continue
		}
		if trial == nil || n.left > trial.left {
			trial = n
		}
	}
	return active, trial
}

func (e *efiStore) load() (c choice, certain bool, err error) {
	entries, err := e.entries()
	if err != nil {
		return choice{}, false, err
	}
	active, trial := pick(entries)
	if active == nil {
		return choice{}, false, unusable("rename the entry of the slot that is known to be good to "+e.names[A]+".conf", "%s: no entry is without a counter", e.folder)
	}
	c = choice{active: active.slot}
	if trial != nil && (trial.left > 0 || trial.done) {
		c.trial, c.tries = trial.slot, min(trial.left, MaxTries)
	}
	return c, true, nil
}

func (e *efiStore) save(c choice) error {
	entries, err := e.entries()
	if err != nil {
		return err
	}
	now, trial := pick(entries)
	if now == nil {
		return unusable("docs/slots.md shows the two entries", "%s: no entry is without a counter", e.folder)
	}
	top := 0
	for _, n := range entries {
		top = max(top, n.version)
	}
	if now.slot != c.active {
		if err := e.put(entries, c.active, e.names[c.active]+".conf", top+1); err != nil {
			return err
		}
		now = &entry{slot: c.active, version: top + 1}
	}
	if c.trial == "" {
		return e.giveUp(c.active)
	}
	name := fmt.Sprintf("%s+%d.conf", e.names[c.trial], c.tries)
	if trial == nil || trial.slot != c.trial {
		return e.put(entries, c.trial, name, top+1)
	}
	// It has an entry on trial: of two, both would be tried.
	return e.rename(trial.file, name)
}

// put writes the one entry of a slot under a new name, and then removes those that it had.
func (e *efiStore) put(entries []entry, s Slot, name string, version int) error {
	var text string
	for _, n := range entries {
		if n.slot == s && (text == "" || !n.counted) {
			text = n.text
		}
	}
	if text == "" {
		return unusable("docs/slots.md shows the two entries", "%s: slot %s has no entry", e.folder, s)
	}
	temp := path.Join(e.folder, "ferrule.tmp")
	content := []byte(withVersion(text, version))
	_ = e.fs.Remove(temp)
	if err := writeSynced(e.fs, temp, content); err != nil {
		_ = e.fs.Remove(temp)
		return err
	}
	final := path.Join(e.folder, name)
	if err := e.fs.Rename(temp, final); err != nil {
		_ = e.fs.Remove(temp)
		return err
	}
	if err := e.fs.SyncDir(e.folder); err != nil {
		return err
	}
	if err := readBack(e.fs, place{final, 0, len(content)}, content); err != nil {
		return err
	}
	gone := false
	for _, n := range entries {
		if n.slot != s || n.file == name {
			continue
		}
		if err := e.fs.Remove(path.Join(e.folder, n.file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		gone = true
	}
	if !gone {
		return nil
	}
	return e.fs.SyncDir(e.folder)
}

func writeSynced(fsys disk.FS, name string, data []byte) error {
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// giveUp leaves no entry but the active one's that systemd-boot would take before the last resort.
// A trial that was given up is +0; +0-3 is one in its last try.
func (e *efiStore) giveUp(active Slot) error {
	entries, err := e.entries()
	if err != nil {
		return err
	}
	for _, n := range entries {
		target := e.names[n.slot] + "+0.conf"
		if !n.counted || n.slot == active || n.file == target {
			continue
		}
		if err := e.rename(n.file, target); err != nil {
			return err
		}
	}
	return nil
}

// rename gives an entry another name, durably.
func (e *efiStore) rename(from, to string) error {
	if err := e.fs.Rename(path.Join(e.folder, from), path.Join(e.folder, to)); err != nil {
		return err
	}
	return e.fs.SyncDir(e.folder)
}

// settled implements store.
func (e *efiStore) settled() bool {
	entries, err := e.entries()
	if err != nil {
		return true // the next load says so
	}
	active, _ := pick(entries)
	for _, n := range entries {
		if n.counted && (n.left > 0 || n.done) && active != nil && n.slot != active.slot {
			return false
		}
	}
	return true
}
