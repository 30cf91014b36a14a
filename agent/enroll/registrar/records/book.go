// Package records is what a registrar remembers: which token is for which device, which TPM is
// which device, and every certificate that was issued. The trap is that two files cannot change
// at once: the record of a device is the one truth, written last, and whatever else a power cut
// left without it counts for nothing.
package records

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// The folders of a book of records.
const (
	tokenDir  = "tokens"  // <SHA-256 of the token>.json
	deviceDir = "devices" // <id>.json
	ekDir     = "eks"     // <SHA-256 of the endorsement key>.json
)

// maxFileBytes bounds every file that is read: a record holds some hundred certificates at most.
const maxFileBytes = 1 << 20

var (
	errDeviceID = errors.New("a device id is 1 to 64 letters, digits, and any of . _ -")
	// ErrUnknown says that there is no such device or certificate.
	ErrUnknown = errors.New("the registrar does not know it")
)

// deviceID keeps ids fit for topics, file names and host names alike; digest is a SHA-256.
var (
	deviceID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	digest   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// CheckDevice says what is wrong with a device's id, if anything.
func CheckDevice(id string) error {
	if !deviceID.MatchString(id) {
		return hint.With(fmt.Errorf("device id %q: %w", id, errDeviceID), "take a serial number, for instance gw-0001")
	}
	return nil
}

// Book is the memory in one directory. Several processes may use it at once: a registrar or
// two, and the tool that adds tokens.
type Book struct {
	fsys  disk.FS
	dir   string
	locks *locks
}

// Open opens the records in dir, which is there already, or begins one.
func Open(fsys disk.FS, dir string) (*Book, error) {
	for _, folder := range []string{tokenDir, deviceDir, ekDir} {
		if err := disk.MakeFolder(fsys, filepath.Join(dir, folder)); err != nil {
			return nil, fmt.Errorf("making the folders of the records: %w", err)
		}
	}
	locks, err := newLocks(fsys, dir)
	if err != nil {
		return nil, err
	}
	b := &Book{fsys: fsys, dir: dir, locks: locks}
	return b, b.settle(tokenDir, deviceDir, ekDir)
}

// settle makes durable what is in the folders already. A process that was killed between its
// rename and its sync leaves files that are seen, and that a power cut may still take away.
func (b *Book) settle(folders ...string) error {
	for _, folder := range folders {
		if err := b.fsys.SyncDir(filepath.Join(b.dir, folder)); err != nil {
			return fmt.Errorf("syncing the records: %w", err)
		}
	}
	return nil
}

func (b *Book) folder(name string) string { return filepath.Join(b.dir, name) }

func (b *Book) path(folder, name string) string { return filepath.Join(b.dir, folder, name+".json") }

func (b *Book) read(folder, name string, v any) error {
	text, err := disk.ReadFile(b.fsys, b.path(folder, name), maxFileBytes)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return fmt.Errorf("reading %s of the records: %w", filepath.Join(folder, name+".json"), err)
	}
	return nil
}

func (b *Book) write(folder, name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if len(text) >= maxFileBytes {
		return fmt.Errorf("writing %s of the records: it would hold %d bytes", filepath.Join(folder, name+".json"), len(text))
	}
	if err := atomicfile.Write(b.fsys, b.path(folder, name), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the records: %w", err)
	}
	return nil
}
