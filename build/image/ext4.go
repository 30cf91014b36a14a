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

// ext4 makes a file system of a folder: everything belongs to root and has the release's time.
func (b *builder) ext4(ctx context.Context, name, tree, uuid string, size int64, features string) error {
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("making %s: %w", name, err)
	}
	argv := []string{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-U", uuid, "-O", features,
		"-E", "hash_seed=" + uuid + ",root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-d", tree, name, strconv.FormatInt(size/1024, 10) + "k"}
	if err := b.tool(ctx, "", argv...); err != nil {
		return err
	}
	commands, err := b.ownAndDate(tree)
	if err != nil {
		return err
	}
	if err := b.tool(ctx, commands, "debugfs", "-w", "-f", "-", name); err != nil {
		return err
	}
	return b.tool(ctx, "", "e2fsck", "-fn", name)
}

// ownAndDate are debugfs's commands that take away whose files these were and when they were written.
func (b *builder) ownAndDate(tree string) (string, error) {
	var commands strings.Builder
	at := "@" + strconv.FormatInt(b.epoch.Unix(), 10)
	set := func(name string) {
		for _, field := range []string{"uid 0", "gid 0", "atime " + at, "ctime " + at, "mtime " + at, "crtime " + at,
			"atime_extra 0", "ctime_extra 0", "mtime_extra 0", "crtime_extra 0", "generation 0"} {
			fmt.Fprintf(&commands, "sif %s %s\n", name, field)
		}
	}
	err := filepath.WalkDir(tree, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(tree, name)
		if err != nil {
			return err
		}
		set(filepath.Join("/", relative))
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("reading the tree: %w", err)
	}
	set("/lost+found")
	return commands.String(), nil
}
