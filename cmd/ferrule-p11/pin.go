//go:build cgo

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"ferrule/internal/hint"
)

const maxPIN = 256

// pinSource reads the PIN from file, or else from the systemd credential "pin"
// (LoadCredential=pin:… in the unit). It is read anew for every login, so that it does not lie
// about in memory for the years between two. It is no flag: everybody can read those (ps).
func pinSource(file, credentials string) func() (pin string, has bool, err error) {
	optional := file == "" && credentials != ""
	if optional {
		file = filepath.Join(credentials, "pin")
	}
	return func() (string, bool, error) {
		if file == "" {
			return "", false, nil
		}
		pin, err := readPIN(file)
		if optional && errors.Is(err, fs.ErrNotExist) {
			return "", false, nil
		}
		return pin, err == nil, err
	}
}

func readPIN(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading the PIN: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("reading the PIN: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", hint.With(fmt.Errorf("reading the PIN: everybody may open %s", path), "chmod 600 "+path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPIN+2))
	if err != nil {
		return "", fmt.Errorf("reading the PIN: %w", err)
	}
	data = bytes.TrimRight(data, "\r\n")
	switch {
	case len(data) == 0:
		return "", fmt.Errorf("reading the PIN: %s is empty", path)
	case len(data) > maxPIN:
		return "", fmt.Errorf("reading the PIN: %s is longer than %d bytes", path, maxPIN)
	case bytes.ContainsAny(data, "\r\n\x00"):
		return "", fmt.Errorf("reading the PIN: %s has more than one line", path)
	}
	return string(data), nil
}
