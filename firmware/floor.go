package firmware

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// fileFloor is a Floor in a file. It holds against a repository, and not against whoever can
// write the file.
type fileFloor struct {
	fs  disk.FS
	dir string
}

const weakFile = "it is kept in a file, which whoever can write state_dir can lower"

func (f *fileFloor) name() string { return filepath.Join(f.dir, "floor") }

// Read implements Floor. A file that is damaged is an error: the journal remembers the floor too.
func (f *fileFloor) Read(context.Context) (value uint64, weak string, err error) {
	data, err := disk.ReadFile(f.fs, f.name(), 100)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, weakFile, nil
	}
	var sum uint32
	if err == nil {
		_, err = fmt.Sscanf(string(data), "%d %08x\n", &value, &sum)
	}
	if err == nil && string(data) != floorText(value) {
		err = errors.New("its checksum is wrong")
	}
	if err != nil {
		return 0, weakFile, fmt.Errorf("reading the file of the floor: %w", err)
	}
	return value, weakFile, nil
}

func floorText(value uint64) string {
	digits := fmt.Sprint(value)
	return fmt.Sprintf("%s %08x\n", digits, crc32.ChecksumIEEE([]byte(digits)))
}

// Raise implements Floor.
func (f *fileFloor) Raise(_ context.Context, to uint64) error {
	if err := atomicfile.Write(f.fs, f.name(), []byte(floorText(to)), 0o600); err != nil {
		return fmt.Errorf("raising the file of the floor: %w", err)
	}
	return nil
}

// readFloor asks all that remember the floor; the highest answer counts. The error says why the
// floor cannot be relied on as update.floor demands.
func (e *Engine) readFloor(ctx context.Context) error {
	value, weak, fileErr := e.file.Read(ctx)
	e.setProblem("floor", fileErr)
	behind := value // the least that any of them remembers
	value = max(value, e.saved.Floor, e.saved.FloorDue)
	if fileErr != nil {
		behind = value // raise would make the file anew, but it is not known to be behind
	}
	var err error
	if mode := e.o.Config.Floor; mode != FloorFile {
		var chip uint64
		chipWeak := ""
		err = errors.New("there is no TPM")
		if e.o.Floor != nil {
			chip, chipWeak, err = e.o.Floor.Read(ctx)
		}
		switch {
		case err == nil:
			value, weak, behind = max(value, chip), chipWeak, min(behind, chip)
		case mode == FloorTPM:
			err = hint.With(fmt.Errorf("reading the floor in the TPM: %w", err), `repair the TPM (ferrule doctor), or set update.floor = "auto"`)
		default:
			weak, err = fmt.Sprintf("%s (the TPM: %v)", weakFile, err), nil
		}
	}
	e.mu.Lock()
	e.floor = FloorStatus{Value: value, Weak: clean(weak)}
	e.saved.Floor = value
	if behind < value {
		e.saved.FloorDue = value // a power cut came between two of them, or the TPM was cleared
	}
	e.mu.Unlock()
	return err
}

// raise makes the floor at least to, wherever it is remembered; what could not be done stays due.
func (e *Engine) raise(ctx context.Context, to uint64) error {
	e.mu.Lock()
	e.saved.FloorDue = max(e.saved.FloorDue, to)
	e.saved.Floor = max(e.saved.Floor, to)
	e.floor.Value = max(e.floor.Value, to)
	to = e.saved.FloorDue
	e.mu.Unlock()
	var problems []error
	if have, _, err := e.file.Read(ctx); err != nil || have < to {
		problems = append(problems, e.file.Raise(ctx, to))
	}
	if e.o.Floor != nil && e.o.Config.Floor != FloorFile {
		have, _, err := e.o.Floor.Read(ctx)
		if err == nil && have < to {
			err = e.o.Floor.Raise(ctx, to)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("raising the floor in the TPM to %d: %w", to, err))
		}
	}
	err := errors.Join(problems...)
	e.setProblem("raise", err)
	if err == nil {
		e.mu.Lock()
		e.saved.FloorDue = 0
		e.mu.Unlock()
	}
	return err
}
