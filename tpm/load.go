package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

// loadObject loads f and returns its handle, which belongs to the generation of c.
func (d *Device) loadObject(c *call, f *KeyFile, name []byte) (tpm2.TPMHandle, error) {
	h, err := d.loadEither(c, f)
	if !errors.Is(err, tpm2.TPMRCObjectMemory) || d.ResourceManager() {
		return h, err
	}
	adopted, freed, adoptErr := d.adopt(c, name)
	switch {
	case adoptErr != nil:
		return 0, adoptErr
	case adopted != 0:
		return adopted, nil
	case freed:
		return d.loadEither(c, f)
	}
	return 0, err
}

// loadEither tries both ways in which tools derive a primary key from the owner seed: with
// an empty unique field, and with the TCG's template to the letter.
func (d *Device) loadEither(c *call, f *KeyFile) (tpm2.TPMHandle, error) {
	h, err := d.loadUnder(c, f, ownerTemplate())
	if f.parent == OwnerHandle && errors.Is(err, tpm2.TPMRCIntegrity) {
		return d.loadUnder(c, f, tpm2.ECCSRKTemplate)
	}
	return h, err
}

func (d *Device) loadUnder(c *call, f *KeyFile, owner tpm2.TPMTPublic) (tpm2.TPMHandle, error) {
	storage, free, err := d.openParent(c, f.parent, owner)
	if err != nil {
		return 0, err
	}
	defer free()
	rsp, err := tpm2.Load{
		ParentHandle: storage,
		InPrivate:    tpm2.TPM2BPrivate{Buffer: f.private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](f.pub),
	}.Execute(c)
	if err != nil {
		return 0, loadError(err, f.parent)
	}
	return rsp.ObjectHandle, nil
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

// adopt finds room on a full TPM without resource manager. What fills it are most likely
// copies of this very key that were loaded when the process was killed, and of the primary
// key above it: one of the former is taken over, the others are flushed. Objects of any
// other kind, and those of our own live keys, are not touched. The handle is 0 where there
// was nothing to take over; freed reports whether there is room now.
func (d *Device) adopt(c *call, name []byte) (adopted tpm2.TPMHandle, freed bool, err error) {
	handles, err := transientHandles(c)
	if err != nil {
		return 0, false, commandError("listing the objects in the TPM", err)
	}
	held := d.heldHandles(c.gen)
	for _, h := range handles {
		if held[h] {
			continue
		}
		pub, found, err := readPublic(c, h)
		switch {
		case err != nil:
			return 0, false, commandError("listing the objects in the TPM", err)
		case bytes.Equal(found, name) && adopted == 0:
			adopted = h
		case bytes.Equal(found, name), isDerivedSRK(pub):
			d.flush(c, h)
			freed = true
		}
	}
	return adopted, freed, nil
}

// isDerivedSRK reports whether pub is what createPrimary makes, whatever its key.
func isDerivedSRK(pub *tpm2.TPMTPublic) bool {
	blank := *pub
	blank.Unique = ownerTemplate().Unique
	return pub.Type == tpm2.TPMAlgECC && bytes.Equal(tpm2.Marshal(blank), tpm2.Marshal(ownerTemplate()))
}

func transientHandles(c *call) ([]tpm2.TPMHandle, error) {
	const firstTransient, most = 0x80000000, 64
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: firstTransient, PropertyCount: most}.Execute(c)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	return list.Handle, nil
}

func (d *Device) heldHandles(gen uint64) map[tpm2.TPMHandle]bool {
	held := make(map[tpm2.TPMHandle]bool)
	for _, k := range d.loaded() {
		if at := k.at.Load(); at != nil && at.gen == gen {
			held[at.handle] = true
		}
	}
	return held
}
