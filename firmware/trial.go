package firmware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"time"

	"ferrule/firmware/slot"
)

// Paces of a trial.
const (
	lookEvery    = 5 * time.Second
	commandEvery = 30 * time.Second // between two runs of the user's command
	commandMax   = time.Minute
	healthyLooks = 2                // in a row, so that one lucky moment commits nothing
	keepEvery    = 30 * time.Second // of what is counted of a trial that is unhealthy
	graceEvery   = 10 * time.Minute // of what is counted of an outage
	startsMax    = 12               // of the agent while something but the network is wrong
)

// judge is one trial as this process sees it.
type judge struct {
	e        *Engine
	answered []string // units
	healthy  int      // looks in a row
	last     time.Time
	kept     time.Time // when the journal was last told; zero: not yet that something is wrong
	ran      time.Time // the command
	ranErr   error
	grace    time.Duration // counted since kept
}

// trial is the step of trial. Whoever is judged here may have crashed before: what counts is in
// the journal.
func (e *Engine) trial(ctx context.Context) (State, error) {
	u := e.saved.Update
	if u.Starts > startsMax {
		return Trial, fmt.Errorf("the agent started %d times and was not healthy in between; last: %s", u.Starts-1, u.Last)
	}
	e.setWaits("")
	now := time.Now()
	j := &judge{e: e, last: now}
	if u.Health.Lines && u.Manifest != "" {
		j.answered = e.answered()
	}
	for {
		wrong, network := j.look(ctx)
		if ctx.Err() != nil {
			return Trial, ctx.Err()
		}
		if j.healthy >= healthyLooks {
			err := e.commit(ctx)
			if err == nil {
				return Committed, nil
			}
			wrong, network = []string{err.Error()}, ""
		}
		if err := j.count(wrong, network); err != nil {
			return Trial, err
		}
		e.pause(ctx, lookEvery)
		if ctx.Err() != nil {
			// Else one that is stopped again and again is never unhealthy for long. That it was for too
			// long is found at the next look.
			_ = j.count(wrong, network)
			_ = e.write() // Status tells
			return Trial, ctx.Err()
		}
	}
}

// look says what is wrong, and of that what the network alone is the reason for.
func (j *judge) look(ctx context.Context) (wrong []string, network string) {
	u := j.e.saved.Update
	h := j.e.o.Health(ctx)
	if u.Health.Session && (!h.Session || !h.Reported) {
		what := "the broker has not acknowledged the status of this boot"
		if !h.Session {
			what = "there is no session"
		}
		if h.Network != "" {
			network = what + ": " + h.Network
		} else {
			wrong = append(wrong, what)
		}
	}
	for _, name := range j.answered {
		i := slices.IndexFunc(h.Lines, func(l LineHealth) bool { return l.Name == name })
		switch {
		case i < 0:
			wrong = append(wrong, fmt.Sprintf("unit %s is gone", name))
		case !h.Lines[i].OK:
			wrong = append(wrong, fmt.Sprintf("unit %s does not answer: %s", name, h.Lines[i].Why))
		}
	}
	if len(j.e.o.Config.HealthCommand) > 0 {
		if err := j.command(ctx); err != nil {
			wrong = append(wrong, fmt.Sprintf("the health command is not content: %v", err))
		}
	}
	if len(wrong) == 0 && network == "" {
		j.healthy++
	} else {
		j.healthy = 0
	}
	return wrong, network
}

// command runs the user's program now and then, and remembers what it said.
func (j *judge) command(ctx context.Context) error {
	if !j.ran.IsZero() && time.Since(j.ran) < commandEvery {
		return j.ranErr
	}
	ctx, cancel := context.WithTimeout(ctx, commandMax)
	defer cancel()
	j.ranErr = j.e.o.Command(ctx, j.e.o.Config.HealthCommand)
	j.ran = time.Now()
	return j.ranErr
}

// count adds the time since the last look to what it was spent on; an error ends the trial.
func (j *judge) count(wrong []string, network string) error {
	e, u := j.e, j.e.saved.Update
	now := time.Now()
	passed := min(now.Sub(j.last), lookEvery+commandMax) // a machine that slept was not unhealthy
	j.last = now
	e.mu.Lock()
	switch {
	case len(wrong) > 0:
		u.Within += passed
		u.Last = clean(strings.Join(wrong, "; "))
	case network != "":
		u.Network += passed
		j.grace += passed
		u.Last = clean(network)
	}
	missing := wrong
	if network != "" {
		missing = append(slices.Clone(wrong), network)
	}
	e.judged = &Judged{
		Boots: u.Boots, Missing: cleanAll(missing), Deferred: len(wrong) == 0 && network != "",
		Within: (u.Health.Within - u.Within).Seconds(), Network: (u.Health.Grace - u.Network).Seconds(),
	}
	e.mu.Unlock()
	switch {
	case u.Within >= u.Health.Within && len(wrong) > 0:
		return fmt.Errorf("not healthy for %v: %s", u.Within.Round(time.Second), u.Last)
	case u.Network >= u.Health.Grace && network != "":
		return fmt.Errorf("the network was out for %v: %s", u.Network.Round(time.Second), u.Last)
	}
	if len(wrong) == 0 && network != "" {
		j.replenish()
	}
	if len(wrong) > 0 && now.Sub(j.kept) >= keepEvery || j.grace >= graceEvery {
		j.kept, j.grace = now, 0
		_ = e.write() // Status tells; the boot loader counts too
	}
	return nil
}

// replenish gives a slot that has shown all but the network its tries back: what follows are
// power cuts, not crashes, for all that anybody can tell.
func (j *judge) replenish() {
	e, u := j.e, j.e.saved.Update
	tries := max(e.o.Config.Tries, 1)
	if u.OneShot {
		if u.Tries >= tries-1 && u.Starts == 0 {
			return
		}
	} else if e.env.Tries >= tries && u.Starts == 0 {
		return
	}
	if !u.OneShot {
		err := e.o.Boot.Try(u.Target, tries)
		if err == nil {
			err = e.lookAtBoot()
		}
		e.setProblem("environment", err)
		if err != nil {
			return
		}
	}
	e.mu.Lock()
	u.Starts, u.Steps = 0, 0 // what bounds it from now on is the grace
	if u.OneShot {
		u.Tries = tries - 1
	}
	e.mu.Unlock()
	_ = e.write() // Status tells
	e.log.Info("only the network is out: the trial's tries are given back", slog.String("slot", string(u.Target)))
}

// commit ends a trial for good: the boot loader first, since what it says is what is; then the
// floor; the journal is told by the caller. A power cut in between is made up for by the step
// of committed.
func (e *Engine) commit(ctx context.Context) error {
	u := e.saved.Update
	if err := e.o.Boot.Commit(u.Target); err != nil {
		return fmt.Errorf("committing slot %s in the boot loader's environment: %w", u.Target, err)
	}
	if err := e.lookAtBoot(); err != nil {
		return err
	}
	e.raiseAfterCommit(ctx)
	return nil
}

// raiseAfterCommit leaves due what it cannot do: reporting and the next update do not wait for a TPM.
func (e *Engine) raiseAfterCommit(ctx context.Context) {
	to := max(e.saved.Update.Security, e.saved.FloorDue)
	if to == 0 {
		return
	}
	if err := e.raise(ctx, to); err != nil {
		e.log.Warn("the floor could not be raised and will be later", slog.Any("err", err))
	}
}

// rollBack is the step of rolled-back.
func (e *Engine) rollBack(ctx context.Context) (State, error) {
	u := e.saved.Update
	err := e.o.Boot.Cancel()
	if err == nil {
		err = e.lookAtBoot()
	}
	e.setProblem("environment", err)
	if e.env.Running == u.Target && e.env.Active != u.Target {
		back := e.env.Active
		if err := e.o.Reboot(ctx, back); err != nil {
			e.log.Warn("asking for the restart into the old slot", slog.Any("err", err))
		}
		e.setWaits(fmt.Sprintf("the restart into slot %s", back))
		e.pause(ctx, rebootWait)
		return RolledBack, ctx.Err()
	}
	e.mu.Lock()
	u.Give = true
	e.mu.Unlock()
	e.conclude(OutcomeRolledBack)
	return Reporting, nil
}

// giveUp is the step of failed.
func (e *Engine) giveUp() (State, error) {
	env, err := e.o.Boot.State()
	if err == nil && env.Trial == e.saved.Update.Target && env.Running != env.Trial {
		err = e.o.Boot.Cancel()
	}
	if err == nil {
		err = e.lookAtBoot()
	}
	e.setProblem("environment", err)
	e.m, e.fresh = nil, false
	e.conclude(OutcomeFailed)
	return Reporting, nil
}

// settle is the step of committed.
func (e *Engine) settle(ctx context.Context) (State, error) {
	e.raiseAfterCommit(ctx)
	u := e.saved.Update
	e.mu.Lock()
	if e.saved.Slots == nil {
		e.saved.Slots = make(map[slot.Slot]installed)
	}
	delete(e.saved.Slots, u.Target)
	if u.Manifest != "" {
		e.saved.Slots[u.Target] = installed{Version: u.Version, Release: u.Release, Edition: u.Edition}
	}
	e.judged, e.m, e.fresh = nil, nil, false
	e.mu.Unlock()
	e.conclude(OutcomeCommitted)
	return Reporting, nil
}

// runCommand runs a program whose output's end is its reason.
func runCommand(ctx context.Context, argv []string) error {
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.WaitDelay = time.Second
	tail := &tail{}
	command.Stdout, command.Stderr = tail, tail
	err := command.Run()
	if err != nil && len(tail.b) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(tail.b)))
	}
	if ctx.Err() != nil && err != nil {
		err = errors.Join(ctx.Err(), err)
	}
	return err
}

// tail keeps the end of what is written.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-textMax):]...)
	t.b = t.b[max(0, len(t.b)-textMax):]
	return len(p), nil
}
