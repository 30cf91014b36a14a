// Package archive writes the one file that is sent to support. The trap is the secret that travels
// in it: what may hold one is rewritten before it goes in, what is known to be one is taken out of
// every byte, and keys are left out whole.
package archive

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"ferrule/internal/hint"
)

// File is one member of the archive.
type File struct {
	Name string
	// About says in one line what it is.
	About string
	Data  []byte
}

// Archive is what goes into the file.
type Archive struct {
	// Folder is the name of everything's folder in the archive.
	Folder string
	At     time.Time
	Files  []File
	// LeftOut says what is not in it, and why, a line each.
	LeftOut []string
	// Secrets are taken out of every byte of every file, however they are written.
	Secrets []string
}

// README is the name of the file that lists the others.
const README = "README.txt"

// Write makes the file, which must not be there yet, for its owner alone.
func (a Archive) Write(path string) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return hint.With(fmt.Errorf("writing the archive: %s is there already", path), "name another file, or remove that one")
	}
	if err != nil {
		return fmt.Errorf("writing the archive: %w", err)
	}
	if err = errors.Join(a.encode(file), file.Close()); err != nil {
		_ = os.Remove(path) // half of it is of no use to anybody
		return fmt.Errorf("writing the archive: %w", err)
	}
	return nil
}

// encode writes the archive as a compressed tar.
func (a Archive) encode(w io.Writer) error {
	zipped := gzip.NewWriter(w)
	scrub := NewScrubber(a.Secrets)
	files := append([]File{{Name: README, Data: a.readme()}}, a.Files...)
	for _, f := range files {
		data := scrub.Clean(f.Data)
		header, err := header(a.Folder+"/"+f.Name, len(data), a.At)
		if err != nil {
			return err
		}
		padding := make([]byte, -len(data)&(block-1))
		for _, part := range [][]byte{header[:], data, padding} {
			if _, err := zipped.Write(part); err != nil {
				return err
			}
		}
	}
	if _, err := zipped.Write(make([]byte, 2*block)); err != nil {
		return err
	}
	return zipped.Close()
}

// readme lists what is inside and what was left out.
func (a Archive) readme() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "What ferrule doctor found on %s, for whoever helps with it.\n\nInside:\n", a.At.UTC().Format(time.RFC3339))
	for _, f := range a.Files {
		fmt.Fprintf(&b, "  %-20s %s\n", f.Name, f.About)
	}
	b.WriteString("\nLeft out:\n")
	for _, line := range a.LeftOut {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	return b.Bytes()
}

// block is the unit of a tar, in bytes.
const block = 512

// header is that of a plain file (POSIX.1-1988, ustar).
func header(name string, size int, at time.Time) (h [block]byte, err error) {
	if len(name) > 100 || strings.ContainsRune(name, 0) {
		return h, fmt.Errorf("the name %q does not fit into an archive", name)
	}
	put := func(at int, text string) { copy(h[at:], text) }
	put(0, name)
	put(100, "0000600\x00")
	put(108, "0000000\x00")
	put(116, "0000000\x00")
	put(124, fmt.Sprintf("%011o\x00", size))
	put(136, fmt.Sprintf("%011o\x00", max(at.Unix(), 0)))
	put(148, "        ") // the checksum's own place counts as blanks
	put(156, "0")
	put(257, "ustar\x0000")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	put(148, fmt.Sprintf("%06o\x00 ", sum))
	return h, nil
}
