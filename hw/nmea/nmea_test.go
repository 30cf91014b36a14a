package nmea

import (
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"ferrule/hw/frame"
	"ferrule/hw/frame/frametest"
	"ferrule/hw/point"
)

// with returns a sentence with its checksum: "$GPHDT,1.0,T" as "$GPHDT,1.0,T*30".
func with(sentence string) string {
	return fmt.Sprintf("%s*%02X", sentence, xor([]byte(sentence[1:])))
}

// message returns a UBX message.
func message(class, id byte, payload string) string {
	m := string([]byte{sync1, sync2, class, id, byte(len(payload)), byte(len(payload) >> 8)}) + payload
	a, b := fletcher([]byte(m[2:]))
	return m + string([]byte{a, b})
}

// show writes readings as a person reads them.
func show(readings []point.Reading) string {
	var parts []string
	for _, r := range readings {
		value := r.Value.String()
		if r.Bad != "" {
			value = "!" + r.Bad
		}
		if r.Uom != "" {
			value += " " + r.Uom
		}
		parts = append(parts, r.Point+"="+value)
	}
	return strings.Join(parts, "; ")
}

func TestDecode(t *testing.T) {
	for _, c := range []struct{ frame, name, want string }{
		{"$GPRMC,225446.5,A,4916.45,N,12311.12,W,000.5,054.7,191194,020.3,E", "GPRMC",
			"time=1994-11-19T22:54:46.5Z; status=valid; latitude=49.274166666666666 °; longitude=-123.18533333333333 °; speed=0.5 kn; course=54.7 °; variation=20.3 °"},
		{"$GNRMC,235960.00,A,0000.0001,S,17959.99999999999,E,0,,311216,1.5,W,D,S", "GNRMC", // a leap second, and the edge of the map
			"time=2017-01-01T00:00:00Z; status=valid; latitude=-0.0000016666666666666667 °; longitude=179.99999999999983 °; speed=0.0 kn; variation=-1.5 °; mode=differential; navigational_status=safe"},
		{"$GPRMC,,V,,,,,,,,,,N", "GPRMC",
			"status=void; latitude=!invalid °; longitude=!invalid °; speed=!invalid kn; course=!invalid °; mode=none"},
		{"$GPRMC,102136.000,V,3340.8472,S,15117.3205,E,0.0,0.0,251112,0.0,W", "GPRMC",
			"time=2012-11-25T10:21:36Z; status=void; latitude=!invalid °; longitude=!invalid °; speed=!invalid kn; course=!invalid °; variation=0.0 °"},
		{"$GPGGA,081500.125,5231.2,N,01324.6,E,1,08,0.9,34.0,M,46.9,M,2.5,0133", "GPGGA",
			"time=08:15:00.125; latitude=52.52 °; longitude=13.41 °; mode=autonomous; satellites_used=8; hdop=0.9; altitude=34.0 m; geoid_separation=46.9 m; differential_age=2.5 s; differential_station=0133"},
		{"$GPGGA,081500,,,,,0,00,99.9,,,,,,", "GPGGA",
			"time=08:15:00; latitude=!invalid °; longitude=!invalid °; mode=none; satellites_used=0; hdop=99.9; altitude=!invalid m"},
		{"$GPGGA,246199,9000.01,N,18000.01,W,1,x,1.2.3,--1,M,,,,", "GPGGA", // nonsense with a right checksum
			"time=!invalid; latitude=!invalid °; longitude=!invalid °; mode=autonomous; satellites_used=!invalid; hdop=!invalid; altitude=!invalid m"},
		{"$GPGLL,4916.45,N,12311.12,W,225444,A,", "GPGLL",
			"latitude=49.274166666666666 °; longitude=-123.18533333333333 °; time=22:54:44; status=valid"},
		{"$GLGLL,4916.45,Q,12360.00,W,225444,A,A", "GLGLL", "latitude=!invalid °; longitude=!invalid °; time=22:54:44; status=valid; mode=autonomous"},
		{"$GNGSA,A,3,80,71,,,,,,,,,,,1.83,1.09,1.47,2", "GNGSA",
			"selection=automatic; dimension=3d; pdop=1.83; hdop=1.09; vdop=1.47; system=2; satellite_used_1=80; satellite_used_2=71"},
		{"$GPGSV,2,2,06,24,47,253,41,29,05,,,1", "GPGSV",
			"message_count=2; message=2; satellites_in_view=6; satellite_5_id=24; satellite_5_elevation=47.0 °; satellite_5_azimuth=253.0 °; satellite_5_snr=41.0 dBHz; satellite_6_id=29; satellite_6_elevation=5.0 °; signal=1"},
		{"$GNGNS,112257.00,3844.24011,N,00908.43828,W,AN,03,10.5,12,30,,,V", "GNGNS",
			"time=11:22:57; latitude=38.73733516666667 °; longitude=-9.140638 °; modes=AN; satellites_used=3; hdop=10.5; altitude=12.0 m; geoid_separation=30.0 m; navigational_status=void"},
		{"$GNGNS,112257.00,,,,,NN,00,99.9,,,,", "GNGNS",
			"time=11:22:57; latitude=!invalid °; longitude=!invalid °; modes=NN; satellites_used=0; hdop=99.9; altitude=!invalid m"},
		{"$GPVTG,054.7,T,034.4,M,005.5,N,010.2,K,D", "GPVTG",
			"course=54.7 °; course_magnetic=34.4 °; speed=5.5 kn; speed_kmh=10.2 km/h; mode=differential"},
		{"$GPVTG,054.7,034.4,005.5,010.2", "GPVTG", "course=54.7 °; course_magnetic=34.4 °; speed=5.5 kn; speed_kmh=10.2 km/h"},
		{"$GPVTG,,T,,M,,N,,K,N", "GPVTG", "course=!invalid °; course_magnetic=!invalid °; speed=!invalid kn; speed_kmh=!invalid km/h; mode=none"},
		{"$GPZDA,201530.00,04,07,2002,-05,30", "GPZDA", "time=2002-07-04T20:15:30Z; zone_hours=-5 h; zone_minutes=30 min"},
		{"$GPZDA,201530.00,31,02,2002,,", "GPZDA", "time=!invalid"},
		{"$GPZDA,201530.00,,,,,", "GPZDA", "time=20:15:30"},
		{"$HCHDT,101.1,T", "HCHDT", "heading_true=101.1 °"},
		{"$HCHDG,101.1,1.5,W,7.1,E", "HCHDG", "heading_sensor=101.1 °; deviation=-1.5 °; variation=7.1 °"},
		{"$HCHDM,238,M", "HCHDM", "heading_magnetic=238.0 °"},
		{"$VWVHW,45.0,T,43.2,M,3.5,N,6.4,K", "VWVHW", "heading_true=45.0 °; heading_magnetic=43.2 °; water_speed=3.5 kn; water_speed_kmh=6.4 km/h"},
		{"$WIMWV,214.8,R,0.1,K,A", "WIMWV", "status=valid; wind_angle_apparent=214.8 °; wind_speed_apparent=0.1 km/h"},
		{"$WIMWV,10,T,5.2,M,V", "WIMWV", "status=void; wind_angle_true=!invalid °; wind_speed_true=!invalid"},
		{"$WIMWD,302.9,T,,M,12.1,N,6.2,M", "WIMWD", "wind_direction=302.9 °; wind_speed=12.1 kn; wind_speed_ms=6.2 m/s"},
		{"$WIVWR,148.0,L,02.4,N,01.2,M,04.4,K", "WIVWR", "wind_angle_apparent=212.0 °; wind_speed_apparent=2.4 kn; wind_speed_apparent_ms=1.2 m/s; wind_speed_apparent_kmh=4.4 km/h"},
		{"$SDDBT,7.8,f,2.4,M,1.3,F", "SDDBT", "depth_feet=7.8 ft; depth=2.4 m; depth_fathoms=1.3 fathom"},
		{"$SDDPT,2.4,-0.5,100", "SDDPT", "depth=2.4 m; depth_offset=-0.5 m; depth_range=100.0 m"},
		{"$YXMTW,17.75,C", "YXMTW", "water_temperature=17.75 °C"},
		{"$TIROT,-35.6,A", "TIROT", "rate_of_turn=-35.6 °/min; status=valid"},
		{"$IIRSA,10.5,A,0.4,V", "IIRSA", "rudder_starboard=10.5 °; rudder_port=!invalid °"},
		{"$WIXDR,C,24.3,C,0,P,1.0116,B,,H,42.1,P,Air Hum,A,-0.8,D,PITCH", "WIXDR",
			"temperature_0=24.3 °C; pressure_2=1.0116 bar; air_hum=42.1 %; pitch=-0.8 °"},
		{"$GPGST,182141.000,15.5,15.3,7.2,21.8,0.9,0.5,0.8", "GPGST",
			"time=18:21:41; residual_rms=15.5 m; error_major=15.3 m; error_minor=7.2 m; error_orientation=21.8 °; latitude_error=0.9 m; longitude_error=0.5 m; altitude_error=0.8 m"},
		{"$GNGBS,170556.00,3.0,2.9,8.3,,,,,,", "GNGBS", "time=17:05:56; latitude_error=3.0 m; longitude_error=2.9 m; altitude_error=8.3 m"},
		{"$GPTXT,01,01,02,u-blox ag, www.u-blox.com", "GPTXT", "text_count=1; text_number=1; severity=notice; text=u-blox ag, www.u-blox.com"},
		{"$PUBX,00,081350.00,4717.113210,N,00833.915187,E,546.589,G3,2.1,2.0,0.007,77.52,0.007,,0.92,1.19,0.77,9,0,0", "PUBX-00",
			"time=08:13:50; latitude=47.2852201666666667 °; longitude=8.56525311666666667 °; altitude_ellipsoid=546.589 m; mode=3d; horizontal_accuracy=2.1 m; vertical_accuracy=2.0 m; speed_kmh=0.007 km/h; course=77.52 °; speed_down=0.007 m/s; hdop=0.92; vdop=1.19; tdop=0.77; satellites_used=9"},
		{"$PQGSA,A,3,12,,,,,,,,,,,,1.2,0.9,0.9,4", "PQGSA", "selection=automatic; dimension=3d; pdop=1.2; hdop=0.9; vdop=0.9; system=4; satellite_used_1=12"},
		{"$PGRME,9.1,M,15.0,M,12.0,M", "PGRME", "horizontal_error=9.1 m; vertical_error=15.0 m; position_error=12.0 m"},
		{"$PSRFTXTBaud rate: 57600 ", "PSRFTXT", "f0=Baud rate: 57600 "},
		{"$PFOO,1.10,,0133,x y", "PFOO", "f1=1.10; f3=0133; f4=x y"},
		{"$PTNL,XYZ,1", "PTNL-XYZ", "f1=XYZ; f2=1"},
		{"$P/+#,1", "P___", "f1=1"}, // what means something in topics
		{"$CCGPQ,GGA", "CCGPQ", "f1=GGA"},
		{"!AIVDM,2,1,3,B,55P5TL01VIaAL@7WKO@mBplU@<PDhh000000001S;AJ::4A80?4i@E53,0", "AIVDM",
			"fragment_count=2; fragment=1; message_id=3; channel=B; payload=55P5TL01VIaAL@7WKO@mBplU@<PDhh000000001S;AJ::4A80?4i@E53; fill_bits=0"},
	} {
		check(t, with(c.frame), c.name, c.want)
	}
	check(t, "$GPGLL,4916.45,N,12311.12,W,225444,A,*1D\r\n", "GPGLL", // as published, with its line end
		"latitude=49.274166666666666 °; longitude=-123.18533333333333 °; time=22:54:44; status=valid")
	check(t, message(1, 0x3c, "\x00\x7f\xff"), "UBX-01-3C", "payload=007FFF")
	check(t, message(0x0a, 0x04, ""), "UBX-0A-04", "payload=")
	check(t, with(`\s:r3669961,c:1120959341,n:5,g:1-2-1234,z:9`)+`\`, "TAG",
		"source=r3669961; time=2005-07-10T01:35:41Z; line_count=5; group=1-2-1234; z=9")
}

func check(t *testing.T, frame, name, want string) {
	t.Helper()
	var d Decoder
	got, readings, err := d.Decode(nil, []byte(frame))
	if got != name || err != nil {
		t.Errorf("%q: name %q, %v; want %q", frame, got, err, name)
	}
	if shown := show(readings); shown != canonical(want) {
		t.Errorf("%q:\n     %s\nwant %s", frame, shown, canonical(want))
	}
}

// canonical lets a test write more digits than a float64 has.
func canonical(s string) string {
	parts := strings.Split(s, "; ")
	for i, part := range parts {
		name, value, _ := strings.Cut(part, "=")
		digits, uom, _ := strings.Cut(value, " ")
		if len(digits) < 18 || !strings.Contains(digits, ".") || uom == "" {
			continue
		}
		if f, err := strconv.ParseFloat(digits, 64); err == nil {
			v, _ := point.Float(f)
			parts[i] = name + "=" + v.String() + " " + uom
		}
	}
	return strings.Join(parts, "; ")
}

// A position is the float64 nearest to degrees + minutes / 60, with up to 11 decimals of a minute.
func TestDegreesLoseNothing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		whole, minutes := random.IntN(180), random.IntN(60)
		digits := fmt.Sprintf("%011d", random.Int64N(1e11))[:1+random.IntN(11)]
		s := fmt.Sprintf("%03d%02d.%s", whole, minutes, digits)
		v, ok := degrees([]byte(s), []byte("W"), 'W', 'E', 180)
		got, _ := v.Float64()
		exact, _ := new(big.Rat).SetString(fmt.Sprintf("%d.%s", minutes, digits))
		exact.Quo(exact, big.NewRat(60, 1)).Add(exact, big.NewRat(int64(whole), 1))
		if want, _ := exact.Float64(); !ok || got != -want {
			t.Errorf("%s W: %v, %v; want %v", s, got, ok, -want)
		}
	}
}

// A number is the float64 nearest to it, however long it is.
func TestNumber(t *testing.T) {
	for _, s := range []string{"0", "-0", "+1.5", ".5", "5.", "007", "-12.25", "0.1", "123456.789012", "0.1234567890123456789",
		"12345678901234567890", "9007199254740993", "99999999999999999.5", " 1.5 ", "0.0000000000001"} {
		want, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
		if want == 0 {
			want = 0
		}
		v, ok := number([]byte(s))
		if got, _ := v.Float64(); err != nil || !ok || got != want {
			t.Errorf("%q: %v, %v; want %v", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "-", ".", "1e5", "0x10", "Inf", "NaN", "1_0", "1.2.3", "1-", "--1", "1 2", strings.Repeat("9", 400)} {
		if v, ok := number([]byte(s)); ok {
			t.Errorf("%q: %v", s, v)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for frame, want := range map[string]error{
		"":                           ErrFrame,
		"GPGGA":                      ErrFrame,
		"$*00":                       ErrAddress,
		"$,1,2*2F":                   ErrChecksum,
		with("$,1,2"):                ErrAddress,
		"$GPGLL,4916.45,N*00":        ErrChecksum,
		"$GPGLL,4916.45,N*xx":        ErrChecksum,
		"\xb5b\x01\x02\x00\x00\x00":  ErrFrame,
		"\xb5b\x01\x02\x00\x00\x00a": ErrChecksum,
		`\s:x*00\`:                   ErrChecksum,
	} {
		var d Decoder
		if _, readings, err := d.Decode(nil, []byte(frame)); !errors.Is(err, want) || len(readings) > 0 {
			t.Errorf("%q: %v, %v; want %v", frame, readings, err, want)
		}
	}
}

// good has every form of frame.
func good() [][]byte {
	return [][]byte{
		[]byte(with("$GPRMC,225446.5,A,4916.45,N,12311.12,W,000.5,054.7,191194,020.3,E") + "\r\n"),
		[]byte(with("!AIVDM,1,1,,A,B3KLehP0B@LTN6`Vl;rrBE063P06,0") + "\n"),
		[]byte(with(`\s:r3669961,c:1120959341`) + `\`),
		[]byte(message(1, 0x07, "\x00\x01$\xff")),
		[]byte(with("$PFOO,a*b") + "\r"),
	}
}

func TestSplitConforms(t *testing.T) { frametest.Conforms(t, Split, 2*maxSentence, good()...) }

func TestSplitUncheckedConforms(t *testing.T) {
	frametest.Conforms(t, SplitUnchecked, 2*maxSentence, append(good(), []byte("$IIMTW,17.5,C\r\n"))...)
}

func TestSplit(t *testing.T) {
	a, b := with("$GPHDT,1.0,T"), with("$HCHDM,2.0,M")
	ubx := message(1, 7, "abc")
	for _, c := range []struct {
		why, data string
		want      []string
		stats     frame.Stats
	}{
		{"a sentence is whole with its checksum", a, []string{a}, frame.Stats{Frames: 1}},
		{"line ends of all kinds are fill", a + "\r\n" + b + "\n" + a + "\r" + b + "\r\n\r\n", []string{a, b, a, b}, frame.Stats{Frames: 4}},
		{"lower case digits", "$TIHDT,10.0,T*0e\r\n$HCHDM,,M*00\r\n", []string{"$TIHDT,10.0,T*0e"}, frame.Stats{Frames: 1, Checksum: 1}},
		{"garbage in front", "x: " + a, []string{a}, frame.Stats{Frames: 1, Garbage: 3}},
		{"garbage behind", a + "0,*4E\r\n" + b, []string{a, b}, frame.Stats{Frames: 2, Garbage: 5}},
		{"a wrong checksum", "$GPHDT,1.0,T*00\r\n" + b, []string{b}, frame.Stats{Frames: 1, Checksum: 1}},
		{"no checksum", "$GPHDT,1.0,T\r\n" + b, []string{b}, frame.Stats{Frames: 1, Malformed: 1}},
		{"one digit", "$GPHDT,1.0,T*3\r\n" + b, []string{b}, frame.Stats{Frames: 1, Malformed: 1}},
		{"cut by another", "$GPGSV,3,1,11," + b, nil, frame.Stats{}}, // the line end decides
		{"cut by another", "$GPGSV,3,1,11," + b + "\r\n" + a, []string{b, a}, frame.Stats{Frames: 2, Malformed: 1}},
		{"cut by zeros", "$GPGSV,3\x00\x00\r\n" + b, []string{b}, frame.Stats{Frames: 1, Malformed: 1, Garbage: 2}},
		{"a $ that is text", with("$GPTXT,01,01,07,5$!\\") + "\r\n", []string{with("$GPTXT,01,01,07,5$!\\")}, frame.Stats{Frames: 1}},
		{"UBX between sentences", a + "\r\n" + ubx + b, []string{a, ubx, b}, frame.Stats{Frames: 3}},
		{"UBX in a sentence", "$GPGSV,3,1," + ubx + b, []string{ubx, b}, frame.Stats{Frames: 2, Malformed: 1}},
		{"UBX with a wrong checksum", ubx[:8] + "x" + ubx[9:] + a, []string{a}, frame.Stats{Frames: 1, Checksum: 1, Garbage: 11}},
		{"UBX that no receiver sends", "\xb5\x62\x01\x07\xff\xff" + a, []string{a}, frame.Stats{Frames: 1, Garbage: 6}},
		{"RTCM", "\xd3\x00\x08\x4c\xe0\x00\x8a\x00\x00\x00\x00\xa8\xf7\x2a" + a, []string{a}, frame.Stats{Frames: 1, Garbage: 14}},
		{"over-long", "$GPTXT," + strings.Repeat("x", maxSentence) + "\r\n" + a, []string{a}, frame.Stats{Frames: 1, Oversize: 1, Garbage: 9}},
		{"a TAG block", with(`\s:x`) + `\` + a, []string{with(`\s:x`) + `\`, a}, frame.Stats{Frames: 2}},
		{"a wrong TAG block", `\s:x*00\` + a, []string{a}, frame.Stats{Frames: 1, Checksum: 1, Garbage: 8}},
	} {
		got, stats := cut(Split, []byte(c.data), 0, 0)
		stats.Bytes = 0
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", c.want) || stats != c.stats {
			t.Errorf("%s: %q: %q, %+v; want %q, %+v", c.why, c.data, got, stats, c.want, c.stats)
		}
	}
}

func TestSplitUnchecked(t *testing.T) {
	a := with("$GPHDT,1.0,T")
	stream := "$IIMTW,17.5,C\r\n" + a + "\r\n$IIMTW,17.5,C*00\r\n$IIMTW,17\x00$IIMTW,18$IIMTW,19\n"
	got, stats := cut(SplitUnchecked, []byte(stream), 0, 0)
	want := []string{"$IIMTW,17.5,C", a, "$IIMTW,19"}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) || stats.Checksum != 1 || stats.Malformed != 2 {
		t.Errorf("%q, %+v; want %q", got, stats, want)
	}
	check(t, got[0], "IIMTW", "water_temperature=17.5 °C")
}

// Decoding allocates nothing in the steady state, whether sentences are known or not.
func TestDecodeAllocatesNothing(t *testing.T) {
	var frames [][]byte
	for _, f := range good() {
		frames = append(frames, []byte(strings.TrimRight(string(f), "\r\n")))
	}
	for _, s := range []string{"$GPGSV,2,2,06,24,47,253,41,29,05,,,1", "$WIXDR,C,24.3,C,0,A,-0.8,D,PITCH", "$PSTMCPU,54.57,-1,98", "$GPTXT,01,01,02,PF=3FF"} {
		frames = append(frames, []byte(with(s)))
	}
	var d Decoder
	var dst []point.Reading
	decode := func() {
		for _, f := range frames {
			var err error
			if _, dst, err = d.Decode(dst[:0], f); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := testing.AllocsPerRun(100, decode); n != 0 {
		t.Errorf("%d frames cost %v allocations", len(frames), n)
	}
}

// Text that never comes twice costs a small part of an allocation each.
func TestNewTextIsCheap(t *testing.T) {
	var d Decoder
	var dst []point.Reading
	var frames [][]byte
	for n := range 1001 {
		frames = append(frames, fmt.Appendf(nil, "!AIVDM,1,1,,A,%030d,0", n))
	}
	if cost := testing.AllocsPerRun(1000, func() {
		_, dst, _ = d.Decode(dst[:0], frames[0])
		frames = frames[1:]
	}); cost != 0 {
		t.Errorf("%v allocations for each new text", cost)
	}
}

func BenchmarkDecode(b *testing.B) {
	var sentences [][]byte
	total := 0
	for _, s := range []string{
		"$GPGGA,081500.125,5231.2,N,01324.6,E,1,08,0.9,34.0,M,46.9,M,2.5,0133", "$GPGSA,A,3,01,02,03,04,05,06,07,08,,,,,1.83,1.09,1.47",
		"$GPGSV,2,1,08,01,47,253,41,02,05,010,30,03,47,253,41,04,05,010,30", "$GPGSV,2,2,08,05,47,253,41,06,05,010,30,07,47,253,41,08,05,010,30",
		"$GPRMC,081500.125,A,5231.2,N,01324.6,E,000.5,054.7,191126,003.1,E,A", "$GPVTG,054.7,T,,M,000.5,N,000.9,K,A",
	} {
		sentences = append(sentences, []byte(with(s)+"\r\n"))
		total += len(s) + 5
	}
	benchmark(b, sentences, total)
}

// BenchmarkFlood cuts what is no frame, in the chunks that a line reads at 921600 baud: ns/op is
// of one byte.
func BenchmarkFlood(b *testing.B) {
	random := rand.NewChaCha8([32]byte{})
	noise := make([]byte, 1<<16)
	random.Read(noise)
	for name, data := range map[string][]byte{
		"zeros": make([]byte, 1<<16), "noise": noise, "text": []byte(strings.Repeat("no sentence ", 1<<12)),
		"beginnings": []byte(strings.Repeat("$A", 1<<15)), "UBX": []byte(strings.Repeat("\xb5\x62\x01\x07\xf0\x1f", 1<<13)),
		"wrong": []byte(strings.Repeat("$GPHDT,1.0,T*00\r\n", 1<<12)),
	} {
		b.Run(name, func(b *testing.B) {
			cutter := frame.NewCutter(Split, MaxFrame)
			for n := 0; n < b.N; {
				for rest := data; len(rest) > 0 && n < b.N; {
					size := min(len(rest), 920)
					cutter.Feed(rest[:size], func([]byte) {})
					rest = rest[size:]
					n += size
				}
			}
		})
	}
}

func FuzzSplit(f *testing.F) {
	for _, g := range good() {
		f.Add(g)
	}
	f.Add([]byte("$GPGSA,A,1,,,,,,,,,,,,,,,*1E$GPRMC,2359\xb5\x62\x01\x07\x04\x00$$!\\s:a*hh\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		frametest.Check(t, Split, MaxFrame, data, good()...)
		frametest.Check(t, SplitUnchecked, MaxFrame, data, good()...)
	})
}

func FuzzDecode(f *testing.F) {
	for _, g := range good() {
		f.Add(g)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d Decoder
		decode := func(frame []byte) {
			before := string(frame)
			name, readings, err := d.Decode(nil, frame)
			if err == nil && name == "" || err != nil && len(readings) > 0 || string(frame) != before {
				t.Errorf("%q: name %q, %v, %v", before, name, readings, err)
			}
			for _, r := range readings {
				if r.Point == "" || (r.Bad == "") == (r.Value.Kind() == point.None) {
					t.Errorf("%q: %+v", frame, r)
				}
			}
		}
		decode(data)
		decode([]byte(with("$" + strings.ReplaceAll(string(data), "*", ""))))
		cutter := frame.NewCutter(Split, MaxFrame)
		cutter.Feed(data, decode)
	})
}
