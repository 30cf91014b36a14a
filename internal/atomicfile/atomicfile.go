// Package atomicfile replaces a file so that a power cut leaves the old or the new content,
// never a mixture and never nothing. The trap: a rename without the two syncs around it is
// atomic for other processes only, and leaves an empty file after a power cut.
package atomicfile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ferrule/internal/disk"
)

// Suffix ends the name of the file that is written before it takes its name. One left by a
// power cut is replaced by the next Write.
const Suffix = ".tmp"

// Write puts data into the file called name, creating or replacing it; when it returns nil the
// new content is durable. After an error the old or the new content is there, and the
// temporary file is gone. One writer per name at a time.
func Write(fsys disk.FS, name string, data []byte, perm fs.FileMode) error {
	temp := name + Suffix
	// Left over from a power cut, perhaps with other permissions: never write through it.
	_ = fsys.Remove(temp)
	if err := writeSynced(fsys, temp, data, perm); err != nil {
		_ = fsys.Remove(temp)
		return fmt.Errorf("writing %s: %w", temp, err)
	}
	if err := fsys.Rename(temp, name); err != nil {
		_ = fsys.Remove(temp)
		return fmt.Errorf("replacing %s: %w", name, err)
	}
	if err := fsys.SyncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("syncing the folder of %s: %w", name, err)
	}
	return nil
}

func writeSynced(fsys disk.FS, name string, data []byte, perm fs.FileMode) error {
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
