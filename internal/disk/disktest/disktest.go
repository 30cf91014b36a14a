// Package disktest is a disk in memory that records what is done to it, fails when told, and
// yields every disk that a power cut during the recorded history may leave. It keeps only what
// POSIX promises: content after Sync, names after SyncDir; everything else may be missing, torn at
// 512 bytes, out of order, zero or rubbish. A real file system is usually kinder, so a test that
// passes on it proves nothing about one that is not.
package disktest

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"ferrule/internal/disk"
)

// Kind is what an operation does.
type Kind uint8

// The kinds of operation.
const (
	Open Kind = iota + 1
	Create
	Read
	Write
	Truncate
	Sync
	Rename
	Remove
	Mkdir
	ReadDir
	SyncDir
	mark
)

var kinds = [...]string{"", "open", "create", "read", "write", "truncate", "sync", "rename", "remove", "mkdir", "readdir", "syncdir", "mark"}

func (k Kind) String() string { return kinds[k] }

// Changes reports whether the kind writes: what a read-only file system refuses.
func (k Kind) Changes() bool {
	return k == Create || k == Write || k == Truncate || k == Rename || k == Remove || k == Mkdir
}

// Op is one operation as Fail sees it. To is the new name of a rename.
type Op struct {
	Kind     Kind
	Name, To string
	Size     int
}

// ShortWrite lets a failing write leave its first N bytes, as a full disk does.
type ShortWrite struct {
	N   int
	Err error
}

func (s *ShortWrite) Error() string { return s.Err.Error() }
func (s *ShortWrite) Unwrap() error { return s.Err }

// event is one recorded change. off is the new size of a truncate; failed marks a Sync that
// returned an error.
type event struct {
	kind             Kind
	node, dir, toDir int
	name, to         string
	off              int64
	data             []byte
	perm             fs.FileMode
	failed           bool
	mark             any
}

func (e *event) String() string {
	switch e.kind {
	case Write:
		return fmt.Sprintf("write inode %d [%d,%d)", e.node, e.off, e.off+int64(len(e.data)))
	case Sync, Truncate:
		return fmt.Sprintf("%v inode %d", e.kind, e.node)
	case Rename:
		return fmt.Sprintf("rename %s to %s", e.name, e.to)
	}
	return fmt.Sprintf("%v %s", e.kind, e.name)
}

// Disk is the disk. It implements disk.FS and is safe for concurrent use.
type Disk struct {
	mu      sync.Mutex
	origin  *image
	live    *image
	next    int
	history []*event
	before  []any // marks of the disk this one was cut from
	fail    func(Op) error
	counts  map[Kind]int
	written int64
}

var _ disk.FS = (*Disk)(nil)

// New returns an empty disk: a root folder, "/" or ".".
func New() *Disk { return from(newImage(), nil) }

func from(im *image, marks []any) *Disk {
	d := &Disk{origin: im, live: im.clone(), before: marks, counts: map[Kind]int{}}
	d.live.keep = true
	for id := range im.nodes {
		d.next = max(d.next, id)
	}
	return d
}

// Fail makes an operation fail before it does anything, with the error match returns; nil lets
// it pass, a *ShortWrite lets part of a write pass. match may wait, to make an operation slow. A nil
// match ends the failures. After a failed Sync nothing written to that file before it is ever durable.
func (d *Disk) Fail(match func(op Op) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = match
}

// Mark notes that the test has come so far; see Marks.
func (d *Disk) Mark(m any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.history = append(d.history, &event{kind: mark, mark: m})
}

// Marks returns what had been noted when the power was cut, and since.
func (d *Disk) Marks() []any {
	d.mu.Lock()
	defer d.mu.Unlock()
	marks := slices.Clone(d.before)
	for _, e := range d.history {
		if e.kind == mark {
			marks = append(marks, e.mark)
		}
	}
	return marks
}

// Kill returns the disk as a killed process leaves it: everything written, nothing recorded.
func (d *Disk) Kill() *Disk {
	marks := d.Marks()
	d.mu.Lock()
	defer d.mu.Unlock()
	im := d.live.clone()
	return from(im, marks)
}

// Names lists the paths of all files, folders not included.
func (d *Disk) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	d.live.walk(root, "", func(path string, n *node) {
		if !n.dir {
			names = append(names, path)
		}
	})
	return names
}

// Content returns a file's bytes, or false.
func (d *Disk) Content(name string) ([]byte, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, id, _ := d.live.lookup(name); id != 0 && !d.live.nodes[id].dir {
		return slices.Clone(d.live.nodes[id].data), true
	}
	return nil, false
}

// SetContent changes a file's bytes behind everyone's back, as failing flash does.
func (d *Disk) SetContent(name string, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, id, _ := d.live.lookup(name); id != 0 {
		d.record(&event{kind: Truncate, node: id})
		d.record(&event{kind: Write, node: id, data: slices.Clone(data)})
		d.history = append(d.history, &event{kind: Sync, node: id})
	}
}

// Count returns how many operations of a kind were begun, failed ones included.
func (d *Disk) Count(k Kind) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[k]
}

// Written returns the bytes given to writes.
func (d *Disk) Written() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written
}

func (d *Disk) String() string {
	var s string
	for _, name := range d.Names() {
		data, _ := d.Content(name)
		s += fmt.Sprintf("%s (%d bytes, %x)\n", name, len(data), maphash.Bytes(printSeed, data)&0xFFFF)
	}
	return s
}

var printSeed = maphash.MakeSeed()

// begin counts an operation and asks whether it fails. It returns with d.mu held when it does not.
func (d *Disk) begin(op Op) error {
	d.mu.Lock()
	d.counts[op.Kind]++
	fail := d.fail
	d.mu.Unlock()
	if fail != nil {
		if err := fail(op); err != nil {
			return &fs.PathError{Op: op.Kind.String(), Path: op.Name, Err: err}
		}
	}
	d.mu.Lock()
	return nil
}

func (d *Disk) record(e *event) {
	d.history = append(d.history, e)
	d.live.apply(e)
}

func notExist(op Kind, name string) error {
	return &fs.PathError{Op: op.String(), Path: name, Err: syscall.ENOENT}
}

// OpenFile implements disk.FS.
func (d *Disk) OpenFile(name string, flag int, perm fs.FileMode) (disk.File, error) {
	d.mu.Lock()
	_, id, _ := d.live.lookup(name)
	d.mu.Unlock()
	op := Op{Kind: Open, Name: name}
	if id == 0 && flag&os.O_CREATE != 0 {
		op.Kind = Create
	}
	if err := d.begin(op); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	dir, id, base := d.live.lookup(name)
	refuse := func(errno syscall.Errno) (disk.File, error) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errno}
	}
	switch {
	case id == 0 && (flag&os.O_CREATE == 0 || dir == 0):
		return refuse(syscall.ENOENT)
	case id == 0:
		d.next++
		id = d.next
		d.record(&event{kind: Create, node: id, dir: dir, name: base, perm: perm})
	case flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return refuse(syscall.EEXIST)
	case d.live.nodes[id].dir && flag&(os.O_WRONLY|os.O_RDWR) != 0:
		return refuse(syscall.EISDIR)
	case flag&os.O_TRUNC != 0 && len(d.live.nodes[id].data) > 0:
		d.record(&event{kind: Truncate, node: id})
	}
	return &file{d: d, id: id, name: name, flag: flag}, nil
}

// Rename implements disk.FS.
func (d *Disk) Rename(oldName, newName string) error {
	if err := d.begin(Op{Kind: Rename, Name: oldName, To: newName}); err != nil {
		return err
	}
	defer d.mu.Unlock()
	dir, id, base := d.live.lookup(oldName)
	toDir, _, to := d.live.lookup(newName)
	if id == 0 || toDir == 0 {
		return notExist(Rename, oldName)
	}
	d.record(&event{kind: Rename, node: id, dir: dir, name: base, toDir: toDir, to: to})
	return nil
}

// Remove implements disk.FS.
func (d *Disk) Remove(name string) error {
	if err := d.begin(Op{Kind: Remove, Name: name}); err != nil {
		return err
	}
	defer d.mu.Unlock()
	dir, id, base := d.live.lookup(name)
	if id == 0 || id == root {
		return notExist(Remove, name)
	}
	if n := d.live.nodes[id]; n.dir && len(n.entries) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	d.record(&event{kind: Remove, node: id, dir: dir, name: base})
	return nil
}

// ReadDir implements disk.FS.
func (d *Disk) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := d.begin(Op{Kind: ReadDir, Name: name}); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	_, id, _ := d.live.lookup(name)
	if id == 0 || !d.live.nodes[id].dir {
		return nil, notExist(ReadDir, name)
	}
	var list []fs.DirEntry
	for base, child := range d.live.nodes[id].entries {
		list = append(list, fs.FileInfoToDirEntry(info(base, d.live.nodes[child])))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int {
		if a.Name() < b.Name() {
			return -1
		}
		return 1
	})
	return list, nil
}

// MkdirAll implements disk.FS.
func (d *Disk) MkdirAll(name string, perm fs.FileMode) error {
	d.mu.Lock()
	_, id, _ := d.live.lookup(name)
	d.mu.Unlock()
	if id != 0 {
		return nil
	}
	if parent := filepath.Dir(name); parent != name {
		if err := d.MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := d.begin(Op{Kind: Mkdir, Name: name}); err != nil {
		return err
	}
	defer d.mu.Unlock()
	dir, id, base := d.live.lookup(name)
	if id == 0 {
		d.next++
		d.record(&event{kind: Mkdir, node: d.next, dir: dir, name: base, perm: perm})
	}
	return nil
}

// SyncDir implements disk.FS.
func (d *Disk) SyncDir(name string) error {
	d.mu.Lock()
	_, id, _ := d.live.lookup(name)
	d.mu.Unlock()
	if err := d.begin(Op{Kind: SyncDir, Name: name}); err != nil {
		d.syncFailed(SyncDir, id)
		return err
	}
	defer d.mu.Unlock()
	if id == 0 {
		return notExist(SyncDir, name)
	}
	d.history = append(d.history, &event{kind: SyncDir, node: id, name: name})
	return nil
}

func (d *Disk) syncFailed(k Kind, id int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.history = append(d.history, &event{kind: k, node: id, failed: true})
}

// Replay builds a history on an empty disk and calls check for every disk a power cut may have
// left on the way. It returns their number. check may go on using its disk, and cut its power again
// by that disk's own CrashStates.
func Replay(t testing.TB, build func(d *Disk), check func(t testing.TB, state *Disk)) int {
	t.Helper()
	d := New()
	build(d)
	n := 0
	for name, state := range d.CrashStates() {
		n++
		check(&named{TB: t, name: name}, state)
	}
	return n
}

// named puts the cut in front of what a check has to say.
type named struct {
	testing.TB
	name string
}

func (n *named) Errorf(format string, args ...any) {
	n.TB.Helper()
	n.TB.Errorf("power cut %s: %s", n.name, fmt.Sprintf(format, args...))
}

func (n *named) Fatalf(format string, args ...any) {
	n.TB.Helper()
	n.TB.Fatalf("power cut %s: %s", n.name, fmt.Sprintf(format, args...))
}

func (n *named) Error(args ...any) { n.TB.Helper(); n.Errorf("%s", fmt.Sprint(args...)) }
func (n *named) Fatal(args ...any) { n.TB.Helper(); n.Fatalf("%s", fmt.Sprint(args...)) }

var errClosed = errors.New("file is closed")

// eof is what a read at the end returns.
func eof(n, want int) error {
	if n < want {
		return io.EOF
	}
	return nil
}
