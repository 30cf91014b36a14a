package hw

import (
	"context"
	"sync"
	"time"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/port"
)

// image is what the registers of a unit hold that answers a master.
type image struct {
	mu    sync.Mutex
	words map[modbus.Address]uint16
}

// newImage has the registers of the points, all 0.
func newImage(points []*pointState) *image {
	m := &image{words: make(map[modbus.Address]uint16)}
	for _, p := range points {
		for i := range p.codec.Type().Registers() {
			m.words[modbus.Address{Table: p.at.Table, Offset: p.at.Offset + uint16(i)}] = 0
		}
	}
	return m
}

// get fills values from at on; exception 2 where there is no register.
func (m *image) get(at modbus.Address, values []uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range values {
		word, ok := m.words[modbus.Address{Table: at.Table, Offset: at.Offset + uint16(i)}]
		if !ok {
			return illegalAddress
		}
		values[i] = word
	}
	return nil
}

// set changes the bits of mask from at on, in all registers or, where one is missing, in none.
func (m *image) set(at modbus.Address, mask uint16, values []uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range values {
		if _, ok := m.words[modbus.Address{Table: at.Table, Offset: at.Offset + uint16(i)}]; !ok {
			return illegalAddress
		}
	}
	for i, v := range values {
		a := modbus.Address{Table: at.Table, Offset: at.Offset + uint16(i)}
		m.words[a] = m.words[a]&^mask | v&mask
	}
	return nil
}

// raw returns the n registers from at on as they would come over the wire; nil where one is missing.
func (m *image) raw(at modbus.Address, n int) []byte {
	words := make([]uint16, n)
	if m.get(at, words) != nil {
		return nil
	}
	raw := make([]byte, 0, 2*n)
	for _, w := range words {
		if at.Table.Bits() {
			raw = append(raw, byte(w))
		} else {
			raw = append(raw, byte(w>>8), byte(w))
		}
	}
	return raw
}

// serve returns the work of a line whose units answer a master, such as a PLC. What it writes are
// the readings; what Line.Write sets is what it reads.
func (l *Line) serve(p port.Port) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		framing := modbus.RTU
		if l.protocol.name == "modbus-ascii" {
			framing = modbus.ASCII
		}
		units := make(modbus.Units)
		server := modbus.NewServer(p, modbus.ServerConfig{Framing: framing, Timing: l.timing(l.settings)}, units.At)
		for _, u := range l.units {
			units[u.address] = &answering{line: l, unit: u, server: server, ctx: ctx}
		}
		return server.Run(ctx)
	}
}

// answering is a unit of ours, as a server sees it.
type answering struct {
	line   *Line
	unit   *unit
	server *modbus.Server
	ctx    context.Context // that the server runs in, which calls without one
}

// Read implements modbus.Unit.
func (a *answering) Read(t modbus.Table, from uint16, values []uint16) error {
	a.seen()
	return a.unit.image.get(modbus.Address{Table: t, Offset: from}, values)
}

// Write implements modbus.Unit.
func (a *answering) Write(t modbus.Table, from uint16, values []uint16) error {
	a.seen()
	at := modbus.Address{Table: t, Offset: from}
	if err := a.unit.image.set(at, 0xffff, values); err != nil {
		return err
	}
	now := time.Now()
	failed := a.unit.written(a.line, at, len(values), now)
	a.line.told(a.ctx, a.unit, failed, now)
	return nil
}

func (a *answering) seen() {
	a.line.carried(a.ctx)
	a.line.count(func() { a.line.wire.served = a.server.Stats() })
}

// written decodes the points that have one of the n registers from at on.
func (u *unit) written(l *Line, at modbus.Address, n int, now time.Time) (failed uint64) {
	for _, points := range [...][]*pointState{u.exponents, u.points} {
		for _, p := range points {
			size := p.codec.Type().Registers()
			apart := int(p.at.Offset)+size <= int(at.Offset) || int(at.Offset)+n <= int(p.at.Offset)
			if p.at.Table != at.Table || apart || !u.turnOf(l, p, now) {
				continue
			}
			if !p.decode(u.image.raw(p.at, size)) {
				failed++
			}
		}
	}
	return failed + u.scale()
}

// setImage is a write to a unit of ours.
func (l *Line) setImage(u *unit, p *pointState, value point.Value) (Written, error) {
	words, err := p.encode(value, func() (point.Value, error) {
		return p.exponent.codec.Decode(u.image.raw(p.exponent.at, 1))
	})
	if err != nil {
		return Written{}, err
	}
	if err := u.image.set(p.at, p.codec.Mask(), words); err != nil {
		return Written{}, err
	}
	return Written{Line: l.config.Name, Unit: u.name, Point: p.name, Value: value, Read: value, Verified: true}, nil
}
