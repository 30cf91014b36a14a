package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Bounds of files with certificates: the makers' bundles have some hundred.
const (
	maxRootsFile = 8 << 20
	maxRoots     = 4096
)

// readCertificates reads a file, or every file of a folder, PEM or DER.
func readCertificates(path string) ([]*x509.Certificate, error) {
	files := []string{path}
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if info.IsDir() {
		if files, err = filesIn(path); err != nil {
			return nil, err
		}
	}
	var certificates []*x509.Certificate
	for _, file := range files {
		found, err := readFile(file)
		if err != nil {
			return nil, hint.With(fmt.Errorf("%s: %w", file, err), "a certificate per PEM block, or one in DER; nothing else belongs there")
		}
		if certificates = append(certificates, found...); len(certificates) > maxRoots {
			return nil, fmt.Errorf("%s: more than %d certificates", path, maxRoots)
		}
	}
	if len(certificates) == 0 {
		return nil, hint.With(fmt.Errorf("%s holds no certificate", path), "put the authorities' certificates there, PEM or DER")
	}
	return certificates, nil
}

// filesIn lists the files of a folder and those below it; hidden ones are none.
func filesIn(folder string) (files []string, err error) {
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path != folder && d.Name()[0] == '.':
			if d.IsDir() {
				return fs.SkipDir
			}
		case !d.IsDir():
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

func readFile(file string) ([]*x509.Certificate, error) {
	text, err := disk.ReadFile(disk.OS(), file, maxRootsFile)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(text, []byte("-----BEGIN ")) {
		c, err := x509.ParseCertificate(text)
		if err != nil {
			return nil, err
		}
		return []*x509.Certificate{c}, nil
	}
	var certificates []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return certificates, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %q among the certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, c)
	}
}

func readPool(path string) (*x509.CertPool, error) {
	certificates, err := readCertificates(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certificates {
		if !c.IsCA {
			return nil, hint.With(errors.New("a certificate in it is no authority's"), "give the authority's certificate, not a device's")
		}
		pool.AddCert(c)
	}
	return pool, nil
}
