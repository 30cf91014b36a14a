package sunspec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"pgregory.net/rapid"

	"ferrule/hw/modbus"
	"ferrule/hw/point"
	"ferrule/hw/profile"
)

// memory is the holding registers of a unit, as bytes from a base on; the rest is refused.
type memory struct {
	base  int
	bytes []byte
	reads int
}

func (m *memory) read(at uint16, n int) ([]byte, error) {
	m.reads++
	from := 2 * (int(at) - m.base)
	if n < 1 || n > 125 {
		return nil, modbus.IllegalValue
	}
	if from < 0 || from+2*n > len(m.bytes) {
		return nil, modbus.IllegalAddress
	}
	return slices.Clone(m.bytes[from : from+2*n]), nil
}

func (m *memory) words(words ...uint16) {
	for _, w := range words {
		m.bytes = binary.BigEndian.AppendUint16(m.bytes, w)
	}
}

// model appends a model with its number and length.
func (m *memory) model(id uint16, body []byte) {
	m.words(id, uint16(len(body)/2))
	m.bytes = append(m.bytes, body...)
}

// text is a string in n registers.
func text(s string, n int) []byte {
	b := make([]byte, 2*n)
	copy(b, s)
	return b
}

// common is a whole model 1.
func common(maker, model string) []byte {
	return slices.Concat(text(maker, 16), text(model, 16), text("", 8), text("1.2.3", 8), text("0815", 16), []byte{0, 7, 0x80, 0})
}

// readAll reads every point of the device as a line would; what has no value is "nan".
func readAll(t rapid.TB, m *memory, d Device) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, p := range d.Points {
		if _, twice := all[p.Name]; twice {
			t.Fatalf("two points are called %q", p.Name)
		}
		v, err := readPoint(m, p)
		switch {
		case errors.Is(err, point.ErrNaN):
			all[p.Name] = "nan"
		case err != nil:
			t.Fatalf("reading %+v: %v", p, err)
		default:
			all[p.Name] = v.String()
		}
	}
	return all
}

func readPoint(m *memory, p profile.Point) (point.Value, error) {
	at, err := modbus.ParseAddress(p.At)
	if err != nil || at.Table != modbus.HoldingRegisters {
		return point.Value{}, fmt.Errorf("at %q: %w", p.At, err)
	}
	typ, err := point.ParseType(p.Type)
	if err != nil {
		return point.Value{}, err
	}
	codec, err := point.NewCodec(point.Spec{Type: typ, Scale: p.Scale, NaN: p.NaN, Values: p.Values, Flags: p.Flags})
	if err != nil {
		return point.Value{}, err
	}
	raw, err := m.read(at.Offset, typ.Registers())
	if err != nil || p.ScaleFactor == "" {
		if err != nil {
			return point.Value{}, err
		}
		return codec.Decode(raw)
	}
	factor, err := modbus.ParseAddress(p.ScaleFactor)
	if err != nil {
		return point.Value{}, err
	}
	exponent, err := m.read(factor.Offset, 1)
	if err != nil {
		return point.Value{}, err
	}
	return codec.DecodeScaled(raw, int16(word(exponent, 0)))
}

// synthetic builds a unit from the models, and knows what it says.
type synthetic struct {
	*rapid.T
	memory
	want  map[uint16]string // by address; "nan" where the unit has the point but no value yet
	whole bool              // the unit has everything
}

func (u *synthetic) chance(label string) bool { return u.whole || rapid.Bool().Draw(u.T, label) }

// add appends a model of a random shape.
func (u *synthetic) add(id uint16) {
	l := lookup(id)
	if l == nil {
		u.Fatalf("model %d is not known", id)
	}
	at := u.base + len(u.bytes)/2 + 2
	counts := make(map[string]int)
	body := u.group(&l.root, at, counts, nil)
	u.model(id, body)
}

func (u *synthetic) group(g *group, at int, counts map[string]int, factors map[string]int16) (body []byte) {
	factors = maps.Clone(factors)
	if factors == nil {
		factors = make(map[string]int16)
	}
	for _, f := range g.fields {
		if f.kind == "sunssf" {
			factors[f.code] = rapid.SampledFrom([]int16{-10, -3, -2, -1, 0, 0, 1, 2, 10}).Draw(u.T, "factor")
			if !u.whole && rapid.IntRange(0, 9).Draw(u.T, "broken factor") == 0 {
				factors[f.code] = rapid.SampledFrom([]int16{math.MinInt16, 11, -11}).Draw(u.T, "bad factor")
			}
		}
	}
	for i := range g.groups {
		u.choose(&g.groups[i], counts)
	}
	for i := range g.fields {
		f := &g.fields[i]
		raw, text := u.value(f, counts, factors)
		if text != "" {
			u.want[uint16(at+len(body)/2)] = text
		}
		body = append(body, raw...)
	}
	for i := range g.groups {
		inner := &g.groups[i]
		for range counts[inner.name+" "+inner.count] {
			body = append(body, u.group(inner, at+len(body)/2, counts, factors)...)
		}
	}
	return body
}

// choose says how often the group and those in it are there.
func (u *synthetic) choose(g *group, counts map[string]int) {
	key := g.name + " " + g.count
	n, chosen := counts[g.count]
	switch {
	case g.count == "1":
		n = 1
	case g.count == "*" || !chosen:
		n = rapid.IntRange(1, 3).Draw(u.T, key)
	}
	counts[key], counts[g.count] = n, n
	for i := range g.groups {
		u.choose(&g.groups[i], counts)
	}
}

// value draws the registers of a field, and what its point should say; "" for no point.
func (u *synthetic) value(f *field, counts map[string]int, factors map[string]int16) (raw []byte, text string) {
	raw = make([]byte, 2*f.registers)
	if f.kind == "pad" {
		return []byte{0x80, 0}, ""
	}
	if f.kind == "sunssf" {
		binary.BigEndian.PutUint16(raw, uint16(factors[f.code]))
		return raw, ""
	}
	if n, is := counts[f.code]; is {
		binary.BigEndian.PutUint16(raw, uint16(n))
		return raw, strconv.Itoa(n)
	}
	if f.kind == "count" { // of a group that goes on to the end
		binary.BigEndian.PutUint16(raw, uint16(counts["*"]))
		return raw, strconv.Itoa(counts["*"])
	}
	e := factors[f.factor]
	if !u.chance("has it") {
		text = u.missing(f, raw)
	} else {
		text = u.draw(f, raw)
	}
	switch {
	case e < -10 || e > 10:
		return raw, ""
	case text == "nan" || text == "":
		return raw, text
	case f.factor != "":
		return raw, scaled(text, int(e), f.scale)
	}
	if f.scale != 0 && f.scale != 1 {
		return raw, scaled(text, 0, f.scale)
	}
	return raw, text
}

// missing fills raw with what stands for no value.
func (u *synthetic) missing(f *field, raw []byte) string {
	switch f.kind {
	case "int16", "int32", "int64":
		raw[0] = 0x80
	case "string", "ipaddr", "ipv6addr":
	case "acc16", "acc32", "acc64":
		if f.mandatory {
			return "nan"
		}
	case "float32":
		binary.BigEndian.PutUint32(raw, 0x7fc00000)
	default:
		for i := range raw {
			raw[i] = 0xff
		}
	}
	return ""
}

// draw fills raw with a value, and returns it as it is without scale.
func (u *synthetic) draw(f *field, raw []byte) string {
	bits := 16 * f.registers
	switch f.kind {
	case "string":
		s := rapid.StringMatching(`[A-Za-z0-9.-]{1,`+strconv.Itoa(2*f.registers)+`}`).Draw(u.T, f.name)
		copy(raw, s)
		if f.registers > 125 {
			return ""
		}
		return s
	case "float32":
		v := float32(rapid.IntRange(-1_000_000, 1_000_000).Draw(u.T, f.name)) / 16
		binary.BigEndian.PutUint32(raw, math.Float32bits(v))
		return number(strconv.FormatFloat(float64(v), 'g', -1, 32))
	case "int16", "int32", "int64":
		v := rapid.Int64Range(-1<<(bits-1)+1, 1<<(bits-1)-1).Draw(u.T, f.name)
		putUint(raw, uint64(v))
		return strconv.FormatInt(v, 10)
	case "enum16", "enum32":
		v := rapid.Uint64Range(0, 70).Draw(u.T, f.name)
		putUint(raw, v)
		digits := strconv.FormatUint(v, 10)
		if name, ok := f.symbols[digits]; ok {
			return name
		}
		return digits
	case "bitfield16", "bitfield32":
		v := rapid.Uint64Range(0, 1<<bits-2).Draw(u.T, f.name)
		putUint(raw, v)
		return flags(f, v)
	case "ipv6addr":
		putUint(raw, 1)
		return ""
	case "ipaddr":
		raw[1], raw[3] = 168, 1
		return strconv.FormatUint(168<<16|1, 10)
	case "eui48":
		raw[3], raw[7] = 1, 2
		return strconv.FormatUint(1<<32|2, 10)
	}
	v := rapid.Uint64Range(1, 1<<(bits-1)).Draw(u.T, f.name) // uint and acc
	putUint(raw, v)
	return strconv.FormatUint(v, 10)
}

func putUint(raw []byte, v uint64) {
	for i := range raw {
		if shift := 8 * (len(raw) - 1 - i); shift < 64 {
			raw[i] = byte(v >> shift)
		}
	}
}

func flags(f *field, v uint64) string {
	if len(f.symbols) == 0 {
		return strconv.FormatUint(v, 10)
	}
	names := []string{}
	for bit := range 32 {
		if v>>bit&1 == 1 {
			name, ok := f.symbols[strconv.Itoa(bit)]
			if !ok {
				name = "bit" + strconv.Itoa(bit)
			}
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "(no flags)"
	}
	return strings.Join(names, ",")
}

// scaled multiplies the decimal by 10^exponent × scale, a power of ten, and rounds once.
func scaled(digits string, exponent int, scale float64) string {
	if scale != 0 {
		exponent += int(math.Round(math.Log10(scale)))
	}
	return number(digits + "e" + strconv.Itoa(exponent))
}

// number is how a float64 is printed.
func number(digits string) string {
	f, _ := strconv.ParseFloat(digits, 64)
	v, _ := point.Float(f)
	return v.String()
}

// same compares what came with what went in. 64-bit integers with a scale may be rounded twice.
func same(got, want string) bool {
	if got == want || want == "(no flags)" && got == "" {
		return true
	}
	a, err1 := strconv.ParseFloat(got, 64)
	b, err2 := strconv.ParseFloat(want, 64)
	return err1 == nil && err2 == nil && strings.Contains(got, ".") && math.Abs(a-b) <= 4e-16*math.Abs(b)
}

func (u *synthetic) check(t *rapid.T) (points int) {
	d, err := Discover(u.read)
	if err != nil || d.Stopped != "" {
		t.Fatalf("%v %s", err, d.Stopped)
	}
	if int(d.Base) != u.base {
		t.Fatalf("the marker is at %d, not %d", u.base, d.Base)
	}
	got := readAll(t, &u.memory, d)
	for _, p := range d.Points {
		at, _ := modbus.ParseAddress(p.At)
		want, has := u.want[at.Offset]
		if !has {
			t.Fatalf("%s at %d is %q, and the unit does not have it; %v", p.Name, at.Offset, got[p.Name], d.Models)
		}
		if !same(got[p.Name], want) {
			t.Fatalf("%s at %d is %q, not %q: %+v", p.Name, at.Offset, got[p.Name], want, p)
		}
		if len(p.Name) > 64 {
			t.Fatalf("the name %q is too long", p.Name)
		}
		delete(u.want, at.Offset)
	}
	for at, want := range u.want {
		t.Fatalf("%q at %d is lost: %+v", want, at, d.Models)
	}
	return len(d.Points)
}

// allModels returns the numbers of the models.
func allModels() (ids []uint16) {
	for line := range strings.Lines(models) {
		if words := strings.Fields(line); len(words) > 3 && words[0] == "model" {
			if id, err := strconv.ParseUint(words[1], 10, 16); err == nil {
				ids = append(ids, uint16(id))
			}
		}
	}
	return ids
}
