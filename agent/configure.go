package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"time"

	"ferrule/agent/command"
	"ferrule/agent/command/authorize"
	"ferrule/agent/config"
	"ferrule/agent/config/trial"
	"ferrule/hw"
	"ferrule/internal/hint"
	"ferrule/internal/strict"
)

// How long a configuration may be on trial.
const (
	usualTrial    = 2 * time.Minute
	shortestTrial = 30 * time.Second
	longestTrial  = time.Hour
)

// AtTheSite is the id of a trial that the local API began.
const AtTheSite = "site"

// ConfigArgs brings a new configuration, or is about the one on trial (docs/remote-configuration.md).
type ConfigArgs struct {
	// TOML is the whole new file.
	TOML string `json:"toml,omitempty"`
	// ConfirmWithin is how long it may take until the session stands and answers; "": 2m.
	ConfirmWithin string `json:"confirm_within,omitempty"`
	// Confirm is auto, or command: the cloud has to confirm too.
	Confirm trial.Confirm `json:"confirm,omitempty"`
	// DryRun only checks.
	DryRun bool `json:"dry_run,omitempty"`
	// Action is try (or empty), status, confirm or cancel; ID, of confirm and cancel, is that of
	// the command that began the trial.
	Action string `json:"action,omitempty"`
	ID     string `json:"id,omitempty"`
}

// ConfigResult answers it.
type ConfigResult struct {
	// Trying says that the trial began; Unchanged, that the file is this one already; Valid, after
	// dry_run, that a trial would begin.
	Trying    bool `json:"trying,omitempty"`
	Unchanged bool `json:"unchanged,omitempty"`
	Valid     bool `json:"valid,omitempty"`
	// Confirmed says that it is kept as soon as the session answers.
	Confirmed bool `json:"confirmed,omitempty"`
	Cancelled bool `json:"cancelled,omitempty"`

	ID       string    `json:"id,omitempty"`
	SHA256   string    `json:"sha256,omitempty"`
	Deadline time.Time `json:"deadline,omitzero"`
	// Changes names the sections that differ.
	Changes []string `json:"changes,omitempty"`
	// Status answers the action status.
	Status *ConfigStatus `json:"status,omitempty"`
}

func (a *agent) configCommand(ctx context.Context, raw json.RawMessage) (any, error) {
	var args ConfigArgs
	if err := command.Arguments(raw, &args); err != nil {
		return nil, err
	}
	if a.desk.keeper == nil {
		return nil, command.Refuse("failed", "this agent does not know its configuration file")
	}
	switch args.Action {
	case "status":
		status := a.configStatus()
		return ConfigResult{Status: &status}, nil
	case "", "try":
		return a.tryConfig(ctx, args)
	case "confirm":
		return a.confirmConfig(ctx, args.ID)
	case "cancel":
		return a.cancelConfig(args.ID)
	}
	return nil, command.Refuse("bad-args", "action: %q is none of try, status, confirm, cancel", args.Action)
}

// tryConfig checks a configuration and makes its trial durable. The run loop does the rest.
func (a *agent) tryConfig(ctx context.Context, args ConfigArgs) (any, error) {
	within, err := a.trialTime(args)
	if err != nil {
		return nil, err
	}
	if err := a.guarded(ctx); err != nil {
		return nil, err
	}
	if a.onTrial != nil {
		return nil, command.Refuse("busy", "%w", trial.ErrBusy)
	}
	text := []byte(args.TOML)
	next, err := checkConfig(filepath.Base(a.desk.file), text)
	if err != nil {
		return nil, err
	}
	if err := a.fixed(next); err != nil {
		return nil, err
	}
	result := ConfigResult{SHA256: trial.Digest(text), Changes: changes(a.config, next)}
	if args.DryRun {
		result.Valid = true
		return result, a.triable()
	}
	return a.beginTrial(ctx, result, next, text, within, args.Confirm)
}

func (a *agent) beginTrial(ctx context.Context, result ConfigResult, next *config.Config, text []byte, within time.Duration, by trial.Confirm) (any, error) {
	if err := a.triable(); err != nil {
		return nil, err
	}
	id := command.ID(ctx)
	if id == "" {
		id = AtTheSite
	}
	began := time.Now()
	ends := began.Add(within)
	t := trial.Trial{ID: id, Began: began.UTC(), Deadline: ends.UTC(), Confirm: by}
	switch err := a.desk.keeper.Begin(t, text, a.config.Session.Topics.Readings, next.Session.Topics.Readings); {
	case errors.Is(err, trial.ErrUnchanged):
		return ConfigResult{Unchanged: true, SHA256: result.SHA256}, nil
	case errors.Is(err, trial.ErrBusy):
		return nil, command.Refuse("busy", "%w", err)
	case errors.Is(err, trial.ErrTooLarge):
		return nil, command.Refuse("too-large", "%w", err)
	case err != nil:
		return nil, command.Refuse("not-stored", "%w", err)
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "configuration on trial", slog.String("id", id), slog.Time("deadline", t.Deadline), slog.Any("changes", result.Changes))
	a.tries <- attempt{config: next, ends: ends, confirm: by}
	result.Trying, result.ID, result.Deadline = true, id, t.Deadline
	return result, nil
}

// trialTime checks what is asked of the trial itself.
func (a *agent) trialTime(args ConfigArgs) (time.Duration, error) {
	if args.TOML == "" {
		return 0, command.Refuse("bad-args", "toml: the new configuration is missing")
	}
	if len(args.TOML) > trial.MaxText {
		return 0, command.Refuse("too-large", "%w", trial.ErrTooLarge)
	}
	switch args.Confirm {
	case "", trial.ConfirmAuto, trial.ConfirmCommand:
	default:
		return 0, command.Refuse("bad-args", "confirm: %q is neither auto nor command", args.Confirm)
	}
	if args.ConfirmWithin == "" {
		return usualTrial, nil
	}
	within, err := time.ParseDuration(args.ConfirmWithin)
	if err != nil {
		return 0, command.Refuse("bad-args", "confirm_within: %q is no duration", args.ConfirmWithin)
	}
	shortest := shortestTrial
	if a.options.shortestTrial > 0 {
		shortest = a.options.shortestTrial
	}
	// The old session may take its grace before the new one can begin.
	if shortest = max(shortest, 2*a.config.ShutdownGrace.Std()); within < shortest || within > longestTrial {
		return 0, command.Refuse("bad-args", "confirm_within: %v; it is %v to %v here", within, shortest, longestTrial)
	}
	return within, nil
}

// guarded refuses a configuration without a token where another command needs one: points and
// requests of the new file could do what that command may not.
func (a *agent) guarded(ctx context.Context) error {
	if command.ID(ctx) == "" || a.authority.Mode("config") == authorize.Enforce {
		return nil
	}
	for _, name := range authorize.Commands() {
		if a.authority.Mode(name) == authorize.Enforce {
			return hint.With(command.Refuse("unguarded", "%s needs a token on this device and config does not, so config is not executed", name),
				`set authorize.commands = { config = "enforce" } on the device`)
		}
	}
	return nil
}

// triable says why no trial can begin now.
func (a *agent) triable() error {
	if a.onTrial != nil {
		return command.Refuse("busy", "%w", trial.ErrBusy)
	}
	if a.updates.critical() {
		return command.Refuse("busy", "an update is on trial, or about to be")
	}
	if a.identity.Staged() != nil {
		return hint.With(command.Refuse("certificate-staged", "a new certificate waits for the broker to take it"),
			"send the configuration again when the status says that it was taken")
	}
	now, err := a.options.Load()
	if err != nil || !reflect.DeepEqual(now, a.config) {
		return hint.With(command.Refuse("file-changed", "the configuration file on the device is not the one that runs"),
			"somebody changed it at the site; have the agent reload it (SIGHUP), or restart it")
	}
	return mountPoint(a.desk.file)
}

// section is a part of the configuration that a trial cannot prove, or that guards the command.
type section struct {
	key   string
	why   string
	value func(c *config.Config) any
}

// fixedSections cannot be changed from afar.
func fixedSections() []section {
	return []section{
		{"state_dir", "the record of the trial, the key and the outbox lie there", func(c *config.Config) any { return c.StateDir }},
		{"identity", "the way back needs the same key and certificate", func(c *config.Config) any { return c.Identity }},
		{"enroll", "a trial cannot prove it, and it may name a program to be run", func(c *config.Config) any { return c.Enroll }},
		{"authorize", "it guards this very command", func(c *config.Config) any { return c.Authorize }},
		{"audit", "it holds what this command leaves behind", func(c *config.Config) any { return c.Audit }},
		{"update", "what it installs is started, and the trial of a configuration proves none of it", func(c *config.Config) any { return c.Update }},
		{"local", "whoever may use it needs no token", func(c *config.Config) any { return c.Local }},
	}
}

// fixed refuses a configuration that changes what may not be changed from afar.
func (a *agent) fixed(next *config.Config) error {
	var problems []string
	for _, s := range fixedSections() {
		if !reflect.DeepEqual(s.value(a.config), s.value(next)) {
			problems = append(problems, fmt.Sprintf("%s cannot be changed from afar: %s", s.key, s.why))
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return hint.With(command.Refuse("not-from-afar", "%s", strings.Join(problems, "; ")),
		"send these sections as they are on the device, defaults included, and change them there")
}

// changes names the sections that differ.
func changes(old, next *config.Config) (names []string) {
	before, after := reflect.ValueOf(*old), reflect.ValueOf(*next)
	for field := range before.Type().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("toml"), ",")
		if name != "" && !reflect.DeepEqual(before.FieldByIndex(field.Index).Interface(), after.FieldByIndex(field.Index).Interface()) {
			names = append(names, name)
		}
	}
	return names
}

// checkConfig is ferrule check.
func checkConfig(name string, text []byte) (*config.Config, error) {
	c, err := config.Parse(name, text)
	if err != nil {
		return nil, command.Refuse("invalid", "%s", mistakes(name, text, err))
	}
	var problems []error
	for _, line := range c.Lines {
		l, err := hw.New(line, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			problems = append(problems, err)
		} else if plan := l.Plan(); plan.Overload() {
			problems = append(problems, errors.New(plan.Need()+"; "+hw.LessLoad))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, command.Refuse("invalid", "%s", mistakes(name, text, err))
	}
	return c, nil
}

const (
	// maxMistakes and maxMistake bound what a reply lists, in mistakes and bytes of one.
	maxMistakes = 32
	maxMistake  = 400
)

var (
	// keyed is a mistake that begins with the key it is about.
	keyed = regexp.MustCompile(`^[a-z_]+(\.[a-z_0-9]+)+`)
	// password is what a URL has before its host.
	password = regexp.MustCompile(`://[^/\s"]*@`)
)

// mistakes lists all mistakes of a file, one a line, with their places as far as they are known.
func mistakes(name string, text []byte, err error) string {
	var lines []string
	for _, one := range apart(err) {
		if len(lines) == maxMistakes {
			lines = append(lines, "and more")
			break
		}
		said := one.Error()
		if _, placed := errors.AsType[*strict.Error](one); !placed {
			if key := keyed.FindString(said); key != "" {
				line, column := strict.Find(text).Of(key)
				said = fmt.Sprintf("%s:%d:%d: %s", name, line, column, said)
			}
		}
		if h := hint.Of(one); h != "" {
			said += " (" + h + ")"
		}
		said = password.ReplaceAllString(said, "://…@")
		lines = append(lines, strings.ToValidUTF8(said[:min(len(said), maxMistake)], ""))
	}
	return strings.Join(lines, "\n")
}

// apart takes errors that were joined apart.
func apart(err error) (all []error) {
	for inner := err; inner != nil; {
		switch e := inner.(type) {
		case interface{ Unwrap() []error }:
			for _, one := range e.Unwrap() {
				all = append(all, apart(one)...)
			}
			return all
		case interface{ Unwrap() error }:
			inner = e.Unwrap()
		default:
			inner = nil
		}
	}
	return []error{err}
}

// confirmConfig is the cloud's word that it wants to keep what is on trial.
func (a *agent) confirmConfig(ctx context.Context, id string) (any, error) {
	if a.onTrial == nil {
		return nil, command.Refuse("not-on-trial", "no configuration is on trial here")
	}
	if command.ID(ctx) == "" && id != AtTheSite {
		return nil, command.Refuse("not-on-trial", "a configuration from afar is confirmed from afar")
	}
	if err := a.desk.keeper.Confirm(id); err != nil {
		return nil, command.Refuse("not-on-trial", "%w", err)
	}
	return ConfigResult{Confirmed: true, ID: id}, nil
}

// cancelConfig ends a trial.
func (a *agent) cancelConfig(id string) (any, error) {
	if a.onTrial == nil {
		return nil, command.Refuse("not-on-trial", "no configuration is on trial here")
	}
	if err := a.desk.keeper.About(id); err != nil {
		return nil, command.Refuse("not-on-trial", "%w", err)
	}
	a.onTrial.cancel()
	return ConfigResult{Cancelled: true, ID: id}, nil
}

// settledOnly refuses a command while a configuration is on trial: what it changes would outlive the
// trial, and be judged by what the trial brought.
func (a *agent) settledOnly(run func(context.Context, json.RawMessage) (any, error)) func(context.Context, json.RawMessage) (any, error) {
	return func(ctx context.Context, raw json.RawMessage) (any, error) {
		if a.onTrial != nil {
			return nil, command.Refuse("busy", "a configuration is on trial; send this when it is over")
		}
		return run(ctx, raw)
	}
}
