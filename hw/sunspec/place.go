package sunspec

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"

	"ferrule/hw/modbus"
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// slow is how often values are polled that change only when somebody changes them.
const slow = quantity.Duration(10 * 60e9)

// typeInfo is what Ferrule calls a type of SunSpec's, and what its registers hold when the unit does not
// have the value (SunSpec Device Information Model Specification, 4.2).
type typeInfo struct {
	name      string
	registers int
	nan       string // hexadecimal; "" where no number is spared
}

var types = map[string]typeInfo{
	"int16": {"int16", 1, "8000"}, "int32": {"int32", 2, "80000000"}, "int64": {"int64", 4, "8000000000000000"},
	"uint16": {"uint16", 1, "FFFF"}, "uint32": {"uint32", 2, "FFFFFFFF"}, "uint64": {"uint64", 4, "FFFFFFFFFFFFFFFF"},
	"acc16": {"uint16", 1, "0"}, "acc32": {"uint32", 2, "0"}, "acc64": {"uint64", 4, "0"},
	"enum16": {"uint16", 1, "FFFF"}, "enum32": {"uint32", 2, "FFFFFFFF"},
	"bitfield16": {"uint16", 1, "FFFF"}, "bitfield32": {"uint32", 2, "FFFFFFFF"},
	"float32": {"float32", 2, ""}, "count": {"uint16", 1, "FFFF"},
	"ipaddr": {"uint32", 2, "0"}, "ipv6addr": {"", 8, ""}, "eui48": {"uint64", 4, "FFFFFFFFFFFF"},
	"pad": {"", 1, ""}, "sunssf": {"int16", 1, "8000"},
}

// missingFactor is what a scale factor register holds that the unit does not have.
const missingFactor = math.MinInt16

// maxFactor is the largest power of ten of a scale factor, and -maxFactor the smallest.
const maxFactor = 10

// value is a field where it is in a unit.
type value struct {
	field  *field
	name   string // "mppt_1_dc_power"
	at     uint16
	raw    []byte
	factor *value // its scale factor; nil where it has none
	lost   bool   // it should have a scale factor, and the unit's model ends before it
}

// placed is a model with the registers of a unit.
type placed struct {
	first   uint16 // the register of data[0]
	data    []byte
	values  []value // without pads and scale factors
	skipped []string
}

// scope is the fields of one group and of those around it, by their codes.
type scope struct {
	fields map[string]value
	outer  *scope
}

func (s *scope) find(code string) (value, bool) {
	for ; s != nil; s = s.outer {
		if v, ok := s.fields[code]; ok {
			return v, true
		}
	}
	return value{}, false
}

// place lays a model over the registers that a unit gave for it, from first on.
func place(l *layout, first uint16, data []byte) *placed {
	p := &placed{first: first, data: data}
	if rest := p.group(&l.root, "", 0, nil); rest > len(data)/2 {
		p.skip("the model is shorter than it should be")
	}
	return p
}

// group places a group once, from register at on, and returns where it ends, which may be beyond
// the data.
func (p *placed) group(g *group, prefix string, at int, outer *scope) int {
	s := &scope{fields: make(map[string]value), outer: outer}
	var own []value
	for i := range g.fields {
		f := &g.fields[i]
		if end := at + f.registers; 2*end <= len(p.data) && f.kind != "pad" {
			v := value{field: f, name: prefix + f.name, at: p.first + uint16(at), raw: p.data[2*at : 2*end]}
			s.fields[f.code] = v
			own = append(own, v)
		}
		at += f.registers
	}
	for _, v := range own {
		if v.field.kind == "sunssf" {
			continue
		}
		if v.field.factor != "" {
			factor, found := s.find(v.field.factor)
			v.factor, v.lost = &factor, !found
		}
		p.values = append(p.values, v)
	}
	for i := range g.groups {
		at = p.repeat(&g.groups[i], prefix, at, s)
	}
	return at
}

// repeat places a group as often as it is there.
func (p *placed) repeat(g *group, prefix string, at int, s *scope) int {
	if g.count == "1" {
		return p.group(g, prefix+g.name+"_", at, s)
	}
	times := 0
	if g.count == "*" {
		times = (len(p.data)/2 - at) / max(g.size(), 1)
		if n := s.counted(); n > 0 {
			times = min(times, n)
		}
	} else if v, ok := s.find(g.count); ok && v.has() {
		times = int(word(v.raw, 0))
	}
	for n := 1; n <= times && 2*at < len(p.data); n++ {
		at = p.group(g, prefix+g.name+"_"+strconv.Itoa(n)+"_", at, s)
	}
	return at
}

// counted returns what the field says that counts the groups of the model; 0 where there is none,
// or it says nothing.
func (s *scope) counted() int {
	for _, v := range s.fields {
		if v.field.kind == "count" && v.has() {
			return int(word(v.raw, 0))
		}
	}
	return 0
}

// has says whether the unit has the value.
func (v *value) has() bool {
	switch kind := v.field.kind; kind {
	case "string":
		return len(bytes.Trim(v.raw, "\x00 ")) > 0
	case "float32":
		f := math.Float32frombits(uint32(word(v.raw, 0))<<16 | uint32(word(v.raw, 1)))
		return f == f
	case "acc16", "acc32", "acc64":
		return v.field.mandatory || slices.Max(v.raw) > 0
	case "count", "ipaddr":
		return slices.Max(v.raw) > 0 && slices.Min(v.raw) < 0xff
	case "eui48":
		return slices.Min(v.raw[2:]) < 0xff
	default:
		return fmt.Sprintf("%X", v.raw) != types[kind].nan
	}
}

func (p *placed) skip(why string) {
	if len(p.skipped) < 5 {
		p.skipped = append(p.skipped, why)
	}
}

// conflicts says whether one of the names is taken.
func (p *placed) conflicts(prefix string, used map[string]bool) bool {
	return slices.ContainsFunc(p.values, func(v value) bool { return used[prefix+v.name] })
}

// points returns the points that the unit has.
func (p *placed) points(prefix string) []profile.Point {
	var points []profile.Point
	for i := range p.values {
		v := &p.values[i]
		if !v.has() {
			continue
		}
		if why := v.obstacle(); why != "" {
			p.skip(why + " " + prefix + v.name)
			continue
		}
		points = append(points, v.point(prefix))
	}
	return points
}

// obstacle says why a value that the unit has cannot be a point, or "".
func (v *value) obstacle() string {
	switch {
	case v.field.registers > modbus.MaxReadRegisters:
		return "longer than one answer:"
	case v.field.kind == "ipv6addr":
		return "no type is as long as"
	case v.lost:
		return "the model ends before the scale factor of"
	case v.factor == nil:
		return ""
	}
	switch n := int16(word(v.factor.raw, 0)); {
	case n == missingFactor:
		return "the unit has no scale factor for"
	case n > maxFactor || n < -maxFactor:
		return fmt.Sprintf("%d is no scale factor for", n)
	}
	return ""
}

func (v *value) point(prefix string) profile.Point {
	f, t := v.field, types[v.field.kind]
	point := profile.Point{Name: prefix + v.name, At: holding(v.at), Type: t.name, Uom: f.uom, Scale: f.scale}
	if f.slow {
		point.Every = slow
	}
	if v.factor != nil {
		point.ScaleFactor = holding(v.factor.at)
	}
	if t.nan != "" {
		point.NaN = []string{"0x" + t.nan}
	}
	switch f.kind {
	case "string":
		point.Type = fmt.Sprintf("string(%d)", 2*f.registers)
	case "enum16", "enum32":
		point.Values = f.symbols
	case "bitfield16", "bitfield32":
		point.Flags = f.symbols
	}
	return point
}

func holding(at uint16) string {
	return modbus.Address{Table: modbus.HoldingRegisters, Offset: at}.String()
}
