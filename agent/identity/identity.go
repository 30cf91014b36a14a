// Package identity binds the TPM key to its certificate chain and gives the tls.Config. A
// tls.Config belongs to one certificate: Go keys its session cache by server name alone, so
// a cache that outlived a rotation would present the old certificate.
package identity

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/tpm"
)

var (
	// ErrNotEnrolled says that there is no certificate yet.
	ErrNotEnrolled = errors.New("this device is not enrolled")
	// ErrWrongTPM says that this is not the TPM the device was enrolled with: the disk is a
	// copy, or the board was changed. Trying again cannot help.
	ErrWrongTPM = errors.New("this is not the TPM of this device")
	// ErrMismatch says that the certificate is not for the key.
	ErrMismatch = errors.New("the certificate is not for this key")
)

// Options is what an identity needs of its surroundings.
type Options struct {
	// StateDir is where relative paths of Config start.
	StateDir string
	FS       disk.FS
	// Now is the time certificates are judged by: never before the clock's floor.
	Now func() time.Time
	Log *slog.Logger
}

// Identity is the device's key with its current certificate. Its methods may be called from
// any goroutine.
type Identity struct {
	config Config
	o      Options
	device *tpm.Device // nil for a software key
	key    tpm.DeviceKey
	health tpm.Health

	mu       sync.Mutex
	current  *Credential
	staged   *Credential
	counters handshakes
}

// Open opens the key and reads its certificate. ErrNotEnrolled where there is none yet,
// ErrWrongTPM on another device's disk, ErrMismatch where the files do not belong together,
// and the errors of package tpm.
func Open(ctx context.Context, c Config, o Options) (*Identity, error) {
	record, err := readRecord(o)
	if err != nil {
		return nil, err
	}
	if _, err := readChain(c, o); errors.Is(err, fs.ErrNotExist) {
		// Said before the TPM is asked, since it is what the user can mend.
		return nil, notEnrolled(c, o)
	}
	i := &Identity{config: c, o: o}
	if err := i.open(ctx, record); err != nil {
		_ = i.Close()
		return nil, err
	}
	return i, nil
}

// open opens the key and binds the certificate to it.
func (i *Identity) open(ctx context.Context, r record) (err error) {
	if i.key, err = tpm.OpenKey(ctx, i.config.Key, i.keyOptions(r)); err != nil {
		return i.explain(ctx, r, err)
	}
	if i.current, err = i.load(); err != nil || i.device == nil {
		return err
	}
	if i.health, err = i.device.Health(ctx); err != nil {
		// What the chip is interests the operator; that it would not say keeps nobody out.
		i.o.Log.LogAttrs(ctx, slog.LevelWarn, "tpm health not known", slog.Any("err", err))
	}
	return nil
}

func notEnrolled(c Config, o Options) error {
	return hint.With(fmt.Errorf("%w: there is no certificate %s", ErrNotEnrolled, below(o, c.Certificate)), "run: ferrule enroll")
}

func (i *Identity) keyOptions(r record) tpm.KeyOptions {
	return tpm.KeyOptions{
		FS: i.o.FS, StateDir: i.o.StateDir, AllowSoftware: i.config.AllowSoftwareKey,
		Device: i.openTPM, PinSRK: r.SRKName, Log: i.o.Log,
	}
}

func (i *Identity) openTPM(ctx context.Context) (*tpm.Device, error) {
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

// explain tells a TPM that was cleared from one that is another chip: both have an SRK of
// another Name, but clearing leaves the endorsement key as it was.
func (i *Identity) explain(ctx context.Context, r record, err error) error {
	if !errors.Is(err, tpm.ErrOwnerChanged) || i.device == nil || r.EKName == nil {
		return err
	}
	name, ekErr := i.device.EndorsementName(ctx)
	if ekErr != nil {
		return errors.Join(err, ekErr)
	}
	if hex.EncodeToString(name) == hex.EncodeToString(r.EKName) {
		return hint.With(fmt.Errorf("the TPM was cleared, and the key is lost with it: %w", err),
			"enroll this device again: ferrule enroll --force --token T")
	}
	return hint.With(fmt.Errorf("%w: its endorsement key is named %x; %s was enrolled with %x", ErrWrongTPM, name, r.Device, r.EKName),
		"put the disk back into its own gateway, or erase it and enroll this one as a new device")
}

func below(o Options, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(o.StateDir, path)
}

// Device returns the device's id, the common name of its certificate.
func (i *Identity) Device() string { return i.Current().leaf.Subject.CommonName }

// Current returns the credential to connect with.
func (i *Identity) Current() *Credential {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current
}

// Staged returns the credential that waits to be proved, or nil.
func (i *Identity) Staged() *Credential {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.staged
}

// Promote makes c, which the broker has accepted, the current credential.
func (i *Identity) Promote(c *Credential) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.current = c
	if i.staged == c {
		i.staged = nil
	}
}

// Reload reads the certificate again. A new one for the same key and device is staged, for
// the session to prove; anything else is an error and changes nothing.
func (i *Identity) Reload(context.Context) (changed bool, err error) {
	fresh, err := i.load()
	if err != nil {
		return false, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if fresh.fingerprint == i.current.fingerprint {
		i.staged = nil
		return false, nil
	}
	if have, want := fresh.leaf.Subject.CommonName, i.current.leaf.Subject.CommonName; have != want {
		return false, fmt.Errorf("the new certificate is for device %q, and this one is %q", have, want)
	}
	if now := i.o.Now(); now.After(fresh.leaf.NotAfter) {
		return false, fmt.Errorf("the new certificate expired on %s", fresh.leaf.NotAfter.Format(time.DateOnly))
	}
	i.staged = fresh
	return true, nil
}

// load reads the certificate file and binds it to the key.
func (i *Identity) load() (*Credential, error) {
	chain, err := readChain(i.config, i.o)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notEnrolled(i.config, i.o)
	}
	if err != nil {
		return nil, err
	}
	return newCredential(i.key, chain, i.o.Now, &i.counters)
}

// Close frees the key and the TPM.
func (i *Identity) Close() error {
	var errs []error
	if i.key != nil {
		errs = append(errs, i.key.Close())
	}
	if i.device != nil {
		errs = append(errs, i.device.Close())
	}
	return errors.Join(errs...)
}

const maxChain = 256 << 10

func readChain(c Config, o Options) ([]*x509.Certificate, error) {
	path := below(o, c.Certificate)
	text, err := disk.ReadFile(o.FS, path, maxChain)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	chain, err := parseChain(text)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s: %w", path, err)
	}
	return chain, nil
}
