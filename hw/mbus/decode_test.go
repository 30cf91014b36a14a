package mbus

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"ferrule/hw/point"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// head is a header: 12345678, HYD, version 28h, heat, access 1, status 4.
const head = "78 56 34 12 24 23 28 04 01 04 00 00"

func telegram(t testing.TB, ci byte, data string) []byte {
	t.Helper()
	frame, err := AppendLong(nil, RspUD, 5, ci, unhex(t, data))
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// show writes readings as "name value uom" or "name bad:why", without the status.
func show(readings []point.Reading) (all []string) {
	for _, r := range readings {
		s := r.Point + " " + string(r.Value.AppendJSON(nil))
		if r.Bad != "" {
			s = r.Point + " bad:" + r.Bad
		}
		if r.Uom != "" {
			s += " " + r.Uom
		}
		if r.Point != "status" {
			all = append(all, s)
		}
	}
	return all
}

func TestDecodeRecords(t *testing.T) {
	for _, test := range []struct{ records, want string }{
		// Data fields (EN 13757-3, table 4 and annex A).
		{"01 13 FF", "volume -0.001 m3"},
		{"02 13 E8 03", "volume 1.0 m3"},
		{"03 13 01 00 80", "volume -8388.607 m3"},
		{"03 13 00 00 80", "volume bad:nan m3"},
		{"04 06 D2 04 00 00", "energy 1234000.0 Wh"},
		{"04 03 D2 04 00 00", "energy 1234 Wh"},
		{"06 03 00 00 00 00 01 00", "energy 4294967296 Wh"},
		{"07 03 FF FF FF FF FF FF FF 7F", "energy 9223372036854775807 Wh"},
		{"07 00 FF FF FF FF FF FF FF 7F", "energy 9223372036854776.0 Wh"},
		{"07 03 00 00 00 00 00 00 00 80", "energy bad:nan Wh"},
		{"05 5B 9A 99 65 42", "flow_temperature 57.4 °C"},
		{"05 59 9A 99 65 42", "flow_temperature 0.574 °C"},
		{"05 5B 00 00 C0 7F", "flow_temperature bad:nan °C"},
		{"05 5B 00 00 00 80", "flow_temperature 0.0 °C"},
		{"09 5B 21", "flow_temperature 21 °C"},
		{"0A 5A 45 F2", "flow_temperature -24.5 °C"},
		{"0B 3B 56 34 12", "volume_flow 123.456 m3/h"},
		{"0C 78 78 56 34 12", "fabrication_number 12345678"},
		{"0E 03 12 90 78 56 34 12", "energy 123456789012 Wh"},
		{"0C 03 A8 56 34 12", "energy bad:invalid Wh"},
		{"0C 03 FF FF FF FF", "energy bad:invalid Wh"},
		{"0C 03 78 56 34 E2", "energy bad:invalid Wh"},
		{"00 03", ""},
		{"08 03", ""},
		{"2F 2F 01 03 05 2F", "energy 5 Wh"},
		// Variable length (table 6).
		{"0D FD 11 03 43 42 41", `customer "ABC"`},
		{"0D FD 11 02 B0 20", `customer "°"`},
		{"0D FD 11 00", `customer ""`},
		{"0D 03 C3 56 34 12", "energy 123456 Wh"},
		{"0D 03 D2 34 12", "energy -1234 Wh"},
		{"0D 03 E2 34 12", "energy 4660 Wh"},
		{"0D 03 E2 FE FF", "energy -2 Wh"},
		{"0D FD 11 E9 09 08 07 06 05 04 03 02 01", `customer "010203040506070809"`},
		{"0D 03 F8 00 00 00 00 00 00 F8 3F", "energy 1.5 Wh"},
		// Dates and times (annex A, types G, F, J, I); the last: 31 February, "every year".
		{"02 6C B5 35", `date "2029-05-21"`},
		{"02 6C FF FC", `date bad:invalid`},
		{"02 6C 00 00", `date bad:invalid`},
		{"02 6C FF FF", `date bad:invalid`},
		{"02 6C 5F B2", `date bad:invalid`},
		{"02 6C 61 C1", `date "1999-01-01"`},
		{"04 6D 1E 0C B5 35", `date_time "2029-05-21T12:30:00"`},
		{"04 6D 9E 0C B5 35", `date_time bad:invalid`},
		{"04 6D 1E 2C B5 35", `date_time "2029-05-21T12:30:00"`},
		{"04 6D 3F 0C B5 35", `date_time bad:invalid`},
		{"03 6D 1E 0C 0B", `date_time "11:12:30"`},
		{"06 6D 05 1E 0C B5 35 00", `date_time "2029-05-21T12:30:05"`},
		{"04 FD 30 1E 0C B5 35", `tariff_start "2029-05-21T12:30:00"`},
		{"05 6D 00 00 00 00", "date_time bad:invalid"},
		// Function, storage, tariff, subunit.
		{"11 03 05", "energy_max 5 Wh"},
		{"E1 41 03 05", "energy_min_storage3_subunit1 5 Wh"},
		{"B1 10 03 05", "energy_error_tariff1 5 Wh"},
		{"81 B1 52 03 05", "energy_storage66_tariff7_subunit2 5 Wh"},
		{"01 03 05 01 03 06 01 03 07", "energy 5 Wh|energy_2 6 Wh|energy_3 7 Wh"},
		// Units of all tables.
		{"01 08 01", "energy 1 J"}, {"01 18 05", "mass 0.005 kg"}, {"01 21 02", "on_time 120.0 s"},
		{"01 27 02", "operating_time 172800.0 s"}, {"01 2A 05", "power 0.5 W"}, {"01 32 05", "power 500.0 J/h"},
		{"01 42 05", "volume_flow 0.00005 m3/min"}, {"01 48 05", "volume_flow 5e-09 m3/s"}, {"01 53 05", "mass_flow 5 kg/h"},
		{"01 62 05", "temperature_difference 0.5 K"}, {"01 67 05", "external_temperature 5 °C"}, {"01 68 05", "pressure 0.005 bar"},
		{"01 6E 05", "heat_cost_units 5"}, {"01 71 01", "averaging_duration 60.0 s"}, {"01 77 01", "actuality_duration 86400.0 s"},
		{"01 7A 05", "address 5"}, {"01 6F 05", "vif_6f 5"}, {"01 7B 05", "vif_7b 5"},
		{"01 FD 17 FF", "error_flags 255"}, {"02 FD 48 0A 09", "voltage 231.4 V"}, {"02 FD 59 0A 09", "current 2.314 A"},
		{"01 FD 32 02", "tariff_duration 7200.0 s"}, {"01 FD 28 02", "storage_interval 2 month"}, {"01 FD 6F 02", "battery_operating_time 2 year"},
		{"01 FD 6C 02", "battery_operating_time 7200.0 s"}, {"01 FD 71 C0", "rf_level -64 dBm"}, {"01 FD 77 05", "vif_fd_77 5"},
		{"01 FD FD 02 05", "battery_remaining 5 month"}, {"01 FD 3A 05", "dimensionless 5"}, {"04 FD 72 01 02 03 04", `daylight_saving "04030201"`},
		{"01 FB 00 05", "energy 500000.0 Wh"}, {"01 FB 02 05", "reactive_energy 5000.0 varh"}, {"01 FB 0C 05", "energy 500000.0 cal"},
		{"01 FB 14 05", "reactive_power 5 var"}, {"01 FB 1A 05", "relative_humidity 0.5 %"}, {"02 FB 2E F4 01", "frequency 50.0 Hz"},
		{"02 FB 2A B0 04", "phase_voltage_voltage 120.0 °"}, {"01 FB 34 05", "apparent_power 5 VA"}, {"01 FB 77 05", "temperature_limit 5 °C"},
		{"02 FB 68 00 18", "rating_factor 1.5"}, {"01 FB 69 05", "rating_factor_output 5 W"}, {"01 FB 06 05", "vif_fb_06 5"},
		// Combinable codes.
		{"01 83 3B 05", "energy_forward 5 Wh"}, {"01 83 3C 05", "energy_backward 5 Wh"}, {"01 93 22 05", "volume_per_hour 0.005 m3/h"},
		{"01 93 74 05", "volume 0.00005 m3"}, {"01 93 7D 05", "volume 5 m3"}, {"01 96 7A 05", "volume 5.1 m3"}, {"01 93 7B 05", "volume 1.005 m3"},
		{"01 83 FC 02 05", "energy_l2 5 Wh"}, {"01 83 FF 81 00 05", "energy_x8100 5 Wh"}, {"01 83 15 05", "energy bad:nan Wh"},
		{"01 83 18 05", "energy bad:invalid Wh"}, {"01 83 00 05", "energy 5 Wh"}, {"01 83 12 05", "energy_average 5 Wh"},
		{"01 83 48 05", "energy_upper_limit 5 Wh"}, {"01 83 41 05", "energy_lower_limit_exceeds 5"},
		{"04 AB 4B 1E 0C B5 35", `power_upper_limit_first_end "2029-05-21T12:30:00"`}, {"01 AB 5D 05", "power_upper_limit_last_duration 300.0 s"},
		{"01 AB 66 05", "power_last_duration 18000.0 s"}, {"04 AB 6E 1E 0C B5 35", `power_last_begin "2029-05-21T12:30:00"`},
		{"04 AB 39 1E 0C B5 35", `power_start "2029-05-21T12:30:00"`}, {"01 AB 68 05", "power_during_lower_limit_exceed 5 W"},
		{"01 83 3D 05", "energy_non_metric 5"}, {"01 83 7E 05", "energy_future 5 Wh"}, {"01 83 0A 05", "energy_vife_0a 5 Wh"},
		{"0D 83 1F E2 34 12", `energy_profile "1234"`}, {"01 C3 FC 11 FF", "volume_flow 0.0255 m3/min"},
		// Text in place of a unit, before the VIFEs and behind them.
		{"02 FC 03 48 52 25 74 D4 11", "rh 45.64 %RH"}, {"02 FC 74 03 48 52 25 D4 11", "rh 45.64 %RH"}, {"01 7C 02 43 B0 05", "c 5 °C"},
		// The manufacturer's own.
		{"01 7F 05", "manufacturer_specific 5"}, {"01 FF 88 2A 05", "manufacturer_specific_882a 5"},
		{"01 03 05 0F 01 02 03", `energy 5 Wh|manufacturer_data "010203"`}, {"01 03 05 1F", "energy 5 Wh"}, {"1F AA", `manufacturer_data "aa"`},
	} {
		var d Decoder
		name, readings, err := d.Decode(nil, telegram(t, ciVariable, head+test.records))
		if got := strings.Join(show(readings), "|"); err != nil || got != test.want {
			t.Errorf("%s: got %q, %v, want %q", test.records, got, err, test.want)
		}
		if name != "12345678-HYD-28-04" || len(readings) == 0 || readings[len(readings)-1].Value != point.Uint(4) {
			t.Errorf("%s: %q, %v", test.records, name, readings)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		ci   byte
		data string
		want error
	}{
		"a header cut off":    {ciVariable, "78 56 34 12 24 23 28 04 01 04 00", ErrFormat},
		"data cut off":        {ciVariable, head + "01 03 05 04 03 01 02 03", ErrFormat},
		"no VIF":              {ciVariable, head + "04", ErrFormat},
		"a reserved DIF":      {ciVariable, head + "3F", ErrFormat},
		"a reserved LVAR":     {ciVariable, head + "0D 03 CA 00 00 00 00", ErrFormat},
		"a long text":         {ciVariable, head + "0D 03 20 41", ErrFormat},
		"AES":                 {ciVariable, "78 56 34 12 24 23 28 04 01 04 20 05 01 02", ErrEncrypted},
		"AES, short header":   {ciShortHeader, "01 00 10 05 01 02", ErrEncrypted},
		"an alarm":            {ciAlarm, "01", ErrUnsupported},
		"an unknown CI field": {0x55, "01", ErrUnsupported},
		"busy":                {ciError, "08", ApplicationError(8)},
		"some error":          {ciError, "", ApplicationError(0)},
		"a short fixed":       {ciFixed, "78 56 34 12 01 00 05 69 01 00 00 00 02 00 00", ErrFormat},
	} {
		var d Decoder
		dst := []point.Reading{{Point: "before"}}
		_, readings, err := d.Decode(dst, telegram(t, test.ci, test.data))
		if !errors.Is(err, test.want) || !slices.Equal(readings, dst) {
			t.Errorf("%s: got %v, %v", name, readings, err)
		}
	}
	var d Decoder
	good := telegram(t, ciVariable, head+"01 03 05")
	for name, telegrams := range map[string][][]byte{
		"none": {}, "an acknowledgement": {{ack}}, "a byte more": {append(slices.Clone(good), 0)}, "nothing": {{}},
	} {
		if _, readings, err := d.Decode(nil, telegrams...); err == nil || readings != nil {
			t.Errorf("%s: accepted as %v", name, readings)
		}
	}
	other := telegram(t, ciVariable, "79"+head[2:]+"01 03 05")
	if _, _, err := d.Decode(nil, good, other); !errors.Is(err, ErrMismatch) {
		t.Errorf("telegrams of two units: %v", err)
	}
	for i := range len(good) * 8 {
		bad := slices.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		if _, _, err := d.Decode(nil, bad); err == nil {
			t.Errorf("a flipped bit in byte %d passed", i/8)
		}
	}
}

func TestDecodeHeaders(t *testing.T) {
	for _, test := range []struct {
		ci         byte
		data, name string
		want       string
	}{
		{ciVariable, "78 56 34 12 24 23 28 04 01 04 B6 F6 01 03 05", "12345678-HYD-28-04", "energy 5 Wh"}, // mode 22 is none
		{ciVariableMSB, "12 34 56 78 23 24 28 04 01 04 00 00 02 03 00 05 0D FD 11 02 41 42", "12345678-HYD-28-04", `energy 5 Wh|customer "AB"`},
		{ciShortHeader, "01 04 00 00 01 03 05", "", "energy 5 Wh"},
		{ciNoHeader, "01 03 05", "", "energy 5 Wh"},
		{ciFixed, "78 56 34 12 0A 00 E9 7E 01 00 00 00 35 01 00 00", "12345678", "volume 0.001 m3|volume_storage1 0.135 m3"},
		{ciFixed, "78 56 34 12 0A 01 05 54 FF FF FF FF 35 01 00 00", "12345678", "energy -1000.0 Wh|power 309 W"},
		{ciFixed, "78 56 34 12 0A 02 05 7D 01 00 00 00 0A 00 00 00", "12345678", "energy_storage1 1000.0 Wh|unit_3d_storage1 bad:invalid"},
		{ciFixedMSB, "12 34 56 78 0A 00 7E E9 00 00 00 01 00 00 01 35", "12345678", "volume 0.001 m3|volume_storage1 0.135 m3"},
	} {
		var d Decoder
		name, readings, err := d.Decode(nil, telegram(t, test.ci, test.data))
		if got := strings.Join(show(readings), "|"); err != nil || got != test.want || name != test.name {
			t.Errorf("CI %02X: %q: got %q, %v, want %q", test.ci, name, got, err, test.want)
		}
	}
	h, err := ParseHeader(telegram(t, ciVariable, head))
	if err != nil || h.Letters() != "HYD" || MediumName(h.Medium) != "heat (outlet)" || h.Status&StatusPowerLow == 0 || h.Status.Application() != 0 {
		t.Errorf("%+v, %v", h, err)
	}
}

// Names are the same in every read-out and never come twice, whatever else has a number at its end.
func TestDecodeNamesAreStable(t *testing.T) {
	var d Decoder
	long := telegram(t, ciVariable, head+"01 7C 01 61 01 01 7C 01 61 02 01 7C 03 32 20 61 03 01 7C 01 61 04")
	want := []string{"a 1 a", "a_2 2 a", "a_2_2 3 a 2", "a_3 4 a"}
	for range 3 {
		_, readings, err := d.Decode(nil, long)
		if got := show(readings); err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	// Far more kinds of record than are remembered.
	for i := range 3 * maxKnown {
		_, readings, err := d.Decode(nil, telegram(t, ciVariable, fmt.Sprintf("%s 01 FF %02X %02X %02X 05", head, 0x80|i>>14, 0x80|i>>7, i&0x7F)))
		if err != nil || len(readings) != 2 || len(d.meanings) > maxKnown || len(d.numbered) > maxKnown {
			t.Fatalf("%v, %v, %d", readings, err, len(d.meanings))
		}
	}
}

func TestRecords(t *testing.T) {
	var d Decoder
	frame := telegram(t, ciVariable, head+"B1 50 83 3B 05 0C 03 FF FF FF FF 00 13")
	var all []string
	for r, err := range d.Records(frame) {
		all = append(all, fmt.Sprintf("%v %d %d %d %v %s %s %v %s % X % X %v", r.Function, r.Storage, r.Tariff, r.Subunit, r.Extended, r.Quantity, r.Uom, r.Value, r.Bad, r.Head, r.Data, err))
	}
	want := []string{
		"error 0 1 1 true energy Wh 5  B1 50 83 3B 05 <nil>",
		"instantaneous 0 0 0 false energy Wh null invalid 0C 03 FF FF FF FF <nil>",
		"instantaneous 0 0 0 false volume m3 null  00 13  <nil>",
	}
	if !slices.Equal(all, want) {
		t.Errorf("got %q, want %q", all, want)
	}
	for range d.Records(frame) {
		break
	}
	errs := 0
	for _, err := range d.Records(telegram(t, ciVariable, head+"01 03 05 04")) {
		if err != nil {
			errs++
		}
	}
	if errs != 1 || !More(telegram(t, ciVariable, head+"01 03 05 1F")) || More(frame) || More([]byte{ack}) || More(nil) {
		t.Errorf("%d errors", errs)
	}
}

func TestParseSecondary(t *testing.T) {
	for text, want := range map[string]string{
		"12345678":            "12345678",
		"1234FFff":            "1234FFFF",
		"12345678-HYD-28-04":  "12345678-HYD-28-04",
		"12345678-hyd-ff-04":  "12345678-HYD-FF-04",
		"12345678-FFF-FF-FF":  "12345678",
		"12345678-2324-28-04": "12345678-HYD-28-04",
		"12345678-0000-28-04": "12345678-0000-28-04",
		"1234567824232804":    "12345678-HYD-28-04",
		"FFFFFFFFFFFFFFFF":    "FFFFFFFF",
	} {
		a, err := ParseSecondary(text)
		if err != nil || a.String() != want || !a.Secondary() {
			t.Errorf("%q: got %q, %v, want %q", text, a, err, want)
			continue
		}
		if again, err := ParseSecondary(a.String()); err != nil || again != a {
			t.Errorf("%q: reading it again gives %q, %v", text, again, err)
		}
	}
	for _, text := range []string{"", "1234567", "1234567A", "123456789", "12345678-HYD", "12345678-HY-28-04", "12345678-HYD-2-04", "12345678-HYD-28-0G", "12345678-H1D-28-04", "1234567824232804-", "12345678-HYD-+8-04"} {
		if a, err := ParseSecondary(text); err == nil {
			t.Errorf("%q is read as %v", text, a)
		}
	}
	if Primary(250).String() != "250" {
		t.Error(Primary(250))
	}
}

func TestAddressMatches(t *testing.T) {
	h, err := ParseHeader(telegram(t, ciVariable, head))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"12345678": true, "12345678-HYD-28-04": true, "F2F4F6F8": true, "12345678-FFF-28-FF": true, "12345679": false,
		"12345678-HYE-28-04": false, "12345678-HYD-29-04": false, "12345678-HYD-28-05": false,
	} {
		a, err := ParseSecondary(text)
		if err != nil || a.Matches(&h) != want {
			t.Errorf("%s: %v, %v", text, a.Matches(&h), err)
		}
	}
	if a := AddressOf(&h); a.String() != h.String() || !a.Matches(&h) {
		t.Errorf("%v of %v", a, h.String())
	}
	if !Primary(1).Matches(&h) || Everybody().Matches(&Header{Short: true}) {
		t.Error("a primary address matches every header, a secondary one none that says nothing")
	}
}

func BenchmarkDecode(b *testing.B) {
	frame := telegram(b, ciVariable, head+strings.Repeat("0C 06 78 56 34 12 0B 3B 56 34 12 0A 5A 45 02 04 6D 1E 0C B5 35 ", 5))
	var d Decoder
	var dst []point.Reading
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if _, dst, err = d.Decode(dst[:0], frame); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(dst)), "records/op")
}

func TestDecodeAllocatesNothing(t *testing.T) {
	frame := telegram(t, ciVariable, head+"0C 06 78 56 34 12 05 5B 9A 99 65 42 04 6D 1E 0C B5 35 0D FD 11 03 43 42 41 01 03 01 01 03 02")
	fixed := telegram(t, ciFixed, "78 56 34 12 0A 00 E9 7E 01 00 00 00 35 01 00 00")
	var d Decoder
	var dst []point.Reading
	for _, telegrams := range [][][]byte{{frame, frame}, {fixed}} {
		if n := testing.AllocsPerRun(100, func() { _, dst, _ = d.Decode(dst[:0], telegrams...) }); n != 0 || len(dst) == 0 {
			t.Errorf("%v allocations, %d readings", n, len(dst))
		}
	}
}
