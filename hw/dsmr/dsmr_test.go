package dsmr_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/hw/dsmr"
	"ferrule/hw/frame"
	"ferrule/hw/frame/frametest"
	"ferrule/hw/point"
)

// telegram puts lines together; they end in CR LF.
func telegram(header string, lines ...string) []byte {
	return []byte("/" + header + "\r\n\r\n" + strings.Join(lines, "\r\n") + "\r\n!\r\n")
}

// signed puts lines together and adds the CRC.
func signed(header string, lines ...string) []byte {
	t := telegram(header, lines...)
	t = t[:len(t)-2]
	return fmt.Appendf(t, "%04X\r\n", crc(t, 0, 0xa001, 0))
}

// crc is a CRC of reflected bits, bit by bit.
func crc(data []byte, init, poly, xor uint16) uint16 {
	for _, c := range data {
		init ^= uint16(c)
		for range 8 {
			if init&1 == 1 {
				init = init>>1 ^ poly
			} else {
				init >>= 1
			}
		}
	}
	return init ^ xor
}

// Telegrams of every form, written after the standards.
var (
	dutch5 = signed(`XYZ5\253000001_A`,
		"1-3:0.2.8(50)", "0-0:1.0.0(240331015959W)", "0-0:96.1.1(4530303033303030303031323334353637)",
		"1-0:1.8.1(000123.456*kWh)", "1-0:1.8.2(000000.001*kWh)", "1-0:2.8.1(000000.000*kWh)",
		"0-0:96.14.0(0002)", "1-0:1.7.0(01.193*kW)", "1-0:2.7.0(00.000*kW)",
		"0-0:96.7.21(00004)", "0-0:96.7.9(00002)",
		"1-0:99.97.0(2)(0-0:96.7.19)(240208152415W)(0000000240*s)(240708151004S)(0000000301*s)",
		"1-0:32.32.0(00002)", "1-0:32.36.0(00000)", "0-0:96.13.0(48616C6C6F2021)",
		"1-0:32.7.0(220.1*V)", "1-0:31.7.0(001*A)", "1-0:21.7.0(01.111*kW)",
		"0-1:24.1.0(003)", "0-1:96.1.0(3232323241424344313233343536373839)", "0-1:24.2.1(240331020000S)(12785.123*m3)",
		"0-2:24.1.0(012)", "0-2:24.2.1(632525252525S)(00000.000)", "0-3:24.2.1(240331020000S)(00001.234*GJ)",
		"0-4:24.1.0(003)", "0-4:96.1.0()", "0-4:24.2.1(700101010000W)(00000000)")
	dutch3 = telegram(`XYZ4\2MT`,
		"0-0:96.1.1(5A)", "1-0:1.8.1(12345.678*kWh)", "0-0:96.14.0(0002)", "1-0:1.7.0(001.19*kW)", "0-0:17.0.0(016*A)",
		"0-0:96.3.10(1)", "0-0:96.13.1(3031203631203831)", "0-0:96.13.0()", "0-1:96.1.0(3232323241424344313233343536373839)",
		"0-1:24.1.0(03)", "0-1:24.3.0(090212160000)(00)(60)(1)(0-1:24.2.0)(m3)", "(00000.012)", "0-1:24.4.0(1)")
	belgian = signed(`FLU5\253000002_A`,
		"0-0:96.1.4(50217)", "0-0:96.1.1(3153414733313030303030323331)", "0-0:1.0.0(231212120000W)",
		"1-0:1.4.0(00.123*kW)", "1-0:1.6.0(231201081500W)(02.589*kW)",
		"0-0:98.1.0(2)(1-0:1.6.0)(1-0:1.6.0)(231101000000W)(231012174500S)(03.695*kW)(231201000000W)(231122180000W)(05.980*kW)",
		"0-0:17.0.0(999.9*kW)", "1-0:31.4.0(999*A)", "0-1:24.2.3(231212115500W)(00112.384*m3)", "0-2:96.1.1(37464C4F32313139303330303031)")
	mode3 = telegram("ABC5Q3D V3.04", "1-0:0.0.0*255(0012345678)", "1-0:1.8.0*255(00032549.5061662*kWh)", "1-0:21.7.0*255(-000557.29*W)",
		"1-0:96.5.5*255(80)", "0-0:96.1.255*255(1ABC0012345678)", "1-0:1.8.0*96(00012.3*kWh)")
	reduced = telegram("XYZ2reduced", "F.F(00000000)", "0.9.1(172305)", "1.8.1(0001234.5*kWh)1.8.2(0000001*kWh)", "1.6.1(00.23*kW)(2403251015)",
		"1.8.1*01(0001200.0*kWh)", "6.8(0012*MWh)", "C.1.0(41424344)")
	holley  = xmodelled()
	control = signed("ISK5\x02A", "1-0:1.7.0(00.170*kW)")
)

// xmodelled is what the Holley DTSD545 sends: a slash in the header, and another CRC.
func xmodelled() []byte {
	t := telegram("HLY5/D545-METER", "1-0:15.8.0(00007137.694*kWh )", "0-0:96.13.0(FFFFFFFF)", "0-0:96.50.68(ON)")
	t = t[:len(t)-2]
	return fmt.Appendf(t, "%04X\r\n", crc(t, 0xffff, 0x8408, 0xffff))
}

var all = map[string][]byte{"dutch5": dutch5, "dutch3": dutch3, "belgian": belgian, "mode3": mode3, "reduced": reduced, "holley": holley, "control": control}

// show writes readings as a test expects them.
func show(readings []point.Reading) string {
	var b strings.Builder
	for _, r := range readings {
		value := r.Value.String()
		if r.Bad != "" {
			value = "BAD " + r.Bad
		}
		fmt.Fprintf(&b, "%s = %s\n", r.Point, strings.TrimSpace(value+" "+r.Uom))
	}
	return b.String()
}

func TestDecode(t *testing.T) {
	for name, c := range map[string]struct{ unit, want string }{
		"dutch5": {"XYZ5_253000001_A", `dsmr_version = 50
time = 2024-03-31T01:59:59
equipment_id = E0003000001234567
active_energy_import_t1 = 123.456 kWh
active_energy_import_t2 = 0.001 kWh
active_energy_export_t1 = 0.0 kWh
tariff = 2
active_power_import = 1.193 kW
active_power_export = 0.0 kW
power_failures = 4
long_power_failures = 2
power_failure_log = 2
power_failure_log_1_time = 2024-02-08T15:24:15
power_failure_log_1_duration = 240.0 s
power_failure_log_2_time = 2024-07-08T15:10:04
power_failure_log_2_duration = 301.0 s
voltage_sags_l1 = 2
voltage_swells_l1 = 0
message = Hallo !
voltage_l1 = 220.1 V
current_l1 = 1.0 A
active_power_import_l1 = 1.111 kW
mbus1_type = 3
mbus1_id = 2222ABCD123456789
mbus1_value_time = 2024-03-31T02:00:00
mbus1_value = 12785.123 m3
mbus2_type = 12
mbus2_value_time = BAD invalid
mbus2_value = BAD invalid
mbus3_value_time = 2024-03-31T02:00:00
mbus3_value = 1.234 GJ
mbus4_type = 3
mbus4_value_time = BAD invalid
mbus4_value = BAD invalid
`},
		"dutch3": {"XYZ4_2MT", `equipment_id = 5A
active_energy_import_t1 = 12345.678 kWh
tariff = 2
active_power_import = 1.19 kW
power_limit = 16.0 A
breaker = 1
message_code = 01 61 81
mbus1_id = 2222ABCD123456789
mbus1_type = 3
mbus1_value_0_time = 2009-02-12T16:00:00
mbus1_value_0 = 0.012 m3
mbus1_valve = 1
`},
		"belgian": {"FLU5_253000002_A", `p1_version = 50217
equipment_id = 1SAG3100000231
time = 2023-12-12T12:00:00
active_power_import_average = 0.123 kW
active_power_import_max_time = 2023-12-01T08:15:00
active_power_import_max = 2.589 kW
peak_history = 2
peak_history_1_period = 2023-11-01T00:00:00
peak_history_1_time = 2023-10-12T17:45:00
peak_history_1_power = 3.695 kW
peak_history_2_period = 2023-12-01T00:00:00
peak_history_2_time = 2023-11-22T18:00:00
peak_history_2_power = 5.98 kW
power_limit = 999.9 kW
current_limit_l1 = 999.0 A
mbus1_value_uncorrected_time = 2023-12-12T11:55:00
mbus1_value_uncorrected = 112.384 m3
mbus2_equipment_id = 7FLO2119030001
`},
		"mode3": {"ABC5Q3D_V3.04", `property_number = 0012345678
active_energy_import = 32549.5061662 kWh
active_power_import_l1 = -557.29 W
status = 80
serial_number = 1ABC0012345678
active_energy_import_1d = 12.3 kWh
`},
		"reduced": {"XYZ2reduced", `error_code = 00000000
time_of_day = 172305
active_energy_import_t1 = 1234.5 kWh
active_energy_import_t2 = 1.0 kWh
active_power_import_max_t1_time = 2024-03-25T10:15:00
active_power_import_max_t1 = 0.23 kW
1-0:1.8.1*1 = 1200.0 kWh
6.8 = 12.0 MWh
meter_id = 41424344
`},
		"holley": {"HLY5_D545-METER", `active_energy_sum = 7137.694 kWh
message = FFFFFFFF
0-0:96.50.68 = ON
`},
		"control": {"ISK5_A", "active_power_import = 0.17 kW\n"},
	} {
		var d dsmr.Decoder
		unit, readings, err := d.Decode(nil, all[name])
		if err != nil || unit != c.unit || show(readings) != c.want {
			t.Errorf("%s: %q, %v\n%s\nwant %q\n%s", name, unit, err, show(readings), c.unit, c.want)
		}
	}
}

func TestLines(t *testing.T) {
	for line, want := range map[string]string{
		"1-0:99.97.0()":                            "",
		"1-0:99.97.0(0)(0-0:96.7.19)":              "power_failure_log = 0\n",
		"0-0:98.1.0(231101000000W)(03.695*kWh)":    "0-0:98.1.0_time = 2023-11-01T00:00:00\n0-0:98.1.0 = 3.695 kWh\n",
		"0-0:98.1.0(0)(1-0:1.6.0)(1-0:1.6.0)":      "peak_history = 0\n",
		"0-1:24.3.0(090212160000)(00)(60)(1)":      "0-1:24.3.0 = 090212160000\n0-1:24.3.0_2 = 00\n0-1:24.3.0_3 = 60\n0-1:24.3.0_4 = 1\n",
		"0-1:24.2.1(240331020000S)(--)":            "mbus1_value_time = 2024-03-31T02:00:00\nmbus1_value = BAD invalid\n",
		"0-1:24.2.1(700101010000)(00000000)":       "mbus1_value_time = BAD invalid\nmbus1_value = BAD invalid\n",
		"0-1:24.2.1(240331020000S)()":              "mbus1_value_time = 2024-03-31T02:00:00\n",
		"0-0:1.0.0(240230000000W)":                 "time = BAD invalid\n",
		"0-0:1.0.0(240331250000)":                  "time = BAD invalid\n",
		"1-0:1.8.0(12,5*kWh)":                      "active_energy_import = BAD invalid kWh\n",
		"1-0:1.8.0(99999999999999999999*kWh)":      "active_energy_import = BAD invalid kWh\n",
		"1-0:3.7.0(-0.5*kVAr)":                     "reactive_power_import = -0.5 kvar\n",
		"0-0:96.13.0(C3A9)":                        "message = é\n",
		"0-0:96.13.0(00)":                          "message = 00\n",
		"0-0:96.3.10(ON)":                          "breaker = ON\n",
		"0-0:96.7.21(99999999999999999999)":        "power_failures = 99999999999999999999\n",
		"no value at all":                          "",
		"1-0:1.8.0(1*kWh":                          "",
		"(5)":                                      "",
		"\x7f(5)":                                  "",
		"LGZ.x(a)(b)":                              "LGZ.x = a\nLGZ.x_2 = b\n",
		strings.Repeat("x", 33) + "(1)":            "",
		"9.9.9" + strings.Repeat("(1)", 70):        "many",
		"1-0:1.7.0(00.5*kW)\r\n\r\n(00.7*kW)":      "active_power_import = 0.5 kW\nactive_power_import_2 = 0.7 kW\n",
		"1-0:1.7.0(00.5*kW)trailing\r\n1.8.0(2)":   "active_power_import = 0.5 kW\nactive_energy_import = 2.0\n",
		"0-1:24.3.0(xx)(00)(60)(1)(1.8.0)(kWh)(3)": "active_energy_import_time = BAD invalid\nactive_energy_import = BAD invalid kWh\n",
	} {
		var d dsmr.Decoder
		_, readings, err := d.Decode(nil, signed("ABC5", line))
		if got := show(readings); err != nil || got != want && (want != "many" || len(readings) != 64) {
			t.Errorf("%q reads as\n%s%v\nwant\n%s", line, got, err, want)
		}
	}
}

// In the hour that comes twice, the letter tells which one it is.
func TestZone(t *testing.T) {
	zone := time.FixedZone("no summer", 3600)
	amsterdam, err := time.LoadLocation("Europe/Amsterdam")
	if err != nil {
		t.Fatalf("the time zones are missing; run: make deps: %v", err)
	}
	dublin, err := time.LoadLocation("Europe/Dublin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		zone       *time.Location
		text, want string
	}{
		{amsterdam, "241027023000S", "2024-10-27T00:30:00Z"},
		{amsterdam, "241027023000W", "2024-10-27T01:30:00Z"},
		{amsterdam, "240701120000S", "2024-07-01T10:00:00Z"},
		{amsterdam, "240701120000W", "2024-07-01T11:00:00Z"},
		{amsterdam, "240701120000", "2024-07-01T10:00:00Z"},
		{dublin, "240701120000S", "2024-07-01T11:00:00Z"},
		{dublin, "240101120000W", "2024-01-01T12:00:00Z"},
		{zone, "240701120000S", "2024-07-01T11:00:00Z"},
		{nil, "240701120000S", "2024-07-01T12:00:00"},
	} {
		d := dsmr.Decoder{Zone: c.zone}
		_, readings, err := d.Decode(nil, signed("ABC5", "0-0:1.0.0("+c.text+")"))
		if err != nil || len(readings) != 1 || readings[0].Value.String() != c.want {
			t.Errorf("%s in %v is %v, %v; want %s", c.text, c.zone, readings, err, c.want)
		}
	}
}

// What Split refuses, and why.
func TestSplitFaults(t *testing.T) {
	good := string(control)
	damaged := strings.Replace(good, "00.170", "00.171", 1)
	for name, c := range map[string]struct {
		stream string
		frames int
		want   frame.Stats
	}{
		"good":                      {good, 1, frame.Stats{}},
		"line ends between":         {"\r\n\n" + good + "\r\n" + good, 2, frame.Stats{}},
		"without CR":                {strings.ReplaceAll(good, "\r", ""), 1, frame.Stats{}},
		"damaged":                   {damaged + good, 1, frame.Stats{Checksum: 1, Garbage: uint64(len(damaged))}},
		"cut off at a line":         {good[:9] + good, 1, frame.Stats{Malformed: 1, Garbage: 9}},
		"cut off in a line":         {good[:20] + good, 1, frame.Stats{Checksum: 1, Garbage: 20}},
		"small letters in the CRC":  {strings.ToLower(good) + good, 1, frame.Stats{Malformed: 1, Garbage: uint64(len(good) - 2)}},
		"no number before its unit": {"/ABC5\r\n\r\n1.8.0(o1*kWh)\r\n!\r\n", 0, frame.Stats{Malformed: 1, Garbage: 27}},
		"a character above 7 bits":  {"/ABC5\r\n\r\n1.8.0(\xb1*kWh)\r\n!\r\n", 0, frame.Stats{Malformed: 1, Garbage: 26}},
		"no values":                 {"/ABC5\r\n\r\n!\r\n", 0, frame.Stats{Malformed: 1, Garbage: 12}},
		"no parentheses":            {"/ABC5\r\n\r\nhello\r\n1.8.0(1)\r\n!\r\n", 0, frame.Stats{Malformed: 1, Garbage: 29}},
		"a short CRC":               {"/ABC5\r\n1.8.0(1)\r\n!12\r\n", 0, frame.Stats{Malformed: 1, Garbage: 20}},
	} {
		stats, frames := cut(c.stream)
		stats.Bytes, stats.Frames = 0, 0
		if len(frames) != c.frames || stats != c.want {
			t.Errorf("%s: %d frames, %+v; want %d, %+v", name, len(frames), stats, c.frames, c.want)
		}
	}
}

func cut(stream string) (frame.Stats, []string) {
	var frames []string
	c := frame.NewCutter(dsmr.Split, dsmr.MaxFrame)
	c.Feed([]byte(stream), func(f []byte) { frames = append(frames, string(f)) })
	return c.Stats(), frames
}

func TestSplitConforms(t *testing.T) {
	frametest.Conforms(t, dsmr.Split, dsmr.MaxFrame, dutch3, holley, control)
}

// Every bit of every telegram that carries a CRC, the line end behind it included.
func TestEveryFlippedBitIsCaught(t *testing.T) {
	for name, telegram := range all {
		if name == "dutch3" || name == "mode3" || name == "reduced" {
			continue
		}
		flipAll(t, name, telegram)
	}
}

func flipAll(t *testing.T, name string, telegram []byte) {
	t.Helper()
	damaged := make([]byte, len(telegram))
	for bit := range 8 * len(telegram) {
		copy(damaged, telegram)
		damaged[bit/8] ^= 1 << (bit % 8)
		if _, frames := cut(string(damaged)); len(frames) != 0 {
			t.Errorf("%s: bit %d of byte %d flipped is not noticed: %q", name, bit%8, bit/8, frames[0])
		}
		if strings.HasPrefix(string(damaged), "/") && bit/8 < len(telegram)-2 {
			var d dsmr.Decoder
			if _, _, err := d.Decode(nil, damaged); err == nil {
				t.Errorf("%s: bit %d of byte %d flipped is decoded", name, bit%8, bit/8)
			}
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	damaged := []byte(strings.Replace(string(dutch5), "220.1", "220.2", 1))
	for name, c := range map[string]struct {
		telegram []byte
		is       error
	}{
		"nothing":     {nil, nil},
		"no slash":    {dutch5[1:], nil},
		"no end":      {dutch5[:100], nil},
		"slash alone": {[]byte("/\n!"), nil},
		"wrong CRC":   {damaged, dsmr.ErrChecksum},
	} {
		var d dsmr.Decoder
		before := []point.Reading{{Point: "before"}}
		_, readings, err := d.Decode(before, c.telegram)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || len(readings) != 1 {
			t.Errorf("%s: %v, %v", name, readings, err)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	var d dsmr.Decoder
	var dst []point.Reading
	c := frame.NewCutter(dsmr.Split, dsmr.MaxFrame)
	take := func(f []byte) {
		var err error
		if _, dst, err = d.Decode(dst[:0], f); err != nil {
			t.Error(err)
		}
	}
	for name, telegram := range all {
		if n := testing.AllocsPerRun(100, func() { c.Feed(telegram, take) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"dutch5", "dutch3"} {
		b.Run(name, func(b *testing.B) {
			var d dsmr.Decoder
			var dst []point.Reading
			c := frame.NewCutter(dsmr.Split, dsmr.MaxFrame)
			telegram := all[name]
			b.SetBytes(int64(len(telegram)))
			b.ReportAllocs()
			for b.Loop() {
				c.Feed(telegram, func(f []byte) { _, dst, _ = d.Decode(dst[:0], f) })
			}
		})
	}
}

// BenchmarkFlood shows what garbage costs in the chunks of an adapter; 921,600 baud are 0.09 MB/s.
func BenchmarkFlood(b *testing.B) {
	for name, piece := range map[string]string{
		"slashes": "/", "lines": "/a\n", "zeros": "\x00", "telegrams without an end": string(dutch5[:len(dutch5)-8]),
		"ends": "x/\n!\r\n", "wrong CRCs": "/\n(/)\n!0000\r\n", "inside slashes": "a/b\n",
	} {
		b.Run(name, func(b *testing.B) {
			flood := []byte(strings.Repeat(piece, 64<<10/len(piece)))
			c := frame.NewCutter(dsmr.Split, dsmr.MaxFrame)
			b.SetBytes(int64(len(flood)))
			for b.Loop() {
				for chunk := range slices.Chunk(flood, 64) {
					c.Feed(chunk, func([]byte) {})
				}
			}
		})
	}
}

func FuzzDSMR(f *testing.F) {
	for _, telegram := range all {
		f.Add(telegram)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 2*dsmr.MaxFrame {
			return
		}
		frametest.Check(t, dsmr.Split, dsmr.MaxFrame, data, dutch3, control)
		var d dsmr.Decoder
		frames := 0
		c := frame.NewCutter(dsmr.Split, dsmr.MaxFrame)
		c.Feed(data, func(telegram []byte) {
			frames++
			if _, readings, err := d.Decode(nil, telegram); err != nil || len(readings) > 3*len(telegram) {
				t.Errorf("the frame %q gives %d readings, %v", telegram, len(readings), err)
			}
		})
		d.Decode(nil, data)
	})
}
