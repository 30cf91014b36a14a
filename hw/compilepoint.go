package hw

import (
	"errors"
	"fmt"

	"ferrule/hw/modbus"
	"ferrule/hw/obis"
	"ferrule/hw/point"
	"ferrule/hw/profile"
)

func (l *Line) compilePoints(k *checker, points []profile.Point, u *unit) {
	names := make(map[string]*pointState)
	for _, p := range points {
		pk := k.in("point", p.Name)
		if names[p.Name] != nil {
			pk.wrong("name", "", errors.New("another point of the unit has the same name"))
		}
		q := l.compilePoint(pk, p, u)
		names[p.Name] = q
		u.points = append(u.points, q)
		if u.broadcast && p.Write == nil {
			pk.wrong("write", "", errors.New("the points of a broadcast can only be written"))
		}
		k.problems = append(k.problems, pk.problems...)
	}
	u.byKey = make(map[string]*pointState)
	for i, p := range u.points {
		u.byKey[p.key] = p
		if points[i].ScaleFactor != "" {
			pk := k.in("point", p.name)
			u.scaleBy(pk, p, points[i].ScaleFactor, names)
			k.problems = append(k.problems, pk.problems...)
		}
	}
	for _, p := range u.points {
		if p.exponent != nil && p.exponent.exponent != nil {
			pk := k.in("point", p.name)
			pk.wrong("scale_factor", "", errors.New("the scale factor has one itself"))
			k.problems = append(k.problems, pk.problems...)
		}
	}
}

// scaleBy finds the register with the power of ten of p: another point of the unit, or an address.
// It is read at least as often as p, so that both come in one poll.
func (u *unit) scaleBy(k *checker, p *pointState, reference string, names map[string]*pointState) {
	e := pointState{every: p.every}
	if named := names[reference]; named != nil {
		zero, _ := named.codec.Decode(make([]byte, 8))
		if _, whole := zero.Int64(); !whole {
			k.wrong("scale_factor", "", fmt.Errorf("the point %q is no whole number", reference))
			return
		}
		if named.every <= p.every {
			p.exponent = named
			return
		}
		e.at, e.codec = named.at, named.codec
	} else {
		at, err := modbus.ParseAddress(reference)
		if err != nil || at.Table.Bits() {
			k.wrong("scale_factor", "", fmt.Errorf("%q is neither a point of the unit nor the address of a register", reference))
			return
		}
		signed, _ := point.ParseType("int16") // as SunSpec says
		e.at, e.codec = at, k.codec(point.Spec{Type: signed})
	}
	for _, known := range u.exponents {
		if known.at == e.at && known.codec.Type() == e.codec.Type() {
			known.every = min(known.every, p.every)
			p.exponent = known
			return
		}
	}
	p.exponent = &e
	u.exponents = append(u.exponents, &e)
}

func (l *Line) compilePoint(k *checker, c profile.Point, u *unit) *pointState {
	k.name(c.Name)
	p := &pointState{
		name:       c.Name,
		key:        orDefault(c.At, c.Name),
		uom:        c.Uom,
		every:      k.duration("every", c.Every, u.every, minEvery, maxEvery),
		deadband:   c.Deadband,
		maxSilence: c.MaxSilence.Std(),
		write:      c.Write,
	}
	if !(c.Deadband >= 0) {
		k.wrong("deadband", "", fmt.Errorf("%v is no distance", c.Deadband))
	}
	if !l.protocol.registers {
		l.compileHeard(k, c, p)
		return p
	}
	if l.role == UnitRole {
		p.every = 0 // the master writes when it likes
		if at, err := modbus.ParseAddress(c.At); err == nil && (at.Table == modbus.InputRegisters || at.Table == modbus.DiscreteInputs) {
			c.Write = nil // for the master they are read only, and for nobody else
		}
	}
	r, problems := c.Compile(u.limits.MaxRegisters)
	for _, e := range problems {
		k.wrong(e.Key, "", e.Err)
	}
	p.at, p.codec = r.At, r.Codec
	return p
}

// compileHeard checks a point that is made of a reading: it has a name and a value already.
func (l *Line) compileHeard(k *checker, c profile.Point, p *pointState) {
	switch l.protocol.name {
	case "frame": // its decoder knows where the point is, its type and its scale
		p.key, c.Scale, c.Offset = c.Name, 1, 0
	case "dsmr", "sml": // "1-0:1.8.0" is the reading that has a name of ours
		p.key = obis.NameOf(p.key)
	}
	if c.Write != nil {
		k.wrong("write", "", fmt.Errorf("on a line that speaks %s nothing can be written", l.protocol.name))
	}
	if c.ScaleFactor != "" {
		k.wrong("scale_factor", "", fmt.Errorf("a line that speaks %s has no registers", l.protocol.name))
	}
	if c.Type != "" && l.protocol.name != "frame" {
		k.wrong("type", "leave the key out", fmt.Errorf("a reading of %s has its type already", l.protocol.name))
	}
	typ := point.Float64()
	if len(c.Flags) > 0 { // bits are those of an integer
		typ, _ = point.ParseType("uint32")
	}
	p.codec = k.codec(point.Spec{Type: typ, Scale: c.Scale, Offset: c.Offset, NaN: c.NaN, Values: c.Values, Flags: c.Flags})
}
