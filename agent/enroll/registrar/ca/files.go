package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// settle makes durable what is in a folder already. A process that was killed between its
// rename and its sync leaves files that are seen, and that a power cut may still take away.
func settle(fsys disk.FS, folder string) error {
	if err := fsys.SyncDir(folder); err != nil {
		return fmt.Errorf("syncing %s: %w", folder, err)
	}
	return nil
}

func missingKey(dir, file string) error {
	return hint.With(fmt.Errorf("%s is missing", filepath.Join(dir, file+".key")), "put the key back for as long as it signs")
}

func (c *CA) ensureKey(file string) (*ecdsa.PrivateKey, error) {
	key, err := c.readKey(file)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, c.write(file+".key", "PRIVATE KEY", der, 0o600)
}

func (c *CA) readKey(file string) (*ecdsa.PrivateKey, error) {
	der, err := c.read(file+".key", "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der[0])
	if err != nil {
		return nil, fmt.Errorf("reading %s.key: %w", file, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("reading %s.key: it is a %T, and an EC key is expected", file, key)
	}
	return ec, nil
}

func (c *CA) write(file, kind string, der []byte, mode fs.FileMode) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := atomicfile.Write(c.fsys, filepath.Join(c.dir, file), text, mode); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}

// read returns the blocks of kind in a file, at least one.
func (c *CA) read(file, kind string) ([][]byte, error) {
	text, err := disk.ReadFile(c.fsys, filepath.Join(c.dir, file), maxFileBytes)
	if errors.Is(err, os.ErrNotExist) {
		return nil, hint.With(fmt.Errorf("reading %s: %w", filepath.Join(c.dir, file), fs.ErrNotExist), "make a CA first: ferrule-factory ca init DIR")
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	var blocks [][]byte
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == kind {
			blocks = append(blocks, block.Bytes)
		}
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("reading %s: it holds no %s", file, kind)
	}
	return blocks, nil
}
