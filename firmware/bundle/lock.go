package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"ferrule/internal/hint"
)

// ErrBusy: another program is writing the repository.
var ErrBusy = errors.New("the repository is being written")

// Lock keeps others from writing a repository on this machine, until unlock is called or the
// program ends, however it ends.
func Lock(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, hint.With(fmt.Errorf("opening %s: %w", dir, ErrBusy), "wait until the other ferrule-release is done")
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return f.Close, nil
}
