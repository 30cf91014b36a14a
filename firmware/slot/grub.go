package slot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// NewGRUB returns GRUB's environment block, the file that grub-editenv and GRUB's save_env write. GRUB
// writes it in place, sector by sector, so what belongs together stands in its first sector and keeps its length.
func NewGRUB(fsys disk.FS, running Slot, file string) Boot {
	return &environment{store: &grubStore{fsys, file}, running: running}
}

type grubStore struct {
	fs   disk.FS
	file string
}

const (
	grubMagic = "# GRUB Environment Block\n"
	// grubMin is what grub-editenv makes, grubMax what GRUB reads (include/grub/lib/envblk.h), in bytes.
	grubMin, grubMax = 1024, 8192
	// sector is what a medium writes wholly or not at all, in bytes.
	sector = 512
	// none is a trial that is none, as long as one.
	none = "-"
)

var errGrubenv = errors.New("it is no GRUB environment block")

// grubLine is one line of the block: NAME=VALUE with the escapes of the value taken out, or a
// line that is kept as it is.
type grubLine struct {
	name, value string
	other       string
}

// parseGrubenv reads a block (grub-core/lib/envblk.c): after the first line, NAME=VALUE, in which
// a backslash takes the meaning from the byte behind it; # fills the end.
func parseGrubenv(raw []byte) ([]grubLine, error) {
	if len(raw) < grubMin || len(raw) > grubMax || !bytes.HasPrefix(raw, []byte(grubMagic)) {
		return nil, fmt.Errorf("%w: %d bytes", errGrubenv, len(raw))
	}
	var lines []grubLine
	for rest := raw[len(grubMagic):]; len(rest) > 0; {
		line, escaped := make([]byte, 0, 32), false
		n := 0
		for n < len(rest) && (rest[n] != '\n' || escaped) {
			escaped = rest[n] == '\\' && !escaped
			line = append(line, rest[n])
			n++
		}
		if n == len(rest) {
			if len(bytes.Trim(line, "#")) > 0 {
				return nil, fmt.Errorf("%w: its last line has no end", errGrubenv)
			}
			break
		}
		lines, rest = append(lines, grubLineOf(string(line))), rest[n+1:]
	}
	return lines, nil
}

func grubLineOf(line string) grubLine {
	name, value, ok := strings.Cut(line, "=")
	if !ok || name == "" || strings.HasPrefix(line, "#") {
		return grubLine{other: line}
	}
	var plain strings.Builder
	escaped := false
	for i := range len(value) {
		if escaped = value[i] == '\\' && !escaped; !escaped {
			plain.WriteByte(value[i])
		}
	}
	return grubLine{name: name, value: plain.String()}
}

func (l grubLine) String() string {
	if l.name == "" {
		return l.other + "\n"
	}
	return l.name + "=" + strings.NewReplacer(`\`, `\\`, "\n", "\\\n").Replace(l.value) + "\n"
}

// formatGrubenv is the inverse of parseGrubenv.
func formatGrubenv(lines []grubLine, size int) ([]byte, error) {
	raw := append(make([]byte, 0, size), grubMagic...)
	for _, l := range lines {
		raw = append(raw, l.String()...)
	}
	if len(raw) > size {
		return nil, fmt.Errorf("%w: %d bytes do not fit into %d", errFull, len(raw), size)
	}
	return append(raw, bytes.Repeat([]byte{'#'}, size-len(raw))...), nil
}

func (g *grubStore) read() (raw []byte, lines []grubLine, err error) {
	const repair = "make it with: grub-editenv FILE create"
	if raw, err = disk.ReadFile(g.fs, g.file, grubMax); err != nil {
		return nil, nil, unusable(repair, "%w", err)
	}
	if lines, err = parseGrubenv(raw); err != nil {
		return nil, nil, unusable(repair, "%s: %w", g.file, err)
	}
	return raw, lines, nil
}

func grubGet(lines []grubLine, name string) string {
	for _, l := range lines {
		if l.name == name {
			return l.value // GRUB finds the first
		}
	}
	return ""
}

func (g *grubStore) load() (c choice, certain bool, err error) {
	_, lines, err := g.read()
	if err != nil {
		return choice{}, false, err
	}
	c = choice{active: slotOf(grubGet(lines, "ferrule_active")), trial: trialOf(grubGet(lines, "ferrule_try"))}
	if c.trial != "" {
		c.tries = digit(grubGet(lines, "ferrule_tries"))
	}
	return c, true, nil
}

// grubSet puts our variables first and in one order; what others put there follows.
func grubSet(lines []grubLine, c choice) []grubLine {
	try := none
	if c.trial != "" {
		try = string(c.trial)
	}
	out := []grubLine{
		{name: "ferrule_active", value: string(c.active)}, {name: "ferrule_try", value: try},
		{name: "ferrule_tries", value: strconv.Itoa(c.tries)},
	}
	for _, l := range lines {
		if l.name != "ferrule_active" && l.name != "ferrule_try" && l.name != "ferrule_tries" {
			out = append(out, l)
		}
	}
	return out
}

// save overwrites one sector, so that nothing of the file system changes, whose journal GRUB does not
// read. Only where the lines have to move first is the file replaced.
func (g *grubStore) save(c choice) error {
	old, lines, err := g.read()
	if err != nil {
		return err
	}
	raw, err := formatGrubenv(grubSet(lines, c), len(old))
	if err != nil {
		return unusable("remove variables with: grub-editenv FILE unset NAME", "%s: %w", g.file, err)
	}
	all := place{g.file, 0, len(raw)}
	if !bytes.Equal(old[sector:], raw[sector:]) || !ordered(lines) {
		if err := atomicfile.Write(g.fs, g.file, raw, 0o644); err != nil {
			return err
		}
		return readBack(g.fs, all, raw)
	}
	f, err := g.fs.OpenFile(g.file, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("writing the boot loader's environment: %w", err)
	}
	_, err = f.WriteAt(raw[:sector], 0)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("writing the boot loader's environment: %w", err)
	}
	return readBack(g.fs, all, raw)
}

// ordered says that our lines stand where save puts them, and GRUB can count in one sector.
func ordered(lines []grubLine) bool {
	return len(lines) >= 3 && lines[0].name == "ferrule_active" && lines[1].name == "ferrule_try" && lines[2].name == "ferrule_tries"
}

// settled implements store: there is one copy, and it has no trial.
func (g *grubStore) settled() bool {
	_, lines, err := g.read()
	return err != nil || ordered(lines) && trialOf(grubGet(lines, "ferrule_try")) == ""
}
