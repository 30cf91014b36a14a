package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"time"

	"ferrule/agent/audit"
	"ferrule/agent/enroll"
	"ferrule/agent/identity"
	"ferrule/agent/session/cause"
	"ferrule/internal/disk"
)

// How soon a device without a usable certificate asks again for one, where the first answer was
// none; it doubles.
const (
	firstReturn = 10 * time.Second
	lastReturn  = 10 * time.Minute
)

// openIdentity opens the device's key and certificate, and obtains what a device can obtain by
// itself: its first certificate by that of the factory, and one for a new key where a TPM that was
// cleared has lost the old one and the registrar knows the TPM.
func (a *agent) openIdentity(ctx context.Context, fsys disk.FS) (err error) {
	o := a.identityOptions(fsys)
	for pause := firstReturn; ; pause = min(2*pause, lastReturn) {
		if a.identity, err = identity.Open(ctx, a.config.Identity, o); err == nil {
			a.clock.Raise(a.identity.Current().Leaf().NotBefore)
			return nil
		}
		obtain := a.selfHelp(err, o)
		if obtain == nil {
			return err
		}
		a.log.LogAttrs(ctx, slog.LevelWarn, "no usable certificate; obtaining one", slog.Any("err", err))
		result, obtainErr := a.alone(ctx, obtain)
		if obtainErr == nil {
			a.log.LogAttrs(ctx, slog.LevelInfo, "enrolled", slog.String("device", result.Device))
			continue
		}
		if errors.Is(obtainErr, identity.ErrWrongTPM) || errors.Is(obtainErr, identity.ErrNoWayBack) {
			return obtainErr
		}
		a.desk.manager.ready()
		a.log.LogAttrs(ctx, slog.LevelError, "no certificate yet", slog.Duration("again_in", pause), slog.Any("err", obtainErr))
		select {
		case <-ctx.Done():
			return obtainErr
		case <-time.After(pause):
		}
	}
}

// alone obtains a certificate while no ferrule enroll is about it.
func (a *agent) alone(ctx context.Context, obtain func(context.Context) (identity.Result, error)) (identity.Result, error) {
	lock, err := LockEnrollment(a.config.StateDir)
	if err != nil {
		return identity.Result{}, err
	}
	defer lock.Close()
	return obtain(ctx)
}

// selfHelp is what obtains a certificate after identity.Open failed with err; nil: nothing does.
func (a *agent) selfHelp(err error, o identity.Options) func(context.Context) (identity.Result, error) {
	c, e := a.config.Identity, a.config.Enroll
	switch {
	case e.Method == enroll.MethodNone || e.Method == "":
		return nil
	case errors.Is(err, identity.ErrCleared):
		return func(ctx context.Context) (identity.Result, error) { return identity.Return(ctx, c, o, e) }
	case errors.Is(err, identity.ErrNotEnrolled) && identity.HasFactory(c, o):
		return func(ctx context.Context) (identity.Result, error) {
			return identity.Enroll(ctx, c, o, e, identity.EnrollRequest{})
		}
	}
	return nil
}

func (a *agent) identityOptions(fsys disk.FS) identity.Options {
	return identity.Options{
		StateDir: a.config.StateDir, FS: fsys, Clock: a.clock, Log: a.log,
		Roots: a.registrarRoots(), Verify: a.registrarSeen, Issued: a.registrarIssued, Changed: a.staged,
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
//
// On trial, that is what the new configuration's broker thinks, and no reason for another certificate.
func (a *agent) refused(fingerprint string, f cause.Failure) {
	if a.onTrial != nil {
		return
	}
	a.identity.Refused(fingerprint, errors.New(f.Text))
}
