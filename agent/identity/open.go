package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/tpm"
)

// Open opens the key and reads its certificate; what a power cut left half done is finished
// first. ErrNotEnrolled where there is no certificate yet, ErrWrongTPM on another device's disk,
// ErrCleared where Return can help, ErrMismatch where the files do not belong together, and the
// errors of package tpm.
func Open(ctx context.Context, c Config, o Options) (*Identity, error) {
	if err := finishReset(ctx, c, o); err != nil {
		return nil, err
	}
	r, err := readRecord(o)
	if err != nil {
		return nil, err
	}
	chain, _, err := readChain(o, c.Certificate)
	if errors.Is(err, fs.ErrNotExist) {
		// Said before the TPM is asked, since it is what the user can mend.
		return nil, notEnrolled(c, o)
	}
	i := newIdentity(c, o)
	if err == nil {
		err = i.open(ctx, r, chain[0])
	}
	if err != nil {
		_ = i.Close()
		return nil, err
	}
	return i, nil
}

// open opens the key and binds the certificates to it.
func (i *Identity) open(ctx context.Context, r record, leaf *x509.Certificate) error {
	key, err := tpm.OpenKey(ctx, i.keyURI(ctx, leaf), i.keyOptions(r))
	if err != nil {
		return i.explain(ctx, r, err)
	}
	if i.current, err = i.load(key); err != nil {
		if errors.Is(err, ErrMismatch) && r.Returning {
			err = hint.With(fmt.Errorf("%w, and its return was interrupted: %w", ErrCleared, err), hintCleared)
		}
		return errors.Join(err, key.Close())
	}
	i.settleReturn(ctx, r)
	i.readFactory(ctx)
	if err := i.findStaged(ctx); err != nil {
		i.o.Log.LogAttrs(ctx, slog.LevelWarn, "staged certificate not usable", slog.Any("err", err))
	}
	if i.device == nil {
		return nil
	}
	if i.health, err = i.device.Health(ctx); err != nil {
		// What the chip is interests the operator; that it would not say keeps nobody out.
		i.o.Log.LogAttrs(ctx, slog.LevelWarn, "tpm health not known", slog.Any("err", err))
	}
	return nil
}

// keyURI names the key of the certificate: identity.key, or its successor where a power cut came
// between the certificate that took over and its key. That is mended where the disk allows.
func (i *Identity) keyURI(ctx context.Context, leaf *x509.Certificate) string {
	uri, o := i.config.Key, i.keyOptions(record{})
	next, err := tpm.NextURI(uri)
	if err != nil || samePublic(uri, o, leaf) || !samePublic(next, o, leaf) {
		return uri
	}
	// The certificate's name first: a key that is durable before it would be the key of nothing.
	err = i.o.FS.SyncDir(filepath.Dir(i.o.below(i.config.Certificate)))
	if err == nil {
		err = tpm.TakeOver(uri, o)
	}
	if err != nil {
		i.o.Log.LogAttrs(ctx, slog.LevelWarn, "key not put in its place", slog.Any("err", err))
		return next
	}
	i.o.Log.LogAttrs(ctx, slog.LevelInfo, "rotation of the key finished")
	return uri
}

// samePublic reports whether the key file at uri is the one of leaf.
func samePublic(uri string, o tpm.KeyOptions, leaf *x509.Certificate) bool {
	public, err := tpm.PublicOf(uri, o)
	return err == nil && equalKeys(leaf.PublicKey, public)
}

func equalKeys(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

func notEnrolled(c Config, o Options) error {
	return hint.With(fmt.Errorf("%w: there is no certificate %s", ErrNotEnrolled, o.below(c.Certificate)), "run: ferrule enroll")
}

func (i *Identity) keyOptions(r record) tpm.KeyOptions {
	return tpm.KeyOptions{
		FS: i.o.FS, StateDir: i.o.StateDir, AllowSoftware: i.config.AllowSoftwareKey,
		Device: i.openTPM, PinSRK: r.SRKName, Log: i.o.Log,
	}
}

func (i *Identity) openTPM(ctx context.Context) (*tpm.Device, error) {
	i.opening.Lock()
	defer i.opening.Unlock()
	if i.device != nil {
		return i.device, nil
	}
	device, err := tpm.Open(ctx, tpm.Options{Path: i.config.TPM, Log: i.o.Log})
	if err != nil {
		return nil, err
	}
	i.device = device
	return device, nil
}

// explain tells a key that is lost from a TPM that is another chip's. Clearing the owner gives the
// SRK another Name and leaves the endorsement key as it was; so does a flash that lost or damaged
// the key's file. The registrar knows the device by its endorsement key, and Return can help.
func (i *Identity) explain(ctx context.Context, r record, err error) error {
	cleared := errors.Is(err, tpm.ErrOwnerChanged)
	if !cleared && !errors.Is(err, tpm.ErrNoKey) && !errors.Is(err, tpm.ErrKeyCorrupt) || r.EKName == nil {
		return err
	}
	if ekErr := i.sameTPM(ctx, r); ekErr != nil {
		if errors.Is(ekErr, ErrWrongTPM) {
			return ekErr
		}
		return errors.Join(err, ekErr)
	}
	if cleared {
		return hint.With(fmt.Errorf("the TPM was cleared: %w: %w", ErrCleared, err), hintCleared)
	}
	return hint.With(fmt.Errorf("%w: %w", ErrCleared, err), hintCleared)
}

const hintCleared = "the agent asks for a new certificate by itself where the registrar knows this TPM; else run: ferrule enroll --force --token T"

// sameTPM compares the endorsement key with the one of the record.
func (i *Identity) sameTPM(ctx context.Context, r record) error {
	if r.EKName == nil {
		return nil
	}
	device, err := i.openTPM(ctx)
	if err != nil {
		return err
	}
	name, err := device.EndorsementName(ctx)
	if err != nil {
		return err
	}
	if !bytes.Equal(name, r.EKName) {
		return hint.With(fmt.Errorf("%w: its endorsement key is named %x; %s was enrolled with %x", ErrWrongTPM, name, r.Device, r.EKName),
			"put the disk back into its own gateway, or erase it and enroll this one as a new device")
	}
	return nil
}

// load reads the certificate file and binds it to the key.
func (i *Identity) load(key tpm.DeviceKey) (*Credential, error) {
	chain, text, err := readChain(i.o, i.config.Certificate)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notEnrolled(i.config, i.o)
	}
	if err != nil {
		return nil, err
	}
	return i.credential(key, chain, text)
}

func (i *Identity) credential(key tpm.DeviceKey, chain []*x509.Certificate, text []byte) (*Credential, error) {
	c, err := newCredential(key, chain, i.judge.of(chain[0]), &i.counters)
	if err == nil {
		c.key, c.text, c.judge = key, text, i.judge
	}
	return c, err
}

const maxChain = 256 << 10

// readChain reads a certificate file, path being as in the configuration.
func readChain(o Options, path string) (chain []*x509.Certificate, text []byte, err error) {
	path = o.below(path)
	if text, err = disk.ReadFile(o.FS, path, maxChain); err != nil {
		return nil, nil, fmt.Errorf("reading the certificate: %w", err)
	}
	if chain, err = parseChain(text); err != nil {
		return nil, nil, fmt.Errorf("reading the certificate %s: %w", path, err)
	}
	return chain, text, nil
}
