package hw

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"ferrule/hw/mbus"
	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/port"
	"ferrule/hw/profile"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

const (
	maxName        = 64 // bytes; a topic carries two of them
	defaultEvery   = time.Second
	defaultTimeout = 500 * time.Millisecond
	minEvery       = 10 * time.Millisecond
	maxEvery       = 24 * time.Hour
	minTimeout     = 10 * time.Millisecond
	maxTimeout     = time.Minute
	maxTurnaround  = time.Second
	maxAddress     = 247 // Modbus over Serial Line V1.02, 2.2
	maxMBusAddress = 250 // EN 13757-2, 5.7.5
)

// Validate finds all mistakes in c at once; each error names line, unit, point and key, and
// those that are easily made carry a hint. It opens nothing.
func (c LineConfig) Validate() error {
	return (&Line{config: c}).compile()
}

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
		if err := u.adopt(p); err != nil {
			problems = append(problems, fmt.Errorf("line %q, unit %q: select: %w", c.Name, u.Name, err))
		}
	}
	return errors.Join(problems...)
}

// adopt takes over what the profile says and the unit does not.
func (c *UnitConfig) adopt(p profile.Profile) error {
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

// compile checks the configuration and turns it into what the line works with.
func (l *Line) compile() error {
	c := l.config
	k := &checker{where: fmt.Sprintf("line %q", c.Name)}
	k.name(c.Name)
	if c.Port == "" {
		k.wrong("port", "ferrule ports lists the serial ports of this machine", errors.New("the serial port is missing"))
	} else if err := port.ParseName(c.Port); err != nil {
		k.wrong("port", "", err)
	}
	l.plain = k.codec(point.Spec{Type: point.Float64()})
	l.compileProtocol(k)
	l.compileSettings(k)
	if c.RS485 != nil {
		c.RS485.check(k)
	}
	l.compileUnits(k)
	return errors.Join(k.problems...)
}

func (l *Line) compileProtocol(k *checker) {
	c, known := l.config, false
	if l.protocol, known = protocolOf(c.Protocol); !known {
		k.wrong("protocol", "", fmt.Errorf("%q is none of %s", c.Protocol, protocolNames()))
	}
	l.role = c.Role
	if c.Role == "" {
		l.role = l.protocol.roles[0]
	}
	if !slices.Contains(l.protocol.roles, l.role) {
		k.wrong("role", "", fmt.Errorf("%q is none of %v, the roles of %s", c.Role, l.protocol.roles, l.protocol.name))
		l.role = l.protocol.roles[0]
	}
	if c.Text != nil && l.protocol.name != "text" || c.Frame != nil && l.protocol.name != "frame" {
		k.wrong("protocol", "", fmt.Errorf("[line.text] and [line.frame] are for the protocols of these names, not for %s", l.protocol.name))
	}
	if l.protocol.listen != nil {
		if _, _, err := l.protocol.listen(c); err != nil {
			k.wrong(l.protocol.name, "", err)
		}
	}
}

func (l *Line) compileSettings(k *checker) {
	standard := l.protocol.settings
	if l.role == Master && l.protocol.settingsAsMaster != "" {
		standard = l.protocol.settingsAsMaster
	}
	l.settings = k.settings(orDefault(l.config.Settings, standard), l.protocol)
}

func (k *checker) settings(s string, p protocol) port.Settings {
	settings, err := port.ParseSettings(s)
	if err != nil {
		k.wrong("settings", `write it as "19200 8E1": baud rate, data bits, parity, stop bits`, err)
	} else if p.name == "modbus-rtu" && settings.DataBits != 8 { // Modbus over Serial Line V1.02, 2.5.1
		k.wrong("settings", "7 data bits are for Modbus ASCII", fmt.Errorf("%s needs 8 data bits, not %d", p.name, settings.DataBits))
	}
	return settings
}

var rs485Modes = map[string]port.RS485Mode{"": port.RS485Auto, "auto": port.RS485Auto, "kernel": port.RS485Kernel, "off": port.RS485Off}

func (c *RS485Config) check(k *checker) {
	if _, known := rs485Modes[c.Mode]; !known {
		k.wrong("rs485.mode", "", fmt.Errorf("%q is none of auto, kernel, off", c.Mode))
	}
	if c.RTS != "" && c.RTS != "high" && c.RTS != "low" {
		k.wrong("rs485.rts", "", fmt.Errorf("%q is neither high nor low", c.RTS))
	}
	for key, d := range map[string]quantity.Duration{"delay_before": c.DelayBefore, "delay_after": c.DelayAfter} {
		if d < 0 || d.Std() > 100*time.Millisecond {
			k.wrong("rs485."+key, "", fmt.Errorf("%s is not between 0s and 100ms", d))
		}
	}
}

// options is c as package port wants it; nil: the driver is left alone.
func (c *RS485Config) options() *port.RS485 {
	if c == nil {
		return nil
	}
	return &port.RS485{Mode: rs485Modes[c.Mode], RTSLowOnSend: c.RTS == "low", DelayBefore: c.DelayBefore.Std(), DelayAfter: c.DelayAfter.Std(), Terminate: c.Terminate}
}

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
	u := &unit{
		config: c, name: c.Name, match: c.Match, device: c.Device, broadcast: c.Broadcast, state: UnitNew, learns: c.Holes != "fill",
		timeout:    k.duration("timeout", c.Timeout, 0, minTimeout, l.longestTimeout()),
		turnaround: k.duration("turnaround", c.Turnaround, 0, 0, maxTurnaround),
		limits:     modbus.Cost{MaxRegisters: c.MaxRegisters, MaxBits: c.MaxBits, Holes: c.Holes != "never"},
	}
	if l.protocol.name == "frame" { // whose decoder names the units itself
		u.match = c.Name
	}
	if l.role == Listen && c.Timeout == 0 {
		u.timeout = l.protocol.hush
	}
	l.compileAddress(k, c, u)
	u.timing = modbus.TimingOf(l.settings.Baud, l.settings.BitsPerChar())
	if c.Settings != "" {
		u.settings = k.settings(c.Settings, l.protocol)
		u.timing = modbus.TimingOf(u.settings.Baud, u.settings.BitsPerChar())
	}
	if c.Holes != "" && c.Holes != "learn" && c.Holes != "fill" && c.Holes != "never" {
		k.wrong("holes", "", fmt.Errorf("%q is none of learn, fill, never", c.Holes))
	}
	if c.MaxRegisters < 0 || c.MaxRegisters > modbus.MaxReadRegisters || c.MaxBits < 0 || c.MaxBits > modbus.MaxReadBits {
		k.wrong("max_registers", "", fmt.Errorf("one answer carries 1 to %d registers, or 1 to %d bits", modbus.MaxReadRegisters, modbus.MaxReadBits))
	}
	u.every = k.duration("every", c.Every, l.usualEvery(), minEvery, maxEvery)
	u.discovers = c.Profile == sunSpec || !l.protocol.registers && len(c.Points) == 0
	l.compilePoints(k, c.Points, u)
	if l.role == UnitRole {
		u.image = newImage(slices.Concat(u.points, u.exponents))
		if c.Every != 0 || c.Timeout != 0 {
			k.wrong("every", "", errors.New("a unit that answers a master has neither every nor timeout: the master writes when it likes"))
		}
	}
	return u
}

// longestTimeout is what a unit may take: to answer, or to speak.
func (l *Line) longestTimeout() time.Duration {
	if l.role == Master {
		return maxTimeout
	}
	return maxEvery
}

// usualEvery is how often a unit is polled that does not say.
func (l *Line) usualEvery() time.Duration {
	switch {
	case l.role != Master:
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
	case !l.protocol.addressed:
	case c.Secondary != "":
		if u.meter, err = mbus.ParseSecondary(c.Secondary); err != nil || l.protocol.name != "mbus" {
			k.wrong("secondary", `M-Bus units have one: "12345678" or "12345678-ACW-14-07"`, orError(err, "only M-Bus units have one"))
		}
	case c.Broadcast && l.protocol.registers:
	case c.Address < low || c.Address > high:
		k.wrong("address", "", fmt.Errorf("%d is none of %d to %d", c.Address, low, high))
	default:
		u.address = byte(c.Address)
		u.meter = mbus.Primary(u.address)
	}
}

func orError(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

func (l *Line) compilePoints(k *checker, points []profile.Point, u *unit) {
	names := make(map[string]*pointState)
	for _, p := range points {
		pk := k.in("point", p.Name)
		if names[p.Name] != nil {
			pk.wrong("name", "", errors.New("another point of the unit has the same name"))
		}
		q := l.compilePoint(pk, p, u)
		names[p.Name] = q
		u.points = append(u.points, q)
		if u.broadcast && p.Write == nil {
			pk.wrong("write", "", errors.New("the points of a broadcast can only be written"))
		}
		k.problems = append(k.problems, pk.problems...)
	}
	u.byKey = make(map[string]*pointState)
	for i, p := range u.points {
		u.byKey[p.key] = p
		if reference := points[i].ScaleFactor; reference != "" {
			pk := k.in("point", p.name)
			u.scaleBy(pk, p, reference, names)
			k.problems = append(k.problems, pk.problems...)
		}
	}
}

// scaleBy finds the register with the power of ten of p: another point of the unit, or an
// address.
func (u *unit) scaleBy(k *checker, p *pointState, reference string, names map[string]*pointState) {
	if p.exponent = names[reference]; p.exponent != nil {
		return
	}
	at, err := modbus.ParseAddress(reference)
	if err != nil || at.Table.Bits() {
		k.wrong("scale_factor", "", fmt.Errorf("%q is neither a point of the unit nor the address of a register", reference))
		return
	}
	for _, e := range u.exponents {
		if e.at == at {
			e.every = min(e.every, p.every)
			p.exponent = e
			return
		}
	}
	signed, _ := point.ParseType("int16") // as SunSpec says
	p.exponent = &pointState{at: at, codec: k.codec(point.Spec{Type: signed}), every: p.every}
	u.exponents = append(u.exponents, p.exponent)
}

func (l *Line) compilePoint(k *checker, c profile.Point, u *unit) *pointState {
	k.name(c.Name)
	p := &pointState{
		name:       c.Name,
		key:        orDefault(c.At, c.Name),
		uom:        c.Uom,
		every:      k.duration("every", c.Every, u.every, minEvery, maxEvery),
		deadband:   c.Deadband,
		maxSilence: c.MaxSilence.Std(),
	}
	if !(c.Deadband >= 0) {
		k.wrong("deadband", "", fmt.Errorf("%v is no distance", c.Deadband))
	}
	if !l.protocol.registers {
		l.compileHeard(k, c, p)
		return p
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

// compileHeard checks a point that is made of a reading: it has a name and a value already.
func (l *Line) compileHeard(k *checker, c profile.Point, p *pointState) {
	if l.protocol.name == "frame" { // its decoder knows where the point is, its type and its scale
		p.key, c.Scale, c.Offset = c.Name, 1, 0
	}
	if c.Write != nil {
		k.wrong("write", "", fmt.Errorf("on a line that speaks %s nothing can be written", l.protocol.name))
	}
	if c.Type != "" && l.protocol.name != "frame" {
		k.wrong("type", "leave the key out", fmt.Errorf("a reading of %s has its type already", l.protocol.name))
	}
	typ := point.Float64()
	if len(c.Flags) > 0 { // bits are those of an integer
		typ, _ = point.ParseType("uint32")
	}
	p.codec = k.codec(point.Spec{Type: typ, Scale: c.Scale, Offset: c.Offset, NaN: c.NaN, Values: c.Values, Flags: c.Flags})
}

// codec makes the codec of a point; its errors name the key.
func (k *checker) codec(s point.Spec) point.Codec {
	codec, err := point.NewCodec(s)
	if e, ok := errors.AsType[*point.SpecError](err); ok {
		k.wrong(e.Key, "", e.Err)
	} else if err != nil {
		k.wrong("type", "", err)
	}
	return codec
}

// scheduleUnit gives a unit its requests and their phases, which come from a hash of the names:
// they are the same at every start, and differ from unit to unit.
func (l *Line) scheduleUnit(u *unit) {
	switch {
	case l.role != Master || l.protocol.open == nil || u.broadcast:
		return
	case l.protocol.registers && !u.discovers:
		u.replan(u.timing)
	default:
		u.classes = []*class{{every: u.every, requests: []*request{{every: u.every}}}}
	}
	u.spreadOut(l.config.Name)
}

// spreadOut gives the classes their phases.
func (u *unit) spreadOut(line string) {
	if len(u.classes) == 0 {
		return
	}
	base := u.classes[0].every
	phase := spread(base, line, u.name)
	for _, c := range u.classes {
		c.phase = phase
		if c.every > base && c.every%base == 0 {
			// Slots of the slow class are slots of the fast one too, so that one poll has both.
			c.phase += spread(c.every, line, u.name, c.every.String()) / base * base
		}
	}
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
	return k.codec(point.Spec{Type: typ, Order: order, Scale: c.Scale, Offset: c.Offset, NaN: c.NaN, Values: c.Values, Flags: c.Flags})
}

// compileWrite checks the bounds of a writable point.
func (p *pointState) compileWrite(k *checker, w *profile.Write) {
	if w == nil {
		return
	}
	p.write = w
	if typ := p.codec.Type(); typ.ReadOnly() {
		k.wrong("write", "", fmt.Errorf("%s is a part of two registers, which no function writes alone", typ))
	}
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

// duration checks a length of time; 0 stands for the standard.
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
