package tpm

import (
	"context"
	"crypto"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Descriptor is what a scripted device has to be.
type Descriptor = descriptor

var ErrFraming = errFraming

const MaxResponse = maxResponse

// OpenDescriptors opens a Device over scripted descriptors: the first, and one more for
// each time the device is reopened.
func OpenDescriptors(o Options, next func() (Descriptor, error)) (*Device, error) {
	d := newDevice(o)
	dial := func(context.Context) (conn, error) {
		fd, err := next()
		if err != nil {
			return nil, err
		}
		return &deviceConn{fd: fd}, nil
	}
	c, err := dial(context.Background())
	if err != nil {
		return nil, openError(o.Path, err)
	}
	d.attach(o.Path, dial, c)
	return d, nil
}

// OpenAuto is what Path "auto" does, in another folder than /dev.
func OpenAuto(ctx context.Context, dir string, o Options) (*Device, error) {
	d := newDevice(o)
	if err := d.openAuto(ctx, dir); err != nil {
		return nil, err
	}
	return d, nil
}

// TPM is the transport as go-tpm sees it.
func (d *Device) TPM(ctx context.Context) transport.TPM { return d.call(ctx) }

// CommandError exposes the mapping of answers to errors.
func CommandError(doing string, err error) error { return commandError(doing, err) }

// WithoutFlag returns a copy of f whose file says that it has a password.
func (f *KeyFile) WithoutFlag() *KeyFile {
	g := *f
	g.noAuth = false
	return &g
}

// NewKeyFile wraps what a raw go-tpm call made.
func NewKeyFile(parent uint32, pub tpm2.TPM2BPublic, private tpm2.TPM2BPrivate) (*KeyFile, error) {
	return newKeyFile(parent, prefixed(pub.Bytes()), prefixed(private.Buffer))
}

// CorruptPrivate returns a copy of f with its private area changed.
func (f *KeyFile) CorruptPrivate(change func([]byte) []byte) *KeyFile {
	g := *f
	g.private = change(append([]byte(nil), f.private...))
	return &g
}

// Attributes are those of the public area.
func (f *KeyFile) Attributes() tpm2.TPMAObject { return f.public.ObjectAttributes }

// CharDevice is the descriptor of a file that is open already.
func CharDevice(fd int) Descriptor { return charDevice(fd) }

// AKTemplate is the attestation key's.
func AKTemplate() tpm2.TPMTPublic { return akTemplate() }

// HighTemplates are those of the endorsement keys of the high range, P-256 and RSA.
func HighTemplates() (p256, rsa tpm2.TPMTPublic) { return ekKinds()[1].template, highRSA() }

// TrimCertificate and CertifiedKey read endorsement certificates.
func TrimCertificate(data []byte) ([]byte, error) { return trimCertificate(data) }

func CertifiedKey(der []byte) (crypto.PublicKey, error) {
	key, _, err := certifiedKey(der)
	return key, err
}

// Policies are the three of the EK Credential Profile.
func Policies(hash tpm2.TPMIAlgHash) (a, b, c []byte) {
	return policyA(hash), policyB(hash), policyC(hash)
}

// InspectAuto is Inspect of Path "auto", in another folder than /dev.
func InspectAuto(ctx context.Context, dir string, o Options, known Known) Report {
	return inspect(ctx, o, known, func() (*Device, error) { return OpenAuto(ctx, dir, o) })
}
