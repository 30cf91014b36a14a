package hw

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/port"
	"ferrule/hw/profile"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

const (
	maxName         = 64 // bytes; a topic carries two of them
	defaultSettings = "19200 8E1"
	defaultProtocol = "modbus-rtu"
	defaultEvery    = time.Second
	defaultTimeout  = 500 * time.Millisecond
	minEvery        = 10 * time.Millisecond
	maxEvery        = 24 * time.Hour
	minTimeout      = 10 * time.Millisecond
	maxTimeout      = time.Minute
	maxAddress      = 247 // Modbus over Serial Line V1.02, 2.2
)

// Validate finds all mistakes in c at once; each error names line, unit, point and key, and
// those that are easily made carry a hint. It opens nothing.
func (c LineConfig) Validate() error {
	_, _, err := c.compile()
	return err
}

// compile checks c and turns it into what the line works with.
func (c LineConfig) compile() (port.Settings, []*unit, error) {
	k := &checker{where: fmt.Sprintf("line %q", c.Name)}
	k.name(c.Name)
	if c.Port == "" {
		k.wrong("port", "ferrule ports lists the serial ports of this machine", errors.New("the serial port is missing"))
	}
	if c.Protocol != "" && c.Protocol != defaultProtocol {
		k.wrong("protocol", "", fmt.Errorf("%q is not %s", c.Protocol, defaultProtocol))
	}
	settings, err := port.ParseSettings(orDefault(c.Settings, defaultSettings))
	if err != nil {
		k.wrong("settings", `write it as "19200 8E1": baud rate, data bits, parity, stop bits`, err)
	} else if settings.DataBits != 8 { // Modbus over Serial Line V1.02, 2.5.1
		k.wrong("settings", "7 data bits are for Modbus ASCII", fmt.Errorf("%s needs 8 data bits, not %d", defaultProtocol, settings.DataBits))
	}
	names, addresses := make(map[string]bool), make(map[int]string)
	var units []*unit
	for _, u := range c.Units {
		uk := k.in("unit", u.Name)
		if names[u.Name] {
			uk.wrong("name", "", errors.New("another unit of the line has the same name"))
		}
		if other, taken := addresses[u.Address]; taken {
			uk.wrong("address", "give each unit on the line an address of its own, or put all its points into one unit",
				fmt.Errorf("unit %q has the address %d already", other, u.Address))
		}
		names[u.Name], addresses[u.Address] = true, u.Name
		units = append(units, u.compile(uk))
		k.problems = append(k.problems, uk.problems...)
	}
	if err := errors.Join(k.problems...); err != nil {
		return port.Settings{}, nil, err
	}
	for _, u := range units {
		u.schedule(c.Name)
	}
	return settings, units, nil
}

func (c UnitConfig) compile(k *checker) *unit {
	k.name(c.Name)
	if c.Address < 1 || c.Address > maxAddress {
		k.wrong("address", "", fmt.Errorf("%d is none of 1 to %d", c.Address, maxAddress))
	}
	u := &unit{
		name:    c.Name,
		address: byte(c.Address),
		timeout: k.duration("timeout", c.Timeout, defaultTimeout, minTimeout, maxTimeout),
		state:   UnitNew,
	}
	every := k.duration("every", c.Every, defaultEvery, minEvery, maxEvery)
	names := make(map[string]bool)
	for _, p := range c.Points {
		pk := k.in("point", p.Name)
		if names[p.Name] {
			pk.wrong("name", "", errors.New("another point of the unit has the same name"))
		}
		names[p.Name] = true
		u.points = append(u.points, compilePoint(pk, p, every))
		k.problems = append(k.problems, pk.problems...)
	}
	return u
}

func compilePoint(k *checker, c profile.Point, every time.Duration) *pointState {
	k.name(c.Name)
	p := &pointState{
		name:       c.Name,
		every:      k.duration("every", c.Every, every, minEvery, maxEvery),
		deadband:   c.Deadband,
		maxSilence: c.MaxSilence.Std(),
	}
	if !(c.Deadband >= 0) {
		k.wrong("deadband", "", fmt.Errorf("%v is no distance", c.Deadband))
	}
	at, err := modbus.ParseAddress(c.At)
	if err != nil {
		k.wrong("at", `write the table and the address from 0 on: "input:0x000C", "holding:100"`, err)
		return p
	}
	p.at = at
	p.codec = compileCodec(k, c, at)
	p.compileWrite(k, c.Write)
	return p
}

// codec checks type, order, scale and offset, and that the type can be in the table.
func compileCodec(k *checker, c profile.Point, at modbus.Address) point.Codec {
	bits, standard := at.Table.Bits(), "uint16"
	if bits {
		standard = "bit"
	}
	typ, err := point.ParseType(orDefault(c.Type, standard))
	switch {
	case err != nil:
		k.wrong("type", "", err)
		return point.Codec{}
	case bits && !typ.Bit():
		k.wrong("type", "leave the key out", fmt.Errorf("a %s is a bit, not %s", at.Table, typ))
	case !bits && typ.Bit():
		k.wrong("type", `name the bit: "bit@0" is the least significant of the register`, fmt.Errorf("a %s register has 16 bits", at.Table))
	case int(at.Offset)+typ.Registers() > 1<<16:
		k.wrong("at", "", fmt.Errorf("%s does not fit between %d and the end of the table, 65535", typ, at.Offset))
	}
	order, err := point.ParseOrder(c.Order)
	if err != nil {
		k.wrong("order", "ferrule read shows a value in every order", err)
	}
	scale := c.Scale
	if scale == 0 {
		scale = 1
	}
	codec, err := point.NewCodec(typ, order, scale, c.Offset)
	if err != nil {
		k.wrong("scale", "", err)
	}
	return codec
}

// compileWrite checks the bounds of a writable point.
func (p *pointState) compileWrite(k *checker, w *profile.Write) {
	if w == nil {
		return
	}
	p.write = w
	if p.at.Table != modbus.Coils && p.at.Table != modbus.HoldingRegisters {
		k.wrong("write", "only coils and holding registers can be written", fmt.Errorf("a %s is read only", p.at.Table))
	}
	typ := p.codec.Type()
	if typ.Registers() > modbus.MaxWriteRegisters {
		k.wrong("write", "", fmt.Errorf("%s is longer than one write can be, %d registers", typ, modbus.MaxWriteRegisters))
	}
	if (w.Min != nil || w.Max != nil) && !typ.Numeric() {
		k.wrong("write", "leave min and max out: write = {}", fmt.Errorf("%s has no smallest and largest value", typ))
	}
	if w.Min != nil && w.Max != nil && !(*w.Min <= *w.Max) {
		k.wrong("write", "", fmt.Errorf("min %v is above max %v", *w.Min, *w.Max))
	}
}

// checker collects mistakes and says where they are.
type checker struct {
	where    string
	problems []error
}

func (k *checker) in(kind, name string) *checker {
	return &checker{where: fmt.Sprintf("%s, %s %q", k.where, kind, name)}
}

func (k *checker) wrong(key, repair string, err error) {
	err = fmt.Errorf("%s: %s: %w", k.where, key, err)
	if repair != "" {
		err = hint.With(err, repair)
	}
	k.problems = append(k.problems, err)
}

// name checks what becomes one level of a topic. MQTT 3.1.1, 1.5.3 and 4.7: no NUL, no
// wildcards, no level separator; other control characters only make trouble in logs.
func (k *checker) name(s string) {
	const repair = "use letters, digits, - and _"
	switch {
	case s == "":
		k.wrong("name", repair, errors.New("the name is missing"))
	case len(s) > maxName:
		k.wrong("name", "", fmt.Errorf("%d bytes are too many; %d are allowed", len(s), maxName))
	case !utf8.ValidString(s):
		k.wrong("name", repair, errors.New("the name is not UTF-8"))
	case strings.ContainsAny(s, "/+#"):
		k.wrong("name", repair, errors.New("the characters / + # have a meaning in topics"))
	case strings.ContainsFunc(s, unicode.IsControl):
		k.wrong("name", repair, errors.New("the name has a control character"))
	}
}

func (k *checker) duration(key string, d quantity.Duration, standard, low, high time.Duration) time.Duration {
	switch {
	case d == 0:
		return standard
	case d.Std() < low || d.Std() > high:
		k.wrong(key, "", fmt.Errorf("%s is not between %s and %s", d, low, quantity.Duration(high)))
		return standard
	}
	return d.Std()
}

func orDefault(s, standard string) string {
	if s == "" {
		return standard
	}
	return s
}
