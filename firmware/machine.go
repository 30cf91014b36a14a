package firmware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"ferrule/firmware/slot"
)

// step does what the present state is for, and returns the state that follows. Every step can be
// done again from its beginning: after a power cut it is.
//
//	state        what is done in it                                      then          when it cannot be done
//	idle         waits; asks the repository; chooses                     fetching      idle
//	fetching     chooses once more; ends a trial of the target slot;     verifying     failed
//	             writes what is missing in it
//	verifying    syncs; reads the slot back; has it installed            armed         fetching, twice; failed
//	armed        waits for the window; notes which units answer;         rebooting     failed
//	             has the boot loader try the slot
//	rebooting    asks for the restart                                    (restart)     failed
//	trial        looks at the health; boot loader, floor                 committed     rolled-back
//	committed    what a power cut left to do of that                     reporting     committed
//	rolled-back  ends the trial; restarts into the old slot              reporting     rolled-back
//	failed       ends the trial; leaves the rest of the slot as it is    reporting     failed
//	reporting    tells the cloud, for ever; does what idle does besides  idle          reporting
//
// What a restart makes of the state is in reconcile.
func (e *Engine) step(ctx context.Context) (State, error) {
	switch e.saved.State {
	case Idle:
		return e.wait(ctx)
	case Fetching:
		return e.fetch(ctx)
	case Verifying:
		return e.verify(ctx)
	case Armed:
		return e.arm(ctx)
	case Rebooting:
		return e.reboot(ctx)
	case Trial:
		return e.trial(ctx)
	case Committed:
		return e.settle(ctx)
	case RolledBack:
		return e.rollBack(ctx)
	case Failed:
		return e.giveUp()
	case Reporting:
		return e.report(ctx)
	}
	return Idle, fmt.Errorf("the state %q is not known", e.saved.State)
}

// otherwise is the state that follows one that could not do its work: the last column of the table.
func (s State) otherwise() State {
	switch s {
	case Fetching, Verifying, Armed, Rebooting:
		return Failed
	case Trial:
		return RolledBack
	}
	return s
}

// stepsMax breaks loops: so many times one edition may ask for a restart, or be on trial. A flawless update
// takes two; the rest is for power cuts, and for devices that nobody restarts.
const stepsMax = 30

// enter makes next the state. The journal must know of a state on the way to a trial before it is
// entered, or a slot that fails would be tried for ever; of any other it is told as soon as it
// can be written.
func (e *Engine) enter(ctx context.Context, next State, reason error) {
	from := e.saved.State
	e.mu.Lock()
	if u := e.saved.Update; u != nil {
		if reason != nil {
			u.Reason = clean(reason.Error())
			e.advice = clean(adviceOf(reason))
		} else if next == Fetching || next == Committed {
			u.Reason, e.advice = "", ""
		}
		if next == Rebooting || next == Trial {
			u.Steps++
		}
		if u.Steps > stepsMax && next.onTheWay() {
			next, u.Give = Failed, true
			u.Reason = fmt.Sprintf("after %d restarts and trials it is neither committed nor rolled back", stepsMax)
		}
	}
	e.saved.State = next
	e.mu.Unlock()
	err := e.write()
	if err != nil && next.onTheWay() {
		e.mu.Lock()
		e.saved.State = Failed
		e.saved.Update.Reason = clean(err.Error())
		e.mu.Unlock()
		next = Failed
	}
	if from != next {
		e.tell(ctx, from, next)
	}
}

// onTheWay reports whether a trial lies ahead.
func (s State) onTheWay() bool {
	return s == Fetching || s == Verifying || s == Armed || s == Rebooting
}

func (e *Engine) tell(ctx context.Context, from, next State) {
	level := slog.LevelInfo
	attrs := []slog.Attr{slog.String("from", string(from)), slog.String("to", string(next))}
	if u := e.saved.Update; u != nil {
		attrs = append(attrs, slog.String("version", u.Version), slog.String("slot", string(u.Target)))
		if u.Reason != "" {
			attrs = append(attrs, slog.String("reason", u.Reason))
		}
	}
	if next == Failed || next == RolledBack {
		level = slog.LevelWarn
	}
	e.log.LogAttrs(ctx, level, "update", attrs...)
}

// write puts what is known into the journal.
func (e *Engine) write() error {
	e.mu.Lock()
	err := e.journal.append(&e.saved)
	e.unwritten = err != nil
	e.mu.Unlock()
	e.setProblem("journal", err)
	return err
}

// reconcile says what the state is after a start, by what the boot loader's environment says; the
// journal yields. same is that the system has not restarted since a restart was last asked for.
//
//	the old slot runs                   fetching, verifying, failed, rolled-back: as they were
//	  its trial is still to come        armed, rebooting: rebooting
//	  the boot loader forgot it         rebooting, trial: armed again while there are tries
//	  the boot loader gave it up        armed, rebooting, trial: rolled-back
//	the new slot runs, on trial         rolled-back, failed: rolled-back; any other: trial
//	  its trial was cancelled           rolled-back
//	the new slot runs, and is active    committed, but for fetching, verifying, failed: failed
func reconcile(s *saved, env slot.State, same bool) (State, error) {
	u := s.Update
	if u == nil || s.State == Idle || s.State == Reporting {
		if env.OnTrial() {
			return Trial, nil
		}
		return s.State, nil
	}
	switch {
	case env.Running != u.Target:
		return oldSlotRuns(s, env, same)
	case env.Active == u.Target:
		if s.State == Fetching || s.State == Verifying || s.State == Failed {
			return Failed, errors.New("the slots changed places while it was on its way")
		}
		return Committed, nil
	case s.State == RolledBack || s.State == Failed:
		return RolledBack, nil
	case env.OnTrial():
		return Trial, nil
	}
	return RolledBack, errors.New("its trial was cancelled in the boot loader's environment")
}

// errGivenUp is all that is known of a trial that did not get so far as to tell.
var errGivenUp = errors.New("the new slot did not come up: the boot loader gave it up")

func oldSlotRuns(s *saved, env slot.State, same bool) (State, error) {
	u := s.Update
	pending := env.Trial == u.Target
	again := u.OneShot && u.Tries > 0
	switch s.State {
	case Armed:
		if pending {
			return Rebooting, nil
		}
	case Rebooting:
		switch {
		case same, pending && !u.OneShot && u.Restarts < restartsMax, pending && again:
			return Rebooting, nil
		case again:
			return Armed, nil
		}
		return RolledBack, errGivenUp
	case Trial:
		switch {
		case again:
			return Armed, nil
		case u.Last != "":
			return RolledBack, fmt.Errorf("the boot loader gave the new slot up; last seen of it: %s", u.Last)
		}
		return RolledBack, errGivenUp
	case Committed:
		if env.Active != u.Target {
			return RolledBack, fmt.Errorf("the boot loader's environment says that slot %s is active", env.Active)
		}
	}
	return s.State, nil
}

// restartsMax is how often a restart may lead back into the old slot although the boot loader was
// told, and says that it knows.
const restartsMax = 9
