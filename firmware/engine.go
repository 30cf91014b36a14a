package firmware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ferrule/firmware/fetch"
	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/firmware/tuf"
	"ferrule/internal/disk"
)

// Engine is the update of one device. It is safe for concurrent use.
type Engine struct {
	o       Options
	log     *slog.Logger
	client  *fetch.Client
	file    *fileFloor
	begun   time.Time     // monotonic
	asks    chan *ask     // what people want of the loop
	running chan struct{} // holds a token while Run runs

	// What follows belongs to Run's goroutine, or to Open's before it. mu is held where it is
	// written, and where another goroutine reads it.
	mu         sync.Mutex
	saved      saved
	journal    *journal
	unwritten  bool // the journal does not know of saved
	held       bool // nothing is chosen without being told: the journal cannot be read
	env        slot.State
	loads      int // of the journal
	reconciled bool
	trust      *tuf.Client
	m          *manifest.Manifest // of saved.Update; nil: to be chosen or read again
	fresh      bool               // m was chosen in this step of fetching
	verified   bool               // the slot was read back since the start
	advice     string
	waits      string // why the present state waits
	refused    string // why this device does not get what the repository has
	problems   map[string]string
	floor      FloorStatus
	meta       Metadata
	target     TargetStatus // progress only
	judged     *Judged
	lastCheck  time.Time
	nextCheck  time.Time // zero: only when told
	nextReport time.Time
	reportFail int
	checkFail  int
}

// ask is a question to the loop, which answers it between two steps, or in the midst of one where
// interrupt says so.
type ask struct {
	ctx    context.Context
	do     func(ctx context.Context) error
	answer chan error
}

// Open reads the journal and the boot loader's environment. A journal that cannot be used is no
// error: the environment alone decides, and Status says so.
func Open(o Options) (*Engine, error) {
	if o.FS == nil || o.Boot == nil || o.Open == nil || o.Health == nil || o.Report == nil || o.Reboot == nil {
		return nil, errors.New("opening updates: a part of the agent is missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = func() (time.Time, bool) { return time.Now(), true }
	}
	if o.Command == nil {
		o.Command = runCommand
	}
	e := &Engine{
		o: o, log: o.Log, begun: time.Now(), asks: make(chan *ask), running: make(chan struct{}, 1),
		problems: make(map[string]string), file: &fileFloor{fs: o.FS, dir: o.Dir}, saved: saved{State: Idle},
	}
	if o.Config.Enabled() {
		client, err := fetch.New(fetch.Options{HTTP: o.HTTP, Base: o.Config.Repository, Log: o.Log, Rate: o.Config.Rate.Bytes})
		if err != nil {
			return nil, fmt.Errorf("opening updates: %w", err)
		}
		e.client = client
	}
	e.setProblem("folder", disk.MakeFolder(o.FS, o.Dir))
	e.setProblem("environment", e.start())
	return e, nil
}

// loadsMax is how often a journal is tried to be read that may be sound; then it is given up.
const loadsMax = 5

// load reads the journal.
func (e *Engine) load() error {
	journal, saved, problem := openJournal(e.o.FS, e.o.Dir)
	e.setProblem("journal", problem)
	if e.loads++; errors.Is(problem, errUnread) && e.loads < loadsMax {
		return problem
	}
	e.mu.Lock()
	e.journal, e.saved, e.held = journal, saved, errors.Is(problem, errNewer)
	e.mu.Unlock()
	_ = e.readFloor(context.Background()) // Status tells
	e.firstCheck()
	return nil
}

// start finds out what the boot loader's environment makes of the journal. After an error it is
// called again.
func (e *Engine) start() error {
	if e.journal == nil {
		if err := e.load(); err != nil {
			return err
		}
	}
	env, err := e.o.Boot.State()
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.env, e.reconciled = env, true
	u := e.saved.Update
	same := u != nil && u.BootID != "" && u.BootID == e.o.BootID
	next, reason := reconcile(&e.saved, env, same)
	before := e.saved.State
	if next == Trial && (before == Idle || before == Reporting) {
		e.saved.Update = e.unknown(env)
		u = e.saved.Update
	}
	if next == Rebooting && before == Rebooting && !same {
		u.Restarts++
		u.Tries = max(0, u.Tries-1)
	}
	if next == Trial {
		if u.BootID == "" || u.BootID != e.o.BootID {
			u.Boots++
		}
		if !e.o.Again {
			u.Starts++
		}
		u.BootID = e.o.BootID
	}
	e.mu.Unlock()
	if env.FellOver() && next != RolledBack {
		e.setProblem("slots", fmt.Errorf("slot %s is active but did not boot: slot %s runs in its place", env.Active, env.Running))
	}
	if next != before || reason != nil {
		e.enter(context.Background(), next, reason)
	} else if next == Trial || next == Rebooting {
		_ = e.write() // Status tells; the boot loader counts too
	}
	return nil
}

// unknown is a trial that the journal does not know of: it was lost, or others began it.
func (e *Engine) unknown(env slot.State) *update {
	return &update{Version: e.o.Version, Target: env.Running, Health: policy(manifest.DefaultHealth())}
}

// startAgain is how long after an environment, or a journal, that could not be read it is tried again.
const startAgain = 30 * time.Second

// Run carries updates out until ctx ends. Its one goroutine beside the caller's ends before it
// returns.
func (e *Engine) Run(ctx context.Context) error {
	select {
	case e.running <- struct{}{}:
	default:
		return errors.New("the updates run already")
	}
	defer func() { <-e.running }()
	for ctx.Err() == nil {
		if e.reconciled {
			e.once(ctx)
			continue
		}
		err := e.start()
		e.setProblem("environment", err)
		if err != nil {
			e.refuse(ctx, startAgain, err)
		}
	}
	if e.journal != nil {
		e.journal.close()
	}
	return nil
}

// refuse answers all that is asked with an error, for a while.
func (e *Engine) refuse(ctx context.Context, d time.Duration, err error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case a := <-e.asks:
			a.answer <- err
		}
	}
}

// once takes one step, or does what is asked between two halves of one.
func (e *Engine) once(ctx context.Context) {
	stepCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		next State
		err  error
	}
	done := make(chan outcome, 1)
	go func() { // ends when the step does, which ends with stepCtx
		next, err := e.step(stepCtx)
		done <- outcome{next, err}
	}()
	select {
	case out := <-done:
		e.advance(ctx, out.next, out.err)
	case a := <-e.asks:
		cancel()
		if out := <-done; out.err == nil && out.next != e.saved.State {
			e.advance(ctx, out.next, nil) // it had just come so far
		}
		a.answer <- e.obey(ctx, a)
	}
}

func (e *Engine) advance(ctx context.Context, next State, err error) {
	var to *toState
	switch {
	case ctx.Err() != nil && err != nil:
		return // the same step is taken after the next start
	case errors.As(err, &to):
		next = to.State
	case err != nil:
		next = e.saved.State.otherwise()
	}
	if next != e.saved.State || err != nil {
		e.enter(ctx, next, err)
	}
}

// toState is an error that leads to a state other than the table's last column.
type toState struct {
	error
	State State
}

func (e *toState) Unwrap() error { return e.error }

// obey does what was asked, for as long as whoever asked waits for it.
func (e *Engine) obey(ctx context.Context, a *ask) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(a.ctx, cancel)
	defer stop()
	if a.ctx.Err() != nil {
		return a.ctx.Err()
	}
	return a.do(ctx)
}

// tellLoop has the loop do something.
func (e *Engine) tellLoop(ctx context.Context, do func(ctx context.Context) error) error {
	a := &ask{ctx: ctx, do: do, answer: make(chan error, 1)}
	select {
	case e.asks <- a:
	case <-ctx.Done():
		return ctx.Err()
	}
	return <-a.answer
}

// state is for those who are not the loop.
func (e *Engine) state() State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.saved.State
}

// Propose asks for an update; it returns once the request is durable, or refused: ErrBusy,
// ErrNothing, ErrRefused, ErrOff, or why the repository could not be asked.
func (e *Engine) Propose(ctx context.Context, r Request) error {
	r.Version, r.By = clean(r.Version), clean(r.By)
	if e.client == nil {
		return ErrOff
	}
	free := func() error {
		if s := e.state(); s != Idle && s != Reporting {
			return fmt.Errorf("%w (%s)", ErrBusy, s)
		}
		return nil
	}
	if err := free(); err != nil { // without disturbing what is under way
		return err
	}
	return e.tellLoop(ctx, func(ctx context.Context) error {
		if err := free(); err != nil {
			return err
		}
		if err := e.look(ctx, r); err != nil {
			return err
		}
		e.mu.Lock()
		e.saved.Update.Attempts, e.held = 0, false
		e.mu.Unlock()
		e.enter(ctx, Fetching, nil)
		if e.saved.State == Failed {
			return errors.New(e.saved.Update.Reason)
		}
		return nil
	})
}

// Check asks the repository now, and installs what is there as if it had been time.
func (e *Engine) Check(ctx context.Context) error { return e.Propose(ctx, Request{By: "check"}) }

// Commit ends a trial with a commit whatever its health. ErrNoTrial where there is none.
func (e *Engine) Commit(ctx context.Context) error {
	if e.state() != Trial {
		return ErrNoTrial
	}
	return e.tellLoop(ctx, func(ctx context.Context) error {
		if e.saved.State != Trial {
			return ErrNoTrial
		}
		if err := e.commit(ctx); err != nil {
			return err
		}
		e.enter(ctx, Committed, nil)
		return nil
	})
}

// Rollback gives up the trial, or the update under way, for the reason given; it is not tried
// again. ErrNoTrial where there is neither: what is committed stays.
func (e *Engine) Rollback(ctx context.Context, reason string) error {
	if s := e.state(); s != Trial && !s.onTheWay() {
		return ErrNoTrial
	}
	return e.tellLoop(ctx, func(ctx context.Context) error {
		next := e.saved.State.otherwise()
		if next == e.saved.State {
			return ErrNoTrial
		}
		e.mu.Lock()
		e.saved.Update.Give = true
		e.mu.Unlock()
		e.enter(ctx, next, fmt.Errorf("told to give it up: %s", reason))
		return nil
	})
}

// rewriteEvery is how often a journal that could not be written is tried again.
const rewriteEvery = time.Minute

// pauseUntil waits for a moment; the zero one never comes. What the journal does not know yet is
// tried again meanwhile.
func (e *Engine) pauseUntil(ctx context.Context, at time.Time) {
	for e.unwritten && ctx.Err() == nil && (at.IsZero() || time.Until(at) > rewriteEvery) {
		e.pause(ctx, rewriteEvery)
		_ = e.write() // Status tells
	}
	if at.IsZero() {
		<-ctx.Done()
		return
	}
	e.pause(ctx, time.Until(at))
}

// pause waits, but not for what is asked of the loop: that ends ctx.
func (e *Engine) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
