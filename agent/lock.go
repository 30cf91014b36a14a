package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ferrule/internal/hint"
)

// ErrRunning says that another agent works on the same state directory.
var ErrRunning = errors.New("another agent is using the state directory")

// lockState makes sure that one agent alone writes below dir; two would tear the outbox. The
// lock goes with the process, however it ends. On a directory that cannot be written no lock
// is needed, since nothing can be torn: file is nil then.
func lockState(dir string) (file *os.File, err error) {
	file, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil //nolint:nilerr // said above; the outbox reports the directory
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		_ = file.Close()
		return nil, hint.With(fmt.Errorf("%w %s", ErrRunning, dir),
			"stop the other one, or give this one its own state_dir")
	}
	return file, nil
}
