package tpm

import (
	"errors"
	"fmt"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

// loadObject loads f and returns its handle, which belongs to the generation of c. It tries
// both ways in which tools derive a primary key from the owner seed: with an empty unique
// field, and with the TCG's template to the letter.
func (d *Device) loadObject(c *call, f *KeyFile, srk tpm2.TPM2BName) (tpm2.TPMHandle, error) {
	h, err := d.loadUnder(c, f, srk, ownerTemplate())
	if f.parent == OwnerHandle && errors.Is(err, tpm2.TPMRCIntegrity) {
		return d.loadUnder(c, f, srk, tpm2.ECCSRKTemplate)
	}
	return h, err
}

func (d *Device) loadUnder(c *call, f *KeyFile, srk tpm2.TPM2BName, owner tpm2.TPMTPublic) (tpm2.TPMHandle, error) {
	storage, free, err := d.openParent(c, f.parent, srk, owner)
	if err != nil {
		return 0, err
	}
	defer free()
	var rsp *tpm2.LoadResponse
	err = d.fit(c, withParent(f.parent), nil, func() (err error) {
		rsp, err = tpm2.Load{
			ParentHandle: storage,
			InPrivate:    tpm2.TPM2BPrivate{Buffer: f.private},
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](f.pub),
		}.Execute(c)
		return err
	})
	if err != nil {
		return 0, loadError(err, f.parent)
	}
	return rsp.ObjectHandle, nil
}

// withParent is the room that a key takes with its parent: a persistent one needs a slot as
// long as the command takes, a derived one has its slot already.
func withParent(parent uint32) int {
	if parent == SRKHandle {
		return 2
	}
	return 1
}

// loadError tells a TPM that is not the key's from a key that is damaged. A wrapped key is
// protected by a checksum under its parent, so both may be INTEGRITY (Part 1, 23.3); a blob
// cut short is SIZE.
func loadError(err error, parent uint32) error {
	const doing = "loading the device key"
	switch {
	case errors.Is(err, tpm2.TPMRCIntegrity), errors.Is(err, tpm2.TPMRCHandle) && parent == SRKHandle:
		return hint.With(fmt.Errorf("%s: %w, or the key file is of another TPM or damaged: %w",
			doing, ErrOwnerChanged, err), hintOwner)
	case errors.Is(err, tpm2.TPMRCSize), errors.Is(err, tpm2.TPMRCInsufficient), errors.Is(err, tpm2.TPMRCBinding),
		errors.Is(err, tpm2.TPMRCSensitive), errors.Is(err, tpm2.TPMRCECCPoint), errors.Is(err, tpm2.TPMRCKey):
		return hint.With(fmt.Errorf("%s: %w: %w", doing, ErrKeyCorrupt, err), hintKeyCorrupt)
	}
	return commandError(doing, err)
}
