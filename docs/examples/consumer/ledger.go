package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// ledger knows which entries came, and so which did not. Numbers rise by one over all lines of a
// device, but messages keep their order per unit only: a number that is missing now may come yet, and
// what was missing when its unit went on is lost.
type ledger struct {
	devices map[string]*device
}

type device struct {
	boots []*boot // the oldest first
}

// boot is one start of the agent.
type boot struct {
	number             uint64
	seen               []span // in order, with gaps between
	entries, duplicate uint64
}

// span is the numbers from first to last.
type span struct{ first, last uint64 }

// note takes one entry of a device. It answers what is worth saying: "" for the next in order.
func (l *ledger) note(name string, number, seq uint64) (fresh bool, event string) {
	if l.devices == nil {
		l.devices = make(map[string]*device)
	}
	d := l.devices[name]
	if d == nil {
		d = &device{}
		l.devices[name] = d
	}
	at, known := slices.BinarySearchFunc(d.boots, number, func(b *boot, n uint64) int { return cmp.Compare(b.number, n) })
	if !known {
		d.boots = slices.Insert(d.boots, at, &boot{number: number})
		if len(d.boots) > 1 {
			event = fmt.Sprintf("%s: boot %d: another start of the agent", name, number)
		}
	}
	b := d.boots[at]
	if !b.add(seq) {
		b.duplicate++
		return false, fmt.Sprintf("%s: boot %d: %d came again", name, number, seq)
	}
	b.entries++
	return true, event
}

// add answers false for a number that was there.
func (b *boot) add(seq uint64) bool {
	at, _ := slices.BinarySearchFunc(b.seen, seq, func(s span, n uint64) int { return cmp.Compare(s.first, n) })
	if at < len(b.seen) && b.seen[at].first == seq || at > 0 && b.seen[at-1].last >= seq {
		return false
	}
	before := at > 0 && b.seen[at-1].last+1 == seq
	after := at < len(b.seen) && b.seen[at].first == seq+1
	switch {
	case before && after:
		b.seen[at-1].last = b.seen[at].last
		b.seen = slices.Delete(b.seen, at, at+1)
	case before:
		b.seen[at-1].last = seq
	case after:
		b.seen[at].first = seq
	default:
		b.seen = slices.Insert(b.seen, at, span{seq, seq})
	}
	return true
}

// missing is what has not come: from 1, with which every start begins, to the highest that came.
func (b *boot) missing() (gaps []span) {
	next := uint64(1)
	for _, s := range b.seen {
		if s.first > next {
			gaps = append(gaps, span{next, s.first - 1})
		}
		next = s.last + 1
	}
	return gaps
}

// report prints a line for every start of every device.
func (l *ledger) report(w io.Writer) {
	names := make([]string, 0, len(l.devices))
	for name := range l.devices {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, b := range l.devices[name].boots {
			fmt.Fprintf(w, "%s: boot %d: %d entries up to %d, %d came again", name, b.number, b.entries, b.seen[len(b.seen)-1].last, b.duplicate)
			gaps := b.missing()
			if len(gaps) == 0 {
				fmt.Fprint(w, ", none is missing")
			}
			for i, gap := range gaps {
				word := ", "
				if i == 0 {
					word = "; missing: "
				}
				fmt.Fprintf(w, "%s%d-%d", word, gap.first, gap.last)
			}
			fmt.Fprintln(w)
		}
	}
}
