package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ext4 makes a file system of a folder: everything belongs to root, has the release's time, and is there
// in the order of its name. mke2fs itself would take the files as they come, with what their owner and
// umask made of them.
func (b *builder) ext4(ctx context.Context, name, tree, uuid string, size int64, features string) error {
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("making %s: %w", name, err)
	}
	argv := []string{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-U", uuid, "-O", features,
		"-E", "hash_seed=" + uuid + ",root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard", name, strconv.FormatInt(size/1024, 10) + "k"}
	if err := b.tool(ctx, "", argv...); err != nil {
		return err
	}
	commands, count, err := b.fill(tree)
	if err != nil {
		return err
	}
	said, err := b.ask(ctx, commands, "debugfs", "-w", "-f", "-", name)
	if err != nil {
		return err
	}
	// debugfs ends well whatever went wrong.
	if made := strings.Count(said, "Allocated inode: "); made != count || strings.Contains(said, "while ") {
		return fmt.Errorf("making %s: debugfs wrote %d of %d files: %s", name, made, count, said)
	}
	return b.tool(ctx, "", "e2fsck", "-fn", name)
}

// fill are debugfs's commands that write a tree with count files, and take away whose they were and
// when they were written.
func (b *builder) fill(tree string) (script string, count int, err error) {
	var commands strings.Builder
	at := "@" + strconv.FormatInt(b.epoch.Unix(), 10)
	set := func(name string, mode int) {
		for _, field := range []string{fmt.Sprintf("mode 0%o", mode), "uid 0", "gid 0", "atime " + at, "ctime " + at, "mtime " + at, "crtime " + at,
			"atime_extra 0", "ctime_extra 0", "mtime_extra 0", "crtime_extra 0", "generation 0"} {
			fmt.Fprintf(&commands, "sif %s %s\n", name, field)
		}
	}
	err = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error { // in the order of names
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		name := filepath.Join("/", relative)
		switch {
		case name == "/":
			return nil
		case d.IsDir():
			fmt.Fprintf(&commands, "mkdir %s\n", name)
			set(name, 0o40755)
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		count++
		mode := 0o100644
		if info.Mode()&0o100 != 0 {
			mode = 0o100755
		}
		fmt.Fprintf(&commands, "write %s %s\n", path, name)
		set(name, mode)
		return nil
	})
	if err != nil {
		return "", 0, fmt.Errorf("reading the tree: %w", err)
	}
	set("/", 0o40755)
	set("/lost+found", 0o40700)
	return commands.String(), count, nil
}
