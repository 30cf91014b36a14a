package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"

	"ferrule/agent/audit"
	"ferrule/agent/enroll"
	"ferrule/agent/trust"
	"ferrule/internal/disk"
)

// trusted is whom the agent believes.
type trusted struct {
	brokers    *trust.Roots
	registrars *trust.Roots                          // nil where none is asked
	registrar  atomic.Pointer[[][]*x509.Certificate] // how the last connection to it was verified
	revocation *trust.Revocation
}

// openRegistrarTrust reads whom the agent believes to be the registrar. Without it the agent runs,
// and its certificate is renewed by the file of enroll.roots as soon as that is there.
func (a *agent) openRegistrarTrust(ctx context.Context, fsys disk.FS) {
	e := a.config.Enroll
	if e.Method == enroll.MethodNone || e.Method == "" {
		return
	}
	roots, err := trust.OpenRoots(trust.RootsConfig{Name: "registrar", File: e.Roots}, a.trustOptions(fsys))
	if err != nil {
		a.log.LogAttrs(ctx, slog.LevelError, "roots of the registrar not usable", slog.Any("err", err))
		return
	}
	a.trust.registrars = roots
}

// openBrokerTrust reads whom the agent believes to be the broker.
func (a *agent) openBrokerTrust(fsys disk.FS) (err error) {
	o := a.trustOptions(fsys)
	if a.trust.brokers, err = trust.OpenRoots(trust.RootsConfig{Name: "broker", File: a.config.Session.Roots}, o); err != nil {
		return fmt.Errorf("session.roots: %w", err)
	}
	if a.trust.revocation, err = trust.NewRevocation(a.config.Revocation, o, trust.HTTP(a.trust.brokers.Pool)); err != nil {
		return fmt.Errorf("revocation: %w", err)
	}
	return nil
}

func (a *agent) trustOptions(fsys disk.FS) trust.Options {
	if a.onTrial != nil {
		fsys = held{fsys}
	}
	return trust.Options{FS: fsys, StateDir: a.config.StateDir, Clock: a.clock, Log: a.log, Changed: a.recheck}
}

// recheck has the session look again at the broker it is connected to.
func (a *agent) recheck() {
	if a.session != nil {
		a.session.Recheck()
	}
}

// registrarRoots are handed to the identity; nil where enroll.roots says it all.
func (a *agent) registrarRoots() func() (*x509.CertPool, error) {
	if a.trust.registrars == nil {
		return nil
	}
	return func() (*x509.CertPool, error) { return a.trust.registrars.Pool(), nil }
}

// registrarSeen is told of every connection to the registrar that was verified.
func (a *agent) registrarSeen(state tls.ConnectionState) error {
	a.trust.registrar.Store(&state.VerifiedChains)
	return nil
}

// registrarIssued is told how a certificate that came over it leads to the roots. Roots that know the
// registrar and not its CA do not suffice: once they were confirmed, no renewal would be taken.
func (a *agent) registrarIssued(chains [][]*x509.Certificate) {
	if a.trust.registrars == nil {
		return
	}
	all := [][][]*x509.Certificate{chains}
	if seen := a.trust.registrar.Load(); seen != nil { // a program of method exec has no connection
		all = append(all, *seen)
	}
	a.trust.registrars.VerifiedAll(all...)
}

// reloadTrust reads the files of the roots again.
func (a *agent) reloadTrust(ctx context.Context) {
	for _, r := range []*trust.Roots{a.trust.brokers, a.trust.registrars} {
		if r == nil {
			continue
		}
		if _, err := r.Reload(); err != nil {
			a.log.LogAttrs(ctx, slog.LevelError, "roots not reloaded", slog.Any("err", err))
		}
	}
}

// openAudit opens the log of what mattered. Its key is the device's, once there is one.
func (a *agent) openAudit(fsys disk.FS) (err error) {
	a.audit, err = audit.Open(audit.Options{
		Config: a.config.Audit, FS: fsys, Dir: filepath.Join(a.config.StateDir, "audit"),
		Device: func() string { return a.identity.Device() },
		Key:    a.identity.Key,
		Clock:  a.clock, Log: a.log,
	})
	if err == nil {
		a.noteKeyChange() // ferrule enroll --rekey may have staged it while no agent ran
	}
	return err
}

// note writes an event into the audit log; that a log is full or broken is in the status.
func (a *agent) note(ctx context.Context, e audit.Event) {
	if a.audit == nil {
		return
	}
	if err := a.audit.Append(ctx, e); err != nil {
		a.log.LogAttrs(ctx, slog.LevelWarn, "event not in the audit log", slog.String("event", e.Name), slog.Any("err", err))
	}
}
