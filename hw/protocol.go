package hw

import (
	"errors"
	"slices"
	"strings"
	"time"

	"ferrule/hw/dsmr"
	"ferrule/hw/frame"
	"ferrule/hw/modbus"
	"ferrule/hw/nmea"
	"ferrule/hw/point"
	"ferrule/hw/port"
	"ferrule/hw/sml"
	"ferrule/hw/text"
	"ferrule/hw/vedirect"
	"ferrule/internal/hint"
)

// Role is what a line is on its wire.
type Role string

// The roles of a line.
const (
	Master   Role = "master" // asks its units
	Listen   Role = "listen" // sends nothing: it hears talkers, or units that somebody else asks
	UnitRole Role = "unit"   // answers a master, such as a PLC
)

func (r Role) describe() string {
	return map[Role]string{Master: "asks", Listen: "listens", UnitRole: "answers a master"}[r]
}

// protocol is what Ferrule knows of one protocol.
type protocol struct {
	name     string
	settings string // the usual ones
	// settingsAsMaster are the usual ones of a master, where they differ.
	settingsAsMaster string
	every            time.Duration // how often a master asks usually; 0: once a second
	roles            []Role        // the first is the usual one
	// registers says that units have addresses, and points registers.
	registers bool
	addressed bool // units have addresses
	open      func(*Line, port.Port) driver
	// listen makes what cuts and decodes the bytes of a line that listens.
	listen func(LineConfig) (*frame.Cutter, decoder, error)
	// silence is longer than any pause inside of a frame.
	silence time.Duration
	// hush is how long a talker may be silent before its points are bad; 0: for ever.
	hush time.Duration
	cost func(u *unit, r *request) time.Duration
}

// decoder makes readings of the frames that a line hears.
type decoder interface {
	Decode(dst []point.Reading, frame []byte) (name string, readings []point.Reading, err error)
}

// talkerHush is how long a talker that speaks every few seconds may be silent.
const talkerHush = 30 * time.Second

// protocols returns all that a line can speak, in the order of the documentation.
func protocols() []protocol {
	cutter := func(split frame.Split, size int, d decoder) (*frame.Cutter, decoder, error) {
		return frame.NewCutter(split, size), d, nil
	}
	masters := []Role{Master, Listen, UnitRole}
	return []protocol{
		{name: "modbus-rtu", settings: "19200 8E1", roles: masters, registers: true, addressed: true, open: openModbus, cost: registerCost},
		{name: "modbus-ascii", settings: "9600 7E1", roles: masters, registers: true, addressed: true, open: openModbus, cost: registerCost},
		{name: "mbus", settings: "2400 8E1", roles: []Role{Master}, every: 10 * time.Second, addressed: true, open: openMBus, cost: mbusCost},
		{
			name: "dsmr", settings: "115200 8N1", settingsAsMaster: "300 7E1", every: time.Minute, roles: []Role{Listen, Master}, silence: 2 * time.Second, hush: talkerHush,
			listen: func(LineConfig) (*frame.Cutter, decoder, error) {
				return cutter(dsmr.Split, dsmr.MaxFrame, new(dsmr.Decoder))
			},
			open: openReadout, cost: readoutCost,
		},
		{
			name: "sml", settings: "9600 8N1", roles: []Role{Listen}, silence: time.Second, hush: talkerHush,
			listen: func(LineConfig) (*frame.Cutter, decoder, error) {
				return cutter(sml.Split, sml.MaxFrame, new(sml.Decoder))
			},
		},
		{
			name: "vedirect", settings: "19200 8N1", roles: []Role{Listen}, silence: time.Second, hush: talkerHush,
			listen: func(LineConfig) (*frame.Cutter, decoder, error) {
				return cutter(vedirect.Split, vedirect.MaxFrame, new(vedirect.Decoder))
			},
		},
		{
			name: "nmea", settings: "4800 8N1", roles: []Role{Listen}, silence: time.Second, hush: talkerHush,
			listen: func(LineConfig) (*frame.Cutter, decoder, error) {
				return cutter(nmea.Split, nmea.MaxFrame, new(nmea.Decoder))
			},
		},
		{
			name: "text", settings: "9600 8N1", roles: []Role{Listen, Master}, silence: 2 * time.Second,
			listen: listenText,
		},
		{
			name: "frame", settings: "9600 8N1", roles: []Role{Listen}, silence: 500 * time.Millisecond,
			listen: listenFrames,
		},
		{name: "raw", settings: "9600 8N1", roles: []Role{Listen}, silence: 50 * time.Millisecond, listen: listenRaw},
	}
}

func listenText(c LineConfig) (*frame.Cutter, decoder, error) {
	config := text.Default()
	if c.Text != nil {
		config = *c.Text
	}
	cutter, d, err := text.New(config)
	return cutter, d, err
}

// listenFrames hands the places and types of the points to the decoder, who knows the bytes.
func listenFrames(c LineConfig) (*frame.Cutter, decoder, error) {
	if c.Frame == nil {
		return nil, nil, hint.With(errors.New("the table [line.frame] is missing"), "docs/frame.md has examples")
	}
	var units []frame.Unit
	for _, u := range c.Units {
		unit := frame.Unit{Name: u.Name, Match: u.Match}
		for _, p := range u.Points {
			unit.Points = append(unit.Points, frame.Point{Name: p.Name, At: p.At, Type: p.Type, Order: p.Order, Scale: p.Scale, Offset: p.Offset, Uom: p.Uom})
		}
		units = append(units, unit)
	}
	cutter, d, err := frame.New(*c.Frame, units)
	return cutter, d, err
}

// listenRaw takes whatever comes between two silences.
func listenRaw(LineConfig) (*frame.Cutter, decoder, error) {
	cutter, d, err := frame.New(frame.Raw(), nil)
	return cutter, d, err
}

// protocolOf finds a protocol by its name; "" is Modbus RTU.
func protocolOf(name string) (protocol, bool) {
	all := protocols()
	i := slices.IndexFunc(all, func(p protocol) bool { return p.name == orDefault(name, all[0].name) })
	if i < 0 {
		return all[0], false
	}
	return all[i], true
}

func protocolNames() string {
	var names []string
	for _, p := range protocols() {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// registerCost is what a Modbus request takes on the wire.
func registerCost(u *unit, r *request) time.Duration {
	return modbus.Cost{Timing: u.timing, Framing: u.limits.Framing}.Of(r.at.Table, int(r.count))
}
