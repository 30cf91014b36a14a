package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/tpm"
)

// A new certificate takes over so, and a power cut anywhere leaves a device that opens:
//
//	device.key.next   the new key, if there is one, before its request leaves
//	device.crt.next   the new certificate; Open stages it again
//	  … the broker takes it …
//	device.crt.next → device.crt   the commit: the name of the new one is synced
//	device.key.next → device.key   the old key goes; where a cut prevents that, Open does it

// nextSuffix ends the name of a certificate that waits to take over.
const nextSuffix = ".next"

func (i *Identity) nextPath() string { return i.o.below(i.config.Certificate) + nextSuffix }

// stage makes c, just obtained, the certificate that the session is to prove. That it cannot be
// written keeps nobody from using it.
func (i *Identity) stage(ctx context.Context, c *Credential) {
	i.work.Lock()
	err := disk.MakeFolder(i.o.FS, filepath.Dir(i.nextPath()))
	if err == nil {
		err = atomicfile.Write(i.o.FS, i.nextPath(), c.text, 0o644)
	}
	i.work.Unlock()
	i.mu.Lock()
	i.staged, i.state.strikes, i.state.reprove = c, 0, time.Time{}
	i.state.rekey = false
	i.note(err)
	i.state.staged(time.Now(), i.term(c))
	i.mu.Unlock()
	if err != nil {
		i.o.Log.LogAttrs(ctx, slog.LevelError, "staged certificate not written", slog.Any("err", err))
	}
	i.o.event(ctx, EventStaged, c.attrs()...)
	i.o.changed()
}

// note keeps what Status says of the disk. The caller holds mu.
func (i *Identity) note(err error) {
	i.state.problem = ""
	if err != nil {
		i.state.problem = err.Error()
	}
}

// findStaged stages what waits on the disk: a certificate that a power cut or a restart kept from
// being proved, or that another tool put there. What is of no use any more is thrown away. A key
// without a certificate is a rotation that was begun; Run goes on with it.
func (i *Identity) findStaged(ctx context.Context) error {
	chain, text, err := readChain(i.o, i.config.Certificate+nextSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return i.findNextKey(ctx)
	}
	if err != nil {
		return errors.Join(err, i.dropCertificate(), i.findNextKey(ctx))
	}
	current := i.Current()
	key, successor := current.key, false
	if !equalKeys(chain[0].PublicKey, key.Public()) {
		if err := i.findNextKey(ctx); err != nil {
			return err
		}
		i.mu.Lock()
		key, successor = i.nextKey, true
		i.mu.Unlock()
		if key == nil {
			return errors.Join(ErrMismatch, i.dropCertificate())
		}
	}
	c, err := i.credential(key, chain, text)
	if err == nil {
		err = i.follows(c, current)
	}
	if err == nil && c.leaf.NotBefore.Before(current.leaf.NotBefore) {
		err = errors.New("the new certificate is older than the present one") // which was put in place later
	}
	if err != nil {
		return errors.Join(err, i.dropCertificate())
	}
	c.successor = successor
	i.mu.Lock()
	i.staged, i.state.rekey = c, false
	i.mu.Unlock()
	return nil
}

// follows says why c cannot follow current, if it cannot.
func (i *Identity) follows(c, current *Credential) error {
	now, _ := i.judge.now(c.leaf)
	switch have, want := c.leaf.Subject.CommonName, current.leaf.Subject.CommonName; {
	case have != want:
		return fmt.Errorf("the new certificate is for device %q, and this one is %q", have, want)
	case now.After(c.leaf.NotAfter):
		return fmt.Errorf("the new certificate expired on %s", c.leaf.NotAfter.Format(time.DateOnly))
	case c.fingerprint == current.fingerprint:
		return errors.New("the new certificate is the present one")
	}
	return nil
}

// findNextKey opens the key at tpm.NextURI, if there is one that can be used.
func (i *Identity) findNextKey(ctx context.Context) error {
	i.mu.Lock()
	open := i.nextKey != nil
	i.mu.Unlock()
	next, err := tpm.NextURI(i.config.Key)
	if open || err != nil {
		return nil // a key at a handle, or a helper's, has no successor
	}
	key, err := tpm.OpenKey(ctx, next, i.keyOptions(record{}))
	switch {
	case errors.Is(err, tpm.ErrNoKey):
		return nil
	case errors.Is(err, tpm.ErrKeyCorrupt), errors.Is(err, tpm.ErrOwnerChanged):
		return errors.Join(err, tpm.Remove(ctx, next, i.keyOptions(record{})))
	case err != nil:
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.nextKey, i.state.rekey = key, true
	return nil
}

// Promote makes c, which the broker has accepted, the current credential, in memory at once and
// on the disk before it returns. What the disk refuses is tried again by Run, and Status says so.
func (i *Identity) Promote(c *Credential) {
	ctx := context.Background()
	i.mu.Lock()
	old := i.current
	i.current, i.unwritten = c, c
	if i.staged == c {
		i.staged = nil
	}
	if c.key == i.nextKey {
		i.nextKey = nil
	}
	if old.key != c.key {
		i.retired = append(i.retired, retiree{old.key, time.Now()})
	}
	i.state.promoted()
	i.mu.Unlock()
	i.o.event(ctx, EventPromoted, c.attrs()...)
	if !i.work.TryLock() {
		i.nudge() // whoever holds it is quick, and the session does not wait
		return
	}
	defer i.work.Unlock()
	i.settle(ctx)
}

// settle makes the disk hold what is used. It can be repeated. The caller holds work.
func (i *Identity) settle(ctx context.Context) {
	i.mu.Lock()
	c := i.unwritten
	i.mu.Unlock()
	if c == nil {
		return
	}
	err := i.commit(c)
	if err == nil && c.successor {
		err = i.takeOver(c)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err == nil && i.unwritten == c {
		i.unwritten = nil
	}
	before := i.state.problem
	if i.note(err); err != nil && i.state.problem != before { // once, though it is tried every minute
		i.o.Log.LogAttrs(ctx, slog.LevelError, "certificate in use not on the disk", slog.Any("err", err))
	}
}

// commit gives c the name of the current certificate.
func (i *Identity) commit(c *Credential) error {
	path := i.o.below(i.config.Certificate)
	if !i.holds(path, c) {
		if !i.holds(i.nextPath(), c) {
			return atomicfile.Write(i.o.FS, path, c.text, 0o644)
		}
		if err := i.o.FS.Rename(i.nextPath(), path); err != nil {
			return fmt.Errorf("putting the certificate in its place: %w", err)
		}
	}
	if err := i.o.FS.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("putting the certificate in its place: %w", err)
	}
	return nil
}

func (i *Identity) holds(path string, c *Credential) bool {
	text, err := disk.ReadFile(i.o.FS, path, maxChain)
	return err == nil && bytes.Equal(text, c.text)
}

// takeOver gives the key of c the name of the current key.
func (i *Identity) takeOver(c *Credential) error {
	o := i.keyOptions(record{})
	err := tpm.TakeOver(i.config.Key, o)
	if errors.Is(err, tpm.ErrNoKey) && samePublic(i.config.Key, o, c.leaf) {
		return nil // done before
	}
	return err
}

// Reload looks for certificates that others put in place: a new one for the same key and device
// is staged, for the session to prove; anything else is an error and changes nothing.
func (i *Identity) Reload(ctx context.Context) (changed bool, err error) {
	i.work.Lock()
	defer i.work.Unlock()
	if i.settle(ctx); i.pending() {
		return false, errors.New("the certificate in use could not be written yet, so what lies there is of the past")
	}
	before, current := i.Staged(), i.Current()
	fresh, err := i.load(current.key)
	if err != nil {
		return false, err
	}
	if fresh.fingerprint == current.fingerprint {
		if before != nil && !before.inPlace {
			return false, nil
		}
		i.setStaged(nil)
		err := i.findStaged(ctx)
		return i.Staged() != nil, err
	}
	if before != nil && before.inPlace && before.fingerprint == fresh.fingerprint {
		return true, nil // to be proved once more
	}
	if err := i.follows(fresh, current); err != nil {
		return false, err
	}
	fresh.inPlace = true
	i.setStaged(fresh)
	return true, i.dropCertificate()
}

func (i *Identity) pending() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.unwritten != nil
}

func (i *Identity) setStaged(c *Credential) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.staged, i.state.strikes, i.state.reprove = c, 0, time.Time{}
}

// dropCertificate removes the certificate that waits, durably.
func (i *Identity) dropCertificate() error {
	err := i.o.FS.Remove(i.nextPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = i.o.FS.SyncDir(filepath.Dir(i.nextPath()))
	}
	return err
}

// dropNext removes what a rotation left: its certificate, then its key.
func (i *Identity) dropNext(ctx context.Context) error {
	if err := i.dropCertificate(); err != nil {
		return err
	}
	next, err := tpm.NextURI(i.config.Key)
	if err != nil {
		return nil
	}
	return tpm.Remove(ctx, next, i.keyOptions(record{}))
}
