package slot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"ferrule/internal/disk"
	"ferrule/internal/hint"

	"golang.org/x/sys/unix"
)

func dir(name string) string { return filepath.Dir(name) }

// descriptor is what an *os.File has and a file of a test need not.
type descriptor interface{ Fd() uintptr }

// forget drops what the page cache holds of a file, so that the medium is asked. What was not
// synced stays.
func forget(f any) {
	if d, ok := f.(descriptor); ok {
		_ = unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
}

// File is a Device on a partition or a regular file. It is safe for concurrent use as an *os.File is.
type File struct {
	f       *os.File
	block   bool
	size    int64
	mu      sync.Mutex
	created bool  // the folder has not been synced since the file was made
	failed  error // of the first Sync that failed
}

var _ Device = (*File)(nil)

// OpenDevice opens a partition, or a regular file, which write makes where it is absent. A
// partition that is mounted, or in use by the kernel in another way, is not opened for writing (ErrRunning); nor is
// what one of the paths in running leads to, by whatever name. Where the path is not there the error Is fs.ErrNotExist.
func OpenDevice(path string, write bool, running ...string) (Device, error) {
	d, err := openDevice(path, write)
	if err == nil && write {
		if err = d.differs(running); err != nil {
			_ = d.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return d, nil
}

// differs says that no path leads to the same file or the same block device.
func (d *File) differs(paths []string) error {
	mine, err := d.f.Stat()
	if err != nil {
		return err
	}
	for _, path := range paths {
		other, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("comparing it with %s: %w", path, err)
		}
		if os.SameFile(mine, other) || d.block && number(mine) == number(other) && other.Mode()&fs.ModeDevice != 0 {
			return hint.With(fmt.Errorf("%w: it is %s", ErrRunning, path), "name another device for each slot in update.slots")
		}
	}
	return nil
}

// number is the major and minor number of a device: two nodes of one number are one device.
func number(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(stat.Rdev)
	}
	return 0
}

func openDevice(path string, write bool) (*File, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("it is not an absolute path")
	}
	info, err := os.Stat(path)
	d := &File{}
	switch {
	case err == nil:
		d.block = info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
		if !d.block && !info.Mode().IsRegular() {
			return nil, fmt.Errorf("it is neither a block device nor a file: %v", info.Mode().Type())
		}
	case !errors.Is(err, fs.ErrNotExist) || !write || filepath.Clean(path) != path || within(path, "/dev"):
		// A device that has vanished must not become a file in its folder.
		return nil, err
	default:
		d.created = true
	}
	if d.f, err = os.OpenFile(path, flags(write, d), 0o755); err != nil {
		switch {
		case errors.Is(err, syscall.EBUSY):
			err = hint.With(fmt.Errorf("%w: %w", ErrRunning, err), "it is mounted or in use; the slots of update.slots must be exchanged")
		case errors.Is(err, syscall.ETXTBSY):
			err = fmt.Errorf("%w: %w", ErrRunning, err)
		}
		return nil, err
	}
	if err := d.examine(info); err != nil {
		_ = d.f.Close()
		return nil, err
	}
	return d, nil
}

func within(path, folder string) bool {
	rel, err := filepath.Rel(folder, path)
	return err == nil && filepath.IsLocal(rel)
}

// flags: O_EXCL on a block device claims it, which fails where it is mounted or below another
// device, and keeps others from mounting it meanwhile (open(2)).
func flags(write bool, d *File) int {
	switch {
	case !write:
		return os.O_RDONLY
	case d.block:
		return os.O_RDWR | syscall.O_EXCL
	case d.created:
		return os.O_RDWR | os.O_CREATE | os.O_EXCL
	}
	return os.O_RDWR
}

// examine asks the open file, which may be another than the one that was looked at.
func (d *File) examine(before fs.FileInfo) error {
	info, err := d.f.Stat()
	if err != nil {
		return err
	}
	if before != nil && !os.SameFile(before, info) {
		return errors.New("it was replaced while it was opened")
	}
	if !d.block {
		return nil
	}
	if d.size, err = d.f.Seek(0, 2); err != nil {
		return fmt.Errorf("asking for its size: %w", err)
	}
	if d.size == 0 {
		return errors.New("it holds nothing: no medium?")
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (d *File) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }

// WriteAt implements io.WriterAt.
func (d *File) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }

// Size implements Device.
func (d *File) Size() int64 { return d.size }

// Close implements Device. What was not synced is not durable.
func (d *File) Close() error { return d.f.Close() }

// Truncate ends a regular file at a size, in bytes; a partition stays as it is.
func (d *File) Truncate(size int64) error {
	if d.block {
		return nil
	}
	return d.f.Truncate(size)
}

// Sync implements Device.
func (d *File) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed != nil {
		return d.failed
	}
	if err := d.f.Sync(); err != nil {
		// The kernel has dropped what it could not write, and would call the next Sync a success.
		d.failed = fmt.Errorf("an earlier sync failed: %w", err)
		return err
	}
	if d.created {
		if err := disk.OS().SyncDir(filepath.Dir(d.f.Name())); err != nil {
			return err
		}
		d.created = false
	}
	if d.block {
		// Only root may; fadvise below is as good where nobody else has the device open.
		_ = unix.IoctlSetInt(int(d.f.Fd()), unix.BLKFLSBUF, 0)
	}
	forget(d.f)
	return nil
}
