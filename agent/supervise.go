package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/thejerf/suture/v4"
)

// Each part blocks in Run until its context ends, and mends itself. The supervisor is for
// what no part can mend: a panic, or an error nobody foresaw. It starts that part again,
// with back-off, and no other part notices.

// restartPause is the back-off after a part failed more than a few times in a row.
const restartPause = 15 * time.Second

// part gives a Run method the name that the log shows.
type part struct {
	name string
	run  func(context.Context) error
}

func (p part) Serve(ctx context.Context) error { return p.run(ctx) }
func (p part) String() string                  { return p.name }

// stage is the parts that stop together.
type stage struct {
	cancel context.CancelFunc
	ended  <-chan error
}

// stages stop one after the other, in order.
type stages []stage

// start starts all parts. They do not hang on ctx, whose end would stop them all at once.
func (a *agent) start(ctx context.Context) stages {
	free := context.WithoutCancel(ctx)
	ground := []part{
		{"clock", a.clock.Run}, {"outbox", a.outbox.Run}, {"local", a.local.Run}, {"status", a.announceChanges},
		{"audit", a.audit.Run}, {"revocation", a.trust.revocation.Run}, {"broker roots", a.trust.brokers.Run},
	}
	if a.onTrial == nil { // on trial the certificate stays the one that the old configuration has
		ground = append(ground, part{"identity", func(ctx context.Context) error { return a.identity.Run(ctx, a.config.Enroll) }})
	}
	if a.updates.engine != nil {
		ground = append(ground, part{"updates", a.updates.engine.Run})
	}
	if a.trust.registrars != nil {
		ground = append(ground, part{"registrar roots", a.trust.registrars.Run})
	}
	var lines []part
	for _, line := range a.lines {
		lines = append(lines, part{"line " + line.Name(), line.Run})
	}
	below := a.startStage(free, "ground", ground)
	middle := a.startStage(free, "session", []part{{"session", a.session.Run}})
	top := a.startStage(free, "lines", lines)
	a.desk.manager.watch(a)
	return stages{top, middle, below}
}

func (a *agent) startStage(ctx context.Context, name string, parts []part) stage {
	supervisor := suture.New(name, suture.Spec{
		EventHook:      a.logFailure,
		FailureBackoff: restartPause,
		// A stopping session drains its window first.
		Timeout: a.config.ShutdownGrace.Std() + 5*time.Second,
	})
	for _, p := range parts {
		supervisor.Add(p)
	}
	ctx, cancel := context.WithCancel(ctx)
	return stage{cancel: cancel, ended: supervisor.ServeBackground(ctx)}
}

// stop stops the stages one after the other and returns when the last has ended.
func (s stages) stop() {
	for _, stage := range s {
		stage.cancel()
		<-stage.ended
	}
}

func (a *agent) logFailure(event suture.Event) {
	level := slog.LevelError
	if event.Type() == suture.EventTypeResume {
		level = slog.LevelInfo
	}
	details := event.Map()
	name, _ := details["service_name"].(string)
	a.log.LogAttrs(context.Background(), level, "part failed; starting it again",
		slog.String("component", name), slog.String("err", event.String()))
}
