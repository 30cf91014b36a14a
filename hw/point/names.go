package point

import (
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// setNaN reads Spec.NaN.
func (c *Codec) setNaN(all []string) error {
	for _, s := range all {
		u, err := c.typ.parseBits(s)
		if err != nil {
			return wrong("nan", "%q %w", s, err)
		}
		c.nan = append(c.nan, u)
	}
	return nil
}

// parseBits reads what the registers of a point hold: 0x… the bits themselves, else a number.
func (t Type) parseBits(s string) (uint64, error) {
	if !t.Numeric() {
		return 0, fmt.Errorf("has no meaning for the type %s", t)
	}
	if digits, hex := cutHex(s); hex {
		u, err := strconv.ParseUint(digits, 16, 64)
		if err != nil || t.size < 64 && u >= 1<<t.size {
			return 0, fmt.Errorf("is not %d bits", t.size)
		}
		return u, nil
	}
	if t.kind == float {
		f, err := strconv.ParseFloat(s, 64)
		u, fits := bitsOfFloat(f, t.size)
		if err != nil || !fits {
			return 0, fmt.Errorf("is no %s", t)
		}
		return u, nil
	}
	negative, magnitude, err := parseInteger(s)
	if err != nil || !t.fits(negative, magnitude) {
		return 0, fmt.Errorf("is no %s", t)
	}
	return t.integerBits(negative, magnitude), nil
}

func cutHex(s string) (digits string, ok bool) {
	if digits, ok = strings.CutPrefix(s, "0x"); !ok {
		digits, ok = strings.CutPrefix(s, "0X")
	}
	return digits, ok
}

// parseInteger reads a decimal number with an optional minus, or 0x and digits without.
func parseInteger(s string) (negative bool, magnitude uint64, err error) {
	digits, base := s, 10
	if rest, hex := cutHex(s); hex {
		digits, base = rest, 16
	} else if rest, minus := strings.CutPrefix(s, "-"); minus {
		digits, negative = rest, true
	}
	magnitude, err = strconv.ParseUint(digits, base, 64)
	return negative, magnitude, err
}

// setNames reads Spec.Values and Spec.Flags.
func (c *Codec) setNames(values, flags map[string]string) error {
	if len(values) > 0 && len(flags) > 0 {
		return wrong("flags", "a point has values or flags, not both")
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := c.addValue(key, values[key]); err != nil {
			return &SpecError{"values", err}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(flags)) {
		if err := c.addFlag(key, flags[key]); err != nil {
			return &SpecError{"flags", err}
		}
	}
	return nil
}

func (c *Codec) addValue(key, name string) error {
	negative, magnitude, err := parseInteger(key)
	switch {
	case c.typ.kind == text:
		return errors.New("text has no names for its values")
	case err != nil:
		return fmt.Errorf("%q is no whole number", key)
	case c.typ.kind == float && magnitude >= maxExact || c.typ.kind != float && !c.typ.fits(negative, magnitude):
		return fmt.Errorf("%s does not fit %s", key, c.typ)
	}
	if err := checkName(key, name); err != nil {
		return err
	}
	n := int64(magnitude)
	if negative {
		n = -n
	}
	if other, taken := c.values[n]; taken {
		return fmt.Errorf("%s is named twice, %q and %q", key, other, name)
	}
	if c.values == nil {
		c.values = make(map[int64]string)
	}
	c.values[n] = name
	return nil
}

func (c *Codec) addFlag(key, name string) error {
	if c.typ.kind != integer && c.typ.kind != signed && c.typ.kind != field {
		return fmt.Errorf("%s has no flags; int, uint and bits@a..b have", c.typ)
	}
	n, err := strconv.ParseUint(key, 10, 8)
	if err != nil || n >= uint64(c.typ.size) {
		return fmt.Errorf("%q is no bit of %s, 0 to %d", key, c.typ, c.typ.size-1)
	}
	if err := checkName(key, name); err != nil {
		return err
	}
	if c.flags == nil {
		c.flags = make([]string, c.typ.size)
	}
	switch number, numbered := unnamedBit(name); {
	case strings.Contains(name, ","):
		return fmt.Errorf("the name %q has a comma, which stands between names", name)
	case numbered && number != int(n):
		return fmt.Errorf("%q stands for another bit than %s", name, key)
	case slices.Contains(c.flags, name):
		return fmt.Errorf("two bits have the name %q", name)
	case c.flags[n] != "":
		return fmt.Errorf("bit %s is named twice, %q and %q", key, c.flags[n], name)
	}
	c.flags[n] = name
	return nil
}

func checkName(key, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the name of %s is empty", key)
	case name != strings.TrimSpace(name):
		return fmt.Errorf("the name %q begins or ends with a space", name)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("the name %q is no plain text", name)
	}
	return nil
}

// flagNames returns the names of the bits set in u.
func (c *Codec) flagNames(u uint64) string {
	if bits.OnesCount64(u) == 1 {
		if n := bits.TrailingZeros64(u); n < len(c.flags) && c.flags[n] != "" {
			return c.flags[n]
		}
	}
	var names []byte
	for ; u != 0; u &= u - 1 {
		if names != nil {
			names = append(names, ',')
		}
		if n := bits.TrailingZeros64(u); n < len(c.flags) && c.flags[n] != "" {
			names = append(names, c.flags[n]...)
		} else {
			names = strconv.AppendInt(append(names, "bit"...), int64(n), 10)
		}
	}
	return string(names)
}

// unnamedBit reads "bit5".
func unnamedBit(name string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(name, "bit")
	if !ok {
		return 0, false
	}
	small, err := parseSmall(digits, 0, 63)
	return int(small), err == nil
}

// named reports whether the point has names for its values.
func (c *Codec) named() bool { return c.values != nil || c.flags != nil }

// bitsOfName is the inverse of Decode's names.
func (c *Codec) bitsOfName(name string) (uint64, error) {
	if c.flags != nil {
		return c.bitsOfFlags(name)
	}
	for _, n := range slices.Sorted(maps.Keys(c.values)) {
		switch {
		case c.values[n] != name:
		case c.typ.kind == float:
			u, _ := bitsOfFloat(float64(n), c.typ.size)
			return u, nil
		case c.typ.kind == signed:
			return c.typ.integerBits(n < 0, abs(n)), nil
		default:
			return c.typ.integerBits(false, uint64(n)), nil
		}
	}
	return 0, fmt.Errorf("%w: %q is none of %s", ErrKind, name, strings.Join(c.names(), ", "))
}

func (c *Codec) bitsOfFlags(names string) (uint64, error) {
	var u uint64
	if strings.TrimSpace(names) == "" {
		return 0, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		name = strings.TrimSpace(name)
		n := slices.Index(c.flags, name)
		if number, ok := unnamedBit(name); ok && number < len(c.flags) {
			n = number
		}
		if n < 0 || name == "" {
			return 0, fmt.Errorf("%w: %q is none of %s", ErrKind, name, strings.Join(c.names(), ", "))
		}
		u |= 1 << n
	}
	return u, nil
}

// names returns the names that can be written, by their numbers.
func (c *Codec) names() []string {
	var all []string
	for _, n := range slices.Sorted(maps.Keys(c.values)) {
		all = append(all, c.values[n])
	}
	for _, name := range c.flags {
		if name != "" {
			all = append(all, name)
		}
	}
	return all
}

// Parse reads a value as a person types it for the point: a name of its Values or Flags, or else
// as the function Parse does.
func (c *Codec) Parse(s string) (Value, error) {
	if !c.named() {
		return Parse(s, c.typ)
	}
	_, unknown := c.bitsOfName(s)
	if unknown == nil {
		return String(s), nil
	}
	if v, err := Parse(s, c.typ); err == nil {
		return v, nil
	}
	return Value{}, unknown
}
