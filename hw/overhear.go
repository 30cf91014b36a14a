package hw

import (
	"context"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/port"
)

// overhear returns the work of a Modbus line that somebody else masters: the values of the
// configured points come from the answers that pass by.
func (l *Line) overhear(p port.Port) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		e := &overheard{line: l}
		timing := l.timing(l.settings)
		spoilt := func(unit byte, frame []byte) {
			l.spoilt(ctx, l.unitAt(unit), "", faultCRC, modbus.ErrCRC, frame, time.Now())
		}
		e.sniffer = modbus.NewSniffer(modbus.SnifferConfig{Framing: l.framing(), Timing: timing, Spoilt: spoilt}, func(t modbus.Transaction) { l.note(ctx, t) })
		s := &listener{Line: l, port: p, ear: e, pause: l.pauseOfModbus(timing), gather: 3 * time.Millisecond}
		return s.work(ctx)
	}
}

// pauseOfModbus is a silence that is longer than any inside of a frame. USB adapters hold bytes back,
// and networks longer, so that t3.5 alone would be too short; in ASCII a second is allowed (Modbus over
// Serial Line V1.02, 2.5.2.1).
func (l *Line) pauseOfModbus(t modbus.Timing) time.Duration {
	switch {
	case l.framing() == modbus.ASCII:
		return time.Second
	case port.IsNetwork(l.config.Port):
		return 100 * time.Millisecond
	}
	return max(t.T35, 20*time.Millisecond)
}

// overheard is the ear for somebody else's Modbus line.
type overheard struct {
	line    *Line
	sniffer *modbus.Sniffer
}

func (e *overheard) feed(_ context.Context, p []byte, now time.Time) { e.sniffer.Feed(p, now) }
func (e *overheard) silence(_ context.Context, now time.Time)        { e.sniffer.Silence(now) }
func (e *overheard) count(w *wire)                                   { w.heard = e.sniffer.Stats() }

// note takes the values of one transaction that was heard.
func (l *Line) note(ctx context.Context, t modbus.Transaction) {
	table, reads := t.Request.Function.Reads()
	if t.Request.Function == modbus.ReadWriteRegisters {
		table, reads = modbus.HoldingRegisters, true
	}
	u := l.unitAt(t.Request.Unit)
	if u == nil || !reads || !t.Answered {
		return
	}
	now := time.Now()
	at := modbus.Address{Table: table, Offset: t.Request.Address}
	if e := t.Response.Exception; e != 0 {
		l.told(ctx, u, u.hear(l, at, int(t.Request.Count), nil, exceptionName(e), now), now)
		return
	}
	if len(t.Response.Data) >= dataBytes(table, int(t.Request.Count)) { // the sniffer sees to that
		l.told(ctx, u, u.hear(l, at, int(t.Request.Count), t.Response.Data, "", now), now)
	}
}

// unitAt returns the unit with a Modbus address, or nil.
func (l *Line) unitAt(address byte) *unit {
	for _, u := range l.units {
		if u.address == address {
			return u
		}
	}
	return nil
}

// hear gives the registers or bits of an answer, n from at on, to the points that lie in them; bad
// is why there are none.
func (u *unit) hear(l *Line, at modbus.Address, n int, raw []byte, bad string, now time.Time) (failed uint64) {
	r := request{at: at, count: uint16(n), every: u.every}
	for _, points := range [...][]*pointState{u.exponents, u.points} {
		for _, p := range points {
			if p.within(&r) && u.turnOf(l, p, now) {
				if bad != "" {
					p.fail(bad)
				} else if !r.decodePoint(p, raw) {
					failed++
				}
			}
		}
	}
	return failed + u.scale()
}

// within tells whether r reads all of the point.
func (p *pointState) within(r *request) bool {
	from := int(p.at.Offset) - int(r.at.Offset)
	return p.at.Table == r.at.Table && from >= 0 && from+p.codec.Type().Registers() <= int(r.count)
}
