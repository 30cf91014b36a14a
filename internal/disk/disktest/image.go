package disktest

import (
	"hash/maphash"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// An image is the content of a disk: inodes, of which folders name others. Clones share inodes
// until one of them changes one.
type image struct {
	nodes map[int]*node
	own   map[int]bool // inodes no clone shares
	// keep holds on to inodes without a name, because an open file may still use them.
	keep bool
}

type node struct {
	dir     bool
	perm    fs.FileMode
	data    []byte
	entries map[string]int
	hash    uint64 // of data; 0: not computed
}

const root = 1

func newImage() *image {
	return &image{
		nodes: map[int]*node{root: {dir: true, perm: 0o755, entries: map[string]int{}}},
		own:   map[int]bool{root: true},
	}
}

func (im *image) clone() *image {
	clear(im.own)
	return &image{nodes: maps.Clone(im.nodes), own: map[int]bool{}}
}

// mutable returns the inode for change, making an empty file of one that is not there: a name
// or a block may reach the disk before the inode's own creation did.
func (im *image) mutable(id int) *node {
	n, ok := im.nodes[id]
	switch {
	case !ok:
		n = &node{perm: 0o600}
	case !im.own[id]:
		n = &node{dir: n.dir, perm: n.perm, data: slices.Clone(n.data), entries: maps.Clone(n.entries)}
	}
	im.nodes[id], im.own[id] = n, true
	n.hash = 0
	return n
}

// apply carries out one recorded event.
func (im *image) apply(e *event) {
	switch e.kind {
	case Write:
		n := im.mutable(e.node)
		if grow := e.off + int64(len(e.data)) - int64(len(n.data)); grow > 0 {
			n.data = append(n.data, make([]byte, grow)...)
		}
		copy(n.data[e.off:], e.data)
	case Truncate:
		n := im.mutable(e.node)
		if e.off <= int64(len(n.data)) {
			n.data = n.data[:e.off:e.off]
		} else {
			n.data = append(n.data, make([]byte, e.off-int64(len(n.data)))...)
		}
	case Create, Mkdir:
		n := im.mutable(e.node)
		n.perm, n.dir = e.perm, e.kind == Mkdir
		if n.dir && n.entries == nil {
			n.entries = map[string]int{}
		}
		im.link(e.dir, e.name, e.node)
	case Remove:
		im.unlink(e.dir, e.name, e.node)
	case Rename:
		if old := im.nodes[e.dir]; old != nil && old.entries[e.name] == e.node {
			delete(im.mutable(e.dir).entries, e.name)
		}
		im.mutable(e.node)
		im.link(e.toDir, e.to, e.node)
	}
}

func (im *image) link(dir int, name string, id int) {
	d := im.mutable(dir)
	if d.entries == nil {
		d.dir, d.entries = true, map[string]int{}
	}
	if old, ok := d.entries[name]; ok && old != id && !im.keep {
		delete(im.nodes, old)
	}
	d.entries[name] = id
}

func (im *image) unlink(dir int, name string, id int) {
	if d := im.nodes[dir]; d == nil || d.entries[name] != id {
		return
	}
	delete(im.mutable(dir).entries, name)
	if !im.keep {
		delete(im.nodes, id)
	}
}

// lookup returns the inode of a path, and of the folder it is or would be in; 0 for none.
func (im *image) lookup(path string) (dir, id int, base string) {
	clean := strings.TrimPrefix(filepath.ToSlash(filepath.Clean(path)), "/")
	if clean == "." || clean == "" {
		return root, root, "."
	}
	id = root
	for part := range strings.SplitSeq(clean, "/") {
		n := im.nodes[id]
		if n == nil || !n.dir {
			return 0, 0, part
		}
		dir, id, base = id, n.entries[part], part
	}
	return dir, id, base
}

// walk calls visit for every file that has a path, in order.
func (im *image) walk(id int, path string, visit func(path string, n *node)) {
	n := im.nodes[id]
	if n == nil {
		return
	}
	visit(path, n)
	for _, name := range slices.Sorted(maps.Keys(n.entries)) {
		im.walk(n.entries[name], path+"/"+name, visit)
	}
}

// sum identifies the reachable content.
func (im *image) sum(seed maphash.Seed) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	im.walk(root, "", func(path string, n *node) {
		if n.hash == 0 {
			n.hash = maphash.Bytes(seed, n.data) | 1
		}
		h.WriteString(path)
		maphash.WriteComparable(&h, n.hash)
		maphash.WriteComparable(&h, n.dir)
	})
	return h.Sum64()
}
