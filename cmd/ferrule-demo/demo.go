package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"ferrule/internal/hint"
)

// demo is one performance.
type demo struct {
	options
	screen  *screen
	world   *world
	program program
	every   time.Duration // between two polls of a meter

	process    *process // nil: the agent does not run
	before     counters // when it started
	lives      []life
	cuts       int // of the network, while the agent lived on
	kills      []kill
	stopped    time.Time
	givenUp    time.Time // polls before it are not waited for any more
	enrollment counters
	key        keyFacts

	signsBefore atomic.Int64 // what listener knows of before
}

// counters is what the broker and the TPM's socket have counted so far.
type counters struct{ full, resumed, commands, signs int64 }

func (c counters) minus(d counters) counters {
	return counters{c.full - d.full, c.resumed - d.resumed, c.commands - d.commands, c.signs - d.signs}
}

// life is one process of the agent, from its start to its end.
type life struct {
	counters
	ended   string
	written int64 // bytes
}

// play performs the demo and reports whether everything held.
func play(ctx context.Context, o options, s *screen) (held bool, err error) {
	d := &demo{options: o, screen: s, every: pollEvery(o.length)}
	if d.world, err = build(ctx, d.every, o.keep); err != nil {
		return false, err
	}
	defer func() {
		d.screen.below()
		if d.process != nil {
			d.process.kill()
		}
		if problem := d.world.close(); problem != nil && err == nil {
			err = fmt.Errorf("cleaning up: %w", problem)
		}
		if o.keep {
			s.line(dim, "kept: %s", d.world.dir)
		}
	}()
	if err := d.prepare(); err != nil {
		return false, err
	}
	defer d.program.log.Close()
	if err := d.perform(ctx); err != nil {
		return false, err
	}
	return d.report(), nil
}

// pollEvery is a second, and less where the demo is so short that a second shows too little.
func pollEvery(length time.Duration) time.Duration {
	if length == 0 {
		return time.Second
	}
	return max(200*time.Millisecond, min(time.Second, (length/30).Truncate(50*time.Millisecond)))
}

func (d *demo) prepare() error {
	log, err := os.OpenFile(filepath.Join(d.world.dir, "agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("making the agent's log: %w", err)
	}
	d.program = program{path: d.options.program, config: d.world.path("ferrule.toml"), log: log}
	return nil
}

// start starts the agent.
func (d *demo) start() (err error) {
	d.before = d.counters()
	d.signsBefore.Store(d.before.signs)
	d.process, err = d.program.run()
	return err
}

// ended notes the end of the agent's process.
func (d *demo) ended(how string) {
	d.lives = append(d.lives, life{counters: d.counters().minus(d.before), ended: how, written: d.process.written()})
	d.process = nil
}

func (d *demo) counters() counters {
	w := d.world
	return counters{w.ledger.full.Load(), w.ledger.resumed.Load(), w.commands.Load(), w.signs.Load()}
}

// evidence is what the tally is made from, as of now.
func (d *demo) evidence() evidence {
	e := evidence{polls: d.world.polls(), arrivals: d.world.ledger.list(), kills: d.kills, stopped: d.stopped,
		sync: syncWithin, expected: d.world.expected}
	for _, m := range d.world.meters {
		e.units = append(e.units, m.name)
	}
	return e
}

// patience is how long the demo waits for what should take moments; the agent's back-off after
// a cut may take several seconds.
const patience = 40 * time.Second

var errLate = errors.New("it did not come in time")

// until waits for done, as long as the agent lives.
func (d *demo) until(what string, done func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-d.process.exited:
			return d.program.died(d.process)
		case <-limit.C:
			return hint.With(fmt.Errorf("waiting %v for %s: %w", patience, what, errLate), "the agent's last words:\n"+d.program.lastWords())
		}
	}
	return nil
}

// pause lasts until t, or until ctx ends.
func pause(ctx context.Context, t time.Time) {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
