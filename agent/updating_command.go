package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"ferrule/agent/command"
	"ferrule/agent/command/authorize"
	"ferrule/agent/doctor"
	"ferrule/firmware"
	"ferrule/internal/hint"
)

// UpdateArgs asks for an update, or is about the one under way (docs/updates.md).
type UpdateArgs struct {
	// Action is apply (or empty), check, commit, rollback or status.
	Action string `json:"action,omitempty"`
	// Version to apply; "": what is newest for this device.
	Version string `json:"version,omitempty"`
	// Now ignores the maintenance window.
	Now bool `json:"now,omitempty"`
	// Reason of a rollback, for the report.
	Reason string `json:"reason,omitempty"`
}

// maxReason bounds the reason of a rollback, in bytes.
const maxReason = 256

// UpdateStatus is what the status says of updates.
type UpdateStatus struct {
	// Repository and Boot are those of the configuration.
	Repository string `json:"repository"`
	Boot       string `json:"boot"`
	firmware.Status
	// Unusable is why updates are configured and cannot be made.
	Unusable string `json:"unusable,omitempty"`
	Hint     string `json:"hint,omitempty"`
}

// updateTarget is what a token must grant: update, or update:VERSION.
func updateTarget(op *authorize.Operation, raw json.RawMessage) error {
	var args UpdateArgs
	if err := optional(raw, &args); err != nil {
		return err
	}
	op.Value = args.Version
	return nil
}

func (a *agent) updateCommand(ctx context.Context, raw json.RawMessage) (any, error) {
	var args UpdateArgs
	if err := optional(raw, &args); err != nil {
		return nil, err
	}
	if len(args.Version) > maxReason || len(args.Reason) > maxReason {
		return nil, command.Refuse("bad-args", "version and reason have %d bytes at most", maxReason)
	}
	status := args.Action == "status" && a.config.Update.Enabled()
	if !status {
		if err := a.updates.do(ctx, args); err != nil {
			return nil, err
		}
	}
	return a.updates.status(), nil
}

// do has the engine do what is asked for.
func (u *updates) do(ctx context.Context, args UpdateArgs) error {
	if u.engine == nil {
		return u.off()
	}
	by := command.ID(ctx)
	if by == "" {
		by = AtTheSite
	}
	var err error
	switch args.Action {
	case "", "apply":
		err = u.engine.Propose(ctx, firmware.Request{Version: args.Version, Now: args.Now, By: by})
	case "check":
		err = u.engine.Check(ctx)
	case "commit":
		err = u.engine.Commit(ctx)
	case "rollback":
		reason := "told to by " + by
		if args.Reason != "" {
			reason += ": " + args.Reason
		}
		err = u.engine.Rollback(ctx, reason)
	default:
		return command.Refuse("bad-args", "action: %q is none of apply, check, commit, rollback, status", args.Action)
	}
	return refusedUpdate(err)
}

// off is why there is no engine.
func (u *updates) off() error {
	switch {
	case u.problem != nil:
		return hint.With(command.Refuse("update-unusable", "%w", u.problem), hint.Of(u.problem))
	case u.a.onTrial != nil:
		return command.Refuse("busy", "a configuration is on trial; send this when it is over")
	}
	return hint.With(command.Refuse("update-off", "%w", firmware.ErrOff), "set update.repository; see docs/updates.md")
}

// refusedUpdate gives an error of the engine the code that the reply carries.
func refusedUpdate(err error) error {
	for target, code := range map[error]string{
		firmware.ErrBusy: "busy", firmware.ErrNothing: "update-none", firmware.ErrRefused: "update-refused",
		firmware.ErrNoTrial: "update-no-trial", firmware.ErrOff: "update-off",
	} {
		if errors.Is(err, target) {
			return hint.With(command.Refuse(code, "%w", err), hint.Of(err))
		}
	}
	return err
}

// status is nil where no updates are configured.
func (u *updates) status() *UpdateStatus {
	c := u.a.config.Update
	if !c.Enabled() {
		return nil
	}
	s := &UpdateStatus{Repository: c.Repository, Boot: c.Boot}
	switch {
	case u.engine != nil:
		s.Status = u.engine.Status()
	case u.problem != nil:
		s.Unusable, s.Hint = strings.ToValidUTF8(u.problem.Error(), "?"), hint.Of(u.problem)
	case u.a.onTrial != nil:
		s.Unusable = "held while a configuration is on trial"
	}
	return s
}

// updateNews is the part of the status message about updates (docs/topics.md).
type updateNews struct {
	updateState
	// Report is the last outcome; the device goes on telling it until this message is acknowledged.
	Report *firmware.Report `json:"report,omitempty"`
}

// updateState is the part of it whose change is worth a message.
type updateState struct {
	State firmware.State `json:"state"`
	// Version and Slot are what runs.
	Version string `json:"version"`
	Slot    string `json:"slot,omitempty"`
	// Target is the version that is being installed, or was last, Manifest its id.
	Target   string `json:"target,omitempty"`
	Manifest string `json:"manifest,omitempty"`
	// Progress is how much of Target is in its slot, in steps of 10 per cent.
	Progress int    `json:"progress,omitempty"`
	Reason   string `json:"reason,omitempty"`
	// Refused is why a release that the repository has may not be installed here.
	Refused string `json:"refused,omitempty"`
	// Floor is the least security version that may be installed, FloorWeak whether it could be
	// lowered.
	Floor     uint64 `json:"floor,omitempty"`
	FloorWeak bool   `json:"floor_weak,omitempty"`
	// Problem is why updates cannot be made.
	Problem string `json:"problem,omitempty"`
}

// state is nil where no updates are configured.
func (u *updates) state() *updateState {
	s := u.status()
	if s == nil {
		return nil
	}
	n := &updateState{
		State: s.State, Version: s.Version, Slot: s.Slot, Reason: s.Reason, Refused: s.Refused,
		Floor: s.Floor.Value, FloorWeak: s.Floor.Weak != "", Problem: s.Unusable,
	}
	if n.Problem == "" {
		n.Problem = s.Problem
	}
	if t := s.Target; t != nil {
		n.Target, n.Manifest = t.Version, t.Manifest
		if t.SegmentsAll > 0 && s.State != firmware.Idle {
			n.Progress = 100 * t.Segments / t.SegmentsAll / 10 * 10
		}
	}
	return n
}

func (u *updates) newest() *updateNews {
	s := u.state()
	if s == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return &updateNews{updateState: *s, Report: u.news}
}

// checkUpdates looks at what the engine says of itself. That updates cannot be had is a fault only
// where nothing but the configuration can be to blame.
func checkUpdates(s *UpdateStatus) doctor.Result {
	if s == nil {
		return doctor.Result{State: doctor.NotNeeded}
	}
	if s.Unusable != "" {
		repair := s.Hint
		if repair == "" {
			repair = "see [update] in the configuration, and docs/updates.md"
		}
		return doctor.Result{}.Fail("updates", onDevice, s.Unusable, repair)
	}
	asked := "the repository was not asked since the start"
	if !s.LastCheck.IsZero() {
		asked = "the repository was asked last at " + s.LastCheck.UTC().Format(time.DateTime)
	}
	r := doctor.Result{Saw: []string{
		fmt.Sprintf("version %s runs in slot %q, the state is %s", s.Version, s.Slot, s.State), asked,
		fmt.Sprintf("nothing below security version %d is installed", s.Floor.Value),
	}}
	for _, w := range []struct {
		wrong        bool
		text, repair string
	}{
		{s.Problem != "", s.Problem, "until it is mended, updates may be held"},
		{s.Metadata.Alarm != "", s.Metadata.Alarm, "have the repository signed again: ferrule-release publish; or look who is in between"},
		{s.Reason != "", s.Reason, s.Advice},
		{s.Refused != "", s.Refused, "ferrule update check says what to do"},
		{s.Unreported > 0, fmt.Sprintf("%d outcomes of updates wait for the broker to acknowledge them", s.Unreported), "see the session's layers above"},
		{s.Floor.Weak != "", "the floor of updates is weak: " + s.Floor.Weak, `give the device a TPM, and set update.floor = "tpm"`},
	} {
		if w.wrong {
			r.Warn(w.text, w.repair)
		}
	}
	return r
}
