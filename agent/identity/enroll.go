package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"ferrule/agent/enroll"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
	"ferrule/tpm"
)

// EnrollRequest says what ferrule enroll is to do.
type EnrollRequest struct {
	// Token entitles to the first certificate; without one the factory certificate does, and
	// where the device was enrolled before, the endorsement key.
	Token string
	// Force replaces a valid certificate, and gives up a key that its TPM no longer knows.
	Force bool
	// Rekey makes a new key and obtains a certificate for it by the present one. Both wait beside
	// the present ones until a broker took them.
	Rekey bool
	// Factory obtains the factory certificate instead, for the key of the factory identity.
	Factory bool
}

// Result is what an enrollment left on the disk.
type Result struct {
	Device   string
	Key      string // its URI
	Weak     bool
	NotAfter time.Time
	Issuer   string
	// Already says that the device had a good certificate and nothing was done.
	Already bool
	// Staged says that the certificate waits for a broker to take it: the agent proves it.
	Staged bool
}

// Enroll obtains a certificate. Its writes are ordered so that a power cut after any of them,
// and a second Enroll with the same token, end with one key and one certificate: the key is
// durable before any request signed by it leaves, the record before the certificate, whose
// presence alone means enrolled.
func Enroll(ctx context.Context, c Config, o Options, e enroll.Config, r EnrollRequest) (Result, error) {
	if err := finishReset(ctx, c, o); err != nil {
		return Result{}, err
	}
	switch {
	case r.Factory:
		return enrollFirst(ctx, c.ForFactory(), o, e.ForFactory(), r)
	case r.Rekey:
		return rekey(ctx, c, o, e)
	}
	return enrollFirst(ctx, c, o, e, r)
}

func enrollFirst(ctx context.Context, c Config, o Options, e enroll.Config, r EnrollRequest) (Result, error) {
	if !r.Force {
		result, done, err := alreadyEnrolled(ctx, c, o)
		if errors.Is(err, ErrCleared) && r.Token == "" && !c.isFactory {
			return Return(ctx, c, o, e)
		}
		if done || err != nil {
			return result, err
		}
	}
	i := newIdentity(c, o)
	defer func() { _ = i.Close() }()
	past, err := readRecord(o)
	if err != nil {
		return Result{}, err
	}
	key, err := i.openOrCreateKey(ctx, past, r.Force)
	if err != nil {
		return Result{}, err
	}
	defer key.Close()
	i.readFactory(ctx)
	fresh, err := i.first(ctx, e, r.Token, past, key)
	if err != nil {
		return Result{}, err
	}
	return i.store(ctx, fresh, EventEnrolled)
}

// first obtains the first certificate: by token, by the factory certificate, or, where the
// device had one before, as it comes back.
func (i *Identity) first(ctx context.Context, e enroll.Config, token string, past record, key tpm.DeviceKey) (*Credential, error) {
	known := past.Device != "" && !past.Enrolled.IsZero() && !i.config.isFactory
	switch {
	case token != "":
		return i.obtain(ctx, e, order{purpose: enroll.First, token: token, key: key})
	case known && (i.factory != nil || attesterOf(key) != nil && e.Method == enroll.MethodRegistrar):
		return i.wayBack(ctx, e, past.Device, key)
	}
	r := order{purpose: enroll.First, key: key}
	factory, err := i.openFactory(ctx)
	if err != nil {
		return nil, err
	}
	if factory != nil {
		defer factory.key.Close()
		r.present, r.device = factory, factory.leaf.Subject.CommonName
	}
	return i.obtain(ctx, e, r)
}

// alreadyEnrolled opens what is there. A device without a certificate, or with an expired
// one, goes on to enroll; any other fault is for the user to see first.
func alreadyEnrolled(ctx context.Context, c Config, o Options) (Result, bool, error) {
	i, err := Open(ctx, c, o)
	if errors.Is(err, ErrNotEnrolled) {
		return Result{}, false, nil
	}
	if err != nil {
		return Result{}, false, err
	}
	defer i.Close()
	if now, _ := i.judge.now(nil); now.After(i.Current().leaf.NotAfter) {
		return Result{}, false, nil
	}
	result := i.result(i.Current())
	result.Already = true
	return result, true, nil
}

// openOrCreateKey opens the key that an earlier attempt left, or makes it. force gives up a
// key that its TPM no longer knows; the file is kept beside the new one.
func (i *Identity) openOrCreateKey(ctx context.Context, r record, force bool) (tpm.DeviceKey, error) {
	key, err := tpm.OpenKey(ctx, i.config.Key, i.keyOptions(r))
	if err == nil {
		if err := tpm.SettleKey(i.config.Key, i.keyOptions(r)); err != nil {
			return nil, errors.Join(err, key.Close())
		}
		return key, nil
	}
	lost := errors.Is(err, tpm.ErrOwnerChanged) || errors.Is(err, tpm.ErrKeyCorrupt)
	if !errors.Is(err, tpm.ErrNoKey) && !(lost && force) {
		return nil, i.explain(ctx, r, err)
	}
	if r.EKName != nil {
		// Before anything changes: the disk may have come into another gateway.
		if err := i.sameTPM(ctx, r); err != nil {
			return nil, err
		}
	}
	if _, _, there := readChain(i.o, i.config.Certificate); lost || there == nil {
		if r, err = i.giveUpKey(r); err != nil {
			return nil, err
		}
	}
	key, err = tpm.CreateKeyAt(ctx, i.config.Key, tpm.KeySpec{}, i.keyOptions(r))
	if err != nil {
		return nil, i.explain(ctx, r, err)
	}
	return key, nil
}

// giveUpKey sets the lost key aside. What is remembered of the TPM is forgotten first: a power cut
// in between would else leave the old owner's name, by which the next attempt took the new key
// for a lost one. That a return is under way is remembered, since key and certificate do not
// belong together until it is done.
func (i *Identity) giveUpKey(r record) (record, error) {
	r.SRKName, r.Returning = nil, true
	if err := writeRecord(i.o, r); err != nil {
		return r, err
	}
	err := tpm.SetAside(i.config.Key, i.keyOptions(r))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // a key at a handle is gone with its owner
	}
	return r, err
}

// store writes record and certificate, in that order, in the place of whatever was there, and
// clears away what a rotation had left.
func (i *Identity) store(ctx context.Context, c *Credential, event string) (Result, error) {
	r, err := readRecord(i.o)
	if err != nil {
		return Result{}, err
	}
	if !i.config.isFactory {
		r.Device, r.Enrolled = c.leaf.Subject.CommonName, i.o.Clock.Now().UTC()
	} else if r.Device == "" {
		r.Device = c.leaf.Subject.CommonName
	}
	if err := i.describeTPM(ctx, &r); err != nil {
		return Result{}, err
	}
	if err := writeRecord(i.o, r); err != nil {
		return Result{}, err
	}
	if err := i.place(ctx, c); err != nil {
		return Result{}, hint.With(fmt.Errorf("writing the certificate: %w", err), "run it again with the same token: nothing is lost")
	}
	i.settleReturn(ctx, r)
	i.o.event(ctx, event, c.attrs()...)
	return i.result(c), nil
}

// describeTPM puts the names by which the TPM is known again into r.
func (i *Identity) describeTPM(ctx context.Context, r *record) (err error) {
	if i.device == nil {
		return nil
	}
	if r.SRKName, err = i.device.EnsureSRK(ctx, nil); err != nil {
		return err
	}
	r.EKName, err = i.device.EndorsementName(ctx)
	return err
}

// place makes c the certificate on the disk. A staged one goes first: it is of the past, and
// must not be found beside a later one.
func (i *Identity) place(ctx context.Context, c *Credential) error {
	path := i.o.below(i.config.Certificate)
	if err := disk.MakeFolder(i.o.FS, filepath.Dir(path)); err != nil {
		return err
	}
	if err := i.dropNext(ctx); err != nil {
		return err
	}
	return atomicfile.Write(i.o.FS, path, c.text, 0o644)
}

// settleReturn forgets that a return was under way: key and certificate belong together.
func (i *Identity) settleReturn(ctx context.Context, r record) {
	if !r.Returning || i.config.isFactory {
		return
	}
	r.Returning = false
	if err := writeRecord(i.o, r); err != nil {
		i.o.Log.LogAttrs(ctx, slog.LevelWarn, "end of a return not noted", slog.Any("err", err))
	}
}

func (i *Identity) result(c *Credential) Result {
	return Result{
		Device: c.leaf.Subject.CommonName, Key: i.config.Key, Weak: c.key.Weak(),
		NotAfter: c.leaf.NotAfter, Issuer: c.leaf.Issuer.CommonName,
	}
}
