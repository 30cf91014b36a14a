package records

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Locks are taken in this order: a device's stripe, then the commit's.
const (
	stripes     = 256
	commitLock  = stripes
	lockDir     = "locks"
	lockPause   = 10 * time.Millisecond
	lockPatient = 30 * time.Second // a back end answers or is given up in this time
)

// errBusy says that another process holds what is needed.
var errBusy = errors.New("another registrar is at work on this device")

// locks keep goroutines and, on the machine's own disk, other processes apart: flock(2), which
// the kernel lets go of when its holder is killed.
type locks struct {
	inside [stripes + 1]chan struct{}
	folder string // "": a disk in memory, which no other process can see
}

func newLocks(fsys disk.FS, dir string) (*locks, error) {
	l := &locks{}
	for n := range l.inside {
		l.inside[n] = make(chan struct{}, 1)
	}
	if fsys != disk.OS() {
		return l, nil
	}
	l.folder = filepath.Join(dir, lockDir)
	if err := os.MkdirAll(l.folder, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of locks: %w", err)
	}
	return l, nil
}

func stripe(device string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(device))
	return int(h.Sum32() % stripes)
}

// take waits for lock n and returns what gives it back.
func (l *locks) take(ctx context.Context, n int) (release func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockPatient, hint.With(errBusy, "wait until it is done, then try again"))
	defer cancel()
	select {
	case l.inside[n] <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l.folder == "" {
		return func() { <-l.inside[n] }, nil
	}
	file, err := flock(ctx, filepath.Join(l.folder, fmt.Sprintf("%03d", n)))
	if err != nil {
		<-l.inside[n]
		return nil, fmt.Errorf("locking the records: %w", err)
	}
	return func() {
		_ = file.Close() // and with it the lock
		<-l.inside[n]
	}, nil
}

func flock(ctx context.Context, name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return file, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			_ = file.Close()
			return nil, err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			_ = file.Close()
			return nil, context.Cause(ctx)
		}
	}
}
