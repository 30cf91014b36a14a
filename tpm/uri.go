package tpm

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/tpm/signer"

	"github.com/google/go-tpm/tpm2"
)

// A DeviceKey is the device's key, wherever it lies.
type DeviceKey interface {
	crypto.Signer
	Ref() string // the URI it was opened by
	Weak() bool  // whoever can read the disk can copy it
	Close() error
}

// KeyOptions say how to reach what a key URI names.
type KeyOptions struct {
	FS            disk.FS // nil means the operating system's
	StateDir      string  // relative paths are below it
	AllowSoftware bool    // file: keys are refused unless true
	// Device opens the TPM; called when the URI needs it. The caller closes the Device.
	Device func(ctx context.Context) (*Device, error)
	PinSRK []byte // Name that the SRK must have; nil: any
	Log    *slog.Logger
}

// OpenKey opens the key that exists at uri: tpm2:file=F, tpm2:handle=0x81010001,
// signer:unix=SOCKET[?key=NAME] or file:F.pem. It never chooses a software key by itself. ErrNoKey where there is none.
func OpenKey(ctx context.Context, uri string, o KeyOptions) (DeviceKey, error) {
	r, err := parseRef(uri, o)
	if err != nil {
		return nil, err
	}
	k, err := r.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening key %s: %w", uri, err)
	}
	return k, nil
}

// CreateKeyAt makes a new key at uri, durable before it returns, signs once with it, and
// opens it. ErrKeyExists where anything lies there already.
func CreateKeyAt(ctx context.Context, uri string, s KeySpec, o KeyOptions) (DeviceKey, error) {
	r, err := parseRef(uri, o)
	if err != nil {
		return nil, err
	}
	k, err := r.create(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("creating key %s: %w", uri, err)
	}
	return k, nil
}

// ref is a parsed key URI with what it takes to follow it.
type ref struct {
	uri    string
	kind   refKind
	path   string // of a key file
	handle uint32
	helper signer.Options
	o      KeyOptions
}

type refKind int

const (
	refTPMFile refKind = iota + 1
	refHandle
	refSoftware
	refHelper
)

func parseRef(uri string, o KeyOptions) (*ref, error) {
	if o.FS == nil {
		o.FS = disk.OS()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &ref{uri: uri, o: o}
	scheme, rest, _ := strings.Cut(uri, ":")
	field, value, _ := strings.Cut(rest, "=")
	var err error
	switch {
	case scheme == "tpm2" && field == "file" && value != "":
		r.kind = refTPMFile
		r.path, err = o.below(value)
	case scheme == "tpm2" && field == "handle":
		r.kind = refHandle
		r.handle, err = parseHandle(value)
	case scheme == "file" && rest != "":
		r.kind = refSoftware
		r.path, err = o.below(rest)
		if err == nil && !o.AllowSoftware {
			err = hint.With(ErrSoftwareKey, hintSoftwareKey)
		}
	case scheme == "signer":
		r.kind = refHelper
		r.helper, err = o.parseHelper(rest)
	default:
		err = unsupported("none of tpm2:file=F, tpm2:handle=0x81010001, signer:unix=S, file:F.pem")
	}
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", uri, err)
	}
	return r, nil
}

// below resolves a path of the configuration.
func (o KeyOptions) below(path string) (string, error) {
	if filepath.IsAbs(path) {
		return filepath.Clean(path), nil
	}
	if !filepath.IsLocal(path) {
		return "", unsupported("a relative path that leaves the state directory")
	}
	return filepath.Join(o.StateDir, path), nil
}

// parseHandle takes persistent handles of the owner (Part 2, 7.4), other than the SRK's.
func parseHandle(s string) (uint32, error) {
	h, err := strconv.ParseUint(s, 0, 32)
	if err != nil || h < 0x81000000 || h > 0x817FFFFF || uint32(h) == SRKHandle {
		return 0, unsupported("%q is no persistent handle between 0x81000000 and 0x817fffff for a key", s)
	}
	return uint32(h), nil
}

// tpmKey is a Key that knows where it came from.
type tpmKey struct {
	*Key
	ref string
}

func (k *tpmKey) Ref() string { return k.ref }
func (k *tpmKey) Weak() bool  { return false }

func (r *ref) device(ctx context.Context) (*Device, error) {
	if r.o.Device == nil {
		return nil, hint.With(ErrNoDevice, hintNoDevice)
	}
	return r.o.Device(ctx)
}

func (r *ref) open(ctx context.Context) (DeviceKey, error) {
	switch r.kind {
	case refSoftware:
		return r.openSoftware(ctx)
	case refHelper:
		return r.openHelper(ctx)
	case refHandle:
		d, err := r.device(ctx)
		if err != nil {
			return nil, err
		}
		k, err := d.OpenHandle(ctx, r.handle)
		if err != nil {
			return nil, err
		}
		return &tpmKey{k, r.uri}, nil
	}
	data, err := r.read()
	if err != nil {
		return nil, err
	}
	f, err := ParseKeyFile(data)
	if err != nil {
		return nil, err
	}
	d, err := r.device(ctx)
	if err != nil {
		return nil, err
	}
	return r.load(ctx, d, f)
}

// load compares the SRK with its pin first, so that a TPM of another owner is told from a
// damaged key.
func (r *ref) load(ctx context.Context, d *Device, f *KeyFile) (DeviceKey, error) {
	pinned := r.o.PinSRK != nil && f.parent == SRKHandle
	if pinned {
		if _, err := d.EnsureSRK(ctx, r.o.PinSRK); err != nil {
			return nil, err
		}
	}
	k, err := d.LoadKey(ctx, f)
	if pinned && errors.Is(err, tpm2.TPMRCIntegrity) {
		return nil, corrupt("the TPM is the right one and refuses the key: the file is damaged, or was made by another TPM")
	}
	if err != nil {
		return nil, err
	}
	return &tpmKey{k, r.uri}, nil
}

func (r *ref) read() ([]byte, error) {
	data, err := disk.ReadFile(r.o.FS, r.path, maxKeyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, hint.With(fmt.Errorf("%w: %s does not exist", ErrNoKey, r.path), hintNoKey)
	case errors.Is(err, disk.ErrTooLarge):
		return nil, corrupt("%s", err)
	}
	return data, err
}

func (r *ref) create(ctx context.Context, s KeySpec) (DeviceKey, error) {
	switch r.kind {
	case refHandle:
		return r.createAtHandle(ctx, s)
	case refHelper:
		return r.createHelper(ctx, s)
	}
	if err := r.refuseExisting(); err != nil {
		return nil, err
	}
	if r.kind == refSoftware {
		return r.createSoftware(ctx, s)
	}
	d, err := r.device(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := d.EnsureSRK(ctx, r.o.PinSRK); err != nil {
		return nil, err
	}
	f, err := d.CreateKey(ctx, s)
	if err != nil {
		return nil, err
	}
	// Stored first, loaded then: a process killed in between leaves in the TPM only what
	// the next start knows by Name.
	if err := r.store(f.MarshalPEM()); err != nil {
		return nil, err
	}
	k, err := d.LoadKey(ctx, f)
	if err != nil {
		return nil, err
	}
	if err := k.selfTest(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("testing the new key: %w", err), k.close(ctx), r.o.FS.Remove(r.path))
	}
	return &tpmKey{k, r.uri}, nil
}

func (r *ref) refuseExisting() error {
	f, err := r.o.FS.OpenFile(r.path, os.O_RDONLY, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return errors.Join(hint.With(fmt.Errorf("%w: %s", ErrKeyExists, r.path), hintKeyExists), f.Close())
}

func (r *ref) store(data []byte) error {
	if err := disk.MakeFolder(r.o.FS, filepath.Dir(r.path)); err != nil {
		return fmt.Errorf("storing the key: %w", err)
	}
	if err := atomicfile.Write(r.o.FS, r.path, data, 0o600); err != nil {
		return fmt.Errorf("storing the key: %w", err)
	}
	return nil
}

// createAtHandle makes a key persistent, for devices whose file system cannot be written.
func (r *ref) createAtHandle(ctx context.Context, s KeySpec) (DeviceKey, error) {
	d, err := r.device(ctx)
	if err != nil {
		return nil, err
	}
	exists := hint.With(fmt.Errorf("%w: at handle %#x", ErrKeyExists, r.handle), hintKeyExists)
	switch _, _, err := readPublic(d.call(ctx), tpm2.TPMHandle(r.handle)); {
	case err == nil:
		return nil, exists
	case !errors.Is(err, tpm2.TPMRCHandle):
		return nil, commandError("looking at the handle", err)
	}
	if _, err := d.EnsureSRK(ctx, r.o.PinSRK); err != nil {
		return nil, err
	}
	f, err := d.CreateKey(ctx, s)
	if err != nil {
		return nil, err
	}
	k, err := d.LoadKey(ctx, f)
	if err != nil {
		return nil, err
	}
	err = k.selfTest(ctx)
	if err == nil {
		err = ownerError("making the key persistent", k.with(ctx, nil, func(c *call, h tpm2.TPMHandle) error {
			return persist(c, h, tpm2.TPM2BName{Buffer: k.name}, r.handle)
		}))
	}
	if errors.Is(err, tpm2.TPMRCNVDefined) {
		err = exists
	}
	if err = errors.Join(err, k.close(ctx)); err != nil {
		return nil, err
	}
	return r.open(ctx)
}
