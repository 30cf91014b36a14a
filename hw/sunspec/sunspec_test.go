package sunspec

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ferrule/hw/modbus"
)

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
