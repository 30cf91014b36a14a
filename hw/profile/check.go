package profile

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ferrule/hw/modbus"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
	"ferrule/internal/strict"
)

const (
	protocolRTU   = "modbus-rtu"
	protocolASCII = "modbus-ascii"

	minEvery      = 10 * time.Millisecond
	maxEvery      = 24 * time.Hour
	minTimeout    = 10 * time.Millisecond
	maxTimeout    = time.Minute
	maxTurnaround = time.Second
	maxAddress    = 247 // Modbus over Serial Line V1.02, 2.2

	// discovered is the name by which a unit is asked for its points; no file may take it.
	discovered = "sunspec"
)

// checker collects the mistakes of a profile with their places.
type checker struct {
	path     string
	places   strict.Places
	problems []error
}

// wrong notes that the value of key is wrong; a repair of "" is none.
func (c *checker) wrong(key, repair string, err error) {
	line, column := c.places.Of(key)
	name := key[strings.LastIndexByte(key, '.')+1:]
	err = &strict.Error{Path: c.path, Line: line, Column: column, Err: fmt.Errorf("%s: %w", name, err)}
	if repair != "" {
		err = hint.With(err, repair)
	}
	c.problems = append(c.problems, err)
}

func (c *checker) profile(p Profile, file string) {
	switch {
	case !validName(file):
		c.wrong("name", "rename the file", fmt.Errorf("the file's name %q is not made of small letters, digits and dashes", file))
	case file == discovered:
		c.wrong("name", "rename the file", fmt.Errorf("%q stands for units that are asked for their points", discovered))
	case p.Name != file:
		c.wrong("name", "", fmt.Errorf("%q is not the name of the file, %q", p.Name, file))
	}
	if p.Title == "" {
		c.wrong("title", "", errors.New("the title is missing"))
	}
	if p.Source == "" {
		c.wrong("source", "say which manual the numbers are from", errors.New("the source is missing"))
	}
	if p.Protocol != protocolRTU && p.Protocol != protocolASCII {
		c.wrong("protocol", "", fmt.Errorf("%q is neither %s nor %s", p.Protocol, protocolRTU, protocolASCII))
	}
	c.unit(p.Unit)
	if len(p.Points) == 0 {
		c.wrong("point", "write one [[point]] for each value", errors.New("the profile has no points"))
	}
	names := make(map[string]bool)
	for i, point := range p.Points {
		key := "point[" + strconv.Itoa(i) + "]"
		if names[point.Name] {
			c.wrong(key+".name", "", fmt.Errorf("another point is called %q, too", point.Name))
		}
		names[point.Name] = true
		c.point(key+".", point, p.Unit)
		c.scaleFactor(key+".", point, p.Points)
	}
}

// unit checks [unit]. Settings are not read here: they are the port's words.
func (c *checker) unit(u Unit) {
	if u.Address < 0 || u.Address > maxAddress {
		c.wrong("unit.address", "", fmt.Errorf("%d is none of 1 to %d", u.Address, maxAddress))
	}
	c.duration("unit.every", u.Every, minEvery, maxEvery)
	c.duration("unit.timeout", u.Timeout, minTimeout, maxTimeout)
	c.duration("unit.turnaround", u.Turnaround, 0, maxTurnaround)
	if u.MaxRegisters < 0 || u.MaxRegisters > modbus.MaxReadRegisters {
		c.wrong("unit.max_registers", "", fmt.Errorf("%d is none of 1 to %d", u.MaxRegisters, modbus.MaxReadRegisters))
	}
	if u.MaxBits < 0 || u.MaxBits > modbus.MaxReadBits {
		c.wrong("unit.max_bits", "", fmt.Errorf("%d is none of 1 to %d", u.MaxBits, modbus.MaxReadBits))
	}
	switch u.Holes {
	case "", "learn", "fill", "never":
	default:
		c.wrong("unit.holes", "", fmt.Errorf("%q is none of learn, fill, never", u.Holes))
	}
}

func (c *checker) point(key string, p Point, u Unit) {
	if err := CheckName(p.Name); err != nil {
		c.wrong(key+"name", "", err)
	}
	c.duration(key+"every", p.Every, minEvery, maxEvery)
	if !(p.Deadband >= 0) {
		c.wrong(key+"deadband", "", fmt.Errorf("%v is no distance", p.Deadband))
	}
	_, problems := p.Compile(u.MaxRegisters)
	for _, e := range problems {
		c.wrong(key+e.Key, "", e.Err)
	}
}

// scaleFactor checks that the reference is a number among the points, or the address of a
// register.
func (c *checker) scaleFactor(key string, p Point, all []Point) {
	if p.ScaleFactor == "" || slices.ContainsFunc(all, func(q Point) bool { return q.Name == p.ScaleFactor && q.Name != p.Name }) {
		return
	}
	at, err := modbus.ParseAddress(p.ScaleFactor)
	if err != nil || at.Table.Bits() {
		c.wrong(key+"scale_factor", "", fmt.Errorf("%q is neither a point of the profile nor the address of a register", p.ScaleFactor))
	}
}

func (c *checker) duration(key string, d quantity.Duration, low, high time.Duration) {
	if d != 0 && (d.Std() < low || d.Std() > high) {
		c.wrong(key, "", fmt.Errorf("%s is not between %s and %s", d, low, quantity.Duration(high)))
	}
}

// validName says whether name may be that of a profile: what is safe in a file's name, in a
// command line, and cannot lead out of a directory.
func validName(name string) bool {
	other := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }
	return name != "" && len(name) <= maxName && name[0] != '-' && !strings.ContainsFunc(name, other)
}
