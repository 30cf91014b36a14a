package disktest

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"
)

// file is an open file; its inode outlives its name.
type file struct {
	d      *Disk
	id     int
	name   string
	flag   int
	pos    int64
	closed bool
}

func (f *file) begin(k Kind, size int) error {
	if err := f.d.begin(Op{Kind: k, Name: f.name, Size: size}); err != nil {
		return err
	}
	errno := error(nil)
	switch {
	case f.closed:
		errno = errClosed
	case k.Changes() && f.flag&(os.O_WRONLY|os.O_RDWR) == 0, k == Read && f.flag&os.O_WRONLY != 0:
		errno = syscall.EBADF
	}
	if errno != nil {
		f.d.mu.Unlock()
		return &fs.PathError{Op: k.String(), Path: f.name, Err: errno}
	}
	return nil
}

func (f *file) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if err := f.begin(Read, len(p)); err != nil {
		return 0, err
	}
	defer f.d.mu.Unlock()
	data := f.d.live.nodes[f.id].data
	if off > int64(len(data)) {
		off = int64(len(data))
	}
	n := copy(p, data[off:])
	return n, eof(n, len(p))
}

func (f *file) Write(p []byte) (int, error) {
	if f.flag&os.O_APPEND != 0 {
		info, err := f.Stat()
		if err != nil {
			return 0, err
		}
		f.pos = info.Size()
	}
	n, err := f.WriteAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	failed := f.begin(Write, len(p))
	if failed != nil {
		short, ok := errors.AsType[*ShortWrite](failed)
		if !ok {
			return 0, failed
		}
		p = p[:min(short.N, len(p))]
		f.d.mu.Lock()
	}
	defer f.d.mu.Unlock()
	f.d.written += int64(len(p))
	if len(p) > 0 {
		f.d.record(&event{kind: Write, node: f.id, name: f.name, off: off, data: slices.Clone(p)})
	}
	return len(p), failed
}

func (f *file) Truncate(size int64) error {
	if err := f.begin(Truncate, int(size)); err != nil {
		return err
	}
	defer f.d.mu.Unlock()
	f.d.record(&event{kind: Truncate, node: f.id, name: f.name, off: size})
	return nil
}

func (f *file) Sync() error {
	if err := f.begin(Sync, 0); err != nil {
		f.d.syncFailed(Sync, f.id)
		return err
	}
	defer f.d.mu.Unlock()
	f.d.history = append(f.d.history, &event{kind: Sync, node: f.id, name: f.name})
	return nil
}

func (f *file) Stat() (fs.FileInfo, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return info(f.name, f.d.live.nodes[f.id]), nil
}

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.closed {
		return errClosed
	}
	f.closed = true
	return nil
}

type fileInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func info(name string, n *node) fs.FileInfo {
	mode := n.perm
	if n.dir {
		mode |= fs.ModeDir
	}
	return fileInfo{name: name, size: int64(len(n.data)), mode: mode}
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.size }
func (i fileInfo) Mode() fs.FileMode  { return i.mode }
func (i fileInfo) ModTime() time.Time { return time.Time{} }
func (i fileInfo) IsDir() bool        { return i.mode.IsDir() }
func (i fileInfo) Sys() any           { return nil }
