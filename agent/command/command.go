// Package command executes what the cloud and the local API ask: what acts, at most once, in
// time, and only where somebody entitled to it says so. The trap is the order of the durable
// steps: the id is noted before the token is used up, the token is used up before anything
// moves, and a redelivered command is answered from what was noted, whatever became of its token.
package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"ferrule/agent/command/authorize"
	"ferrule/agent/command/journal"
)

// timeout bounds one command; a write waits for one transaction of its line at most.
const timeout = 30 * time.Second

// Command is one thing that can be asked of the agent.
type Command struct {
	// Acts says that executing it twice, or late, does harm: such a command carries an
	// expiry, is durable in the journal before it is executed, and may need a token.
	Acts bool
	// Target adds to an operation what args are about; nil: nothing more than the command's
	// name can be granted.
	Target func(op *authorize.Operation, args json.RawMessage) error
	Run    func(ctx context.Context, args json.RawMessage) (any, error)
}

// Authority judges the tokens of commands that act (agent/command/authorize).
type Authority interface {
	Check(ctx context.Context, token string, op authorize.Operation) (authorize.Decision, error)
	Spend(ctx context.Context, d *authorize.Decision, op authorize.Operation) error
	Receipt(ctx context.Context, d authorize.Decision, op authorize.Operation, out authorize.Outcome) (string, error)
}

// Clock judges expiries (agent/clock).
type Clock interface {
	Now() time.Time
	BelowFloor() bool
}

// Options is what an Executor needs of others.
type Options struct {
	Table     map[string]Command
	Journal   *journal.Journal
	Authority Authority
	Clock     Clock
	// Event is told of what was executed and refused, for the audit log. essential says that
	// only somebody entitled can have caused it.
	Event func(ctx context.Context, name string, essential bool, attrs ...slog.Attr)
	Log   *slog.Logger
}

// The names of events.
const (
	EventExecuted = "command.executed"
	EventRefused  = "command.refused"
)

// Executor executes commands, each id of the cloud at most once.
type Executor struct {
	Options
	executed atomic.Uint64
	refused  atomic.Uint64
}

// New returns an executor of the commands in o.Table.
func New(o Options) *Executor { return &Executor{Options: o} }

// Status counts commands since the start.
type Status struct {
	Executed uint64 `json:"executed"`
	Refused  uint64 `json:"refused"`
}

// Status returns the counts.
func (x *Executor) Status() Status {
	return Status{Executed: x.executed.Load(), Refused: x.refused.Load()}
}

// Refusal is an error with the code that the reply carries.
type Refusal struct {
	code string
	err  error
}

func (r *Refusal) Error() string { return r.err.Error() }
func (r *Refusal) Unwrap() error { return r.err }

// Code returns the word that programs branch on.
func (r *Refusal) Code() string { return r.code }

// Refuse makes a *Refusal; the text is as of fmt.Errorf.
func Refuse(code, format string, args ...any) error {
	return &Refusal{code: code, err: fmt.Errorf(format, args...)}
}

// Arguments reads a command's args strictly into v. A number of any kind is a json.Number, so
// that what is judged and what is written is the number that was sent.
func Arguments(args json.RawMessage, v any) error {
	decoder := json.NewDecoder(bytes.NewReader(args))
	decoder.DisallowUnknownFields()
	decoder.UseNumber()
	if err := decoder.Decode(v); err != nil {
		return Refuse("bad-args", "reading the arguments: %w", err)
	}
	return nil
}

// Local executes a command of the local API, which has authorised it: by the socket's mode, or by
// the role of a certificate. by is who asked, for the audit log.
func (x *Executor) Local(ctx context.Context, by, name string, args json.RawMessage) (any, error) {
	c, known := x.Table[name]
	if !known {
		return nil, Refuse("unknown-command", "there is no command %q", name)
	}
	op := authorize.Operation{Command: name}
	if c.Target != nil {
		if err := c.Target(&op, args); err != nil {
			return nil, err
		}
	}
	result, err := x.run(ctx, name, c, args)
	if c.Acts {
		x.note(ctx, op, authorize.Decision{}, err, slog.String("by", by))
	}
	return result, err
}

type idKey struct{}

// ID returns the id of the cloud's command that ctx belongs to; empty for one of the local API.
func ID(ctx context.Context) string {
	id, _ := ctx.Value(idKey{}).(string)
	return id
}

func (x *Executor) run(ctx context.Context, name string, c Command, args json.RawMessage) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	result, err := c.Run(ctx, args)
	if err != nil {
		x.refused.Add(1)
		x.Log.LogAttrs(ctx, slog.LevelWarn, "command refused", slog.String("name", name), slog.Any("err", err))
		return nil, err
	}
	x.executed.Add(1)
	x.Log.LogAttrs(ctx, slog.LevelInfo, "command executed", slog.String("name", name))
	return result, nil
}

// note tells the audit log what became of a command that acts.
func (x *Executor) note(ctx context.Context, op authorize.Operation, d authorize.Decision, err error, more ...slog.Attr) {
	if x.Event == nil {
		return
	}
	attrs := append(more, slog.String("operation", op.String()))
	if op.ID != "" {
		attrs = append(attrs, slog.String("id", op.ID))
	}
	if d.Token != "" {
		attrs = append(attrs, slog.String("issuer", d.Issuer), slog.String("token", d.Token), slog.String("grant", d.Grant))
	}
	if d.Refused != nil {
		attrs = append(attrs, slog.String("enforce_would_say", d.Refused.Code))
	}
	if err == nil {
		x.Event(ctx, EventExecuted, d.Token != "", attrs...)
		return
	}
	x.Event(ctx, EventRefused, d.Token != "", append(attrs, slog.String("code", codeOf(err)), slog.String("err", err.Error()))...)
}

// codeOf is the code of a reply that says err.
func codeOf(err error) string {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.code
	}
	if r, ok := errors.AsType[*authorize.Refusal](err); ok {
		return r.Code
	}
	return "failed"
}
