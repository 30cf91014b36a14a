package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
)

// fat makes a FAT file system with these files, in the order of their names.
func (b *builder) fat(ctx context.Context, name, label string, size int64, files map[string]file) error {
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("making %s: %w", name, err)
	}
	if err := b.tool(ctx, "", "mkfs.vfat", "--invariant", "-n", label, "-C", name, strconv.FormatInt(size/1024, 10)); err != nil {
		return err
	}
	tree := filepath.Join(b.work, filepath.Base(name)+".tree")
	if err := writeTree(tree, files); err != nil {
		return err
	}
	made := map[string]bool{".": true}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		for _, dir := range above(file) {
			if !made[dir] {
				if err := b.tool(ctx, "", "mmd", "-i", name, "::/"+dir); err != nil {
					return err
				}
				made[dir] = true
			}
		}
		path := filepath.Join(tree, file)
		if err := os.Chtimes(path, b.epoch, b.epoch); err != nil {
			return fmt.Errorf("making %s: %w", name, err)
		}
		if err := b.tool(ctx, "", "mcopy", "-m", "-i", name, path, "::/"+file); err != nil {
			return err
		}
	}
	return nil
}

// above are the folders of a file, the topmost first.
func above(file string) (dirs []string) {
	for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
		dirs = append([]string{dir}, dirs...)
	}
	return dirs
}
