package tpm

import (
	"context"
	"crypto/elliptic"

	"github.com/google/go-tpm/tpm2"
)

// KeySpec describes a new device key. RSA cannot be asked for: chips differ in the salt
// length of their RSA-PSS signatures, and TLS 1.3 takes only one.
type KeySpec struct {
	// Curve is elliptic.P256(), also meant by nil, or elliptic.P384().
	Curve elliptic.Curve
	// Parent is SRKHandle, also meant by 0, or OwnerHandle.
	Parent uint32
}

// template is that of a device key: it never leaves this TPM, signs any digest (scheme
// NULL, so that TLS may choose the hash), and does not count as a guess when a power cut
// interrupts it (noDA).
func (s KeySpec) template() (tpm2.TPMTPublic, error) {
	curve := tpm2.TPMECCNistP256
	switch s.Curve {
	case nil, elliptic.P256():
	case elliptic.P384():
		curve = tpm2.TPMECCNistP384
	default:
		return tpm2.TPMTPublic{}, unsupported("device keys on curve %s; use P-256 or P-384", s.Curve.Params().Name)
	}
	return keyTemplate(curve), nil
}

func keyTemplate(curve tpm2.TPMECCCurve) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                true,
			SignEncrypt:         true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve}),
	}
}

func (s KeySpec) parent() (uint32, error) {
	switch s.Parent {
	case 0, SRKHandle:
		return SRKHandle, nil
	case OwnerHandle:
		return OwnerHandle, nil
	}
	return 0, unsupported("parent %#x is neither %#x nor %#x", s.Parent, SRKHandle, OwnerHandle)
}

// CreateKey makes a new key inside the TPM and returns it wrapped. Nothing of it stays in
// the TPM: a power cut before the caller has stored the file loses a key that nobody knew.
func (d *Device) CreateKey(ctx context.Context, s KeySpec) (*KeyFile, error) {
	template, err := s.template()
	if err != nil {
		return nil, err
	}
	parent, err := s.parent()
	if err != nil {
		return nil, err
	}
	var f *KeyFile
	err = again(func() error {
		f, err = d.createUnder(ctx, parent, template)
		return err
	})
	if err != nil {
		return nil, commandError("creating the device key", err)
	}
	return f, nil
}

func (d *Device) createUnder(ctx context.Context, parent uint32, template tpm2.TPMTPublic) (*KeyFile, error) {
	var srk tpm2.TPM2BName
	if parent == SRKHandle {
		name, err := d.EnsureSRK(ctx, nil)
		if err != nil {
			return nil, err
		}
		srk.Buffer = name
	}
	c, release, err := d.hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	storage, free, err := d.openParent(c, parent, srk, ownerTemplate())
	if err != nil {
		return nil, err
	}
	defer free()
	var rsp *tpm2.CreateResponse
	err = d.fit(c, withParent(parent), nil, func() (err error) {
		rsp, err = tpm2.Create{ParentHandle: storage, InPublic: tpm2.New2B(template)}.Execute(c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return newKeyFile(parent, prefixed(rsp.OutPublic.Bytes()), prefixed(rsp.OutPrivate.Buffer))
}

// openParent gives the parent of a key as go-tpm wants it; free flushes what was derived.
func (d *Device) openParent(c *call, parent uint32, srk tpm2.TPM2BName, owner tpm2.TPMTPublic) (h tpm2.AuthHandle, free func(), err error) {
	if parent == SRKHandle {
		return parentHandle(tpm2.TPMHandle(SRKHandle), srk), func() {}, nil
	}
	primary, err := d.createPrimary(c, tpm2.TPMRHOwner, owner, nil)
	if err != nil {
		return h, nil, ownerError("deriving the SRK", err)
	}
	return parentHandle(primary.ObjectHandle, primary.Name), func() { d.flush(c, primary.ObjectHandle) }, nil
}

func parentHandle(h tpm2.TPMHandle, name tpm2.TPM2BName) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: name, Auth: tpm2.PasswordAuth(nil)}
}
