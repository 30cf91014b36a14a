// Package identity binds the TPM key to its certificate chain, renews it, and gives the
// tls.Config. A tls.Config belongs to one certificate: Go keys its session cache by server name
// alone, so a cache that outlived a rotation would present the old certificate. The trap is the
// device that nobody can reach any more: until a broker has taken the new certificate the old one
// stays, with its key, and what a power cut leaves in between always opens as one of the two.
//
//	not enrolled ──Enroll──► enrolled ──due──► staged ──Promote──► enrolled
//	                          │    ▲             │ refused: the old one stays
//	        expired, refused  ▼    └─────────────┴──┐
//	                        on the way back ──► staged   (factory certificate, or EK)
package identity

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"ferrule/agent/enroll"
	"ferrule/internal/disk"
	"ferrule/tpm"
)

var (
	// ErrNotEnrolled says that there is no certificate yet.
	ErrNotEnrolled = errors.New("this device is not enrolled")
	// ErrWrongTPM says that this is not the TPM the device was enrolled with: the disk is a
	// copy, or the board was changed. Trying again cannot help.
	ErrWrongTPM = errors.New("this is not the TPM of this device")
	// ErrCleared says that the key is lost in a TPM that is the device's own: it was cleared, or the
	// key's file is gone or damaged. Return obtains a certificate for a new key, and the same device.
	ErrCleared = errors.New("the key of this device is lost")
	// ErrMismatch says that the certificate is not for the key.
	ErrMismatch = errors.New("the certificate is not for this key")
	// ErrNoWayBack says that nothing is left that would entitle to a new certificate.
	ErrNoWayBack = errors.New("there is no way back to a certificate")
)

// Options is what an identity needs of its surroundings.
type Options struct {
	// StateDir is where relative paths of Config start.
	StateDir string
	FS       disk.FS
	// Clock is what certificates are judged by.
	Clock Clock
	// Roots are the authorities of the registrar; nil: those of enroll.roots.
	Roots func() (*x509.CertPool, error)
	// Verify is told of every connection to the registrar whose chain crypto/tls has verified;
	// an error refuses it. nil: nobody is.
	Verify func(tls.ConnectionState) error
	// Issued is told of the ways by which a certificate that the service gave leads to Roots; nil:
	// nobody is.
	Issued func([][]*x509.Certificate)
	// Changed is told that a certificate is staged, or is to be proved once more: the session
	// rotates. nil: nobody is.
	Changed func()
	// Event is told what happened to the identity, for the audit log; nil: nobody is. The names
	// are the Event constants.
	Event func(ctx context.Context, name string, attrs ...slog.Attr)
	// State names what other parts keep below StateDir, files and folders, for Reset; nil: DefaultState.
	State []string
	Log   *slog.Logger

	// enroll stands in for enroll.Enroll in tests.
	enroll func(context.Context, enroll.Config, enroll.Request) (enroll.Result, error)
	random func() float64
}

func (o Options) below(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(o.StateDir, path)
}

func (o Options) event(ctx context.Context, name string, attrs ...slog.Attr) {
	if o.Event != nil {
		o.Event(ctx, name, attrs...)
	}
}

func (o Options) changed() {
	if o.Changed != nil {
		o.Changed()
	}
}

// The names of events.
const (
	EventEnrolled = "identity-enrolled"
	EventReturned = "identity-returned" // after the TPM was cleared
	EventStaged   = "certificate-staged"
	EventPromoted = "certificate-promoted"
	EventRefused  = "certificate-refused" // by a broker
	EventFailed   = "renewal-failed"
	EventAlarm    = "certificate-alarm" // little of its life is left
	EventReset    = "identity-reset"
)

// Identity is the device's key with its current certificate. Its methods may be called from
// any goroutine.
type Identity struct {
	config  Config
	o       Options
	judge   *judge
	health  tpm.Health
	factory *x509.Certificate // nil: there is none

	opening  sync.Mutex
	device   *tpm.Device // nil for a software key
	counters handshakes

	// work is held by whoever changes files; never while the network is waited for.
	work sync.Mutex
	wake chan struct{}   // Run looks again at once
	asks chan renewalAsk // of Renew

	mu        sync.Mutex
	current   *Credential
	staged    *Credential
	nextKey   tpm.DeviceKey // at tpm.NextURI, opened or made for a rotation of the key
	retired   []retiree     // keys that no new connection uses
	unwritten *Credential   // promoted, and not on the disk yet
	state     lifecycle
}

type retiree struct {
	key   tpm.DeviceKey
	since time.Time
}

// lifecycle is what Status shows of the renewal.
type lifecycle struct {
	schedule
	terms   func(*x509.Certificate) time.Time // when a renewal is due; nil until Run
	last    *Attempt
	rekey   bool // a new key was begun, and its certificate is missing
	strikes int  // refusals of the staged certificate
	reprove time.Time
	problem string // what could not be written
	alarmed string // fingerprint for which the alarm was raised
}

func newIdentity(c Config, o Options) *Identity {
	if o.enroll == nil {
		o.enroll = enroll.Enroll
	}
	if o.random == nil {
		o.random = rand.Float64
	}
	i := &Identity{config: c, o: o, judge: newJudge(o.Clock), wake: make(chan struct{}, 1), asks: make(chan renewalAsk)}
	i.state.random = o.random
	return i
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

// newest is the certificate that a renewal starts from.
func (i *Identity) newest() *Credential {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.staged != nil {
		return i.staged
	}
	return i.current
}

// Key returns the key that the current certificate is for: what receipts and logs are signed by.
// It is another one after a rotation of the key.
func (i *Identity) Key() crypto.Signer { return i.Current().key }

// TPM returns the device's TPM, which is opened where no key needed it. It stays open until Close.
// It is to be called before others use i. The errors are tpm.Open's.
func (i *Identity) TPM(ctx context.Context) (*tpm.Device, error) {
	device, err := i.openTPM(ctx)
	if err == nil && i.health.Path == "" {
		i.health, err = device.Health(ctx)
	}
	return device, err
}

// Close frees the keys and the TPM.
func (i *Identity) Close() error {
	var errs []error
	i.mu.Lock()
	keys := []tpm.DeviceKey{i.nextKey}
	for _, r := range i.retired {
		keys = append(keys, r.key)
	}
	for _, c := range []*Credential{i.current, i.staged} {
		if c != nil {
			keys = append(keys, c.key)
		}
	}
	i.mu.Unlock()
	for _, key := range keys {
		if key != nil {
			errs = append(errs, key.Close())
		}
	}
	if i.device != nil {
		errs = append(errs, i.device.Close())
	}
	return errors.Join(errs...)
}
