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
		units := make(modbus.Units)
		server := modbus.NewServer(p, modbus.ServerConfig{Framing: l.framing(), Timing: l.timing(l.settings)}, units.At)
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

// written decodes the points whose registers the master has written by now, the n from at on last. A
// point of several registers may take several writes; before the last it is half the old value.
func (u *unit) written(l *Line, at modbus.Address, n int, now time.Time) (failed uint64) {
	for _, p := range u.points {
		size := p.codec.Type().Registers()
		from, to := int(at.Offset)-int(p.at.Offset), int(at.Offset)+n-int(p.at.Offset)
		if p.at.Table != at.Table || from >= size || to <= 0 {
			continue
		}
		for i := max(from, 0); i < min(to, size); i++ {
			p.fresh.add(i)
		}
		if !p.fresh.full(size) {
			continue
		}
		p.fresh = bits{}
		u.turnOf(l, p, now)
		if e := p.exponent; e != nil { // which may be written seldom
			e.settle(e.codec.Decode(u.image.raw(e.at, e.codec.Type().Registers())))
		}
		if !p.decode(u.image.raw(p.at, size)) {
			failed++
		}
	}
	return failed + u.scale()
}

// bits is a set of up to 128 registers of a point.
type bits [2]uint64

func (b *bits) add(i int) { b[i/64%2] |= 1 << (i % 64) }

// full tells whether all of the first n are in the set.
func (b *bits) full(n int) bool {
	for i := range n {
		if b[i/64%2]&(1<<(i%64)) == 0 {
			return false
		}
	}
	return true
}

// setImage is a write to a unit of ours.
func (l *Line) setImage(u *unit, p *pointState, value point.Value) (Written, error) {
	var exponent point.Value
	words, err := p.encode(value, func() (v point.Value, err error) {
		exponent, err = p.exponent.codec.Decode(u.image.raw(p.exponent.at, p.exponent.codec.Type().Registers()))
		return exponent, err
	})
	if err != nil {
		return Written{}, err
	}
	if err := u.image.set(p.at, p.codec.Mask(), words); err != nil {
		return Written{}, err
	}
	w := Written{Line: l.config.Name, Unit: u.name, Point: p.name, Value: value, Verified: true}
	w.Read, err = p.held(words, exponent)
	return w, err
}
