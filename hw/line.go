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
	"ferrule/hw/port"
)

// A port that cannot be opened is tried again after 100 ms, 200 ms and so on up to 2 s.
const (
	firstReopen = 100 * time.Millisecond
	lastReopen  = 2 * time.Second
)

// Line is one serial line. Build it with New; Run makes it work.
type Line struct {
	config   LineConfig
	settings port.Settings
	timing   modbus.Timing
	plan     Plan
	sink     Sink
	log      *slog.Logger
	open     func(context.Context, *Line) (master, io.Closer, error)
	jobs     chan *job

	// The goroutine of Run alone uses these.
	master   master
	schedule schedule
	due      []*request // of the poll under way
	readings []Reading
	answer   [2 * modbus.MaxReadRegisters]byte
	worked   bool   // the port carried a transaction since it was opened
	logged   string // the trouble with the port that was logged last

	sinkFails  bool         // the sink refused the last poll
	wireBefore modbus.Stats // Line.wire when the port was opened

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
	wire    modbus.Stats // since Line was made
	units   []*unit      // the names and addresses are constant; the state changes under mu
}

// New checks the configuration and returns its line; it opens nothing and starts nothing.
// With a nil sink the line polls nothing and is there for Read and Write only.
func New(c LineConfig, sink Sink, log *slog.Logger) (*Line, error) {
	settings, units, err := c.compile()
	if err != nil {
		return nil, err
	}
	l := &Line{
		config:   c,
		settings: settings,
		timing:   modbus.TimingOf(settings.Baud, settings.BitsPerChar()),
		sink:     sink,
		log:      log.With(slog.String("line", c.Name)),
		open:     openRTU,
		jobs:     make(chan *job, maxJobs),
		state:    StateStopped,
		since:    time.Now(),
		units:    units,
	}
	l.plan = makePlan(c.Name, orDefault(c.Settings, defaultSettings), units, l.timing)
	for _, u := range units {
		if sink != nil && len(u.points) > 0 {
			l.schedule.units = append(l.schedule.units, u)
		}
	}
	return l, nil
}

// Name returns the name of the line.
func (l *Line) Name() string { return l.config.Name }

// Run opens the port and polls until ctx ends, whose error it returns. While the port is gone
// it is opened again and again, with back-off. The goroutine that calls Run owns the port.
// Run may be called again after it returned, but not twice at once.
func (l *Line) Run(ctx context.Context) error {
	if !l.begin() {
		return fmt.Errorf("running line %s: it runs already", l.config.Name)
	}
	defer l.end()
	var pause time.Duration
	for {
		err := l.serveOnce(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if l.worked {
			pause = 0
		}
		pause = min(max(2*pause, firstReopen), lastReopen)
		l.goneDown(ctx, err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// serveOnce opens the port and works on it until it is gone or ctx ends.
func (l *Line) serveOnce(ctx context.Context) error {
	l.worked = false
	m, closer, err := l.open(ctx, l)
	if err != nil {
		return err
	}
	l.master = m
	l.cameUp()
	err = l.work(ctx)
	l.master = nil
	return errors.Join(err, closer.Close())
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
	l.ended = true
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

func (l *Line) cameUp() {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setState(StateUp, nil)
	l.wireBefore = l.wire
	l.schedule.restart(now)
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
	now := time.Now()
	for _, u := range l.schedule.units {
		u.round++
		l.readings = l.readings[:0]
		for _, p := range u.points {
			p.round, p.value, p.bad = u.round, noValue, "line"
			if !p.reported || p.lastBad != p.bad || p.overdue(now) {
				l.readings = append(l.readings, p.report(now))
			}
		}
		l.deliver(ctx, u, now)
	}
}

// work takes turns until the port is gone or ctx ends. Jobs are done when nothing is due, and
// before every transaction of a turn (Line.try).
func (l *Line) work(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := time.Now()
		if u := l.schedule.pick(now); u != nil {
			if err := l.turn(ctx, u, now); err != nil {
				return err
			}
			continue
		}
		if at, ok := l.schedule.wake(now); ok {
			timer.Reset(at.Sub(now))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
		case <-timer.C:
		case j := <-l.jobs:
			if err := l.do(ctx, j); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}
