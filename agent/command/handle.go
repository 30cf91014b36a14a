package command

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"regexp"
	"time"

	"ferrule/agent/command/authorize"
	"ferrule/agent/command/journal"
	"ferrule/internal/hint"
)

// validID is what an id may look like; the reply's topic is made of it.
var validID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Message is a command as it came from the cloud.
type Message struct {
	Name    string
	Payload []byte
	// Retained says that the broker had kept it: it is old, and will come again.
	Retained bool
}

// request is the payload of a command (docs/topics.md).
type request struct {
	ID            string          `json:"id"`
	Expires       *time.Time      `json:"expires"`
	Authorization string          `json:"authorization"`
	Args          json.RawMessage `json:"args"`
}

// reply is the payload of its answer.
type reply struct {
	ID     string          `json:"id"`
	OK     bool            `json:"ok"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
	Code   string          `json:"code,omitempty"`
	Hint   string          `json:"hint,omitempty"`
	// Receipt is the device's signed word of what it did (agent/command/authorize).
	Receipt string `json:"receipt,omitempty"`
}

// Handle answers one command of the cloud: its id for the reply's topic and the reply. A
// command whose id cannot be read is logged and gets no answer, since it would have no topic.
func (x *Executor) Handle(ctx context.Context, m Message) (id string, answer []byte) {
	var r request
	decoder := json.NewDecoder(bytes.NewReader(m.Payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil || !validID.MatchString(r.ID) {
		x.refused.Add(1)
		x.Log.LogAttrs(ctx, slog.LevelWarn, "command without a usable id refused",
			slog.String("name", m.Name), slog.Any("err", err))
		return "", nil
	}
	if m.Retained {
		// A retained command would act again at every connection.
		return r.ID, x.refuse(r.ID, Refuse("retained", "a retained command is never executed"))
	}
	if seen, answer := x.seen(r.ID, x.Journal.Lookup(r.ID)); seen {
		return r.ID, answer
	}
	return r.ID, x.execute(ctx, m.Name, r)
}

// seen answers a command that came before. The answer is nil while it is still being
// executed: that execution will answer.
func (x *Executor) seen(id string, prior journal.Prior) (seen bool, answer []byte) {
	switch prior.State {
	case journal.New:
		return false, nil
	case journal.Running:
		return true, nil
	case journal.Answered:
		if prior.Reply != nil {
			return true, prior.Reply
		}
		return true, x.refuse(id, Refuse("executed", "the command was executed; its reply is no longer known"))
	}
	return true, x.refuse(id, Refuse("interrupted", "the agent stopped while it executed this command"))
}

// execute judges a command that was not seen before, journals it and runs it.
func (x *Executor) execute(ctx context.Context, name string, r request) []byte {
	c, known := x.Table[name]
	if !known {
		return x.refuse(r.ID, Refuse("unknown-command", "there is no command %q", name))
	}
	if err := x.timely(c, r); err != nil {
		return x.refuse(r.ID, err)
	}
	op := authorize.Operation{ID: r.ID, Command: name, Args: r.Args}
	decision, err := x.judge(ctx, c, r, &op)
	if err != nil {
		x.refused.Add(1)
		x.Log.LogAttrs(ctx, slog.LevelWarn, "command refused", slog.String("name", name), slog.Any("err", err))
		x.note(ctx, op, decision, err)
		return x.refuse(r.ID, err)
	}
	prior, err := x.Journal.Begin(r.ID, c.Acts)
	if err != nil {
		return x.refuse(r.ID, Refuse("journal", "journalling the command: %w", err))
	}
	if seen, answer := x.seen(r.ID, prior); seen {
		return answer
	}
	answer := encode(x.perform(ctx, c, op, decision))
	if err := x.Journal.Finish(r.ID, answer); err != nil {
		x.Log.LogAttrs(ctx, slog.LevelWarn, "journalling a reply", slog.String("id", r.ID), slog.Any("err", err))
	}
	return answer
}

// timely refuses a command that acts and comes without, or after, its expiry: a write that
// waited in the broker for a day must not move anything.
func (x *Executor) timely(c Command, r request) error {
	if r.Expires == nil {
		if c.Acts {
			return Refuse("expires-missing", `this command needs "expires" (RFC 3339)`)
		}
		return nil
	}
	if x.Clock.BelowFloor() {
		return Refuse("clock", "the gateway's clock is wrong, so the expiry cannot be judged")
	}
	if now := x.Clock.Now(); now.After(*r.Expires) {
		return Refuse("expired", "the command expired at %s; it is %s here",
			r.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// judge asks the authority whether a command may act. Nothing is written.
func (x *Executor) judge(ctx context.Context, c Command, r request, op *authorize.Operation) (authorize.Decision, error) {
	if !c.Acts || x.Authority == nil {
		return authorize.Decision{}, nil
	}
	if c.Target != nil {
		if err := c.Target(op, r.Args); err != nil {
			return authorize.Decision{}, err
		}
	}
	return x.Authority.Check(ctx, r.Authorization, *op)
}

// perform uses up the token, runs the command and signs what was done. Between Begin and Finish
// of the journal.
func (x *Executor) perform(ctx context.Context, c Command, op authorize.Operation, d authorize.Decision) reply {
	ctx = context.WithValue(ctx, idKey{}, op.ID)
	if !c.Acts {
		result, err := x.run(ctx, op.Command, c, op.Args)
		return makeReply(op.ID, result, err)
	}
	if x.Authority != nil {
		if err := x.Authority.Spend(ctx, &d, op); err != nil {
			x.refused.Add(1)
			x.note(ctx, op, d, err)
			return makeReply(op.ID, nil, err)
		}
	}
	result, err := x.run(ctx, op.Command, c, op.Args)
	x.note(ctx, op, d, err)
	answer := makeReply(op.ID, result, err)
	if x.Authority != nil {
		receipt, err := x.Authority.Receipt(ctx, d, op, authorize.Outcome{OK: answer.OK, Code: answer.Code, Result: answer.Result})
		if err != nil { // what was done is done, and said all the same
			x.Log.LogAttrs(ctx, slog.LevelWarn, "receipt not signed", slog.String("id", op.ID), slog.Any("err", err))
		}
		answer.Receipt = receipt
	}
	return answer
}

// refuse is the reply to a command that is not executed.
func (x *Executor) refuse(id string, err error) []byte { return encode(makeReply(id, nil, err)) }

func makeReply(id string, result any, err error) reply {
	r := reply{ID: id, OK: err == nil}
	if err == nil && result != nil {
		r.Result, err = json.Marshal(result)
		r.OK = err == nil
	}
	if err != nil {
		r.Error, r.Code, r.Hint = err.Error(), codeOf(err), hint.Of(err)
	}
	return r
}

func encode(r reply) []byte {
	text, err := json.Marshal(r)
	if err != nil { // a result of a command that is no JSON after all
		text, _ = json.Marshal(reply{ID: r.ID, Error: err.Error(), Code: "failed"})
	}
	return text
}
