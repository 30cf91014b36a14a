package hw

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
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
	// Address of the unit; -1 for an M-Bus unit that was found by its secondary address only.
	Address int `json:"address"`
	// Secondary is the secondary address of an M-Bus unit.
	Secondary string `json:"secondary,omitempty"`
	// Identity is what the unit says of itself; "" where it says nothing.
	Identity string `json:"identity,omitempty"`
	// Problem says what was wrong with the answer: two units may have the same address.
	Problem string `json:"problem,omitempty"`
}

// ScanProgress is how far a scan has come.
type ScanProgress struct {
	Done     float64 // from 0 to 1, of all settings
	Settings string
	Next     string // the address that is asked next
	New      *Found // that has just answered; nil: nobody
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
	for i, settings := range s.c.Settings {
		s.tried = i
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
	s.progress(1, "")
	return s.found, nil
}

// scan is one under way.
type scan struct {
	c      ScanConfig
	p      ScanProgress
	tried  int // settings
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
	return &scan{c: c, report: report}, nil
}

// progress tells which part of the current settings is done, and what is asked next.
func (s *scan) progress(done float64, next string) {
	s.p.Done = (float64(s.tried) + done) / float64(len(s.c.Settings))
	s.p.Next = next
	s.report(s.p)
}

// note tells of a unit that answered.
func (s *scan) note(f Found) {
	f.Settings = s.p.Settings
	s.found = append(s.found, f)
	s.p.New = &f
	s.report(s.p)
	s.p.New = nil
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
		s.progress(float64(address-s.c.First)/float64(s.c.Last-s.c.First+1), strconv.Itoa(address))
		_, err := client.Read(ctx, byte(address), modbus.Address{Table: modbus.HoldingRegisters}, 1, nil)
		switch how, _, _ := judge(err); how {
		case broken:
			return err
		case damaged:
			s.note(Found{Address: address, Problem: err.Error()})
		case answered, refused:
			s.note(Found{Address: address, Identity: identity(ctx, client, byte(address))})
		}
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

// meters asks the M-Bus units at settings: by their primary addresses, which many still share as the
// maker set them, and then by their secondary ones.
func (s *scan) meters(ctx context.Context, p port.Port, settings port.Settings) error {
	master := mbus.NewMaster(p, mbus.Config{Baud: settings.Baud})
	known := make(map[string]bool)
	half := 0.0
	look := mbus.Scan{
		Found: func(f mbus.Found) {
			found := Found{Address: f.Address.Primary(), Secondary: f.Header.String(), Identity: mbus.MediumName(f.Header.Medium)}
			if f.Err != nil {
				found = Found{Address: found.Address, Secondary: f.Address.String(), Problem: f.Err.Error()}
			}
			if f.Address.Secondary() && known[found.Secondary] {
				return
			}
			known[found.Secondary] = true
			s.note(found)
		},
		Progress: func(done float64, next mbus.Address) { s.progress(half+done/2, next.String()) },
	}
	if err := master.ScanPrimary(ctx, byte(s.c.First), byte(s.c.Last), look); err != nil {
		return err
	}
	half = 0.5
	return master.ScanSecondary(ctx, mbus.Everybody(), look)
}
