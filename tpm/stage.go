package tpm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"ferrule/internal/atomicfile"
	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

// nextSuffix ends the name of a key file that is to take another's place.
const nextSuffix = ".next"

const hintNext = "a new key needs a place beside the old one: set identity.key to tpm2:file=device.key, or keep this key and renew without --rekey"

// NextURI names the place of the key that is to succeed the one at uri: the same file with
// .next behind its name. ErrUnsupported for handles and helpers, which have no such place.
func NextURI(uri string) (string, error) {
	r, err := parseRef(uri, KeyOptions{AllowSoftware: true})
	if err != nil {
		return "", err
	}
	if r.path == "" {
		return "", hint.With(unsupported("key %q has no place for a successor", uri), hintNext)
	}
	return uri + nextSuffix, nil
}

// TakeOver puts the key at NextURI(uri) in the place of the one at uri, which is gone then;
// durable when it returns. Where there is no next one it answers ErrNoKey, so that a second
// call after a power cut does no harm. A key that is open under either name stays usable.
func TakeOver(uri string, o KeyOptions) error {
	r, err := parseFile(uri, o)
	if err != nil {
		return err
	}
	err = r.o.FS.Rename(r.path+nextSuffix, r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("taking over key %s: %w: %s%s does not exist", uri, ErrNoKey, r.path, nextSuffix)
	}
	if err == nil {
		err = r.o.FS.SyncDir(filepath.Dir(r.path))
	}
	if err != nil {
		return fmt.Errorf("taking over key %s: %w", uri, err)
	}
	return nil
}

// parseFile is parseRef for what touches key files without using the key.
func parseFile(uri string, o KeyOptions) (*ref, error) {
	if _, err := NextURI(uri); err != nil {
		return nil, err
	}
	o.AllowSoftware = true
	return parseRef(uri, o)
}

// Remove erases the key at uri: its file with all that was kept beside it (the next key, one
// that was set aside, a temporary file), or the object at its persistent handle. The SRK
// stays: others use it, and it would come back the same from the TPM's seed. A key that is
// not there is no error, nor is a file of a key that is no longer allowed.
func Remove(ctx context.Context, uri string, o KeyOptions) error {
	o.AllowSoftware = true
	r, err := parseRef(uri, o)
	if err != nil {
		return err
	}
	switch {
	case r.path != "":
		err = r.removeFiles()
	case r.kind == refHandle:
		err = r.evict(ctx)
	default:
		err = hint.With(unsupported("the key is not ours"), "remove it with the helper's own tools")
	}
	if err != nil {
		return fmt.Errorf("removing key %s: %w", uri, err)
	}
	return nil
}

func (r *ref) removeFiles() error {
	var errs []error
	for _, end := range []string{nextSuffix + atomicfile.Suffix, nextSuffix, lostSuffix, atomicfile.Suffix, ""} {
		if err := r.o.FS.Remove(r.path + end); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := r.o.FS.SyncDir(filepath.Dir(r.path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// evict frees the persistent handle, if a key that could be ours lies there.
func (r *ref) evict(ctx context.Context) error {
	d, err := r.device(ctx)
	if err != nil {
		return err
	}
	k, err := d.OpenHandle(ctx, r.handle)
	switch {
	case errors.Is(err, ErrNoKey):
		return nil
	case err != nil:
		return err
	}
	defer k.close(ctx)
	h := tpm2.TPMHandle(r.handle)
	return ownerError("freeing the handle", persist(d.call(ctx), h, tpm2.TPM2BName{Buffer: k.name}, r.handle))
}

// PublicOf returns the public key of a key file, without the TPM: *ecdsa.PublicKey or
// *rsa.PublicKey. ErrNoKey where the file is not there, ErrUnsupported for handles and
// helpers.
func PublicOf(uri string, o KeyOptions) (crypto.PublicKey, error) {
	r, err := parseFile(uri, o)
	if err != nil {
		return nil, err
	}
	key, err := r.public()
	if err != nil {
		return nil, fmt.Errorf("reading key %s: %w", uri, err)
	}
	return key, nil
}

func (r *ref) public() (crypto.PublicKey, error) {
	data, err := r.read()
	if err != nil {
		return nil, err
	}
	if r.kind == refSoftware {
		key, err := parseSoftware(data)
		if err != nil {
			return nil, err
		}
		return key.Public(), nil
	}
	f, err := ParseKeyFile(data)
	if err != nil {
		return nil, err
	}
	return f.Public()
}

// parseSoftware reads a PKCS #8 file.
func parseSoftware(data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, corrupt("no PEM block in it")
	}
	if block.Type != "PRIVATE KEY" {
		return nil, unsupported("PEM type %q; a file: key is PKCS#8, %q", block.Type, "PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, corrupt("%s", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
		return nil, unsupported("a software key of another kind than P-256 or P-384")
	}
	return key, nil
}
