package tpm

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

// A Key is a signing key in the TPM, loaded until it is closed. It is a crypto.Signer for
// any number of goroutines. Sign costs one TPM command; after a reset of the TPM it loads
// the key again, once, before it gives up.
type Key struct {
	d        *Device
	file     *KeyFile // nil for a key at a persistent handle
	public   *tpm2.TPMTPublic
	key      crypto.PublicKey
	name     []byte
	warnings []string

	at       atomic.Pointer[place] // nil once closed
	moving   sync.Mutex            // held while at changes
	closed   bool                  // guarded by moving
	used     atomic.Uint64         // when it was used last, by Device.uses
	password atomic.Bool           // the TPM refused the empty one: do not ask again
}

// place is where a key lies: a handle, and the generation that the handle belongs to. A
// new load is a new place, even at the same handle.
type place struct {
	handle tpm2.TPMHandle
	gen    uint64
	gone   bool // flushed, and something else may lie there; guarded by Device.busy
}

// LoadKey loads f below its parent. The error is ErrOwnerChanged where this TPM cannot have
// made the key, ErrKeyCorrupt where its blob is damaged, ErrUnsupported where the key
// cannot serve as a TLS client's, or one of the device errors.
func (d *Device) LoadKey(ctx context.Context, f *KeyFile) (*Key, error) {
	k, err := d.newKey(f.public)
	if err != nil {
		return nil, err
	}
	k.file = f
	d.register(k) // now, so that whoever frees slots knows its Name
	err = again(func() error {
		return k.with(ctx, nil, func(*call, tpm2.TPMHandle) error { return nil })
	})
	if err != nil {
		d.forget(k)
		return nil, err
	}
	if f.parent == SRKHandle && d.srkCounts() {
		k.warnings = append(k.warnings, "the SRK lacks noDA: some power cuts while the key is being loaded lock it out (TPM_RC_LOCKOUT)")
	}
	return k.ready(ctx)
}

// OpenHandle opens the key at a persistent handle: ErrNoKey where nothing lies there.
func (d *Device) OpenHandle(ctx context.Context, h uint32) (*Key, error) {
	var pub *tpm2.TPMTPublic
	var gen uint64
	err := again(func() error {
		c, release, err := d.hold(ctx)
		if err != nil {
			return err
		}
		defer release()
		gen = c.gen
		return d.fit(c, 1, nil, func() (err error) { pub, _, err = readPublic(c, tpm2.TPMHandle(h)); return err })
	})
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, hint.With(fmt.Errorf("opening the key at handle %#x: %w", h, ErrNoKey), hintNoKey)
	}
	if err != nil {
		return nil, commandError("opening the device key", err)
	}
	k, err := d.newKey(pub)
	if err != nil {
		return nil, fmt.Errorf("opening the key at handle %#x: %w", h, err)
	}
	k.at.Store(&place{handle: tpm2.TPMHandle(h), gen: gen})
	d.register(k)
	return k.ready(ctx)
}

func (d *Device) newKey(public *tpm2.TPMTPublic) (*Key, error) {
	warnings, err := usable(public)
	if err != nil {
		return nil, err
	}
	key, err := publicKey(public)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, unsupported("a key with name algorithm %#x", uint16(public.NameAlg))
	}
	return &Key{d: d, public: public, key: key, name: name.Buffer, warnings: warnings}, nil
}

func (d *Device) register(k *Key) {
	d.keysMu.Lock()
	defer d.keysMu.Unlock()
	d.keys[k] = struct{}{}
}

func (d *Device) forget(k *Key) {
	d.keysMu.Lock()
	defer d.keysMu.Unlock()
	delete(d.keys, k)
}

// ready puts a key into service, unless it turns out that it cannot sign.
func (k *Key) ready(ctx context.Context) (*Key, error) {
	if err := k.examine(ctx); err != nil {
		_ = k.close(ctx)
		return nil, err
	}
	for _, w := range k.warnings {
		k.d.log.LogAttrs(ctx, slog.LevelWarn, "tpm key warning", slog.String("warning", w))
	}
	return k, nil
}

// examine signs once where the public area does not say enough.
func (k *Key) examine(ctx context.Context) error {
	if k.file != nil && !k.file.noAuth {
		if err := k.tryWithoutPassword(ctx); err != nil {
			return err
		}
	}
	if k.public.Type == tpm2.TPMAlgRSA {
		if err := k.selfTest(ctx); err != nil {
			return fmt.Errorf("%w: this RSA key: %w", ErrUnsupported, err)
		}
	}
	return nil
}

// tryWithoutPassword finds out whether the key has a password, because the flag in its file
// cannot be trusted: tpm2_encodeobject 5.4 says that keys without one have one. A wrong
// guess counts against the whole TPM unless the key has noDA, so one is ventured only
// while the counter stands at zero: repeated starts then cannot lock the TPM.
func (k *Key) tryWithoutPassword(ctx context.Context) error {
	if !k.public.ObjectAttributes.NoDA {
		h, err := k.d.Health(ctx)
		if err != nil {
			return err
		}
		if h.LockoutCounter > 0 || h.InLockout {
			return unsupported("the file says that the key has a password, and the lockout counter stands at %d, so it is not tried without", h.LockoutCounter)
		}
	}
	return k.selfTest(ctx)
}

// Public implements crypto.Signer.
func (k *Key) Public() crypto.PublicKey { return k.key }

// Name is the key's Name in the TPM's sense: the hash of its public area, attributes
// included, after the hash's number (Part 1, 16).
func (k *Key) Name() []byte { return bytes.Clone(k.name) }

// Warnings are what is wrong with an imported key that works nevertheless.
func (k *Key) Warnings() []string { return append([]string(nil), k.warnings...) }

// Sign implements crypto.Signer for SHA-256, SHA-384 and SHA-512 digests; the random source
// is not used, the TPM has its own. As crypto/tls gives no context, the time is bounded
// here: by the command timeout and the retry budget together.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), k.d.commandTimeout+k.d.retryBudget)
	defer cancel()
	return k.sign(ctx, digest, opts)
}

func (k *Key) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	scheme, err := k.scheme(digest, opts)
	if err != nil {
		return nil, err
	}
	if k.password.Load() {
		return nil, errPassword
	}
	at := k.at.Load()
	if at == nil {
		return nil, errClosed
	}
	k.used.Store(k.d.uses.Add(1))
	signature, err := k.signAt(&call{d: k.d, ctx: ctx, gen: at.gen, at: at}, at.handle, digest, scheme)
	if forgotten(err) {
		err = k.with(ctx, at, func(c *call, h tpm2.TPMHandle) (err error) {
			signature, err = k.signAt(c, h, digest, scheme)
			return err
		})
	}
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		k.password.Store(true) // every further try may count as a guess
		return nil, errPassword
	}
	if err != nil {
		return nil, commandError("signing with the device key", err)
	}
	return signature, nil
}

var (
	errPassword = unsupported("the key has a password, and an unattended device cannot type one")
	errClosed   = fmt.Errorf("using a closed key: %w", os.ErrClosed)
)

// signAt is TPM2_Sign (Part 3, 20.2), the one command of a full handshake.
func (k *Key) signAt(c *call, h tpm2.TPMHandle, digest []byte, scheme tpm2.TPMTSigScheme) ([]byte, error) {
	rsp, err := tpm2.Sign{
		KeyHandle:  k.auth(h),
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   scheme,
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(c)
	if err != nil {
		return nil, err
	}
	return encodeSignature(rsp.Signature)
}

func (k *Key) auth(h tpm2.TPMHandle) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: tpm2.TPM2BName{Buffer: k.name}, Auth: tpm2.PasswordAuth(nil)}
}

// forgotten reports whether err may mean that the TPM lost its memory or we lost the TPM.
func forgotten(err error) bool {
	var lost *lostError
	return errors.As(err, &lost) && !errors.Is(err, context.Canceled) && !isTimeout(err) ||
		errors.Is(err, errStale) || errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCReferenceH0)
}

// with does f while the key is loaded and nobody else may use the TPM. It loads the key
// again where it is in no slot, or was not at failed, unless another goroutine has done so.
func (k *Key) with(ctx context.Context, failed *place, f func(*call, tpm2.TPMHandle) error) error {
	k.moving.Lock()
	defer k.moving.Unlock()
	k.used.Store(k.d.uses.Add(1))
	var srk tpm2.TPM2BName
	if k.file != nil && k.file.parent == SRKHandle {
		name, err := k.d.EnsureSRK(ctx, nil)
		if err != nil {
			return err
		}
		srk.Buffer = name
	}
	c, release, err := k.d.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	at, err := k.settle(c, failed, srk)
	if err != nil {
		return err
	}
	return f(c, at.handle)
}

// settle returns where the key lies now, after loading it where need be.
func (k *Key) settle(c *call, failed *place, srk tpm2.TPM2BName) (*place, error) {
	at := k.at.Load()
	switch {
	case k.closed:
		return nil, errClosed
	case at != nil && at != failed && at.gen == c.gen && !at.gone:
		return at, nil
	case at != nil:
		if found, err := k.stillThere(c, at); err != nil || found != nil {
			return found, err
		}
	}
	madeRoom := at != nil && at.gone
	if at != nil {
		at.gone = true
	}
	h, err := k.d.loadObject(c, k.file, srk)
	if err != nil {
		return nil, err
	}
	k.d.displace(h, c.gen)
	now := &place{handle: h, gen: c.gen}
	k.at.Store(now)
	if at != nil {
		k.d.log.LogAttrs(c.ctx, level(madeRoom), "tpm key loaded again", slog.Uint64("generation", c.gen))
	}
	return now, nil
}

// level of the news that a key was loaded again: no news where it had made room for another.
func level(madeRoom bool) slog.Level {
	if madeRoom {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// stillThere looks for the key where it lay when the connection was lost: a simulator keeps
// its objects then, and there may be no slot for a second copy. Whatever else lies at the
// handle now is not ours to sign with.
func (k *Key) stillThere(c *call, at *place) (*place, error) {
	if at.gone || k.file != nil && k.d.inUse(c)[at.handle] && at.gen != c.gen {
		return nil, nil
	}
	var name []byte
	err := k.d.fit(c, 0, k, func() (err error) { _, name, err = readPublic(c, at.handle); return err })
	switch {
	case err == nil && bytes.Equal(name, k.name):
		now := &place{handle: at.handle, gen: c.gen}
		k.at.Store(now)
		return now, nil
	case err != nil && !errors.Is(err, tpm2.TPMRCHandle) && !errors.Is(err, tpm2.TPMRCReferenceH0):
		return nil, err
	case k.file == nil:
		return nil, hint.With(fmt.Errorf("%w: the key at handle %#x is gone", ErrOwnerChanged, uint32(at.handle)), hintOwner)
	}
	return nil, nil
}

// Close frees the key's slot in the TPM. Closing twice is harmless.
func (k *Key) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), k.d.commandTimeout)
	defer cancel()
	return k.close(ctx)
}

func (k *Key) close(ctx context.Context) error {
	k.moving.Lock()
	defer k.moving.Unlock()
	k.closed = true
	at := k.at.Swap(nil)
	k.d.forget(k)
	if at == nil || k.file == nil {
		return nil
	}
	// What belongs to a lost generation is gone, or out of reach until the Device is closed.
	if at.gen != k.d.live.Load() {
		k.d.astray.Store(true)
		return nil
	}
	c := &call{d: k.d, ctx: ctx, gen: at.gen, at: at}
	if err := flushNow(c, at.handle); err != nil && !forgotten(err) {
		return commandError("freeing the device key", err)
	}
	return nil
}
