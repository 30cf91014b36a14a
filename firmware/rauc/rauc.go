// Package rauc has RAUC install the update where the image comes with it, over D-Bus. RAUC then
// owns the slots and says when one is good; the trap is two owners, so rauc-mark-good.service must
// not run beside the agent.
package rauc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"ferrule/internal/hint"
)

// What RAUC is on the bus. RAUC, src/de.pengutronix.rauc.Installer.xml.
const (
	raucName  = "de.pengutronix.rauc"
	raucPath  = "/"
	installer = "de.pengutronix.rauc.Installer"
)

// lookEvery is how often RAUC is asked whether it is still at work when it says nothing.
const lookEvery = time.Minute

// Errors to branch on.
var (
	// ErrAbsent: nobody on the bus is RAUC.
	ErrAbsent = errors.New("RAUC is not on the bus")
	// ErrRefused: RAUC did not install the bundle, and says why.
	ErrRefused = errors.New("RAUC did not install the bundle")
	// ErrLost: RAUC or the bus went away in between; what became of the installation is not known.
	ErrLost = errors.New("RAUC went away")
)

// States of Mark.
const (
	Good   = "good"   // boot it again
	Bad    = "bad"    // do not boot it
	Active = "active" // boot it next
)

// Slots of Mark, beside those by their names.
const (
	Booted = "booted"
	Other  = "other"
)

// Options is what a Client needs.
type Options struct {
	// Address of the bus, as D-Bus writes it (unix:path=/…); empty: the system bus.
	Address string
	Log     *slog.Logger

	lookEvery time.Duration // of tests; 0: lookEvery
}

// Client asks RAUC. It keeps no connection between calls, so RAUC and the bus may start anew.
type Client struct{ o Options }

// New returns a client. Nothing is opened before the first call.
func New(o Options) *Client {
	if o.lookEvery == 0 {
		o.lookEvery = lookEvery
	}
	return &Client{o: o}
}

// Slot is one of RAUC's slots.
type Slot struct {
	Name       string // rootfs.0
	Class      string // rootfs
	Bootname   string // how the boot loader calls it; empty: it boots none
	State      string // booted, active, inactive
	BootStatus string // good, bad; empty where it boots none
	Device     string
	SHA256     string // hex, of the image installed last; empty: not known
	Version    string // of the bundle installed last; empty: not known
}

// Progress is how far an installation is.
type Progress struct {
	Percent int // 0 to 100
	Message string
}

// Install has RAUC install the bundle at source, a file or a URL, and waits until that ended. What
// is being installed already is waited for first: nobody can say whether it is the same. progress
// may be nil. Errors: ErrAbsent, ErrRefused with RAUC's reason, ErrLost, or that of ctx, whose end does
// not stop RAUC. After any of them Install may be called again.
func (c *Client) Install(ctx context.Context, source string, progress func(Progress)) error {
	b, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	for _, iface := range []string{installer, properties} {
		if err := b.match(ctx, "type='signal',sender='"+raucName+"',path='"+raucPath+"',interface='"+iface+"'"); err != nil {
			return err
		}
	}
	w := &watch{client: c, bus: b, progress: progress}
	if err := w.idle(ctx); err != nil {
		return err
	}
	var early []*message // RAUC may have ended before its answer is here
	answer, err := b.call(ctx, call("InstallBundle", source, []option{}), func(m *message) { early = append(early, m) })
	if err != nil {
		return told(err)
	}
	w.rauc = answer.sender
	for _, m := range early {
		w.take(m)
	}
	return w.completed(ctx)
}

// Mark sets the state of a slot, and returns the slot's name and what RAUC says of it.
func (c *Client) Mark(ctx context.Context, state, slot string) (name, message string, err error) {
	answer, err := c.ask(ctx, call("Mark", state, slot))
	if err != nil {
		return "", "", fmt.Errorf("marking the slot %s %s: %w", slot, state, err)
	}
	if err := answer.texts(&name, &message); err != nil {
		return "", "", err
	}
	return name, message, nil
}

// Primary is the name of the slot that boots next.
func (c *Client) Primary(ctx context.Context) (string, error) {
	answer, err := c.ask(ctx, call("GetPrimary"))
	if err != nil {
		return "", fmt.Errorf("asking which slot boots next: %w", err)
	}
	var name string
	return name, answer.texts(&name)
}

// BootSlot is the slot that this system came from: the name that the boot loader has for it.
func (c *Client) BootSlot(ctx context.Context) (string, error) {
	b, err := c.dial(ctx)
	if err != nil {
		return "", err
	}
	defer b.close()
	return b.property(ctx, "BootSlot", nil)
}

// Slots are all slots, as RAUC lists them.
func (c *Client) Slots(ctx context.Context) ([]Slot, error) {
	answer, err := c.ask(ctx, call("GetSlotStatus"))
	if err != nil {
		return nil, fmt.Errorf("asking for the slots: %w", err)
	}
	if len(answer.body) != 1 {
		return nil, fmt.Errorf("the answer to GetSlotStatus: %w", errMessage)
	}
	list, _ := answer.body[0].([]any)
	var slots []Slot
	for _, one := range list {
		pair, _ := one.([]any)
		if len(pair) != 2 {
			return nil, fmt.Errorf("the answer to GetSlotStatus: %w", errMessage)
		}
		status, _ := pair[1].(map[string]any)
		text := func(key string) string { s, _ := status[key].(string); return s }
		name, _ := pair[0].(string)
		slots = append(slots, Slot{
			Name: name, Class: text("class"), Bootname: text("bootname"), State: text("state"), BootStatus: text("boot-status"),
			Device: text("device"), SHA256: text("sha256"), Version: text("bundle.version"),
		})
	}
	return slots, nil
}

func (c *Client) dial(ctx context.Context) (*bus, error) { return dial(ctx, c.o.Address) }

// ask makes one call on a connection of its own.
func (c *Client) ask(ctx context.Context, m *message) (*message, error) {
	b, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer b.close()
	answer, err := b.call(ctx, m, nil)
	return answer, told(err)
}

func call(member string, args ...any) *message {
	return &message{destination: raucName, path: raucPath, iface: installer, member: member, body: args}
}

// told sorts what the bus answered.
func told(err error) error {
	var no *remote
	if !errors.As(err, &no) {
		return err
	}
	switch no.name {
	case busName + ".Error.ServiceUnknown", busName + ".Error.NameHasNoOwner":
		return hint.With(fmt.Errorf("%w: %w", ErrAbsent, err), "is rauc.service installed and running? RAUC has to be part of the image where update.boot is rauc")
	case busName + ".Error.NoReply":
		return fmt.Errorf("%w: %w", ErrLost, err)
	case busName + ".Error.AccessDenied":
		return hint.With(err, "let the user of the agent call de.pengutronix.rauc: docs/packages.md has the policy for the bus")
	}
	return err
}

// texts takes the answer apart, which is so many strings.
func (m *message) texts(into ...*string) error {
	if len(m.body) != len(into) {
		return fmt.Errorf("%w: %d values instead of %d", errMessage, len(m.body), len(into))
	}
	for i, v := range m.body {
		text, ok := v.(string)
		if !ok {
			return fmt.Errorf("%w: value %d is no text", errMessage, i)
		}
		*into[i] = text
	}
	return nil
}

// property asks for a property that is a text.
func (b *bus) property(ctx context.Context, name string, other func(*message)) (string, error) {
	m := &message{destination: raucName, path: raucPath, iface: properties, member: "Get", body: []any{installer, name}}
	answer, err := b.call(ctx, m, other)
	if err != nil {
		return "", fmt.Errorf("asking for %s: %w", name, told(err))
	}
	var text string
	return text, answer.texts(&text)
}

// watch follows one installation.
type watch struct {
	client   *Client
	bus      *bus
	progress func(Progress)
	rauc     string // the name of the process that installs; empty: any
	done     bool   // RAUC has said that an installation ended, or that it is idle, since it was asked last
	ended    bool   // it said so before
	result   int32
}

// idle waits until nothing is being installed.
func (w *watch) idle(ctx context.Context) error {
	for {
		operation, err := w.bus.property(ctx, "Operation", nil)
		if err != nil || operation == "idle" {
			return err
		}
		w.client.o.Log.LogAttrs(ctx, slog.LevelInfo, "waiting for RAUC", slog.String("operation", operation))
		w.bus.limit(ctx, w.client.o.lookEvery)
		for !w.done {
			m, err := w.bus.read(ctx)
			if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
				break
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrLost, w.bus.why(ctx, err))
			}
			w.take(m)
			w.bus.limit(ctx, w.client.o.lookEvery)
		}
		w.done = false
	}
}

// completed waits until the installation has ended. What RAUC says of an end counts once it is idle: it
// might be that of another installation, which came in between.
func (w *watch) completed(ctx context.Context) error {
	for {
		silent := false
		if !w.done {
			w.bus.limit(ctx, w.client.o.lookEvery)
			m, err := w.bus.read(ctx)
			silent = errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil
			if err != nil && !silent {
				return fmt.Errorf("%w: %w", ErrLost, w.bus.why(ctx, err))
			}
			if !silent {
				w.take(m)
			}
		}
		if !w.done && !silent {
			continue
		}
		operation, err := w.bus.property(ctx, "Operation", w.take)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
		if operation == "idle" {
			return w.end(ctx)
		}
		w.ended, w.done = w.ended || w.done, false
	}
}

// end is what became of the installation, once RAUC is idle.
func (w *watch) end(ctx context.Context) error {
	if !w.done && !w.ended {
		return fmt.Errorf("%w: it is idle, and never said what became of the installation", ErrLost)
	}
	if w.result == 0 {
		return nil
	}
	reason, err := w.bus.property(ctx, "LastError", nil)
	if err != nil {
		reason = err.Error()
	}
	return fmt.Errorf("%w: %q (result %d)", ErrRefused, reason, w.result)
}

// take looks at one message: the end of the installation, or its progress.
func (w *watch) take(m *message) {
	if m.kind != kindSignal || w.rauc != "" && m.sender != w.rauc {
		return
	}
	switch {
	case m.iface == installer && m.member == "Completed" && len(m.body) == 1:
		if result, ok := m.body[0].(int32); ok {
			w.done, w.result = true, result
		}
	case m.iface == properties && m.member == "PropertiesChanged" && len(m.body) == 3:
		changed, _ := m.body[1].(map[string]any)
		if changed["Operation"] == "idle" && (w.ended || w.rauc == "") {
			w.done = true
		}
		p, _ := changed["Progress"].([]any)
		if len(p) != 3 || w.progress == nil {
			return
		}
		percent, _ := p[0].(int32)
		text, _ := p[1].(string)
		w.progress(Progress{Percent: int(min(max(percent, 0), 100)), Message: text})
	}
}
