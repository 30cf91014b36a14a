package slot

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// NewDirectory returns the environment of ferrule-launch, which is the boot loader of the agent's
// own program: releases/a/ferrule and releases/b/ferrule below a folder, and beside them two
// copies of a small text, environment.0 and environment.1. Where there is none yet the packaged program is active.
func NewDirectory(fsys disk.FS, running Slot, folder string) Boot {
	return &environment{store: &directoryStore{fsys, folder}, running: running}
}

// Program is the path of a slot's program below the folder of the directory backend.
func Program(folder string, s Slot) string {
	return path.Join(folder, "releases", string(s), "ferrule")
}

type directoryStore struct {
	fs     disk.FS
	folder string
}

// note is one copy.
type note struct {
	seq    uint64
	choice choice
	other  []string // lines that are not ours
}

const (
	noteMax   = 4000 // bytes of a copy; ferrule-launch reads as many
	noteLines = 60
	seqEnd    = 999999999999999 // what every shell can count to
)

var errNote = errors.New("it is no environment of ferrule-launch")

// parseNote reads a copy. Its last line is the checksum of those before, as cksum(1) prints it.
func parseNote(raw []byte) (note, error) {
	var n note
	text := string(raw)
	end := strings.LastIndex(text, "\nsum=") + 1
	body := text[:end]
	if end == 0 || len(text) > noteMax || text[end:] != fmt.Sprintf("sum=%d\n", cksum([]byte(body))) {
		return n, fmt.Errorf("%w: its checksum is wrong", errNote)
	}
	if strings.ContainsFunc(body, func(r rune) bool { return r < ' ' && r != '\n' }) || strings.Count(body, "\n") > noteLines {
		return n, fmt.Errorf("%w: it has control characters or too many lines", errNote)
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(body, "\n"), "\n") {
		name, value, _ := strings.Cut(line, "=")
		switch name {
		case "seq":
			var err error
			if n.seq, err = strconv.ParseUint(value, 10, 64); err != nil || n.seq < 1 || n.seq > seqEnd || value[0] == '0' {
				return n, fmt.Errorf("%w: seq %q", errNote, value)
			}
		case "active":
			n.choice.active = trialOf(value)
		case "try":
			n.choice.trial = trialOf(value)
		case "tries":
			n.choice.tries = digit(value)
		default:
			n.other = append(n.other, line)
		}
	}
	if n.seq == 0 {
		return n, fmt.Errorf("%w: it has no seq", errNote)
	}
	if n.choice.trial == "" {
		n.choice.tries = 0
	}
	return n, nil
}

// format is the inverse of parseNote.
func (n note) format() []byte {
	lines := fmt.Sprintf("seq=%d\nactive=%s\ntry=%s\ntries=%d\n", n.seq, n.choice.active, n.choice.trial, n.choice.tries)
	for _, line := range n.other {
		lines += line + "\n"
	}
	return fmt.Appendf(nil, "%ssum=%d\n", lines, cksum([]byte(lines)))
}

// cksum is the CRC of cksum(1) (IEEE Std 1003.1): the polynomial 0x04C11DB7, the highest bit first, over
// the bytes and then over their number.
func cksum(data []byte) uint32 {
	var crc uint32
	feed := func(b byte) {
		crc ^= uint32(b) << 24
		for range 8 {
			if crc&0x80000000 != 0 {
				crc = crc<<1 ^ 0x04C11DB7
			} else {
				crc <<= 1
			}
		}
	}
	for _, b := range data {
		feed(b)
	}
	for n := len(data); n > 0; n >>= 8 {
		feed(byte(n))
	}
	return ^crc
}

func (d *directoryStore) path(i int) string {
	return path.Join(d.folder, "environment."+strconv.Itoa(i))
}

// read returns the copy that counts, and which it is; -1 where there is no file at all, and none was ever written.
func (d *directoryStore) read() (current int, notes [2]note, sound [2]bool, err error) {
	current = -1
	var problems []error
	for i := range notes {
		raw, err := disk.ReadFile(d.fs, d.path(i), noteMax)
		if err == nil {
			notes[i], err = parseNote(raw)
		}
		switch {
		case err == nil:
			sound[i] = true
			if current < 0 || notes[i].seq > notes[current].seq {
				current = i
			}
		case !errors.Is(err, fs.ErrNotExist):
			problems = append(problems, fmt.Errorf("%s: %w", d.path(i), err))
		}
	}
	if current < 0 && len(problems) > 0 {
		return -1, notes, sound, unusable("remove both copies: then the packaged program is active", "%w", errors.Join(problems...))
	}
	return current, notes, sound, nil
}

func (d *directoryStore) load() (c choice, certain bool, err error) {
	current, notes, sound, err := d.read()
	if err != nil || current < 0 {
		return choice{}, err == nil, err
	}
	return notes[current].choice, sound[0] && sound[1], nil
}

func (d *directoryStore) save(c choice) error {
	current, notes, _, err := d.read()
	if err != nil {
		return err
	}
	next := note{seq: 1, choice: c}
	if current >= 0 {
		next.seq, next.other = notes[current].seq+1, notes[current].other
	}
	if next.seq > seqEnd {
		return unusable("remove both copies: then the packaged program is active", "seq has come to its end")
	}
	raw := next.format()
	target := d.path((current + 1) % 2)
	if err := atomicfile.Write(d.fs, target, raw, 0o644); err != nil {
		return err
	}
	return readBack(d.fs, place{target, 0, len(raw)}, raw)
}

// settled implements store.
func (d *directoryStore) settled() bool {
	current, notes, sound, err := d.read()
	if err != nil || current < 0 {
		return true
	}
	other := 1 - current
	return sound[other] && notes[other].choice.normal("") == notes[current].choice.normal("") && notes[other].choice.trial == ""
}
