// Package disk is the few file operations Ferrule's promises rest on, behind an interface so
// that a test can fail any of them or cut the power between any two. The trap it leaves to its
// callers: a file that was synced can still be gone, because its name was not. SyncDir is a
// separate promise, and a Sync that failed once must never be asked again on the same file.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// FS is the part of a file system Ferrule needs. Names are paths as the os package takes them.
type FS interface {
	// OpenFile takes the flags of os.OpenFile; perm is before umask.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename replaces newName atomically; durable only after SyncDir of the folder.
	Rename(oldName, newName string) error
	Remove(name string) error
	// ReadDir lists a folder sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	MkdirAll(name string, perm fs.FileMode) error
	// SyncDir makes the names in a folder durable: what was created, renamed or removed in it.
	SyncDir(name string) error
}

// File is an open file. Sync makes its content durable, not its name.
type File interface {
	io.ReadWriteCloser
	io.ReaderAt
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
}

// ErrTooLarge: a file holds more than the caller allows.
var ErrTooLarge = errors.New("file is larger than allowed")

// OS returns the machine's file system.
func OS() FS { return osFS{} }

// ReadFile returns the content of a file, or ErrTooLarge when that is more than limit bytes:
// a file that grew wild must not take the process's memory with it.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading %s: %w: more than %d bytes", name, ErrTooLarge, limit)
	}
	return data, nil
}

// MakeFolder makes a folder with those above it, durably: a synced file is lost with an unsynced
// folder above it. A folder that may not be read was not made here.
func MakeFolder(fsys FS, folder string) error {
	if err := fsys.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	for up := filepath.Dir(folder); up != folder; folder, up = up, filepath.Dir(up) {
		if err := fsys.SyncDir(up); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err // a nil *os.File in a File would not be nil
	}
	return f, nil
}

func (osFS) Rename(oldName, newName string) error         { return os.Rename(oldName, newName) }
func (osFS) Remove(name string) error                     { return os.Remove(name) }
func (osFS) ReadDir(name string) ([]fs.DirEntry, error)   { return os.ReadDir(name) }
func (osFS) MkdirAll(name string, perm fs.FileMode) error { return os.MkdirAll(name, perm) }

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil // this file system cannot sync a folder; there is no other way to ask
	}
	return errors.Join(err, d.Close())
}
