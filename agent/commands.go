package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"

	"ferrule/agent/audit"
	"ferrule/agent/command"
	"ferrule/agent/command/authorize"
	"ferrule/agent/command/journal"
	"ferrule/agent/identity"
	"ferrule/agent/session"
	"ferrule/agent/trust"
	"ferrule/internal/disk"
	"ferrule/internal/jws"
)

// openCommands opens what commands are journalled in, judged by and noted in.
func (a *agent) openCommands(fsys disk.FS) (err error) {
	below := func(name string) string { return filepath.Join(a.config.StateDir, name) }
	if a.journal, err = journal.Open(fsys, below("journal"), a.log); err != nil {
		return fmt.Errorf("opening the journal of commands: %w", err)
	}
	a.authority, err = authorize.Open(a.config.Authorize, authorize.Options{
		FS: fsys, Path: below("authorizations"), StateDir: a.config.StateDir,
		Device: a.authorizedDevice, Key: a.identity.Key, Clock: a.clock, Log: a.log,
	})
	if err != nil {
		return err
	}
	a.commands = command.New(command.Options{
		Journal: a.journal, Authority: a.authority, Clock: a.clock, Log: a.log,
		Event: func(ctx context.Context, name string, essential bool, attrs ...slog.Attr) {
			a.note(ctx, audit.Event{Name: name, Attrs: attrs, Essential: essential})
		},
		Table: map[string]command.Command{
			"read":    {Run: a.readCommand},
			"tpm":     {Run: a.tpmCommand},
			"doctor":  {Run: a.doctorCommand},
			"write":   {Run: a.writeCommand, Acts: true, Target: writeTarget},
			"restart": {Run: a.restartCommand, Acts: true},
			"renew":   {Run: a.settledOnly(a.renewCommand), Acts: true},
			"roots":   {Run: a.settledOnly(a.rootsCommand), Acts: true},
			"config":  {Run: a.configCommand, Acts: true},
			"update":  {Run: a.updateCommand, Acts: true, Target: updateTarget},
		},
	})
	return nil
}

// authorizedDevice is who a token must be for. While another key is staged, tokens for either
// are good: the issuer learns of the rotation when it is over.
func (a *agent) authorizedDevice() authorize.Device {
	d := authorize.Device{ID: a.identity.Device()}
	for _, c := range []*identity.Credential{a.identity.Current(), a.identity.Staged()} {
		if c == nil {
			continue
		}
		if thumbprint, err := jws.Thumbprint(c.Leaf().PublicKey); err == nil {
			d.Thumbprints = append(d.Thumbprints, thumbprint)
		}
	}
	return d
}

// handle answers a command of the cloud.
func (a *agent) handle(ctx context.Context, c session.Command) (id string, reply []byte) {
	return a.commands.Handle(ctx, command.Message{Name: c.Name, Payload: c.Payload, Retained: c.Retained})
}

func (a *agent) restartCommand(context.Context, json.RawMessage) (any, error) {
	a.restartOnce.Do(func() { close(a.restart) })
	return map[string]bool{"restarting": true}, nil
}

// tpmCommand reports on the TPM.
func (a *agent) tpmCommand(ctx context.Context, _ json.RawMessage) (any, error) {
	return a.identity.Inspect(ctx)
}

// RenewArgs asks for a new certificate, with Rekey for a new key.
type RenewArgs struct {
	Rekey bool `json:"rekey"`
}

// RenewResult says what waits for the broker to take it.
type RenewResult struct {
	Staged bool `json:"staged"`
	// Fingerprint is the SHA-256 of the new certificate, in hex.
	Fingerprint string `json:"fingerprint,omitempty"`
}

func (a *agent) renewCommand(ctx context.Context, raw json.RawMessage) (any, error) {
	var args RenewArgs
	if err := optional(raw, &args); err != nil {
		return nil, err
	}
	if err := a.identity.Renew(ctx, args.Rekey); err != nil {
		return nil, err
	}
	if staged := a.identity.Staged(); staged != nil {
		return RenewResult{Staged: true, Fingerprint: staged.Fingerprint()}, nil
	}
	return RenewResult{Fingerprint: a.identity.Current().Fingerprint()}, nil // taken already
}

// RootsArgs changes whom the agent believes to be the broker or the registrar (docs/trust.md).
type RootsArgs struct {
	For    string `json:"for"`    // broker | registrar
	Action string `json:"action"` // status | stage | confirm | discard
	PEM    string `json:"pem,omitempty"`
}

func (a *agent) rootsCommand(_ context.Context, raw json.RawMessage) (any, error) {
	var args RootsArgs
	if err := command.Arguments(raw, &args); err != nil {
		return nil, err
	}
	roots, known := map[string]*trust.Roots{"broker": a.trust.brokers, "registrar": a.trust.registrars}[args.For]
	if !known {
		return nil, command.Refuse("bad-args", `for: %q is neither broker nor registrar`, args.For)
	}
	if roots == nil {
		return nil, command.Refuse("bad-args", "this device asks no registrar: enroll.method is %q", a.config.Enroll.Method)
	}
	var err error
	switch args.Action {
	case "status":
	case "stage":
		err = roots.Stage([]byte(args.PEM))
	case "confirm":
		err = roots.Confirm()
	case "discard":
		err = roots.Discard()
	default:
		err = command.Refuse("bad-args", "action: %q is none of status, stage, confirm, discard", args.Action)
	}
	if err != nil {
		return nil, err
	}
	return roots.Status(), nil
}

// optional reads args that may be left out.
func optional(raw json.RawMessage, v any) error {
	if len(raw) == 0 {
		return nil
	}
	return command.Arguments(raw, v)
}
