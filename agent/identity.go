package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"time"

	"ferrule/agent/audit"
	"ferrule/agent/identity"
	"ferrule/agent/session"
	"ferrule/internal/disk"
)

// How soon a device whose TPM was cleared asks again for a certificate, where the first answer
// was none; it doubles.
const (
	firstReturn = 10 * time.Second
	lastReturn  = 10 * time.Minute
)

// openIdentity opens the device's key and certificate. A TPM that was cleared has lost the key
// for good; where the registrar knows the TPM, the same device gets a certificate for a new one.
func (a *agent) openIdentity(ctx context.Context, fsys disk.FS) (err error) {
	o := a.identityOptions(fsys)
	for pause := firstReturn; ; pause = min(2*pause, lastReturn) {
		if a.identity, err = identity.Open(ctx, a.config.Identity, o); !errors.Is(err, identity.ErrCleared) {
			break
		}
		a.log.LogAttrs(ctx, slog.LevelWarn, "key lost; returning as the same device", slog.Any("err", err))
		result, returnErr := identity.Return(ctx, a.config.Identity, o, a.config.Enroll)
		if returnErr == nil {
			a.log.LogAttrs(ctx, slog.LevelInfo, "enrolled again", slog.String("device", result.Device))
			continue
		}
		if errors.Is(returnErr, identity.ErrWrongTPM) || errors.Is(returnErr, identity.ErrNoWayBack) {
			return returnErr
		}
		a.log.LogAttrs(ctx, slog.LevelError, "no certificate yet", slog.Duration("again_in", pause), slog.Any("err", returnErr))
		select {
		case <-ctx.Done():
			return returnErr
		case <-time.After(pause):
		}
	}
	if err == nil {
		a.clock.Raise(a.identity.Current().Leaf().NotBefore)
	}
	return err
}

func (a *agent) identityOptions(fsys disk.FS) identity.Options {
	return identity.Options{
		StateDir: a.config.StateDir, FS: fsys, Clock: a.clock, Log: a.log, State: StateFiles(),
		Roots: a.registrarRoots(), Verify: a.registrarSeen, Changed: a.staged,
		Event: func(ctx context.Context, name string, attrs ...slog.Attr) {
			// Nobody on the network can cause these as often as they like, but for a refusal.
			a.note(ctx, audit.Event{Name: name, Attrs: attrs, Essential: name != identity.EventRefused && name != identity.EventFailed})
		},
	}
}

// staged is told that a certificate waits: the session proves it.
func (a *agent) staged() {
	a.noteKeyChange()
	if a.session != nil {
		a.session.Rotate()
	}
}

// noteKeyChange has the old key say in the audit log which one will follow, while it is there.
func (a *agent) noteKeyChange() {
	if a.audit == nil {
		return // it is being opened, and asks then
	}
	next := a.identity.Staged()
	if next == nil || next.Key() == a.identity.Key() {
		return
	}
	if err := a.audit.KeyChange(context.Background(), a.identity.Key(), next.Key()); err != nil {
		a.log.LogAttrs(context.Background(), slog.LevelWarn, "change of key not in the audit log", slog.Any("err", err))
	}
}

// brokerSeen is told of every connection that got its CONNACK.
func (a *agent) brokerSeen(chains [][]*x509.Certificate) {
	a.trust.brokers.Verified(chains)
	a.identity.Accepted(a.identity.Current().Fingerprint())
}

// refused is told that the broker does not take a certificate of ours.
func (a *agent) refused(fingerprint string, f session.Failure) {
	a.identity.Refused(fingerprint, errors.New(f.Text))
}

// StateFiles names what the parts keep below the state directory beside the identity.
func StateFiles() []string {
	return []string{"outbox", "journal", "authorizations", "audit", "roots", "revocation", "time"}
}
