package tpm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"ferrule/internal/disk"

	"github.com/google/go-tpm/tpm2"
)

// EndorsementName returns the Name of the chip's P-256 endorsement key (TCG EK Credential
// Profile, template L-2). It survives a clearing of the owner, so it tells a cleared TPM
// from another one. The key is derived and flushed: two commands, nothing stored.
func (d *Device) EndorsementName(ctx context.Context) ([]byte, error) {
	var name []byte
	err := again(func() error {
		c, release, err := d.hold(ctx)
		if err != nil {
			return err
		}
		defer release()
		ek, err := d.createPrimary(c, tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate, nil)
		if err != nil {
			return err
		}
		d.flush(c, ek.ObjectHandle)
		name = ek.Name.Buffer
		return nil
	})
	if err != nil {
		return nil, endorsementError("deriving the endorsement key", err)
	}
	return name, nil
}

// lostSuffix ends the name of a key file whose TPM no longer knows the key.
const lostSuffix = ".lost"

// SetAside moves the key file that uri names out of the way, to the same path with .lost
// behind it, for a key whose TPM no longer knows it. A key at a handle is gone with the
// owner that it belonged to.
func SetAside(uri string, o KeyOptions) error {
	r, err := parseRef(uri, o)
	if err != nil {
		return err
	}
	if r.path == "" {
		return fmt.Errorf("setting aside key %s: %w", uri, errors.ErrUnsupported)
	}
	if err := r.o.FS.Rename(r.path, r.path+lostSuffix); err != nil {
		return fmt.Errorf("setting aside key %s: %w", uri, err)
	}
	return nil
}

// SettleKey makes durable the key that OpenKey found at uri. Whoever stored it may have been
// killed before its name was synced, and then a power cut can still take it away.
func SettleKey(uri string, o KeyOptions) error {
	r, err := parseRef(uri, o)
	if err != nil || r.path == "" {
		return err
	}
	err = disk.MakeFolder(r.o.FS, filepath.Dir(r.path))
	if err == nil {
		err = r.o.FS.SyncDir(filepath.Dir(r.path))
	}
	if err != nil {
		return fmt.Errorf("syncing key %s: %w", uri, err)
	}
	return nil
}
