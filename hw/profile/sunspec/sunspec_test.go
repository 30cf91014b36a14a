package sunspec

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

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

func TestAnInverterWithItsMeter(t *testing.T) {
	m := &memory{base: 40000, bytes: []byte("SunS")}
	m.model(1, common("Acme", "PV-5000"))
	inverter := make([]byte, 100)
	for i := range inverter { // nothing is implemented, but for what follows
		inverter[i] = 0xff
	}
	put := func(b []byte, at int, words ...uint16) {
		for i, w := range words {
			binary.BigEndian.PutUint16(b[2*(at+i):], w)
		}
	}
	put(inverter, 0, 123, 41, 41, 41, 0xffff)              // A … AphC, A_SF = -1
	put(inverter, 12, 0xec78, 0)                           // W = -5000, W_SF
	put(inverter, 22, 0, 0, 1)                             // WH: mandatory, but not accumulated; its SF
	put(inverter, 36, 4)                                   // St
	put(inverter, 38, 0, 0b10001)                          // Evt1
	put(inverter, 20, 0x8000, 0x8000)                      // PF and PF_SF
	for _, at := range []int{16, 18, 29, 31, 32, 33, 34} { // int16 points
		put(inverter, at, 0x8000)
	}
	m.model(103, inverter)
	m.model(1, common("Acme", "Meter"))
	meter := make([]byte, 248)
	for i := range meter {
		meter[i] = 0xff
	}
	for f := range 62 {
		binary.BigEndian.PutUint32(meter[4*f:], 0x7fc00000)
	}
	binary.BigEndian.PutUint32(meter[4*13:], math.Float32bits(-1234.5)) // W
	binary.BigEndian.PutUint32(meter[4*61:], 0xffffffff)                // Evt
	m.model(213, meter)
	m.model(40999, make([]byte, 10))
	m.words(0xffff, 0)

	d, err := Discover(m.read)
	if err != nil {
		t.Fatal(err)
	}
	if d.Manufacturer != "Acme" || d.Model != "PV-5000" || d.Version != "1.2.3" || d.Serial != "0815" || d.Options != "" || d.Stopped != "" {
		t.Errorf("the device: %+v", d)
	}
	readings := readAll(t, m, d)
	for name, want := range map[string]string{
		"manufacturer": "Acme", "current": "12.3", "current_l1": "4.1", "current_l2": "4.1", "current_l3": "4.1", "power": "-5000.0", "energy_total": "nan",
		"state": "mppt", "events_1": "ground_fault,grid_disconnect", "device_model": "Meter", "meter_power": "-1234.5",
	} {
		if readings[name] != want {
			t.Errorf("%s is %q; want %q", name, readings[name], want)
		}
		delete(readings, name)
	}
	for _, name := range []string{"model", "version", "serial_number", "address", "device_manufacturer", "device_version", "device_serial_number", "device_address"} {
		delete(readings, name)
	}
	if len(readings) > 0 {
		t.Errorf("points that the unit does not have: %v", readings)
	}
	if n := len(d.Models); n != 5 || d.Models[4].Skipped != "not known" || d.Models[1].Title != "Inverter (Three Phase)" || d.Models[4].At != 40002+68+52+68+126 {
		t.Errorf("models: %+v", d.Models)
	}
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

// Every encoded value comes back, at its own address, and nothing else does.
func TestWhatAUnitSaysComesBack(t *testing.T) {
	ids := allModels()
	rapid.Check(t, func(t *rapid.T) {
		u := &synthetic{T: t, want: make(map[uint16]string)}
		u.base = int(rapid.SampledFrom(bases[:]).Draw(t, "base"))
		u.bytes = []byte(marker)
		known := 0
		u.add(1)
		for _, id := range rapid.SliceOfN(rapid.SampledFrom(ids), 0, 5).Draw(t, "models") {
			if rapid.IntRange(0, 4).Draw(t, "unknown") == 0 {
				u.model(30000, make([]byte, 2*rapid.IntRange(0, 300).Draw(t, "length")))
			}
			u.add(id)
			known++
		}
		u.words(end, 0)
		u.check(t)
	})
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

// Each model alone, with everything in it.
func TestEveryModelWhole(t *testing.T) {
	ids, points := allModels(), 0
	for i, id := range ids {
		points += rapid.Custom(func(t *rapid.T) int {
			u := &synthetic{T: t, want: make(map[uint16]string), whole: true}
			u.base, u.bytes = 40000, []byte(marker)
			u.add(id)
			u.words(end, 0)
			return u.check(t)
		}).Example(i)
	}
	t.Logf("models %d, each whole: %d points found", len(ids), points)
	if len(ids) != 112 {
		t.Errorf("%d models; want 112", len(ids))
	}
}

func TestHostileChains(t *testing.T) {
	for name, test := range map[string]struct {
		build func(m *memory)
		want  string
	}{
		"the same model for ever": {func(m *memory) {
			for range 300 {
				m.model(1, common("A", "B"))
			}
		}, "more than 256 models"},
		"no end":          {func(m *memory) { m.model(1, common("A", "B")) }, "has no end"},
		"past the table":  {func(m *memory) { m.words(103, 65000) }, "claims 65000 registers"},
		"a chain of none": {func(m *memory) { m.bytes = append(m.bytes, make([]byte, 40000)...) }, "more than 256 models"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &memory{base: 40000, bytes: []byte(marker)}
			test.build(m)
			d, err := Discover(m.read)
			if err != nil || !strings.Contains(d.Stopped, test.want) {
				t.Errorf("%v, %q; want %q", err, d.Stopped, test.want)
			}
			if m.reads > 2*maxModels+3 {
				t.Errorf("%d reads", m.reads)
			}
		})
	}
	m := &memory{base: 0, bytes: []byte(marker)}
	m.words(160, 65000)
	m.bytes = append(m.bytes, make([]byte, 131072-len(m.bytes))...)
	d, err := Discover(m.read)
	if err != nil || len(d.Points) > maxPoints || m.reads > 1000 || !strings.Contains(d.Models[0].Skipped, "more than 4096") {
		t.Errorf("a huge model: %v, %d points, %d reads, %+v", err, len(d.Points), m.reads, d.Models)
	}
}

func TestWhereThereIsNoSunSpec(t *testing.T) {
	m := &memory{base: 40000, bytes: []byte("SunX")}
	if _, err := Discover(m.read); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "53 75 6e 58") {
		t.Errorf("another marker: %v", err)
	}
	asked := 0
	if _, err := Discover(func(uint16, int) ([]byte, error) { asked++; return nil, modbus.ErrTimeout }); errors.Is(err, ErrNone) || !errors.Is(err, modbus.ErrTimeout) || asked != 3 {
		t.Errorf("a silent unit: %v after %d reads", err, asked)
	}
	asked = 0
	if _, err := Discover(func(uint16, int) ([]byte, error) { asked++; return nil, context.Canceled }); !errors.Is(err, context.Canceled) || asked != 1 {
		t.Errorf("cancelled: %v after %d reads", err, asked)
	}
	if _, err := Discover(func(uint16, int) ([]byte, error) { return []byte("S"), nil }); err == nil {
		t.Error("an answer of one byte was taken")
	}
	m = &memory{base: 40000, bytes: []byte(marker)}
	m.model(1, common("A", "B"))
	m.words(103, 50)
	m.bytes = append(m.bytes, make([]byte, 100)...)
	_, err := Discover(func(at uint16, n int) ([]byte, error) {
		if at == 40072 {
			return nil, modbus.ErrTimeout
		}
		return m.read(at, n)
	})
	if !errors.Is(err, modbus.ErrTimeout) {
		t.Errorf("silence in the middle: %v", err)
	}
}

func FuzzDiscover(f *testing.F) {
	m := &memory{base: 40000, bytes: []byte(marker)}
	m.model(1, common("Acme", "PV"))
	m.model(160, make([]byte, 2*(8+20+20)))
	m.model(705, make([]byte, 2*80))
	m.words(0xffff, 0)
	f.Add(m.bytes[4:])
	f.Add([]byte{0, 1, 0, 0, 0xff, 0xff})
	f.Add([]byte{3, 0, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &memory{base: 40000, bytes: append([]byte(marker), data...)}
		m.bytes = m.bytes[:len(m.bytes)&^1]
		d, err := Discover(m.read)
		if err != nil {
			t.Fatalf("a chain that can be read: %v", err)
		}
		if m.reads > 2*maxModels+len(m.bytes)/200+3 || len(d.Points) > maxPoints || len(d.Models) > maxModels {
			t.Errorf("%d reads, %d points, %d models", m.reads, len(d.Points), len(d.Models))
		}
		readAll(t, m, d)
	})
}
