package tpm

import (
	"bytes"
	"context"
	"errors"

	"github.com/google/go-tpm/tpm2"
)

// slots is how many objects a TPM keeps loaded at least, and how many the kernel's resource
// manager lets one descriptor have: it loads all of them again for every command. A
// persistent object takes one too while a command uses it. So keys loaded from files are
// flushed when others need the room, and come back when they are used next.
const slots = 3

// hold takes the TPM for several commands that nobody's else come between: what they load
// is gone before release. Whoever holds it takes no lock that
// others keep over a command.
func (d *Device) hold(ctx context.Context) (*call, func(), error) {
	if err := d.acquire(ctx); err != nil {
		return nil, nil, err
	}
	release := func() { <-d.busy }
	if err := d.reopen(ctx); err != nil {
		release()
		return nil, nil, err
	}
	c := &call{d: d, ctx: ctx, gen: d.gen, held: true}
	if d.dirty {
		if err := d.sweep(c); err != nil {
			release()
			return nil, nil, commandError("clearing up in the TPM", err)
		}
	}
	return c, func() {
		d.dirty = d.dirty || c.broken && !d.ResourceManager()
		release()
	}, nil
}

// again does f a second time where the TPM was lost or reset in the middle of the first.
func again(f func() error) error {
	err := f()
	if forgotten(err) {
		err = f()
	}
	return err
}

// fit does f, a command that needs room for n objects, after making it. Where the TPM is
// full all the same, what fills it was left by a process that was killed. keep stays loaded.
func (d *Device) fit(c *call, n int, keep *Key, f func() error) error {
	d.makeRoom(c, n, keep)
	err := f()
	if !errors.Is(err, tpm2.TPMRCObjectMemory) {
		return err
	}
	d.makeRoom(c, slots, keep)
	if !d.ResourceManager() {
		if err := d.sweep(c); err != nil {
			return err
		}
	}
	return f()
}

// makeRoom flushes keys, the one first that was not used for longest, until n objects fit
// beside those that stay.
func (d *Device) makeRoom(c *call, n int, keep *Key) {
	for {
		taken := len(c.objects)
		var oldest *Key
		for _, k := range d.loaded() {
			if !k.takesSlot(c.gen) {
				continue
			}
			taken++
			if k != keep && (oldest == nil || k.used.Load() < oldest.used.Load()) {
				oldest = k
			}
		}
		if taken+n <= slots || oldest == nil {
			return
		}
		at := oldest.at.Load()
		at.gone = true
		d.flush(c, at.handle)
	}
}

// takesSlot reports whether k lies in a slot; the caller holds the TPM.
func (k *Key) takesSlot(gen uint64) bool {
	at := k.at.Load()
	return k.file != nil && at != nil && at.gen == gen && !at.gone
}

// displace forgets places of other keys at h: something else lies there now, because the
// TPM was reset behind our back. Else they would sign with a key that is not theirs.
func (d *Device) displace(h tpm2.TPMHandle, gen uint64) {
	for _, k := range d.loaded() {
		if k.takesSlot(gen) && k.at.Load().handle == h {
			k.at.Load().gone = true
		}
	}
}

// sweep frees what we left in a TPM without resource manager, when a connection or a process
// ended in the middle: keys, and primary keys of our templates. Objects of any other kind
// are not touched. A session cannot be told from another's; but nobody else may use the
// device while we have it, so none of them is alive.
func (d *Device) sweep(c *call) error {
	if d.ResourceManager() {
		d.dirty = false
		return nil
	}
	handles, err := listHandles(c, firstTransient)
	if err != nil {
		return err
	}
	mine := d.inUse(c)
	for _, h := range handles {
		if mine[h] {
			continue
		}
		pub, name, err := readPublic(c, h)
		if err != nil {
			return err
		}
		if d.ours(pub, name) {
			if err := flushNow(c, h); err != nil {
				return err
			}
		}
	}
	sessions, err := listHandles(c, firstSession)
	if err != nil {
		return err
	}
	for _, h := range sessions {
		if err := flushNow(c, h); err != nil {
			return err
		}
	}
	d.dirty = false
	return nil
}

func flushNow(c *call, h tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(c)
	return err
}

// inUse are the slots of our live keys and of the hold at work.
func (d *Device) inUse(c *call) map[tpm2.TPMHandle]bool {
	used := make(map[tpm2.TPMHandle]bool)
	for _, h := range c.objects {
		used[h] = true
	}
	for _, k := range d.loaded() {
		if k.takesSlot(c.gen) {
			used[k.at.Load().handle] = true
		}
	}
	return used
}

// ours reports whether an object is one that this package makes: a key that is open, or
// anything of one of its templates, whatever the key.
func (d *Device) ours(pub *tpm2.TPMTPublic, name []byte) bool {
	for _, k := range d.loaded() {
		if bytes.Equal(k.name, name) {
			return true
		}
	}
	blank := blanked(*pub)
	for _, t := range d.templates() {
		if bytes.Equal(blank, blanked(t)) {
			return true
		}
	}
	return false
}

// templates are those of all that this package loads.
func (d *Device) templates() []tpm2.TPMTPublic {
	all := []tpm2.TPMTPublic{tpm2.ECCSRKTemplate, akTemplate(), keyTemplate(tpm2.TPMECCNistP256), keyTemplate(tpm2.TPMECCNistP384)}
	for _, k := range ekKinds() {
		all = append(all, k.template)
	}
	d.eksMu.Lock()
	defer d.eksMu.Unlock()
	return append(all, d.odd...)
}

// blanked is a public area without the key in it.
func blanked(p tpm2.TPMTPublic) []byte {
	switch p.Type {
	case tpm2.TPMAlgECC:
		p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPMSECCPoint{})
	case tpm2.TPMAlgRSA:
		p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPM2BPublicKeyRSA{})
	}
	return tpm2.Marshal(p)
}

// The first handle of each kind that can be listed (Part 2, 7.2).
const (
	firstNV        = 0x01C00000 // of the TCG's own indexes
	firstSession   = 0x02000000 // loaded ones
	firstTransient = 0x80000000
)

// listHandles returns the handles of one kind, from first on.
func listHandles(c *call, first uint32) ([]tpm2.TPMHandle, error) {
	const most = 64
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: most}.Execute(c)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	return list.Handle, nil
}

// leaveClean is the last thing before the TPM is closed. It does not wait for one that is away.
func (d *Device) leaveClean(ctx context.Context) {
	if !d.dirty && !d.astray.Load() || d.closed || d.ResourceManager() {
		return
	}
	if d.conn == nil {
		c, err := d.dial(ctx)
		if err != nil {
			return
		}
		d.conn, d.answered = c, false
		d.gen++
	}
	_ = d.sweep(&call{d: d, ctx: ctx, gen: d.gen, held: true})
}
