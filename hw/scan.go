package hw

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"ferrule/hw/mbus"
	"ferrule/hw/modbus"
	"ferrule/hw/port"
	"ferrule/internal/hint"
)

// ScanConfig says where Scan looks.
type ScanConfig struct {
	// Port as in the configuration of a line.
	Port string
	// Protocol is modbus-rtu, modbus-ascii or mbus; "" is modbus-rtu.
	Protocol string
	// Settings to try, in this order; nil: the usual ones of the protocol.
	Settings []port.Settings
	// First and Last address to ask; 0 and 0: all.
	First, Last int
	// Timeout is how long a unit may take to begin its answer; 0: 100 ms.
	Timeout time.Duration
}

// Found is a unit that answered.
type Found struct {
	Settings string `json:"settings"`
	Address  int    `json:"address"`
	// Secondary is the secondary address of an M-Bus unit.
	Secondary string `json:"secondary,omitempty"`
	// Identity is what the unit says of itself; "" where it says nothing.
	Identity string `json:"identity,omitempty"`
	// Problem says what was wrong with the answer: two units may have the same address.
	Problem string `json:"problem,omitempty"`
}

// ScanProgress is how far a scan has come.
type ScanProgress struct {
	Done, Total int // addresses asked, of all settings
	Settings    string
	Address     int
	New         *Found // that has just answered; nil: nobody
}

// scanTimeout is enough for all units but the slowest.
const scanTimeout = 100 * time.Millisecond

// UsualSettings returns what the units of a protocol are shipped with, the most usual first.
func UsualSettings(protocol string) []port.Settings {
	bauds, forms := []int{9600, 19200, 38400, 115200, 57600, 4800, 2400, 1200}, []string{"8N1", "8E1", "8O1"}
	switch protocol {
	case "modbus-ascii":
		forms = []string{"7E1", "8N1", "7O1", "8E1"}
	case "mbus":
		bauds, forms = []int{2400, 300, 9600, 1200, 4800, 19200, 600, 38400}, []string{"8E1"}
	}
	var all []port.Settings
	for _, baud := range bauds {
		for _, form := range forms {
			all = append(all, port.Settings{Baud: baud, DataBits: int(form[0] - '0'), Parity: form[1], StopBits: 1})
		}
	}
	return all
}

// Scan asks every address of an unknown line, in one setting after the other, and returns who
// answered. It only reads. progress is called after every address.
func Scan(ctx context.Context, c ScanConfig, progress func(ScanProgress), log *slog.Logger) ([]Found, error) {
	s, err := newScan(c, progress)
	if err != nil {
		return nil, err
	}
	p, err := port.Open(ctx, c.Port, port.Options{Settings: s.c.Settings[0], Log: log})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	for _, settings := range s.c.Settings {
		if err := p.Configure(settings); err != nil {
			return s.found, fmt.Errorf("scanning at %s: %w", settings, err)
		}
		s.p.Settings = settings.String()
		if s.c.Protocol == "mbus" {
			err = s.meters(ctx, p, settings)
		} else {
			err = s.units(ctx, p, settings)
		}
		if err != nil {
			return s.found, fmt.Errorf("scanning at %s: %w", settings, err)
		}
	}
	return s.found, nil
}

// scan is one under way.
type scan struct {
	c      ScanConfig
	p      ScanProgress
	report func(ScanProgress)
	found  []Found
}

func newScan(c ScanConfig, report func(ScanProgress)) (*scan, error) {
	p, known := protocolOf(c.Protocol)
	if !known || !p.addressed {
		return nil, hint.With(fmt.Errorf("scanning for %s: its units have no addresses", c.Protocol), "units of modbus-rtu, modbus-ascii and mbus have")
	}
	c.Protocol = p.name
	if len(c.Settings) == 0 {
		c.Settings = UsualSettings(p.name)
	}
	last := maxAddress
	if c.Protocol == "mbus" {
		last = maxMBusAddress
	}
	if c.First == 0 && c.Last == 0 {
		c.First, c.Last = 1, last
	}
	if c.First < 1 || c.Last > last || c.First > c.Last {
		return nil, fmt.Errorf("scanning addresses %d to %d: they are from 1 to %d", c.First, c.Last, last)
	}
	if report == nil {
		report = func(ScanProgress) {}
	}
	if c.Timeout == 0 {
		c.Timeout = scanTimeout
	}
	return &scan{c: c, report: report, p: ScanProgress{Total: len(c.Settings) * (c.Last - c.First + 1)}}, nil
}

// note reports one address that was asked.
func (s *scan) note(address int, found *Found) {
	s.p.Done++
	s.p.Address, s.p.New = address, found
	if found != nil {
		found.Settings = s.p.Settings
		s.found = append(s.found, *found)
	}
	s.report(s.p)
}

// units asks the Modbus units at settings.
func (s *scan) units(ctx context.Context, p port.Port, settings port.Settings) error {
	framing, timing := modbus.RTU, modbus.TimingOf(settings.Baud, settings.BitsPerChar())
	if s.c.Protocol == "modbus-ascii" {
		framing = modbus.ASCII
	}
	if port.IsNetwork(s.c.Port) {
		timing = modbus.Timing{}
	}
	client := modbus.NewClient(p, modbus.ClientConfig{Framing: framing, Timing: timing, Timeout: s.c.Timeout})
	for address := s.c.First; address <= s.c.Last; address++ {
		_, err := client.Read(ctx, byte(address), modbus.Address{Table: modbus.HoldingRegisters}, 1, nil)
		how, _, _ := judge(err)
		switch how {
		case broken:
			return err
		case silence:
			s.note(address, nil)
			continue
		case damaged:
			s.note(address, &Found{Address: address, Problem: err.Error()})
			continue
		}
		s.note(address, &Found{Address: address, Identity: identity(ctx, client, byte(address))})
	}
	return nil
}

// identity is what a unit says of itself (Modbus Application Protocol V1.1b3, 6.21); "" where it
// says nothing.
func identity(ctx context.Context, client *modbus.Client, address byte) string {
	objects, _, err := client.Identify(ctx, address, modbus.BasicObjects, 0)
	if err != nil {
		return ""
	}
	var words []string
	for _, o := range objects {
		words = append(words, strings.TrimSpace(string(o.Value)))
	}
	return strings.Join(words, " ")
}

// meters asks the M-Bus units at settings, by their primary addresses.
func (s *scan) meters(ctx context.Context, p port.Port, settings port.Settings) error {
	master := mbus.NewMaster(p, mbus.Config{Baud: settings.Baud})
	for address := s.c.First; address <= s.c.Last; address++ {
		telegrams, err := master.Read(ctx, mbus.Primary(byte(address)))
		how, _, _ := judge(err)
		switch how {
		case broken:
			return err
		case silence:
			s.note(address, nil)
			continue
		case damaged:
			s.note(address, &Found{Address: address, Problem: err.Error()})
			continue
		}
		found := &Found{Address: address}
		if how == refused {
			found.Problem = err.Error()
		} else if header, err := mbus.ParseHeader(telegrams[0]); err == nil {
			found.Secondary, found.Identity = header.String(), mbus.MediumName(header.Medium)
		}
		s.note(address, found)
	}
	return nil
}
