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

// ErrEnrolling says that another enrollment is going on in the same state directory.
var ErrEnrolling = errors.New("another enrollment is going on in the state directory")

// lockState makes sure that one agent alone writes below dir; two would tear the outbox. The
// lock goes with the process, however it ends. On a directory that cannot be written no lock
// is needed, since nothing can be torn: file is nil then.
func lockState(dir string) (file *os.File, err error) {
	file, err = flock(filepath.Join(dir, "lock"))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, hint.With(fmt.Errorf("%w %s", ErrRunning, dir),
			"stop the other one, or give this one its own state_dir")
	}
	if err != nil {
		return nil, nil //nolint:nilerr // said above; the outbox reports the directory
	}
	return file, nil
}

// LockEnrollment makes sure that one process alone enrolls below dir: of two that find no key
// each would make one, and the certificate could be for the key that was overwritten. The
// lock ends with file, or with the process. A running agent does not hold it.
func LockEnrollment(dir string) (file *os.File, err error) {
	file, err = flock(filepath.Join(dir, "enroll.lock"))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, hint.With(fmt.Errorf("%w %s", ErrEnrolling, dir), "wait until it ends, then run this again")
	}
	if err != nil {
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	return file, nil
}

// LockReset makes sure that neither an agent nor an enrollment works below dir. The locks end
// with release, or with the process.
func LockReset(dir string) (release func(), err error) {
	state, err := lockState(dir)
	if err != nil {
		return nil, err
	}
	enrollment, err := LockEnrollment(dir)
	if err != nil {
		_ = state.Close()
		return nil, err
	}
	return func() { _, _ = state.Close(), enrollment.Close() }, nil
}

// flock opens and locks a file: EWOULDBLOCK where another holds it. A file system without
// locks cannot tell, and does not stand in the way.
func flock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}
