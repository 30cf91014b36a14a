package hw

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"ferrule/hw/mbus"
	"ferrule/hw/modbus"
	"ferrule/hw/port"
)

func (l *Line) compileUnits(k *checker) {
	names, addresses := make(map[string]bool), make(map[string]string)
	for _, c := range l.config.Units {
		uk := k.in("unit", c.Name)
		if names[c.Name] {
			uk.wrong("name", "", errors.New("another unit of the line has the same name"))
		}
		names[c.Name] = true
		u := l.compileUnit(uk, c)
		if where := u.where(); l.protocol.addressed {
			if other, taken := addresses[where]; taken {
				uk.wrong("address", "give each unit on the line an address of its own, or put all its points into one unit",
					fmt.Errorf("unit %q has the address %s already", other, where))
			}
			addresses[where] = c.Name
		}
		l.units = append(l.units, u)
		k.problems = append(k.problems, uk.problems...)
	}
	if len(k.problems) > 0 {
		return
	}
	for _, u := range l.units {
		l.scheduleUnit(u)
	}
}

// where is the address of the unit, for people.
func (u *unit) where() string {
	if u.meter.Secondary() {
		return u.meter.String()
	}
	return strconv.Itoa(int(u.address))
}

func (l *Line) compileUnit(k *checker, c UnitConfig) *unit {
	k.name(c.Name)
	l.refuseKeys(k, c)
	u := &unit{
		config: c, line: l.config.Name, name: c.Name, match: c.Match, device: c.Device, broadcast: c.Broadcast, state: UnitNew, learns: c.Holes != "fill",
		timeout:    k.duration("timeout", c.Timeout, l.hush(), minTimeout, l.longestTimeout()),
		turnaround: k.duration("turnaround", c.Turnaround, 0, 0, maxTurnaround),
		every:      k.duration("every", c.Every, l.usualEvery(), minEvery, maxEvery),
		limits:     modbus.Cost{Framing: l.framing(), MaxRegisters: c.MaxRegisters, MaxBits: c.MaxBits, Holes: c.Holes != "never"},
		discovers:  c.Profile == sunSpec || !l.protocol.registers && len(c.Points) == 0,
	}
	for _, p := range c.Points {
		if p.Uom != "" && u.uom == nil {
			u.uom = make(map[string]string)
		}
		if p.Uom != "" {
			u.uom[p.Name] = p.Uom
		}
	}
	if l.protocol.name == "frame" { // whose decoder names the units itself
		u.match = c.Name
	}
	settings := l.settings
	if c.Settings != "" {
		settings = k.settings(c.Settings, l.protocol)
		u.settings = settings
	}
	u.timing = modbus.TimingOf(settings.Baud, settings.BitsPerChar())
	if !slices.Contains([]string{"", "learn", "fill", "never"}, c.Holes) {
		k.wrong("holes", "", fmt.Errorf("%q is none of learn, fill, never", c.Holes))
	}
	if c.MaxRegisters < 0 || c.MaxRegisters > modbus.MaxReadRegisters || c.MaxBits < 0 || c.MaxBits > modbus.MaxReadBits {
		k.wrong("max_registers", "", fmt.Errorf("one answer carries 1 to %d registers, or 1 to %d bits", modbus.MaxReadRegisters, modbus.MaxReadBits))
	}
	l.compileAddress(k, c, u)
	l.compilePoints(k, c.Points, u)
	if l.role == UnitRole {
		u.image = newImage(slices.Concat(u.points, u.exponents))
	}
	if l.role == Master && !l.protocol.registers { // which is read out whole, for the fastest of its points
		for _, p := range u.points {
			u.every = min(u.every, p.every)
		}
	}
	return u
}

// refuseKeys names keys that mean nothing on the line: whoever writes them expects something else.
func (l *Line) refuseKeys(k *checker, c UnitConfig) {
	master, registers := l.role == Master, l.protocol.registers
	for _, key := range [...]struct {
		name       string
		set, means bool
	}{
		{"address", c.Address != 0, l.protocol.addressed && !c.Broadcast && c.Secondary == ""},
		{"secondary", c.Secondary != "", l.protocol.name == "mbus"},
		{"device", c.Device != "", master && l.protocol.name == "dsmr"},
		{"broadcast", c.Broadcast, master && registers},
		{"match", c.Match != "", !l.protocol.addressed},
		{"profile", c.Profile != "", registers && (master || c.Profile != sunSpec)},
		{"settings", c.Settings != "", master && l.protocol.addressed},
		{"every", c.Every != 0, l.role != UnitRole},
		{"timeout", c.Timeout != 0, l.role != UnitRole},
		{"turnaround", c.Turnaround != 0, registers},
		{"max_registers", c.MaxRegisters != 0, registers},
		{"max_bits", c.MaxBits != 0, registers},
		{"holes", c.Holes != "", registers},
	} {
		if key.set && !key.means {
			k.wrong(key.name, "leave the key out", fmt.Errorf("it means nothing for this unit of a line that speaks %s and %s", l.protocol.name, l.role.describe()))
		}
	}
}

// framing is how frames are marked on a Modbus line.
func (l *Line) framing() modbus.Framing {
	if l.protocol.name == "modbus-ascii" {
		return modbus.ASCII
	}
	return modbus.RTU
}

// longestTimeout is what a unit may take: to answer, or to speak.
func (l *Line) longestTimeout() time.Duration {
	if l.asksUnits() {
		return maxTimeout
	}
	return maxEvery
}

// asksUnits tells whether the units of the line are asked one by one.
func (l *Line) asksUnits() bool { return l.role == Master && l.protocol.open != nil }

// usualEvery is how often a unit is polled that does not say.
func (l *Line) usualEvery() time.Duration {
	switch {
	case !l.asksUnits():
		return 0
	case l.protocol.every > 0:
		return l.protocol.every
	}
	return defaultEvery
}

func (l *Line) compileAddress(k *checker, c UnitConfig, u *unit) {
	low, high := 1, maxAddress
	if l.protocol.name == "mbus" {
		low, high = 0, maxMBusAddress
	}
	var err error
	switch {
	case !l.protocol.addressed, c.Broadcast && l.protocol.registers:
	case c.Secondary != "":
		if u.meter, err = mbus.ParseSecondary(c.Secondary); err != nil {
			k.wrong("secondary", `"12345678" or "12345678-ACW-14-07"`, err)
		}
	case c.Address < low || c.Address > high:
		k.wrong("address", "", fmt.Errorf("%d is none of %d to %d", c.Address, low, high))
	default:
		u.address = byte(c.Address)
		u.meter = mbus.Primary(u.address)
	}
}

// scheduleUnit gives a unit its requests.
func (l *Line) scheduleUnit(u *unit) {
	switch {
	case !l.asksUnits() || u.broadcast:
		return
	case l.protocol.registers && !u.discovers:
		u.replan()
	default:
		u.class(u.every).requests = []*request{{every: u.every}}
	}
}

// tunedTo is how the port is set for u, nil for an address without a unit.
func (l *Line) tunedTo(u *unit) port.Settings {
	if u == nil || u.settings == (port.Settings{}) {
		return l.settings
	}
	return u.settings
}
