package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"ferrule/agent"
)

// waiting lists the polls that have not reached the broker, the oldest first. Those that a
// kill before has excused are not among them, nor those that were given up.
func (d *demo) waiting() []poll {
	e := d.evidence()
	received := make(map[pollID]bool, len(e.arrivals))
	for _, a := range e.arrivals {
		received[pollID{a.unit, a.count}] = true
	}
	list := slices.DeleteFunc(e.polls, func(p poll) bool {
		return received[pollID{p.unit, p.count}] || e.unsynced(p) || p.at.Before(d.givenUp)
	})
	slices.SortFunc(list, func(a, b poll) int { return a.at.Compare(b.at) })
	return list
}

// drained reports whether all has reached the broker, but perhaps what was just polled.
func (d *demo) drained() bool {
	w := d.waiting()
	return len(w) == 0 || time.Since(w[0].at) < min(d.every, 100*time.Millisecond)
}

// betweenPolls reports whether a meter was polled just now and nothing is owed.
func (d *demo) betweenPolls() bool {
	var newest time.Time
	for _, p := range d.world.polls() {
		if p.at.After(newest) {
			newest = p.at
		}
	}
	return len(d.waiting()) == 0 && time.Since(newest) < d.every/4
}

// keyFacts is what the agent says of its key, and what its state folder shows.
type keyFacts struct {
	ref, vendor, firmware string
	inTPM                 bool
}

// learnKey asks the agent where its key is, and looks for it.
func (d *demo) learnKey() error {
	s, err := d.program.status(context.Background())
	if err != nil {
		return fmt.Errorf("running ferrule status: %w", err)
	}
	d.key.ref = s.Identity.Key
	if s.Identity.TPM != nil {
		d.key.vendor, d.key.firmware = s.Identity.TPM.Manufacturer, s.Identity.TPM.Firmware
	}
	text, err := os.ReadFile(d.world.path("state", "device.key"))
	d.key.inTPM = err == nil && !s.Identity.Weak && strings.Contains(string(text), "BEGIN TSS2 PRIVATE KEY")
	return nil
}

// watch shows how the counts stand, until the function it returns is called: below the other
// lines on a terminal, now and then as a line of its own elsewhere.
func (d *demo) watch() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		step := 500 * time.Millisecond
		if !d.screen.live {
			step = 5 * time.Second
		}
		tick := time.NewTicker(step)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				s, err := d.program.status(ctx)
				if ctx.Err() != nil {
					return
				}
				d.show(s, err)
			}
		}
	})
	return func() {
		cancel()
		done.Wait()
		d.screen.below()
	}
}

// show prints the state of things. The counts are the meters' and the broker's; the rest is
// what the agent says of itself.
func (d *demo) show(s agent.Status, err error) {
	polls := d.world.polls()
	received := d.world.ledger.has(polls)
	counts := fmt.Sprintf("taken %d  received %d  on the way %d  again %d", len(polls), received, len(polls)-received, d.world.ledger.again())
	state := "the agent does not run"
	if err == nil {
		state = fmt.Sprintf("session %s  outbox %d", s.Session.Stage, s.Outbox.Depth)
		if next := time.Until(s.Session.NextAttempt); next > 0 {
			state += fmt.Sprintf("  next attempt in %.1f s", next.Seconds())
		}
		if tpm := s.Identity.TPM; tpm != nil {
			state += fmt.Sprintf("  TPM commands %d, Sign %d", tpm.Total(), tpm.Commands["Sign"])
		}
	}
	if d.screen.live {
		d.screen.below(d.screen.paint(dim, strings.Repeat("─", 78)), " "+d.screen.paint(bold, counts), " "+state)
		return
	}
	d.screen.event(normal, "counts   %s; %s", counts, state)
}
