package profile

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/internal/hint"
)

// Registers is a point of a Modbus unit: where it is, and how its registers are read and written.
type Registers struct {
	At    modbus.Address
	Codec point.Codec
}

// Compile checks the keys of p that say where the point is, what it is and what may be written, and
// returns what they mean; max is how many registers the unit gives in one answer, 0: as many as the
// protocol allows. Each error names its key, and those that are easily made carry a hint.
func (p Point) Compile(max int) (r Registers, problems []*point.SpecError) {
	wrong := func(key, repair string, err error) {
		if repair != "" {
			err = hint.With(err, repair)
		}
		problems = append(problems, &point.SpecError{Key: key, Err: err})
	}
	var err error
	if r.At, err = modbus.ParseAddress(p.At); err != nil {
		wrong("at", `write the table and the address from 0 on: "input:0x000C", "holding:100"`, err)
		return r, problems
	}
	typ, err := p.typeAt(r.At.Table)
	if err != nil {
		wrong("type", "", err)
		return r, problems
	}
	if err := fits(typ, r.At, max); err != nil {
		wrong("at", "", err)
	}
	order, err := point.ParseOrder(p.Order)
	if err != nil {
		wrong("order", "ferrule read shows a value in every order", err)
	}
	r.Codec, err = point.NewCodec(point.Spec{Type: typ, Order: order, Scale: p.Scale, Offset: p.Offset,
		NaN: p.NaN, Values: p.Values, Flags: p.Flags})
	if bad, ok := errors.AsType[*point.SpecError](err); ok {
		problems = append(problems, bad)
	}
	if p.ScaleFactor != "" && (!typ.Numeric() || typ.Bit() || len(p.Flags) > 0) {
		wrong("scale_factor", "", fmt.Errorf("%s has no scale factor", typ))
	}
	p.Write.check(r.At, typ, wrong)
	return r, problems
}

// typeAt is the type of a point in a table.
func (p Point) typeAt(t modbus.Table) (point.Type, error) {
	name := p.Type
	switch {
	case name == "" && t.Bits():
		name = "bit"
	case name == "":
		name = "uint16"
	}
	typ, err := point.ParseType(name)
	switch {
	case err != nil:
	case t.Bits() && !typ.Bit():
		err = hint.With(fmt.Errorf("what is in the table %s is a bit, not %s", t, typ), "leave the key out")
	case !t.Bits() && typ.Bit():
		err = hint.With(fmt.Errorf("a register has 16 bits, and %s names none", typ), `name the bit: "bit@0" is the least significant of the register`)
	}
	return typ, err
}

// fits tells whether one request can read a point.
func fits(typ point.Type, at modbus.Address, max int) error {
	most := modbus.MaxReadRegisters
	if max > 0 {
		most = min(max, most)
	}
	switch n := typ.Registers(); {
	case int(at.Offset)+n > 1<<16:
		return fmt.Errorf("%s does not fit between %d and the end of the table, 65535", typ, at.Offset)
	case n > most:
		return fmt.Errorf("%s has %d registers, and the unit gives %d in one answer", typ, n, most)
	}
	return nil
}

// check checks the bounds of a writable point.
func (w *Write) check(at modbus.Address, typ point.Type, wrong func(key, repair string, err error)) {
	switch {
	case w == nil:
	case at.Table != modbus.Coils && at.Table != modbus.HoldingRegisters:
		wrong("write", "only coils and holding registers can be written", fmt.Errorf("the table %s is read only", at.Table))
	case typ.ReadOnly():
		wrong("write", "", fmt.Errorf("%s is a part of two registers, which no function writes alone", typ))
	case typ.Registers() > modbus.MaxWriteRegisters:
		wrong("write", "", fmt.Errorf("%s is longer than one write can be, %d registers", typ, modbus.MaxWriteRegisters))
	case (w.Min != nil || w.Max != nil) && !typ.Numeric():
		wrong("write", "leave min and max out: write = {}", fmt.Errorf("%s has no smallest and largest value", typ))
	case w.Min != nil && w.Max != nil && !(*w.Min <= *w.Max):
		wrong("write", "", fmt.Errorf("min %v is above max %v", *w.Min, *w.Max))
	}
}

// maxName is how many bytes a name may have; a topic carries two of them.
const maxName = 64

// CheckName says what is wrong with the name of a line, a unit or a point. It becomes one level of a
// topic: MQTT 3.1.1, 1.5.3 and 4.7 allow no NUL, no wildcards, no level separator there; other control
// characters only make trouble in logs.
func CheckName(name string) error {
	const repair = "use letters, digits, - and _"
	switch {
	case name == "":
		return hint.With(errors.New("the name is missing"), repair)
	case len(name) > maxName:
		return fmt.Errorf("%d bytes are too many; %d are allowed", len(name), maxName)
	case !utf8.ValidString(name):
		return hint.With(errors.New("the name is not UTF-8"), repair)
	case strings.ContainsAny(name, "/+#"):
		return hint.With(errors.New("the characters / + # have a meaning in topics"), repair)
	case strings.ContainsFunc(name, unicode.IsControl):
		return hint.With(errors.New("the name has a control character"), repair)
	}
	return nil
}
