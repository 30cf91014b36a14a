package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

const (
	// SRKHandle is where the storage root key lies (TCG TPM v2.0 Provisioning Guidance, 7.8).
	SRKHandle uint32 = 0x81000001
	// OwnerHandle as a parent means: derive the primary key from the owner seed for every
	// load. Two commands more, and no persistent handle needed.
	OwnerHandle uint32 = 0x40000001
)

// srkState remembers the SRK's Name for the life of the Device: it must not change below us.
type srkState struct {
	name []byte
	noDA bool
	gen  uint64 // the generation in which the TPM last showed this Name
}

// EnsureSRK makes sure that a storage key lies at SRKHandle, creates it from the TCG's
// ECC template where there is none, and returns its Name (Part 1, 16). A Name unlike
// pinName, where that is given, is ErrOwnerChanged, and then nothing was made persistent.
// Creating needs the owner hierarchy without a password: ErrOwnerAuth otherwise. A second
// call on the same connection costs no command.
func (d *Device) EnsureSRK(ctx context.Context, pinName []byte) ([]byte, error) {
	d.srkMu.Lock()
	defer d.srkMu.Unlock()
	if pinName == nil {
		pinName = d.srk.name
	}
	if d.srk.name != nil && d.srk.gen == d.live.Load() {
		return bytes.Clone(d.srk.name), checkPin(d.srk.name, pinName)
	}
	var srk srkState
	err := again(func() error {
		c, release, err := d.hold(ctx)
		if err != nil {
			return err
		}
		defer release()
		err = d.fit(c, 1, nil, func() (err error) { srk, err = readSRK(c); return err })
		if errors.Is(err, tpm2.TPMRCHandle) {
			srk, err = d.createSRK(c, pinName)
		}
		return err
	})
	if err != nil {
		return nil, commandError("preparing the SRK", err)
	}
	if err := checkPin(srk.name, pinName); err != nil {
		return nil, err
	}
	d.srk = srk
	return bytes.Clone(srk.name), nil
}

// srkCounts reports whether power cuts while the SRK is in use count towards lockout.
func (d *Device) srkCounts() bool {
	d.srkMu.Lock()
	defer d.srkMu.Unlock()
	return !d.srk.noDA
}

func checkPin(name, pin []byte) error {
	if pin == nil || bytes.Equal(name, pin) {
		return nil
	}
	return hint.With(fmt.Errorf("%w: the SRK is named %x, and %x is expected", ErrOwnerChanged, name, pin), hintOwner)
}

// readSRK looks at what lies at SRKHandle.
func readSRK(c *call) (srkState, error) {
	pub, name, err := readPublic(c, tpm2.TPMHandle(SRKHandle))
	if err != nil {
		return srkState{}, err
	}
	if !isStorage(pub) {
		return srkState{}, unsupported("handle %#x holds an object that is no storage key of this TPM", SRKHandle)
	}
	return srkState{name: name, noDA: pub.ObjectAttributes.NoDA, gen: c.gen}, nil
}

// isStorage reports whether pub is a storage key that never leaves the TPM.
func isStorage(pub *tpm2.TPMTPublic) bool {
	a := pub.ObjectAttributes
	return a.Restricted && a.Decrypt && a.UserWithAuth && a.FixedTPM
}

// createSRK makes the SRK persistent. A power cut in between leaves nothing, or the whole:
// the key is derived from the owner seed, so a second attempt makes the same one.
func (d *Device) createSRK(c *call, pin []byte) (srkState, error) {
	primary, err := d.createPrimary(c, tpm2.TPMRHOwner, tpm2.ECCSRKTemplate, nil)
	if err != nil {
		return srkState{}, ownerError("deriving the SRK", err)
	}
	defer d.flush(c, primary.ObjectHandle)
	if err := checkPin(primary.Name.Buffer, pin); err != nil {
		return srkState{}, err
	}
	err = persist(c, primary.ObjectHandle, primary.Name, SRKHandle)
	if err != nil && !errors.Is(err, tpm2.TPMRCNVDefined) {
		return srkState{}, ownerError("making the SRK persistent", err)
	}
	srk, err := readSRK(c)
	if err != nil {
		return srkState{}, err
	}
	// NV_DEFINED: somebody else was quicker; the same template gives the same Name.
	return srk, checkPin(srk.name, primary.Name.Buffer)
}

// ownerTemplate is what key files mean by parent 0x40000001: the TCG's ECC SRK template
// with an empty unique field, as openssl's tpm2 provider and tpm2-tools derive it. The
// unique field is part of the derivation: with 32 zero bytes it is another key.
func ownerTemplate() tpm2.TPMTPublic {
	t := tpm2.ECCSRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return t
}

// createPrimary derives a primary key; who calls it flushes it. keep stays loaded.
func (d *Device) createPrimary(c *call, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, keep *Key) (*tpm2.CreatePrimaryResponse, error) {
	var rsp *tpm2.CreatePrimaryResponse
	err := d.fit(c, 1, keep, func() (err error) {
		rsp, err = tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(template),
		}.Execute(c)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.objects = append(c.objects, rsp.ObjectHandle)
	return rsp, nil
}

// persist copies a transient object to a persistent handle of the owner (Part 3, 28.5).
func persist(c *call, object tpm2.TPMHandle, name tpm2.TPM2BName, handle uint32) error {
	_, err := tpm2.EvictControl{
		Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:     tpm2.NamedHandle{Handle: object, Name: name},
		PersistentHandle: tpm2.TPMHandle(handle),
	}.Execute(c)
	return err
}

// readPublic returns the public area of a loaded object and its Name, which is computed
// here rather than believed.
func readPublic(c *call, h tpm2.TPMHandle) (*tpm2.TPMTPublic, []byte, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(c)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the public area of %#x: %w", uint32(h), err)
	}
	pub, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, nil, fmt.Errorf("reading the public area of %#x: %w", uint32(h), err)
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("naming %#x: %w", uint32(h), err)
	}
	return pub, name.Buffer, nil
}

// flush frees a transient object, also when the caller's context has ended: a slot that
// stays taken on a device without resource manager is lost until the next reset.
func (d *Device) flush(c *call, h tpm2.TPMHandle) {
	c.objects = slices.DeleteFunc(c.objects, func(o tpm2.TPMHandle) bool { return o == h })
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), d.commandTimeout)
	defer cancel()
	last := *c
	last.ctx, last.at = ctx, nil
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(&last)
	if err == nil {
		return
	}
	c.broken = true
	if !errors.Is(err, errStale) {
		d.log.LogAttrs(ctx, slog.LevelWarn, "tpm object not flushed", slog.Any("err", err))
	}
}
