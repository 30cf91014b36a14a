package obis_test

import (
	"errors"
	"math"
	"strconv"
	"testing"

	"ferrule/hw/obis"
	"ferrule/hw/point"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"1-0:1.8.0*255":       "1-0:1.8.0",
		"1-0:1.8.0":           "1-0:1.8.0",
		"1-0:1.8.1*01":        "1-0:1.8.1*1",
		"1-0:1.6.0&12":        "1-0:1.6.0*12",
		"1.8.0":               "1-0:1.8.0",
		"1.8.1*3":             "1-0:1.8.1*3",
		"0.0.0":               "1-0:0.0.0",
		"C.1.0":               "0-0:96.1.0",
		"F.F":                 "0-0:97.97.0",
		"F.F.0":               "0-0:97.97.0",
		"96.7.21":             "0-0:96.7.21",
		"129-129:199.130.3":   "129-129:199.130.3",
		"0-1:24.2.1":          "0-1:24.2.1",
		"6.8":                 "",
		"6.26*01":             "",
		"":                    "",
		"1":                   "",
		"1.8":                 "",
		".8.0":                "",
		"1.8.":                "",
		"1-0:1.8.256":         "",
		"1-0:1.8.0*":          "",
		"1-0:1.8.0*x":         "",
		"1-01.8.0":            "",
		"1:1.8.0":             "",
		"1-0:1.8.0.1":         "",
		"1000-0:1.8.0":        "",
		"-0:1.8.0":            "",
		"1-0:X.8.0":           "",
		"1-0:1.8.0*255*255":   "",
		"C.8.1 ":              "",
		"0-0:96.1.4294967297": "",
	} {
		c, ok := obis.Parse([]byte(text))
		if got := c.String(); ok != (want != "") || ok && got != want {
			t.Errorf("%q reads as %s, %t; want %q", text, got, ok, want)
		}
	}
}

func TestNames(t *testing.T) {
	for code, want := range map[string]string{
		"1-0:1.8.0":                "active_energy_import",
		"1-0:1.8.1":                "active_energy_import_t1",
		"1-0:2.8.0":                "active_energy_export",
		"1-0:2.8.12":               "active_energy_export_t12",
		"1-0:3.8.0":                "reactive_energy_import",
		"1-0:8.8.0":                "reactive_energy_q4",
		"1-0:15.8.0":               "active_energy_sum",
		"1-0:21.8.0":               "active_energy_import_l1",
		"1-0:62.8.2":               "active_energy_export_l3_t2",
		"1-0:1.7.0":                "active_power_import",
		"1-0:16.7.0":               "active_power",
		"1-0:36.7.0":               "active_power_l1",
		"1-0:76.7.0":               "active_power_l3",
		"1-0:41.7.0":               "active_power_import_l2",
		"1-0:10.7.0":               "apparent_power_export",
		"1-0:1.4.0":                "active_power_import_average",
		"1-0:1.6.0":                "active_power_import_max",
		"1-0:31.7.0":               "current_l1",
		"1-0:72.7.0":               "voltage_l3",
		"1-0:52.32.0":              "voltage_sags_l2",
		"1-0:52.36.0":              "voltage_swells_l2",
		"1-0:13.7.0":               "power_factor",
		"1-0:14.7.0":               "frequency",
		"1-0:31.4.0":               "current_limit_l1",
		"1-0:1.8.0*96":             "active_energy_import_1d",
		"1-0:2.8.0*100":            "active_energy_export_since_reset",
		"1-0:1.8.0*3":              "1-0:1.8.0*3",
		"1-0:1.7.1":                "1-0:1.7.1",
		"1-0:1.8.64":               "1-0:1.8.64",
		"1-0:12.8.0":               "1-0:12.8.0",
		"1-1:1.8.0":                "1-1:1.8.0",
		"0-0:1.0.0":                "time",
		"0-0:96.1.1":               "equipment_id",
		"0-1:24.2.1":               "mbus1_value",
		"0-4:24.2.3":               "mbus4_value_uncorrected",
		"0-2:24.2.2":               "mbus2_value_2",
		"0-2:24.1.0":               "mbus2_type",
		"0-2:24.9.0":               "0-2:24.9.0",
		"0-0:96.50.68":             "0-0:96.50.68",
		"1-0:96.50.1*1":            "manufacturer_id",
		"129-129:199.130.3":        "manufacturer",
		"1-0:81.7.26":              "current_angle_l3",
		"something of the maker's": "something of the maker's",
	} {
		if got := obis.NameOf(code); got != want {
			t.Errorf("%s is called %q, want %q", code, got, want)
		}
	}
}

// A configuration finds a point by its code or by its name, so no name may stand for two codes.
func TestNamesAreUnique(t *testing.T) {
	seen := make(map[string]obis.Code)
	add := func(code obis.Code) {
		name, kind := obis.Name(code)
		if kind == obis.Unknown && name == code.String() {
			return
		}
		if other, twice := seen[name]; twice {
			t.Fatalf("%s and %s are both called %q", other, code, name)
		}
		seen[name] = code
	}
	for _, place := range [][2]byte{{0, 0}, {0, 1}, {0, 9}, {0, 10}, {1, 0}, {1, 1}, {1, 3}, {6, 0}, {7, 0}, {8, 0}, {9, 0}, {129, 129}} {
		for c := range 132 {
			for _, d := range []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 29, 32, 36, 50, 97, 130} {
				for _, e := range []byte{0, 1, 2, 3, 4, 9, 10, 63, 64, 255} {
					for _, f := range []byte{1, 96, 255} {
						add(obis.Code{place[0], place[1], byte(c), d, e, f})
					}
				}
			}
		}
	}
	t.Logf("%d codes have names", len(seen))
	var names obis.Names
	for name, code := range seen {
		if got, kind := names.Of(code); got != name {
			t.Errorf("Names calls %s %q of %d, Name calls it %q", code, got, kind, name)
		}
	}
}

func TestDecimal(t *testing.T) {
	for _, c := range []struct {
		negative bool
		m        uint64
		e        int
	}{
		{false, 0, 0}, {true, 0, -3}, {false, 12345, -1}, {false, 3280, -2}, {true, 1260610, -2}, {false, 2301, -1},
		{false, 1<<53 - 1, -3}, {false, 1 << 53, 22}, {false, math.MaxUint64, -4}, {false, 99999999999999999, -22},
		{false, 7, 22}, {true, 7, -23}, {false, 5, 127}, {false, 1, -128}, {false, math.MaxUint64, 127},
	} {
		text := strconv.FormatUint(c.m, 10) + "e" + strconv.Itoa(c.e)
		if c.negative && c.m != 0 {
			text = "-" + text
		}
		want, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		got, err := obis.Decimal(c.negative, c.m, c.e)
		if f, ok := got.Float64(); err != nil || !ok || f != want {
			t.Errorf("%s is %v, %v; want %v", text, got, err, want)
		}
	}
	if v, err := obis.Decimal(false, 1, 400); !errors.Is(err, point.ErrNaN) {
		t.Errorf("1e400 is %v, %v", v, err)
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[uint8]string{0: "", 13: "m3", 27: "W", 30: "Wh", 32: "varh", 33: "A", 35: "V", 44: "Hz", 9: "°C", 8: "°", 72: "dB", 73: "", 254: "", 255: ""} {
		if got := obis.Unit(n); got != want {
			t.Errorf("unit %d is %q, want %q", n, got, want)
		}
	}
}

func TestTextsHoldLittle(t *testing.T) {
	var texts obis.Texts
	long := make([]byte, 5000)
	for place := range 1000 {
		long[0] = byte(place)
		if got := texts.Of(place, long); got != string(long) {
			t.Fatal("a long text is another")
		}
		if got := texts.Of(-place, long[:100]); got != string(long[:100]) {
			t.Fatal("a text is another")
		}
	}
	if n := testing.AllocsPerRun(100, func() { texts.Of(3, long[:100]); texts.Of(4, long[:64]) }); n != 0 {
		t.Errorf("%v allocations for texts that are known", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("1-0:1.8.0*255"))
	f.Add([]byte("F.F"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, ok := obis.Parse(data)
		if !ok {
			return
		}
		if again, ok := obis.Parse([]byte(c.String())); !ok || again != c {
			t.Errorf("%q reads as %s, which reads as %s", data, c, again)
		}
	})
}
