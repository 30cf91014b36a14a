package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"ferrule/hw"
	"ferrule/hw/hwtest"
	"ferrule/hw/modbus"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// Of the dead unit's measurement.
const (
	aliveUnits = 9
	deadWatch  = 20 * time.Second
)

// deadUnit measures what a unit that does not answer costs the nine others of a line that has no
// time to spare: the same line with it and without it, in turn.
func deadUnit(ctx context.Context, o options) ([]row, error) {
	var with, without, first, share spread
	for rep := range o.reps {
		say("rep %d: nine units, and then a dead one beside them", rep+1)
		alone, err := answersPerSecond(ctx, aliveUnits)
		if err != nil {
			return nil, err
		}
		beside, err := answersPerSecond(ctx, aliveUnits+1)
		if err != nil {
			return nil, err
		}
		without, with = append(without, alone.steady), append(with, beside.steady)
		share = append(share, 100*beside.steady/alone.steady)
		first = append(first, 100*beside.start/alone.start)
	}
	return []row{
		{
			what: "line: answers per second of nine units at 115200 baud, a dead tenth beside them", ours: with.text("%.1f", ""),
			peer: "without it " + without.text("%.1f", ""),
		},
		{
			what: "  per cent of the rate without it", ours: share.text("%.1f", ""),
			target: fmt.Sprintf("≥ %v", leastWithDead), met: share.median() >= leastWithDead,
		},
		{what: "  the same for the first ten seconds", ours: first.text("%.1f", "")},
	}, nil
}

// rate is answers per second: in the first half of the watch, in which the line finds out about
// its units, and in the second.
type rate struct{ start, steady float64 }

// answersPerSecond runs a line that is polled faster than it can be; nine units of it answer.
func answersPerSecond(ctx context.Context, configured int) (r rate, err error) {
	wire, err := hwtest.NewWire(hwtest.WireConfig{Baud: 115200})
	if err != nil {
		return r, err
	}
	defer wire.Close()
	c := hw.LineConfig{Name: "rs485-1", Port: wire.Path(), Settings: "115200 8E1"}
	var alive []*hwtest.Unit
	for i := range configured {
		address := i + 1
		c.Units = append(c.Units, hw.UnitConfig{
			Name: fmt.Sprintf("unit-%d", address), Address: address, Every: quantity.Duration(20 * time.Millisecond),
			Points: []profile.Point{{Name: "a", At: "input:0", Type: "float64"}, {Name: "b", At: "input:4", Type: "float64"}},
		})
		if i < aliveUnits {
			unit := hwtest.NewUnit(byte(address))
			unit.Delay(2 * time.Millisecond)
			unit.Set(modbus.InputRegisters, 0, make([]uint16, 8)...)
			wire.Attach(unit)
			alive = append(alive, unit)
		}
	}
	line, err := hw.New(c, func(context.Context, hw.Poll) error { return nil }, slog.New(slog.DiscardHandler))
	if err != nil {
		return r, err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- line.Run(running) }() // ends with running
	defer func() { stop(); <-ended }()
	answered := func() (n int) {
		for _, unit := range alive {
			n += len(unit.Ledger())
		}
		return n
	}
	half := (deadWatch / 2).Seconds()
	if err := sleep(ctx, deadWatch/2); err != nil {
		return r, err
	}
	middle := answered()
	err = sleep(ctx, deadWatch/2)
	r.start, r.steady = float64(middle)/half, float64(answered()-middle)/half
	if s := line.Status(); s.Polls == 0 || r.steady == 0 {
		return r, fmt.Errorf("%w: the line does not work: %+v", errVoid, s)
	}
	return r, err
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
