// Package sunspec finds the points of a unit that describes itself as SunSpec says: a marker, then one
// model after the other, each with its number and its length. The trap is what stands in the
// registers of a value that the unit does not have: every type has a number of its own for that, and
// as a value it would be a very hot, very fast, very long-lived one.
package sunspec

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"ferrule/hw/modbus"
	"ferrule/hw/profile"
)

// Bounds of what a unit can make Discover do.
const (
	maxRead   = modbus.MaxReadRegisters
	maxModels = 256
	maxLength = 4096 // registers of one model
	maxPoints = 4096
)

// bases are where the marker may be, in holding registers (SunSpec Device Information Model
// Specification, 6.2).
var bases = [...]uint16{40000, 50000, 0}

const (
	marker = "SunS"
	end    = 0xFFFF // the number of the model that ends the chain
)

// ErrNone says that the unit has no SunSpec marker at any of the places.
var ErrNone = errors.New("no SunSpec marker")

// Device is what a unit says of itself.
type Device struct {
	Base uint16 // where the marker is
	// From its first common model; "" where it says nothing.
	Manufacturer, Model, Options, Version, Serial string

	Models []Model // in the order of the unit
	Points []profile.Point
	// Stopped says why the chain of models was not followed to its end; "" where it was. What came
	// before is good.
	Stopped string
}

// Model is one model of a unit.
type Model struct {
	ID     uint16
	At     uint16 // its first register, which holds ID
	Length int    // registers after ID and length
	Title  string // "Inverter (Three Phase)"; "" where it is not known
	Points int    // how many of its points the unit has
	// Skipped says why it gives no points, or not all of them: "not known", "exception 2: …", "the
	// scale factor of dc_power is missing". "" where all is well.
	Skipped string
}

// Discover finds the models of a unit and the points that it has. read reads n holding registers, at
// most 125, from address at on, and returns 2n bytes; a unit that gives less in one answer needs a
// read that asks several times. An error of read is taken to mean that there is nothing, where it is
// a modbus.Exception or the marker is looked for; any other ends the search and is returned.
//
// Points that the unit says it does not have are left out, for good: ask again after the unit was
// changed. ErrNone says that it is no SunSpec unit: it answered, and the marker is at none of the places.
func Discover(read func(at uint16, n int) ([]byte, error)) (Device, error) {
	s := &scan{ask: read, used: make(map[string]bool), numbers: make(map[string]int)}
	if err := s.find(); err != nil {
		return Device{}, err
	}
	if err := s.walk(); err != nil {
		return Device{}, err
	}
	return s.device, nil
}

// scan is one search in progress.
type scan struct {
	ask    func(at uint16, n int) ([]byte, error)
	device Device
	used   map[string]bool // names of points
	common bool            // the first common model has been read

	numbers map[string]int // of the last model of that word: 0 without the word, 1 with the word alone
}

// read reads n registers from at on, in as many requests as it takes.
func (s *scan) read(at uint16, n int) ([]byte, error) {
	all := make([]byte, 0, 2*n)
	for len(all) < 2*n {
		done := len(all) / 2
		count := min(n-done, maxRead)
		part, err := s.ask(at+uint16(done), count)
		if err == nil && len(part) != 2*count {
			err = fmt.Errorf("%d bytes are not %d registers", len(part), count)
		}
		if err != nil {
			return nil, fmt.Errorf("reading %d registers from %d on: %w", count, int(at)+done, err)
		}
		all = append(all, part...)
	}
	return all, nil
}

// find looks for the marker. Some units are silent about registers that they do not have: only when
// no place answered is silence more than that.
func (s *scan) find() error {
	var problems []error
	certain := true
	for _, base := range bases {
		got, err := s.read(base, len(marker)/2)
		switch {
		case err == nil && string(got) == marker:
			s.device.Base = base
			return nil
		case errors.Is(err, context.Canceled):
			return err
		case err == nil:
			err = fmt.Errorf("holding register %d holds % x", base, got)
		case !refused(err):
			certain = false
		}
		problems = append(problems, err)
	}
	err := errors.Join(problems...)
	if certain {
		err = fmt.Errorf("%w: %w", ErrNone, err)
	}
	return fmt.Errorf("looking for SunSpec models: %w", err)
}

// walk follows the chain of models. Addresses only rise, so that it ends.
func (s *scan) walk() error {
	at := int(s.device.Base) + len(marker)/2
	for {
		if at+2 > 1<<16 {
			return s.stop("the chain of models runs into the end of the table at %d", at)
		}
		if len(s.device.Models) == maxModels {
			return s.stop("there are more than %d models", maxModels)
		}
		header, err := s.read(uint16(at), 2)
		if refused(err) {
			return s.stop("the chain of models has no end: %v", err)
		} else if err != nil {
			return err
		}
		m := Model{ID: word(header, 0), At: uint16(at), Length: int(word(header, 1))}
		next := at + 2 + m.Length
		switch {
		case m.ID == end:
			return nil
		case next > 1<<16:
			return s.stop("model %d at %d claims %d registers, more than there are", m.ID, at, m.Length)
		}
		if err := s.model(&m); err != nil {
			return err
		}
		s.device.Models = append(s.device.Models, m)
		at = next
	}
}

func (s *scan) stop(format string, args ...any) error {
	s.device.Stopped = fmt.Sprintf(format, args...)
	return nil
}

// refused says that the unit itself answered that it does not have the registers.
func refused(err error) bool {
	_, ok := errors.AsType[modbus.Exception](err)
	return ok
}

// model reads one model and takes its points.
func (s *scan) model(m *Model) error {
	layout := lookup(m.ID)
	switch {
	case layout == nil:
		m.Skipped = "not known"
		return nil
	case m.Length > maxLength:
		m.Title, m.Skipped = layout.title, fmt.Sprintf("%d registers are more than %d", m.Length, maxLength)
		return nil
	}
	m.Title = layout.title
	data, err := s.read(m.At+2, m.Length)
	if refused(err) {
		m.Skipped = err.Error()
		return nil
	} else if err != nil {
		return err
	}
	p := place(layout, m.At+2, data)
	points := p.points(s.names(p, layout.prefix))
	if room := maxPoints - len(s.device.Points); len(points) > room {
		points = points[:room]
		p.skip(fmt.Sprintf("the unit has more than %d points", maxPoints))
	}
	s.device.Points = append(s.device.Points, points...)
	m.Points, m.Skipped = len(points), strings.Join(p.skipped, "; ")
	if m.ID == commonModel && !s.common {
		s.common = true
		s.identify(p)
	}
	return nil
}

// identify takes the texts of the common model.
func (s *scan) identify(p *placed) {
	for _, v := range p.values {
		into := map[string]*string{
			"Mn": &s.device.Manufacturer, "Md": &s.device.Model, "Opt": &s.device.Options,
			"Vr": &s.device.Version, "SN": &s.device.Serial,
		}[v.field.code]
		if into != nil {
			text, _, _ := strings.Cut(string(v.raw), "\x00")
			*into = strings.TrimSpace(text)
		}
	}
}

// names chooses how the names of a model begin: as they are where no model before it has one of
// them, else with the model's word, "meter_power", else with a number, too, "meter_2_power". All
// names of the model count, not only those that the unit has, so that they do not change with its
// firmware.
func (s *scan) names(p *placed, word string) (prefix string) {
	for n := s.numbers[word]; ; n++ {
		switch n {
		case 0:
			prefix = ""
		case 1:
			prefix = word + "_"
		default:
			prefix = fmt.Sprintf("%s_%d_", word, n)
		}
		if !p.conflicts(prefix, s.used) {
			s.numbers[word] = n
			break
		}
	}
	for _, v := range p.values {
		s.used[prefix+v.name] = true
	}
	return prefix
}

// word returns register i of data.
func word(data []byte, i int) uint16 { return uint16(data[2*i])<<8 | uint16(data[2*i+1]) }
