package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// cycle is how long one cut and one kill take when the demo has no end, and about that long
// when it has one.
const cycle = 30 * time.Second

// perform tells the story: the scene, enrollment, the session, the acts, the end.
func (d *demo) perform(ctx context.Context) error {
	d.scene()
	if err := d.enroll(ctx); err != nil {
		return err
	}
	d.world.ledger.tell(listener{d.screen, d.world, &d.signsBefore})
	if err := d.firstReading(); err != nil {
		return err
	}
	defer d.watch()()
	if err := d.acts(ctx); err != nil {
		return err
	}
	return d.finish()
}

func (d *demo) heading(n int, text string) {
	d.screen.line(normal, "")
	d.screen.line(bold, "%d  %s", n, text)
}

func (d *demo) item(name, format string, args ...any) {
	d.screen.line(normal, "   %s  %s", d.screen.paint(dim, fmt.Sprintf("%-10s", name)), fmt.Sprintf(format, args...))
}

// scene names what was built.
func (d *demo) scene() {
	w := d.world
	d.screen.line(bold, "Ferrule: two meters ─ RS-485 ─ agent, key in a TPM ═ mutual TLS ═ MQTT broker")
	d.heading(1, "The world, all of it on loopback and in "+w.dir)
	d.item("broker", "mqtts://%s, client certificates required; a ledger entry before each PUBACK", w.broker.Address())
	d.item("registrar", "https://%s, one-time tokens, and proof that the key lies in a TPM of that maker", w.registrar)
	if w.weak() {
		d.item("TPM", "%s", d.screen.paint(bad, "NONE: swtpm is missing, the key will be a file. WEAK: whoever reads the disk can copy it"))
		d.item("", "%s", "install it: apt-get install swtpm swtpm-tools")
	} else {
		d.item("TPM", "swtpm, a TPM 2.0 in software, certified by a maker of its own; the commands on its socket are counted")
	}
	var units []string
	for _, m := range w.meters {
		units = append(units, fmt.Sprintf("%s at address %d", m.name, m.unit.Address()))
	}
	d.item("line", "%s, Modbus RTU, %s: %s", w.wire.Path(), lineSettings, strings.Join(units, ", "))
	d.item("agent", "%s, a process of its own; polls each meter every %v", shorten(d.program.path), d.every)
}

// shorten gives a path as seen from the working directory, where it is below it.
func shorten(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	if below, err := filepath.Rel(here, path); err == nil && filepath.IsLocal(below) {
		return below
	}
	return path
}

// enroll has the agent make its key and fetch its certificate.
func (d *demo) enroll(ctx context.Context) error {
	d.heading(2, "ferrule enroll: a key in the TPM, proved by the TPM, and a certificate for it")
	token, err := d.world.records.AddToken(device, time.Minute)
	if err != nil {
		return fmt.Errorf("making a token: %w", err)
	}
	said, err := d.program.enroll(ctx, token)
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimSpace(said), "\n") {
		d.screen.line(normal, "   %s", line)
	}
	d.enrollment = d.counters()
	if d.world.weak() {
		return nil
	}
	d.item("TPM", "%d commands, of these %d Sign: the new key's self-test and the certificate request", d.enrollment.commands, d.enrollment.signs)
	record, err := d.world.records.Device(device)
	if err != nil {
		return fmt.Errorf("reading the registrar's record: %w", err)
	}
	d.item("registrar", "checked the TPM's certificate, the key's attributes and one challenge: this is EK %.16s…", record.EK)
	return nil
}

// firstReading starts the agent and waits until the broker has an entry of each meter.
func (d *demo) firstReading() error {
	d.heading(3, "ferrule run: what the broker receives")
	if err := d.start(); err != nil {
		return err
	}
	err := d.until("the first readings", func() bool {
		for _, u := range tally(d.evidence()).units {
			if u.received == 0 {
				return false
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	return d.learnKey()
}

// acts cuts the network and kills the agent, once in a demo of about 30 seconds, again and
// again in a longer one, until its time is over or ctx ends.
func (d *demo) acts(ctx context.Context) error {
	end := d.screen.started.Add(d.length)
	for ctx.Err() == nil {
		length := cycle
		if d.length > 0 {
			left := time.Until(end)
			if left <= cycle/2 && len(d.kills) > 0 {
				break
			}
			length = left / max(1, (left+cycle/2)/cycle)
		}
		if err := d.cutNetwork(ctx, length); err != nil {
			return err
		}
		if err := d.killAgent(ctx, length); err != nil {
			return err
		}
	}
	if d.length > 0 {
		pause(ctx, end)
	}
	return nil
}

// share is a part of length in per cent, at most so many seconds.
func share(length time.Duration, percent, most int) time.Duration {
	return min(length*time.Duration(percent)/100, time.Duration(most)*time.Second)
}

// cutNetwork takes the network away for some seconds. Readings wait, and come in order when
// it is back.
func (d *demo) cutNetwork(ctx context.Context, length time.Duration) error {
	if pause(ctx, time.Now().Add(share(length, 15, 6))); ctx.Err() != nil {
		return nil
	}
	away := share(length, 16, 5)
	d.screen.event(act, "━━ the network is cut for %.1f s: connections broken, new ones refused", away.Seconds())
	d.world.broker.Cut()
	before := d.counters()
	pause(ctx, time.Now().Add(away))
	waiting := d.waiting()
	if err := d.world.broker.Mend(); err != nil {
		return err
	}
	d.screen.event(act, "━━ the network is back; %d readings wait for the agent's next attempt", len(waiting))
	d.cuts++
	back := func() bool { c := d.counters(); return c.full+c.resumed > before.full+before.resumed }
	if err := d.backlog(func() bool { return back() && d.drained() }); err != nil {
		return err
	}
	spent, come := d.counters().minus(before), d.world.ledger.has(waiting)
	d.screen.event(mood(come == len(waiting)), "━━ %d of %d that waited have come, lost %d%s", come, len(waiting), len(waiting)-come, d.price(spent))
	return nil
}

// backlog waits until all is there that is owed. What does not come is for the tally to say.
func (d *demo) backlog(done func() bool) error {
	err := d.until("the backlog", done)
	if errors.Is(err, errLate) {
		d.screen.event(bad, "━━ %d readings have not come within %v", len(d.waiting()), patience)
		d.givenUp = time.Now()
		return nil
	}
	return err
}

// mood is how a line looks that says whether something held.
func mood(held bool) style {
	if held {
		return good
	}
	return bad
}

// price says what the reconnect has cost.
func (d *demo) price(spent counters) string {
	text := fmt.Sprintf("; handshakes: %d full, %d resumed", spent.full, spent.resumed)
	if !d.world.weak() {
		text += fmt.Sprintf("; TPM Sign: %d", spent.signs)
	}
	return text
}

// killAgent kills the agent while the network is away, so that what waits has no other place
// than the agent's disk, and starts it again.
func (d *demo) killAgent(ctx context.Context, length time.Duration) error {
	if pause(ctx, time.Now().Add(share(length, 10, 4))); ctx.Err() != nil {
		return nil
	}
	d.screen.event(act, "━━ the network is cut again, and this time the agent will not live to see it back")
	d.world.broker.Cut()
	// Long enough for some readings to be older than what a crash may cost.
	pause(ctx, time.Now().Add(max(share(length, 12, 4), 17*syncWithin/10)))
	waiting, boot := d.waiting(), d.world.ledger.boot()
	pid := d.process.Process.Pid
	k := kill{at: d.process.kill()}
	d.ended("kill -9")
	older := 0
	for older < len(waiting) && waiting[older].at.Before(k.at.Add(-syncWithin)) {
		older++
	}
	d.screen.event(act, "━━ kill -9 of process %d with %d readings waiting, %d of them longer than %v", pid, len(waiting), older, syncWithin)
	pause(ctx, time.Now().Add(share(length, 5, 1)))
	if err := d.world.broker.Mend(); err != nil {
		return err
	}
	before := d.counters()
	k.restarted = time.Now()
	d.kills = append(d.kills, k)
	if err := d.start(); err != nil {
		return err
	}
	d.screen.event(act, "━━ the network is back and the agent is started again, process %d", d.process.Process.Pid)
	// What comes of the first life comes before what the second one reads.
	if err := d.backlog(func() bool { return d.drained() && d.world.ledger.heardSince(boot) == len(d.world.meters) }); err != nil {
		return err
	}
	spent, come := d.counters().minus(before), d.world.ledger.has(waiting[:older])
	d.screen.event(mood(come == older), "━━ of the %d that had waited longer %d have come, lost %d; of the %d younger ones %d%s",
		older, come, older-come, len(waiting)-older, d.world.ledger.has(waiting[older:]), d.price(spent))
	return nil
}

// finish stops the agent between two polls and lets it drain.
func (d *demo) finish() error {
	if err := d.backlog(d.betweenPolls); err != nil {
		return err
	}
	d.screen.event(act, "━━ the agent is stopped by SIGTERM: it drains, says good-bye and ends")
	d.stopped = time.Now()
	if err := d.process.stop(); err != nil {
		return err
	}
	d.ended("SIGTERM")
	return nil
}
