// Package agent composes lines, outbox, identity, session and updates into the running
// agent. It holds no logic of theirs: it opens them in order, hands each what it needs of
// the others as a function, and stops them in the order that loses nothing: lines first,
// then the session, which empties its window, then the outbox, which syncs.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"ferrule/agent/audit"
	"ferrule/agent/clock"
	"ferrule/agent/command"
	"ferrule/agent/command/authorize"
	"ferrule/agent/command/journal"
	"ferrule/agent/config"
	"ferrule/agent/config/trial"
	"ferrule/agent/encode"
	"ferrule/agent/identity"
	"ferrule/agent/local"
	"ferrule/agent/local/page"
	"ferrule/agent/outbox"
	"ferrule/agent/session"
	"ferrule/hw"
	"ferrule/internal/disk"
)

// ErrRestart is what Run returns after the command restart: the caller starts the program anew.
var ErrRestart = errors.New("restart was asked for")

// Options is what the program hands to its agent.
type Options struct {
	// Load reads the configuration, at the start and at every reload.
	Load func() (*config.Config, error)
	// File is what Load reads; empty: no configuration is taken from afar.
	File string
	// Reload asks to read configuration and certificate again (SIGHUP).
	Reload <-chan os.Signal
	// Version and Built (the time of the build, a floor for the clock) describe the program.
	Version string
	Built   time.Time
	Log     *slog.Logger

	shortestTrial time.Duration // of tests; 0: shortestTrial
}

// Run runs the agent until ctx is done or a command asks for a restart. It returns nil after
// a clean stop, ErrRestart, or the error that keeps the agent from starting. A reload whose
// configuration is good and different starts the parts anew with it; a bad one changes nothing.
func Run(ctx context.Context, o Options) error {
	c, err := o.Load()
	if err != nil {
		return err
	}
	d := &desk{manager: newNotifier(o.Log, os.Getenv)}
	feeding, stop := context.WithCancel(ctx)
	fed := make(chan struct{})
	go func() { defer close(fed); d.manager.run(feeding) }()
	defer func() { stop(); <-fed }()
	defer d.manager.tell("STOPPING=1")
	for c != nil {
		next := runWith(ctx, c, o, d)
		if err = next.err; errors.Is(err, errFileReplaced) {
			if c, err = o.Load(); err != nil {
				return err
			}
			continue
		}
		if next.attempt != nil {
			c, err = try(ctx, c, *next.attempt, o, d)
			continue
		}
		if d.keeper != nil { // one that was asked for in the last moment
			d.keeper.Return(trial.Stopped, "the agent stopped before the trial began", nil)
		}
		c = next.config
	}
	return err
}

// ending is what follows when a configuration has run.
type ending struct {
	config  *config.Config // the next one; nil: none
	attempt *attempt       // one to be tried
	err     error          // what Run returns where there is neither
}

// runWith runs one configuration until there is another, or the end.
func runWith(ctx context.Context, c *config.Config, o Options, d *desk) ending {
	a, err := open(ctx, c, o, d, nil)
	if err != nil {
		return ending{err: err}
	}
	defer a.close()
	a.tellOutcome(ctx)
	parts := a.start(ctx)
	defer parts.stop()
	for {
		select {
		case <-ctx.Done():
			return ending{}
		case <-a.restart:
			return ending{err: ErrRestart}
		case next := <-a.tries:
			return ending{attempt: &next}
		case <-o.Reload:
			if next := a.reload(ctx); next != nil {
				return ending{config: next}
			}
		}
	}
}

// agent is the parts of one running configuration.
type agent struct {
	config      *config.Config
	options     Options
	log         *slog.Logger
	started     time.Time
	lock        *os.File
	clock       *clock.Clock
	identity    *identity.Identity
	outbox      *outbox.Outbox
	encoder     *encode.Encoder
	lines       []*hw.Line
	session     *session.Session
	trust       trusted
	audit       *audit.Log
	journal     *journal.Journal
	authority   *authorize.Authority
	commands    *command.Executor
	updates     *updates
	local       *local.Server
	readings    atomic.Uint64 // taken from the lines
	restart     chan struct{} // closed by the command restart
	restartOnce sync.Once

	desk    *desk
	onTrial *running     // this configuration is on trial; nil: it is the file's
	tries   chan attempt // begun by the command config
	digest  string       // of the configuration
}

// open opens the parts. What it opened is closed again when a later part does not open.
func open(ctx context.Context, c *config.Config, o Options, d *desk, r *running) (*agent, error) {
	a := &agent{config: c, options: o, log: o.Log, started: time.Now(), restart: make(chan struct{}), desk: d, onTrial: r, tries: make(chan attempt, 1)}
	if err := a.openParts(ctx); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// openParts opens the parts from the ground up.
func (a *agent) openParts(ctx context.Context) (err error) {
	c := a.config
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		// The outbox works without a disk and says so; a key without one says so too.
		a.log.LogAttrs(ctx, slog.LevelError, "state directory not usable", slog.Any("err", err))
	}
	if a.lock, err = lockState(c.StateDir); err != nil {
		return err
	}
	fsys := disk.OS()
	if err = a.openTrial(fsys); err != nil {
		return err
	}
	a.clock = clock.Open(fsys, filepath.Join(c.StateDir, "time"), a.options.Built, a.log)
	a.openRegistrarTrust(ctx, fsys)
	if err = a.openIdentity(ctx, fsys); err != nil {
		return err
	}
	if err = a.openBrokerTrust(fsys); err != nil {
		return err
	}
	if err = a.openAudit(fsys); err != nil {
		return fmt.Errorf("opening the audit log: %w", err)
	}
	if err = a.openOutbox(fsys); err != nil {
		return fmt.Errorf("opening the outbox: %w", err)
	}
	if a.encoder, err = encode.New(c.Encode, c.Session.Topics.Readings, a.identity.Device(), a.outbox.Boot()); err != nil {
		return err
	}
	if err = a.openLines(); err != nil {
		return err
	}
	if err = a.openCommands(fsys); err != nil {
		return err
	}
	a.openUpdates(ctx, fsys)
	a.openLocal()
	return a.openSession()
}

func (a *agent) openLines() error {
	for _, line := range a.config.Lines {
		l, err := hw.New(line, a.take, a.log)
		if err != nil {
			return err
		}
		a.lines = append(a.lines, l)
	}
	return nil
}

func (a *agent) openLocal() {
	a.local = local.New(a.config.Local, local.Backend{
		Status:  func() any { return a.status() },
		Metrics: func(w io.Writer) { writeMetrics(w, a.status()) },
		Command: func(ctx context.Context, by local.Caller, name string, args json.RawMessage) (any, error) {
			return a.commands.Local(ctx, by.String(), name, args)
		},
		Page:     page.Handler(),
		StateDir: a.config.StateDir,
		Now:      a.clock.Now,
	}, a.log)
}

func (a *agent) openSession() (err error) {
	batch := a.config.Encode.Batch
	a.session, err = session.New(session.Options{
		Config:        a.config.Session,
		Identity:      a.identity,
		Source:        a.renamed(a.outbox),
		Format:        a.encoder,
		Batch:         session.Batch{MaxAge: batch.MaxAge.Std(), MaxBytes: int(batch.MaxBytes.Bytes())},
		State:         session.State{FS: disk.OS(), Dir: a.config.StateDir},
		Handle:        a.handle,
		Roots:         a.trust.brokers.Pool,
		Verify:        a.trust.revocation.Check,
		Verified:      a.brokerSeen,
		Refused:       a.refused,
		Now:           a.clock.Now,
		Trusted:       a.clock.Trusted,
		Online:        a.announcement,
		Announced:     a.updates.heard,
		ShutdownGrace: a.config.ShutdownGrace.Std(),
		Log:           a.log,
	})
	return err
}

// openOutbox opens the outbox with what it has to know of the lines.
func (a *agent) openOutbox(fsys disk.FS) (err error) {
	o := outbox.Options{
		FS: fsys, Dir: filepath.Join(a.config.StateDir, "outbox"), Config: a.config.Outbox, Log: a.log,
		Now: func() (time.Time, bool) { return a.clock.Now(), a.clock.Trusted() },
	}
	for _, line := range a.config.Lines {
		o.Lines = append(o.Lines, outbox.LineConfig{Name: line.Name, Urgent: line.Priority == hw.Urgent, MaxAge: line.MaxAge.Std()})
	}
	a.outbox, err = outbox.Open(o)
	return err
}

// take is where a line hands over a poll: it is encoded and appended in one step, and those who
// watch the local API get it as JSON.
func (a *agent) take(ctx context.Context, p hw.Poll) error {
	unsynced := !a.clock.Trusted()
	a.readings.Add(uint64(len(p.Readings)))
	return a.outbox.Append(ctx, p.Line, func(dst []byte, seq uint64) (string, []byte) {
		topic, entry := a.encoder.Entry(dst, seq, p, unsynced)
		switch {
		case a.config.Encode.Format == encode.JSON:
			a.local.Publish(entry)
		case a.local.Watched():
			a.local.Publish(a.encoder.JSON(nil, seq, p, unsynced))
		}
		return topic, entry
	})
}

// reload reads the configuration again. A different one is returned for the parts to start
// anew with; the same one means that the certificate may have changed, and that somebody wants a
// session that waits to try now.
func (a *agent) reload(ctx context.Context) *config.Config {
	signal := slog.String("signal", "SIGHUP")
	next, err := a.options.Load()
	if err != nil {
		a.log.LogAttrs(ctx, slog.LevelError, "configuration not reloaded", signal, slog.Any("err", err))
		return nil
	}
	if !reflect.DeepEqual(next, a.config) {
		a.log.LogAttrs(ctx, slog.LevelInfo, "configuration changed", signal)
		return next
	}
	a.session.Wake()
	a.reloadTrust(ctx)
	changed, err := a.identity.Reload(ctx)
	switch {
	case err != nil:
		a.log.LogAttrs(ctx, slog.LevelError, "certificate not reloaded", signal, slog.Any("err", err))
	case changed:
		a.log.LogAttrs(ctx, slog.LevelInfo, "certificate changed", signal)
		a.staged()
	default:
		a.log.LogAttrs(ctx, slog.LevelInfo, "nothing changed", signal)
	}
	return nil
}

// close releases what open acquired, in the opposite order.
func (a *agent) close() {
	a.desk.manager.leave(a)
	if a.outbox != nil {
		if err := a.outbox.Close(); err != nil {
			a.log.LogAttrs(context.Background(), slog.LevelError, "closing the outbox", slog.Any("err", err))
		}
	}
	a.updates.close()
	if a.journal != nil {
		_ = a.journal.Close()
	}
	if a.authority != nil {
		_ = a.authority.Close()
	}
	if a.audit != nil { // signs its head, so the key is still needed
		if err := a.audit.Close(); err != nil {
			a.log.LogAttrs(context.Background(), slog.LevelError, "closing the audit log", slog.Any("err", err))
		}
	}
	if a.identity != nil {
		_ = a.identity.Close()
	}
	if a.lock != nil {
		_ = a.lock.Close()
	}
}
