package hw

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"ferrule/hw/profile"
)

// Resolve puts the points of the profiles that the units name before their own, which override
// them.
func (c *LineConfig) Resolve(library *profile.Library) error {
	var problems []error
	for i := range c.Units {
		u := &c.Units[i]
		if u.Profile == "" || u.Profile == sunSpec {
			continue
		}
		p, err := library.Get(u.Profile)
		if err != nil {
			problems = append(problems, fmt.Errorf("line %q, unit %q: profile: %w", c.Name, u.Name, err))
			continue
		}
		if err := u.adopt(p, c.Role == "" || c.Role == Master); err != nil {
			problems = append(problems, fmt.Errorf("line %q, unit %q: select: %w", c.Name, u.Name, err))
		}
	}
	return errors.Join(problems...)
}

// adopt takes over what the profile says and the unit does not; how it is asked only where it is.
func (c *UnitConfig) adopt(p profile.Profile, asks bool) error {
	own := make(map[string]bool)
	for _, q := range c.Points {
		own[q.Name] = true
	}
	var points []profile.Point
	for _, q := range p.Points {
		if !own[q.Name] && c.selects(q.Name) {
			points = append(points, q)
		}
	}
	for _, pattern := range c.Select {
		if !slices.ContainsFunc(p.Points, func(q profile.Point) bool { return matches(pattern, q.Name) }) {
			return fmt.Errorf("profile %s has no point %q", p.Name, pattern)
		}
	}
	c.Points = append(points, c.Points...)
	if !asks {
		return nil
	}
	inherit(&c.Every, p.Unit.Every)
	inherit(&c.Timeout, p.Unit.Timeout)
	inherit(&c.Turnaround, p.Unit.Turnaround)
	inherit(&c.MaxRegisters, p.Unit.MaxRegisters)
	inherit(&c.MaxBits, p.Unit.MaxBits)
	inherit(&c.Holes, p.Unit.Holes)
	return nil
}

// inherit fills a key that the configuration leaves out.
func inherit[T comparable](key *T, standard T) {
	var zero T
	if *key == zero {
		*key = standard
	}
}

func (c *UnitConfig) selects(name string) bool {
	return len(c.Select) == 0 || slices.ContainsFunc(c.Select, func(pattern string) bool { return matches(pattern, name) })
}

// matches tells whether name is what the pattern says, in which * stands for any characters;
// the empty pattern for any name.
func matches(pattern, name string) bool {
	if pattern == "" {
		return true
	}
	head, tail, any := strings.Cut(pattern, "*")
	name, begins := strings.CutPrefix(name, head)
	if !begins || !any {
		return begins && name == ""
	}
	for {
		part, rest, more := strings.Cut(tail, "*")
		if !more {
			return strings.HasSuffix(name, tail)
		}
		_, after, found := strings.Cut(name, part)
		if !found {
			return false
		}
		name, tail = after, rest
	}
}
