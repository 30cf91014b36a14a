package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ferrule/agent/audit"
	"ferrule/firmware"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/tpm"
)

// openFloor returns the floor that the TPM keeps; nil where there is to be none, or is no TPM.
func (a *agent) openFloor(ctx context.Context, fsys disk.FS) firmware.Floor {
	if a.config.Update.Floor == firmware.FloorFile {
		return nil
	}
	device, err := a.identity.TPM(ctx)
	switch {
	case errors.Is(err, tpm.ErrNoDevice):
		return nil
	case err != nil:
		return noFloor{err}
	}
	return &tpmFloor{
		counter: device.Counter(0), fs: fsys, path: filepath.Join(a.config.StateDir, updateDir, "tpm-floor"),
		log: a.log, now: a.clock.Now,
		lost: func(ctx context.Context, value uint64) {
			a.note(ctx, audit.Event{Name: "update.floor-lost", Essential: true, Attrs: []slog.Attr{slog.Uint64("value", value)}})
		},
	}
}

// noFloor is that of a TPM that is there and cannot be used.
type noFloor struct{ err error }

func (f noFloor) Read(context.Context) (uint64, string, error) { return 0, "", f.err }
func (f noFloor) Raise(context.Context, uint64) error          { return f.err }

// counter is what of a tpm.Counter is used.
type counter interface {
	Read(ctx context.Context) (uint64, error)
	Raise(ctx context.Context, to uint64) error
}

// tpmFloor is the floor in the TPM. The disk remembers what it was, for one purpose: that a TPM
// which was cleared is noticed, and its counter made again where it was.
type tpmFloor struct {
	counter counter
	fs      disk.FS
	path    string
	log     *slog.Logger
	now     func() time.Time
	lost    func(ctx context.Context, value uint64) // the counter was gone

	mu sync.Mutex
}

// remembered is what the disk knows of the TPM's floor.
type remembered struct {
	Value uint64 `json:"value"`
	// Lost is when the TPM's counter was found to be gone and was made again, at the value that
	// this file had then. From then on it is worth no more than the file was.
	Lost time.Time `json:"lost,omitzero"`
}

// Read implements firmware.Floor. Where there was no counter yet, it makes one.
func (f *tpmFloor) Read(ctx context.Context) (value uint64, weak string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, was := f.recall()
	value, err = f.counter.Read(ctx)
	switch {
	case errors.Is(err, tpm.ErrNoCounter):
		value, err = known.Value, f.make(ctx, &known, was)
	case err == nil && value < known.Value: // the counter only rises, so it is another one
		value, err = known.Value, f.make(ctx, &known, true)
	}
	if err != nil {
		return 0, "", err
	}
	if !was || value != known.Value {
		known.Value = value
		f.remember(ctx, known)
	}
	return value, known.weak(), nil
}

// make makes the counter, at what is known.
func (f *tpmFloor) make(ctx context.Context, known *remembered, was bool) error {
	if was {
		known.Lost = f.now().UTC().Truncate(time.Second)
		f.log.LogAttrs(ctx, slog.LevelError, "floor of updates was gone from the TPM", slog.Uint64("value", known.Value))
		f.lost(ctx, known.Value)
		f.remember(ctx, *known)
	}
	return f.counter.Raise(ctx, known.Value)
}

func (r remembered) weak() string {
	if r.Lost.IsZero() {
		return ""
	}
	return fmt.Sprintf("the TPM's counter was gone on %s and was made again from the disk: the TPM was cleared or exchanged",
		r.Lost.Format(time.DateOnly))
}

// Raise implements firmware.Floor.
func (f *tpmFloor) Raise(ctx context.Context, to uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, _ := f.recall()
	if err := f.counter.Raise(ctx, to); err != nil {
		return err
	}
	// Only now: that the disk knows more than the TPM is how a cleared TPM is noticed.
	known.Value = max(known.Value, to)
	f.remember(ctx, known)
	return nil
}

func (f *tpmFloor) recall() (r remembered, was bool) {
	text, err := disk.ReadFile(f.fs, f.path, 1<<10)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.log.LogAttrs(context.Background(), slog.LevelWarn, "remembered floor of updates not readable", slog.Any("err", err))
	}
	if err != nil || json.Unmarshal(text, &r) != nil {
		return remembered{}, false
	}
	return r, true
}

func (f *tpmFloor) remember(ctx context.Context, r remembered) {
	text, err := json.Marshal(r)
	if err == nil {
		if err = disk.MakeFolder(f.fs, filepath.Dir(f.path)); err == nil {
			err = atomicfile.Write(f.fs, f.path, text, 0o600)
		}
	}
	if err != nil {
		f.log.LogAttrs(ctx, slog.LevelWarn, "floor of updates not remembered", slog.Any("err", err))
	}
}
