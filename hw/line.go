package hw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/port"
)

// A port that cannot be opened is tried again after 100 ms, 200 ms and so on up to 1 s, and at
// once when its device appears.
const (
	firstReopen = 100 * time.Millisecond
	lastReopen  = time.Second
)

// Line is one serial line. Build it with New; Run makes it work.
type Line struct {
	config   LineConfig
	protocol protocol
	role     Role
	settings port.Settings
	plan     Plan
	plain    point.Codec // leaves a reading as it is
	sink     Sink
	log      *slog.Logger
	open     func(context.Context, *Line) (attached, error)
	await    func(ctx context.Context, name string) error
	jobs     chan *job

	// The goroutine of Run alone uses these.
	driver   driver
	schedule schedule
	due      []*request // of the poll under way
	readings []Reading
	worked   bool   // the port carried something since it was opened
	logged   string // the trouble with the port that was logged last

	sinkFails bool // the sink refused the last poll

	mu      sync.Mutex
	state   State
	since   time.Time
	problem error // why the port is not open
	ended   bool  // Run ended
	usage   usage
	polls   uint64
	missed  uint64
	errors  faults
	latency latency
	wire    wire    // what was seen since the port was opened
	port    counted // nil: not open
	wrong   wrong   // the last frame that no unit can be named for
	units   []*unit // their state changes under mu, and so does what a line finds by itself
}

// counted is a port whose driver counts errors.
type counted interface{ Counters() (port.Counters, error) }

// attached is an open port, and what the line does with it.
type attached struct {
	io.Closer
	port counted
	gone <-chan struct{} // closed when the device is gone; nil: that is only seen in use
	// work ends when the port is gone or ctx ends, and returns the error.
	work func(ctx context.Context) error
}

// New checks the configuration and returns its line; it opens nothing and starts nothing.
// With a nil sink the line polls nothing and is there for Read and Write only.
func New(c LineConfig, sink Sink, log *slog.Logger) (*Line, error) {
	l := &Line{
		config: c,
		sink:   sink,
		log:    log.With(slog.String("line", c.Name)),
		open:   openPort,
		await:  port.Await,
		jobs:   make(chan *job, maxJobs),
		state:  StateStopped,
		since:  time.Now(),
	}
	if err := l.compile(); err != nil {
		return nil, err
	}
	l.plan = l.makePlan()
	for _, u := range l.units {
		if sink != nil && len(u.classes) > 0 {
			l.schedule.units = append(l.schedule.units, u)
		}
	}
	return l, nil
}

// openPort opens the port of l for what the line is.
func openPort(ctx context.Context, l *Line) (attached, error) {
	p, err := port.Open(ctx, l.config.Port, port.Options{Settings: l.settings, RS485: l.config.RS485.options(), Log: l.log})
	if err != nil {
		return attached{}, err
	}
	a := attached{Closer: p, port: p, gone: p.Gone()}
	switch {
	case l.role == Master && l.protocol.open != nil:
		l.driver = l.protocol.open(l, p)
		a.work = l.poll
	case l.role == UnitRole:
		a.work = l.serve(p)
	case l.protocol.registers:
		a.work = l.overhear(p)
	default:
		a.work = l.hear(p)
	}
	return a, nil
}

// timing is how long characters and silences last. Behind a network there is no telling.
func (l *Line) timing(s port.Settings) modbus.Timing {
	if port.IsNetwork(l.config.Port) {
		return modbus.Timing{}
	}
	return modbus.TimingOf(s.Baud, s.BitsPerChar())
}

// Name returns the name of the line.
func (l *Line) Name() string { return l.config.Name }

// Run opens the port and works until ctx ends, whose error it returns. While the port is gone
// it is opened again and again, with back-off. The goroutine that calls Run owns the port.
// Run may be called again after it returned, but not twice at once.
func (l *Line) Run(ctx context.Context) error {
	if !l.begin() {
		return fmt.Errorf("running line %s: it runs already", l.config.Name)
	}
	defer l.end()
	var wait time.Duration
	for {
		err := l.serveOnce(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if l.worked {
			wait = 0
		}
		wait = min(max(2*wait, firstReopen), lastReopen)
		l.goneDown(ctx, err)
		if err := l.pauseUntilBack(ctx, wait); err != nil {
			return err
		}
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pauseUntilBack waits, but no longer than it takes the device to come back.
func (l *Line) pauseUntilBack(ctx context.Context, wait time.Duration) error {
	if err := pause(ctx, firstReopen); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, wait-firstReopen)
	defer cancel()
	if err := l.await(waiting, l.config.Port); err != nil {
		<-waiting.Done() // where nobody can tell, wait
	}
	return ctx.Err()
}

// serveOnce opens the port and works on it until it is gone or ctx ends.
func (l *Line) serveOnce(ctx context.Context) error {
	l.worked = false
	a, err := l.open(ctx, l)
	if err != nil {
		return err
	}
	working, stop := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { // ends with working
		select {
		case <-a.gone:
			a.Close() // at once, or the kernel gives the device another number when it is back
			stop(port.ErrGone)
		case <-working.Done():
		}
	})
	l.cameUp(a.port)
	err = a.work(working)
	if cause := context.Cause(working); cause != nil && ctx.Err() == nil {
		err = cause
	}
	stop(nil)
	watching.Wait()
	return errors.Join(err, a.Close())
}

func (l *Line) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != StateStopped {
		return false
	}
	l.setState(StateOpening, nil)
	l.ended = false
	return true
}

func (l *Line) end() {
	l.mu.Lock()
	l.setState(StateStopped, nil)
	l.ended, l.port = true, nil
	l.mu.Unlock()
	l.rejectJobs(fmt.Errorf("%w: it is being stopped", ErrDown))
}

// setState needs mu.
func (l *Line) setState(s State, problem error) {
	if l.state != s {
		l.state, l.since = s, time.Now()
	}
	l.problem = problem
}

func (l *Line) cameUp(p counted) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setState(StateUp, nil)
	l.wire, l.port = wire{}, p
	l.schedule.base, l.schedule.rationed = now, now
	for _, u := range l.units {
		u.restart(now)
	}
}

// carried notes that the port works. Only now is the trouble before over: a port that opens
// and then fails at once is no news each time.
func (l *Line) carried(ctx context.Context) {
	if l.worked {
		return
	}
	l.worked, l.logged = true, ""
	l.log.LogAttrs(ctx, slog.LevelInfo, "line up", slog.String("port", l.config.Port), slog.String("settings", l.plan.Settings))
}

// goneDown says once why the line is down, in the log and to those who wait, and reports every
// point as bad.
func (l *Line) goneDown(ctx context.Context, err error) {
	known := l.logged == err.Error()
	l.logged = err.Error()
	l.mu.Lock()
	l.setState(StateReopening, err)
	l.port = nil
	if !known {
		l.errors[faultPort]++
	}
	l.mu.Unlock()
	if !known {
		l.log.LogAttrs(ctx, slog.LevelError, "line down", slog.String("port", l.config.Port), slog.Any("err", err))
	}
	l.rejectJobs(fmt.Errorf("%w: %w", ErrDown, err))
	l.reportDown(ctx)
}

// reportDown reports the points as bad that do not count as bad already, or whose max_silence
// is over.
func (l *Line) reportDown(ctx context.Context) {
	if l.sink == nil {
		return
	}
	now := time.Now()
	for _, u := range l.units {
		u.round++
		l.readings = l.readings[:0]
		for _, p := range u.points {
			p.round = u.round
			p.fail("line")
			if !p.reported || p.lastBad != p.bad || p.overdue(now) {
				l.readings = append(l.readings, p.report(now))
			}
		}
		l.deliver(ctx, u, now)
	}
}
