package main

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"ferrule/agent/agenttest"
)

// check is one thing that had to hold.
type check struct {
	held bool
	text string
}

// verdict is what the end of the demo is judged by.
type verdict struct {
	total       total
	connections []agenttest.Connection
	lives       []life
	cuts        int // after each the session is to be resumed
	enrollment  counters
	key         keyFacts
	weak        bool // there is no swtpm on this machine
}

// checks lists what had to hold, in the order of the page.
func (v verdict) checks() []check {
	t := v.total
	received := t.sum(func(u unitTally) int { return u.received })
	disorder := t.sum(func(u unitTally) int { return u.disorder })
	wrong := t.sum(func(u unitTally) int { return u.wrong }) + t.strangers
	list := []check{
		{t.lost() == 0 && received > 0, fmt.Sprintf("%d lost", t.lost())},
		{t.gaps == 0 && t.twice == 0, fmt.Sprintf("%d sequence numbers missing in %d boots, %d polls under two numbers", t.gaps, t.boots, t.twice)},
		{disorder == 0, fmt.Sprintf("%d entries came after a later one of their meter", disorder)},
		{wrong == 0 && t.unreadable == 0, fmt.Sprintf("%d values differ from what the meter had, %d polls could not be read", wrong, t.unreadable)},
		v.sessions(),
		v.handshakes(),
	}
	if v.weak {
		return append(list, check{true, fmt.Sprintf("the key is a WEAK software key (%s), for want of swtpm on this machine", v.key.ref)})
	}
	return append(list, v.signatures(),
		check{v.key.inTPM, fmt.Sprintf("key %s: in the TPM 2.0 (%s)", v.key.ref, v.key.vendor)})
}

// sessions checks that every session was mutual TLS 1.3 with the device's own certificate.
func (v verdict) sessions() check {
	var names, versions []string
	for _, c := range v.connections {
		names, versions = append(names, c.CommonName), append(versions, c.TLSVersion)
	}
	slices.Sort(names)
	slices.Sort(versions)
	names, versions = slices.Compact(names), slices.Compact(versions)
	return check{
		slices.Equal(names, []string{device}) && slices.Equal(versions, []string{"TLS 1.3"}),
		fmt.Sprintf("%d sessions, mutual %s, client certificate CN=%s", len(v.connections), strings.Join(versions, " and "), strings.Join(names, " and ")),
	}
}

// handshakes checks that each session after a cut was resumed.
func (v verdict) handshakes() check {
	var sum counters
	for _, l := range v.lives {
		sum.full, sum.resumed = sum.full+l.full, sum.resumed+l.resumed
	}
	return check{
		sum.resumed >= int64(v.cuts) && sum.full == int64(len(v.lives)),
		fmt.Sprintf("%d full TLS handshakes for %d starts of the agent, %d resumed for %d cuts of the network", sum.full, len(v.lives), sum.resumed, v.cuts),
	}
}

// signatures checks, for each life of the agent, one TPM signature per full handshake and none
// per resumed one.
func (v verdict) signatures() check {
	var signs int64
	held := len(v.lives) > 0
	for _, l := range v.lives {
		held = held && l.full > 0 && l.signs == l.full
		signs += l.signs
	}
	return check{held, fmt.Sprintf("%d TPM Sign: one per full handshake, none per resumed one (%d more at enrollment)", signs, v.enrollment.signs)}
}

// report prints the page at the end and returns whether everything held.
func (d *demo) report() bool {
	v := verdict{
		total: tally(d.evidence()), connections: d.world.broker.Connections(), lives: d.lives, cuts: d.cuts,
		enrollment: d.enrollment, key: d.key, weak: d.world.weak(),
	}
	d.heading(4, fmt.Sprintf("Tally after %.0f s", time.Since(d.screen.started).Seconds()))
	d.printUnits(v.total)
	d.printLives()
	held := true
	for _, c := range v.checks() {
		mark := d.screen.paint(good, "✔")
		if !c.held {
			mark, held = d.screen.paint(bad, "✘"), false
		}
		d.screen.line(normal, "   %s  %s", mark, c.text)
	}
	d.screen.line(normal, "")
	for _, line := range definition(syncWithin) {
		d.screen.line(dim, "   %s", line)
	}
	return held
}

// definition says what the words of the tally mean.
func definition(sync time.Duration) []string {
	return []string{
		"Answered: by the meters' own ledgers. Received: by the broker's, written before each PUBACK.",
		fmt.Sprintf("Lost: answered and never received, but for polls answered less than %v before a kill -9", sync),
		"(inside the sync window: on no disk yet, nothing is promised) or once SIGTERM was sent (after the stop).",
		"Again: the same boot and seq came once more; at least once is the promise, and a consumer drops these.",
		"Order is that of each meter's topic: a backlog goes out joined, topic by topic.",
	}
}

func (d *demo) printUnits(t total) {
	header := fmt.Sprintf("   %-24s", "polls")
	for _, u := range t.units {
		header += fmt.Sprintf("%10s", u.unit)
	}
	d.screen.line(bold, "%s%10s", header, "both")
	for _, row := range []struct {
		name string
		of   func(unitTally) int
	}{
		{"answered", func(u unitTally) int { return u.taken }},
		{"received", func(u unitTally) int { return u.received }},
		{"inside the sync window", func(u unitTally) int { return u.unsynced }},
		{"after the stop", func(u unitTally) int { return u.unfinished }},
		{"lost", func(u unitTally) int { return u.lost }},
		{"received again", func(u unitTally) int { return u.duplicates }},
	} {
		text := fmt.Sprintf("   %-24s", row.name)
		for _, u := range t.units {
			text += fmt.Sprintf("%10d", row.of(u))
		}
		d.screen.line(normal, "%s%10d", text, t.sum(row.of))
	}
	d.screen.line(normal, "")
}

func (d *demo) printLives() {
	d.screen.line(bold, "   %-24s%10s%10s%10s%14s", "the agent's process", "full", "resumed", "TPM Sign", "disk writes")
	for i, l := range d.lives {
		signs := "-"
		if !d.world.weak() {
			signs = fmt.Sprint(l.signs)
		}
		d.screen.line(normal, "   %-24s%10d%10d%10s%14s", fmt.Sprintf("%d, ended by %s", i+1, l.ended), l.full, l.resumed, signs, d.written(l))
	}
	d.screen.line(normal, "")
}

// written is what a process wrote to disk, for people.
func (d *demo) written(l life) string {
	const tmpfs = 0x01021994 // TMPFS_MAGIC, statfs(2)
	var s syscall.Statfs_t
	if syscall.Statfs(d.world.dir, &s) == nil && s.Type == tmpfs {
		return "(tmpfs)"
	}
	return fmt.Sprintf("%d KiB", (l.written+1023)/1024)
}
