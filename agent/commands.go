package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync/atomic"
	"time"

	"ferrule/agent/journal"
	"ferrule/agent/session"
	"ferrule/internal/hint"
)

// commandTimeout bounds one command; a write waits for one transaction of its line at most.
const commandTimeout = 30 * time.Second

// commandID is what an id may look like; the reply's topic is made of it.
var commandID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// command is one thing that can be asked of the agent.
type command struct {
	// acts says that executing it twice, or late, does harm: such a command carries an
	// expiry and is durable in the journal before it is executed.
	acts bool
	run  func(ctx context.Context, args json.RawMessage) (any, error)
}

// commands executes what the cloud and the local API ask, each id of the cloud at most once.
type commands struct {
	table   map[string]command
	journal *journal.Journal
	clock   interface {
		Now() time.Time
		BelowFloor() bool
	}
	log      *slog.Logger
	executed atomic.Uint64
	refused  atomic.Uint64
}

// refusal is an error with the code that the reply carries.
type refusal struct {
	code string
	err  error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// Code returns the word that programs branch on.
func (r *refusal) Code() string { return r.code }

func refuse(code, format string, args ...any) error {
	return &refusal{code: code, err: fmt.Errorf(format, args...)}
}

// request is the payload of a command (docs/topics.md).
type request struct {
	ID      string          `json:"id"`
	Expires *time.Time      `json:"expires"`
	Args    json.RawMessage `json:"args"`
}

// reply is the payload of its answer.
type reply struct {
	ID     string `json:"id"`
	OK     bool   `json:"ok"`
	Result any    `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
	Code   string `json:"code,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

// handle answers one command of the cloud: its id for the reply's topic and the reply. A
// command whose id cannot be read is logged and gets no answer, since it would have no topic.
func (c *commands) handle(ctx context.Context, m session.Command) (id string, answer []byte) {
	var r request
	decoder := json.NewDecoder(bytes.NewReader(m.Payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil || !commandID.MatchString(r.ID) {
		c.refused.Add(1)
		c.log.LogAttrs(ctx, slog.LevelWarn, "command without a usable id refused",
			slog.String("name", m.Name), slog.Any("err", err))
		return "", nil
	}
	if m.Retained {
		// A retained command would act again at every connection.
		return r.ID, c.answer(r.ID, nil, refuse("retained", "a retained command is never executed"))
	}
	if seen, answer := c.seen(r.ID, c.journal.Lookup(r.ID)); seen {
		return r.ID, answer
	}
	return r.ID, c.execute(ctx, m.Name, r)
}

// seen answers a command that came before. The answer is nil while it is still being
// executed: that execution will answer.
func (c *commands) seen(id string, prior journal.Prior) (seen bool, answer []byte) {
	switch prior.State {
	case journal.New:
		return false, nil
	case journal.Running:
		return true, nil
	case journal.Answered:
		if prior.Reply != nil {
			return true, prior.Reply
		}
		return true, c.answer(id, nil, refuse("executed", "the command was executed; its reply is no longer known"))
	}
	return true, c.answer(id, nil, refuse("interrupted", "the agent stopped while it executed this command"))
}

// execute runs a command that was not seen before and journals it.
func (c *commands) execute(ctx context.Context, name string, r request) []byte {
	command, known := c.table[name]
	if !known {
		return c.answer(r.ID, nil, refuse("unknown-command", "there is no command %q", name))
	}
	if err := c.timely(command, r); err != nil {
		return c.answer(r.ID, nil, err)
	}
	prior, err := c.journal.Begin(r.ID, command.acts)
	if err != nil {
		return c.answer(r.ID, nil, refuse("journal", "journalling the command: %w", err))
	}
	if seen, answer := c.seen(r.ID, prior); seen {
		return answer
	}
	result, err := c.run(ctx, name, command, r.Args)
	answer := c.answer(r.ID, result, err)
	if err := c.journal.Finish(r.ID, answer); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "journalling a reply", slog.String("id", r.ID), slog.Any("err", err))
	}
	return answer
}

// timely refuses a command that acts and comes without, or after, its expiry: a write that
// waited in the broker for a day must not move anything.
func (c *commands) timely(command command, r request) error {
	if r.Expires == nil {
		if command.acts {
			return refuse("expires-missing", `this command needs "expires" (RFC 3339)`)
		}
		return nil
	}
	if c.clock.BelowFloor() {
		return refuse("clock", "the gateway's clock is wrong, so the expiry cannot be judged")
	}
	if now := c.clock.Now(); now.After(*r.Expires) {
		return refuse("expired", "the command expired at %s; it is %s here",
			r.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// local executes a command of the local API; the socket's mode has authorised it.
func (c *commands) local(ctx context.Context, name string, args json.RawMessage) (any, error) {
	command, known := c.table[name]
	if !known {
		return nil, refuse("unknown-command", "there is no command %q", name)
	}
	return c.run(ctx, name, command, args)
}

func (c *commands) run(ctx context.Context, name string, command command, args json.RawMessage) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	result, err := command.run(ctx, args)
	if err != nil {
		c.refused.Add(1)
		c.log.LogAttrs(ctx, slog.LevelWarn, "command refused", slog.String("name", name), slog.Any("err", err))
		return nil, err
	}
	c.executed.Add(1)
	c.log.LogAttrs(ctx, slog.LevelInfo, "command executed", slog.String("name", name))
	return result, nil
}

func (c *commands) answer(id string, result any, err error) []byte {
	r := reply{ID: id, OK: err == nil, Result: result}
	if err != nil {
		r.Error, r.Code, r.Hint = err.Error(), "failed", hint.Of(err)
		if coded, ok := errors.AsType[*refusal](err); ok {
			r.Code = coded.code
		}
	}
	text, marshalErr := json.Marshal(r)
	if marshalErr != nil {
		text, _ = json.Marshal(reply{ID: id, Error: marshalErr.Error(), Code: "failed"})
	}
	return text
}

// arguments reads a command's args strictly into v.
func arguments(args json.RawMessage, v any) error {
	decoder := json.NewDecoder(bytes.NewReader(args))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return refuse("bad-args", "reading the arguments: %w", err)
	}
	return nil
}
