package trial

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// saved is the record: one file, so that every step is one rename.
type saved struct {
	// Trial is what is on trial; nil: nothing.
	Trial *Trial `json:"trial,omitempty"`
	// Text is the new file, Replaces the digest of the one that it is to replace.
	Text     []byte `json:"text,omitempty"`
	Replaces string `json:"replaces,omitempty"`
	// Machine is Options.Machine when the trial began.
	Machine string `json:"machine,omitempty"`
	// Keeping says that it is decided: the file becomes Text, for Reason.
	Keeping bool   `json:"keeping,omitempty"`
	Reason  Reason `json:"reason,omitempty"`
	Lines   []Line `json:"lines,omitempty"`
	// Topics are templates under which entries may wait, those of the last trial first.
	Topics []string `json:"topics,omitempty"`
	// Last is what became of the last one.
	Last *Outcome `json:"last,omitempty"`
}

const (
	// maxRecord bounds the file, in bytes; base64 makes four of three.
	maxRecord = 2*MaxText + 64<<10
	// maxDetail bounds the text of an outcome, which goes into every status message, in bytes.
	maxDetail = 400
	// maxLines bounds the lines that an outcome names.
	maxLines = 32
	// maxTopics bounds the templates that are remembered.
	maxTopics = 6
	// badSuffix ends the name of a record that could not be read.
	badSuffix = ".bad"
)

// Open reads the record and carries out what a start before this one has left: what was decided is
// done, and what was on trial has returned, since this process has read the old file. So it has to be
// called before anything else runs, and where the file may have changed by it (changed), the
// configuration is to be read once more. Damage is never an error.
func Open(o Options) (k *Keeper, changed bool) {
	k = &Keeper{o: o}
	s, err := k.load()
	if err != nil {
		o.Log.Warn("record of the last trial of a configuration cannot be read", slog.String("file", o.Record), slog.Any("err", err))
		_ = o.FS.Rename(o.Record, o.Record+badSuffix)
		k.end(Unknown, Damaged, err.Error(), nil)
		return k, false
	}
	k.saved = s
	switch {
	case s.Trial == nil:
		return k, false
	case s.Keeping:
		// The process that decided may have been killed before its decision was durable.
		err := o.FS.SyncDir(filepath.Dir(o.Record))
		if text, _ := k.file(); err != nil && Digest(text) != s.Trial.SHA256 {
			k.end(Returned, NotStored, err.Error(), nil)
			return k, false
		}
		return k, k.finish().Outcome == Kept
	}
	reason, detail := Crash, "the agent died, or was killed, while it tried the configuration"
	if s.Machine != o.Machine {
		reason, detail = PowerCut, "the machine started again while the configuration was on trial"
	}
	k.end(Returned, reason, detail, nil)
	return k, false
}

func (k *Keeper) load() (s saved, err error) {
	text, err := disk.ReadFile(k.o.FS, k.o.Record, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return saved{}, nil
	}
	if err != nil {
		return saved{}, err
	}
	if s, err = decode(text); err != nil {
		return saved{}, fmt.Errorf("reading %s: %w", k.o.Record, err)
	}
	return s, nil
}

// decode reads a record: the SHA-256 of the rest in hex, a line feed, JSON.
func decode(text []byte) (s saved, err error) {
	sum, body, _ := bytes.Cut(text, []byte("\n"))
	if string(sum) != Digest(body) {
		return saved{}, errors.New("its checksum is wrong")
	}
	return s, json.Unmarshal(body, &s)
}

// encode is the opposite of decode.
func encode(s saved) ([]byte, error) {
	body, err := json.Marshal(s)
	return slices.Concat([]byte(Digest(body)), []byte("\n"), body), err
}

// store makes s durable.
func (k *Keeper) store(s saved) error {
	text, err := encode(s)
	if err != nil {
		return err
	}
	if err := disk.MakeFolder(k.o.FS, filepath.Dir(k.o.Record)); err != nil {
		return err
	}
	return atomicfile.Write(k.o.FS, k.o.Record, text, 0o600)
}

// end notes what became of the trial. Where it cannot be stored it is told all the same, and the next
// start finds out once more. The caller holds mu, or is Open.
func (k *Keeper) end(result Result, reason Reason, detail string, lines []Line) Outcome {
	o := Outcome{Outcome: result, Reason: reason, Detail: cut(detail), At: k.o.Now().UTC(), Lines: lines[:min(len(lines), maxLines)]}
	if t := k.saved.Trial; t != nil {
		o.ID, o.SHA256 = t.ID, t.SHA256
	}
	k.saved = saved{Last: &o, Topics: k.saved.Topics}
	if err := k.store(k.saved); err != nil {
		k.o.Log.Error("outcome of the trial of a configuration not stored", slog.Any("err", err))
	}
	k.news = &o
	return o
}

// cut makes one line of text, and shortens it at the end of a character.
func cut(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) <= maxDetail {
		return text
	}
	n := maxDetail
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "…"
}
