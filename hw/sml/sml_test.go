package sml_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"ferrule/hw/frame"
	"ferrule/hw/frame/frametest"
	"ferrule/hw/point"
	"ferrule/hw/sml"
)

var (
	emh    = plate("EMH", 12345678)
	holley = plate("HLY", 1234567)
	key    = bytes.Repeat([]byte{0xa5, 0x1b, 0x00}, 16)
)

// The transmissions that the tests share.
var (
	basic = file(x25, emh, seconds(86400),
		entry([6]byte{129, 129, 199, 130, 3, 255}, none, none, none, none, text("EMH")),
		entry(code(0, 0, 9), none, none, none, none, octets(emh...)),
		entry(code(1, 8, 0), unsigned(4, 0x1c0104), seconds(86400), unsigned(1, 30), signed(1, -1), signed(8, 123456789)),
		entry(code(1, 8, 1), none, seconds(86400), unsigned(1, 30), signed(1, -1), signed(8, 123456780)),
		measured(16, 7, 0, 27, -1, signed(4, -12345)),
		measured(32, 7, 0, 35, -1, unsigned(2, 2301)),
		entry([6]byte{129, 129, 199, 130, 5, 255}, none, none, none, none, octets(key...)))
	quirky = file(kermit, holley, none,
		entry([6]byte{1, 0, 96, 50, 1, 1}, none, none, none, none, text("HLY")),
		entry(code(96, 1, 0), none, none, none, none, octets(holley...)),
		entry(code(1, 8, 0), unsigned(4, 0x1c0104), unsigned(4, 18620087), unsigned(1, 30), signed(1, -1), unsigned(4, 14439208)),
		entry(code(2, 8, 0), unsigned(4, 0x1c0104), unsigned(4, 18620087), unsigned(1, 30), signed(1, -1), unsigned(1, 0)))
	escaped = file(x25, bytes.Repeat([]byte{0x1b}, 10), seconds(0x1b1b1b1b),
		entry(code(1, 8, 0), none, none, unsigned(1, 30), signed(1, 0), unsigned(8, 0x1b1b1b1b1b1b1b1b)),
		entry(code(96, 5, 0), none, none, none, none, octets(0x1b, 0x1b, 0x1b, 0x1b, 0x1a, 0, 0, 0)))
	all = map[string][]byte{"basic": basic, "quirky": quirky, "escaped": escaped}
)

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
	for name, c := range map[string]struct {
		data       []byte
		unit, want string
	}{
		"basic": {basic, "1EMH0012345678", `sensor_seconds = 86400 s
manufacturer = EMH
unit_id = 0a01454d480000bc614e
active_energy_import = 1.23456789e+07 Wh
active_energy_import_status = 1835268
active_energy_import_t1 = 1.2345678e+07 Wh
active_power = -1234.5 W
voltage_l1 = 230.1 V
public_key = ` + fmt.Sprintf("%x", key) + "\n"},
		"quirky": {quirky, "1HLY0001234567", `manufacturer_id = HLY
server_id = 0a01484c59000012d687
active_energy_import = 1443920.8 Wh
active_energy_import_status = 1835268
sensor_seconds = 18620087 s
active_energy_export = 0.0 Wh
active_energy_export_status = 1835268
`},
		"escaped": {escaped, strings.Repeat("1b", 10), `sensor_seconds = 454761243 s
active_energy_import = 1953184666628070100.0 Wh
status_word = 1b1b1b1b1a000000
`},
		"an id of another form": {file(x25, []byte{6, 'E', 'M', 'H', 1, 2, 0x71, 0x53, 0xc1, 0x7a}, none), "06454d4801027153c17a", ""},
		"messages alone":        {transmission(x25, message(x25, 0x0101, open(emh)), message(x25, 0x0201, closing)), "1EMH0012345678", ""},
		"nothing":               {transmission(x25), "", ""},
		"attention": {transmission(x25, message(x25, 0xff01, list(octets(emh...), octets(0x81, 0x81, 0xc7, 0xc7, 0xfe, 0), text("PIN"), none))), "1EMH0012345678",
			"attention = 8181c7c7fe00\nattention_message = PIN\n"},
		"two lists, and a message of another kind": {transmission(x25,
			message(x25, 0x0701, values(emh, none, measured(1, 7, 0, 27, 0, unsigned(1, 5)))),
			message(x25, 0x0501, list(list(list(none), none), flag(1), signed(3, -1))),
			message(x25, 0x0701, values(nil, none, measured(2, 7, 0, 27, 0, unsigned(1, 6))))), "1EMH0012345678",
			"active_power_import = 5.0 W\nactive_power_export = 6.0 W\n"},
		"a list of nothing": {transmission(x25, message(x25, 0x0701, list(none, none, none, none, none, none, none))), "", ""},
	} {
		var d sml.Decoder
		unit, readings, err := d.Decode(nil, c.data)
		if got := show(readings); err != nil || unit != c.unit || got != strings.ReplaceAll(strings.ReplaceAll(c.want, "1.23456789e+07", "12345678.9"), "1.2345678e+07", "12345678.0") {
			t.Errorf("%s: %q, %v\n%s\nwant %q\n%s", name, unit, err, got, c.unit, c.want)
		}
	}
}

// Entries of every kind of value, and what meters make of the standard.
func TestEntries(t *testing.T) {
	power := func(value []byte) []byte { return measured(16, 7, 0, 27, -2, value) }
	for name, c := range map[string]struct {
		entry []byte
		want  string
	}{
		"one byte":                {power(signed(1, -5)), "active_power = -0.05 W\n"},
		"two bytes":               {power(signed(2, -32731)), "active_power = -327.31 W\n"},
		"three bytes":             {power(signed(3, -8388608)), "active_power = -83886.08 W\n"},
		"three bytes unsigned":    {power(unsigned(3, 0xffffff)), "active_power = 167772.15 W\n"},
		"five bytes":              {power(signed(5, -(1 << 39))), "active_power = -5497558138.88 W\n"},
		"eight bytes":             {power(signed(8, -1<<63)), "active_power = -92233720368547760.0 W\n"},
		"nine bytes":              {power(append([]byte{0x5a}, make([]byte, 9)...)), "active_power = BAD invalid W\n"},
		"no byte":                 {power([]byte{0x51}), "active_power = BAD invalid W\n"},
		"no value":                {power(none), ""},
		"scaler 0":                {measured(1, 8, 0, 30, 0, unsigned(4, 1234)), "active_energy_import = 1234.0 Wh\n"},
		"scaler 3":                {measured(1, 8, 0, 30, 3, unsigned(4, 1234)), "active_energy_import = 1234000.0 Wh\n"},
		"scaler -128":             {measured(1, 8, 0, 30, -128, unsigned(1, 1)), "active_energy_import = 1e-128 Wh\n"},
		"an unsigned scaler":      {entry(code(1, 8, 0), none, none, unsigned(1, 30), unsigned(1, 255), unsigned(2, 12345)), "active_energy_import = 1234.5 Wh\n"},
		"a scaler of two bytes":   {entry(code(1, 8, 0), none, none, unsigned(1, 30), signed(2, -1), unsigned(2, 12345)), "active_energy_import = 1234.5 Wh\n"},
		"no scaler":               {entry(code(14, 7, 0), none, none, unsigned(1, 44), none, unsigned(1, 50)), "frequency = 50.0 Hz\n"},
		"no unit":                 {entry(code(13, 7, 0), none, none, none, signed(1, -3), unsigned(2, 987)), "power_factor = 0.987\n"},
		"neither":                 {entry(code(96, 5, 5), none, none, none, none, unsigned(1, 0x82)), "status = 130\n"},
		"neither, below 0":        {entry(code(96, 5, 5), none, none, none, none, signed(1, -3)), "status = -3\n"},
		"unit 255":                {measured(13, 7, 0, 255, -3, unsigned(2, 987)), "power_factor = 0.987\n"},
		"a unit above all":        {entry(code(13, 7, 0), none, none, unsigned(2, 300), signed(1, 0), unsigned(1, 1)), "power_factor = 1.0\n"},
		"false":                   {entry(code(96, 3, 0), none, none, none, none, flag(0)), "1-0:96.3.0 = false\n"},
		"true":                    {entry(code(96, 3, 0), none, none, none, none, flag(1)), "1-0:96.3.0 = true\n"},
		"a text":                  {entry(code(0, 2, 0), none, none, none, none, text("v1.02 (b)")), "firmware_version = v1.02 (b)\n"},
		"a long text":             {entry(code(0, 2, 0), none, none, none, none, text(strings.Repeat("0123456789", 30))), "firmware_version = " + strings.Repeat("0123456789", 30) + "\n"},
		"another period":          {entry([6]byte{1, 0, 1, 8, 0, 96}, none, none, unsigned(1, 30), signed(1, -1), unsigned(1, 12)), "active_energy_import_1d = 1.2 Wh\n"},
		"an unknown code":         {entry([6]byte{1, 0, 96, 90, 2, 1}, none, none, none, none, octets(0, 1)), "1-0:96.90.2*1 = 0001\n"},
		"no OBIS code":            {list(text("abc"), none, none, none, none, unsigned(1, 1), none), "616263 = 1\n"},
		"no name":                 {list(none, none, none, none, none, unsigned(1, 1), none), ""},
		"no signature":            {list(octets(1, 0, 1, 8, 0, 255), none, none, none, none, unsigned(1, 1)), "active_energy_import = 1\n"},
		"a status of eight bytes": {entry(code(1, 8, 0), unsigned(8, 1<<63), none, none, none, unsigned(1, 1)), "active_energy_import = 1\nactive_energy_import_status = 9223372036854775808\n"},
		"a time":                  {entry(code(1, 8, 0), none, timestamp(1700000000), none, none, unsigned(1, 1)), "active_energy_import = 1\nactive_energy_import_time = 2023-11-14T22:13:20Z\n"},
		"a local time":            {entry(code(1, 8, 0), none, list(unsigned(1, 3), list(unsigned(4, 1700000000), signed(2, 60), signed(2, 0))), none, none, unsigned(1, 1)), "active_energy_import = 1\nactive_energy_import_time = 2023-11-14T22:13:20Z\n"},
		"a local time called another": {entry(code(1, 8, 0), none, list(unsigned(1, 2), list(unsigned(4, 1700000000), signed(2, 60), signed(2, 0))), none, none, unsigned(1, 1)),
			"active_energy_import = 1\nactive_energy_import_time = 2023-11-14T22:13:20Z\n"},
		"seconds called a time":      {entry(code(1, 8, 0), none, timestamp(86400), none, none, unsigned(1, 1)), "active_energy_import = 1\nsensor_seconds = 86400 s\n"},
		"a time without its kind":    {entry(code(1, 8, 0), none, unsigned(4, 86400), none, none, unsigned(1, 1)), "active_energy_import = 1\nsensor_seconds = 86400 s\n"},
		"a time of another kind":     {entry(code(1, 8, 0), none, list(unsigned(1, 9), unsigned(4, 5)), none, none, unsigned(1, 1)), "active_energy_import = 1\n"},
		"a time of another form":     {entry(code(1, 8, 0), none, list(unsigned(1, 1), list(none, list(none))), none, none, unsigned(1, 1)), "active_energy_import = 1\n"},
		"a time before all":          {entry(code(1, 8, 0), none, list(unsigned(1, 3), list(unsigned(4, 5), signed(2, 60), signed(2, 0))), none, none, unsigned(1, 1)), "active_energy_import = 1\n"},
		"a value that is a time":     {entry(code(0, 9, 2), none, none, none, none, list(unsigned(1, 1), timestamp(1700000000))), "date = 2023-11-14T22:13:20Z\n"},
		"a value that is a list":     {entry(code(0, 9, 2), none, none, none, none, list(unsigned(1, 1), list(none, list(none)))), ""},
		"a value of another list":    {entry(code(0, 9, 2), none, none, none, none, list(none, none, none)), ""},
		"a value of another choice":  {entry(code(0, 9, 2), none, none, none, none, list(unsigned(1, 2), none)), ""},
		"a long list in the header":  {measured(1, 7, 0, 27, 0, append([]byte{0x80 | 0x60, 0x06}, 0, 0, 1, 0)), "active_power_import = 256.0 W\n"},
		"an entry with an addition":  {list(octets(1, 0, 1, 8, 0, 255), none, none, none, none, unsigned(1, 1), none, list(none)), "active_energy_import = 1\n"},
		"a value too large by scale": {measured(1, 8, 0, 30, 127, unsigned(8, 1<<63)), "active_energy_import = 9223372036854775808e127 Wh\n"},
	} {
		data := file(x25, emh, none, c.entry, measured(2, 7, 0, 27, 0, unsigned(1, 1)))
		var d sml.Decoder
		_, readings, err := d.Decode(nil, data)
		want := strings.ReplaceAll(c.want, "9223372036854775808e127", "9.223372036854775e+145") + "active_power_export = 1.0 W\n"
		if got := show(readings); err != nil || got != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, want)
		}
	}
}

// The DZG DVS74 of certain numbers sends 327.68 W and more as two bytes with a sign.
func TestOverflow(t *testing.T) {
	for _, c := range []struct {
		maker  string
		number uint32
		code   byte
		value  []byte
		want   string
	}{
		{"DZG", 42000000, 16, signed(2, -29912), "active_power = 356.24 W\n"},
		{"DZG", 48999999, 36, signed(2, -32768), "active_power_l1 = 327.68 W\n"},
		{"DZG", 55000000, 76, signed(1, -1), "active_power_l3 = 2.55 W\n"},
		{"DZG", 58999999, 16, signed(3, -1), "active_power = 167772.15 W\n"},
		{"DZG", 42000000, 16, signed(4, -126061), "active_power = -1260.61 W\n"},
		{"DZG", 42000000, 32, signed(2, -1), "voltage_l1 = -0.01 W\n"},
		{"DZG", 41999999, 16, signed(2, -10550), "active_power = -105.5 W\n"},
		{"DZG", 49000000, 16, signed(2, -10550), "active_power = -105.5 W\n"},
		{"DZG", 60000000, 16, signed(2, -10550), "active_power = -105.5 W\n"},
		{"EMH", 42000000, 16, signed(2, -10550), "active_power = -105.5 W\n"},
	} {
		e := measured(c.code, 7, 0, 27, -2, c.value)
		id := entry(code(96, 1, 0), none, none, none, none, octets(plate(c.maker, c.number)...))
		for how, data := range map[string][]byte{
			"by the list's server id": file(x25, plate(c.maker, c.number), none, e),
			"by an entry":             transmission(x25, message(x25, 0x0701, values(nil, none, id, e))),
		} {
			var d sml.Decoder
			unit, readings, err := d.Decode(nil, data)
			if got := show(readings); err != nil || !strings.HasSuffix(got, c.want) || unit != fmt.Sprintf("1%s00%08d", c.maker, c.number) {
				t.Errorf("%s, %s: %v\n%s\nwant\n%s", unit, how, err, got, c.want)
			}
		}
	}
}

// What a body must not be, in a transmission whose checksums are right.
func TestDecodeRefuses(t *testing.T) {
	deep := []byte{0x01}
	for range 40 {
		deep = list(deep)
	}
	wrong := message(x25, 0x0701, values(emh, none))
	wrong[len(wrong)-2] ^= 1
	for name, c := range map[string]struct {
		data []byte
		is   error
	}{
		"no bytes":                      {nil, nil},
		"no beginning":                  {basic[1:], nil},
		"no end":                        {basic[:len(basic)-1], nil},
		"a wrong checksum":              {append(slices.Clone(basic[:len(basic)-1]), ^basic[len(basic)-1]), sml.ErrChecksum},
		"a wrong checksum of a message": {transmission(x25, wrong), sml.ErrChecksum},
		"nested deeply":                 {transmission(x25, message(x25, 0x0501, deep)), nil},
		"an unknown type":               {transmission(x25, message(x25, 0x0501, []byte{0x11})), nil},
		"a length below the header":     {transmission(x25, message(x25, 0x0501, []byte{0x80, 0x01})), nil},
		"an endless header":             {transmission(x25, message(x25, 0x0501, []byte{0xf0, 0x80, 0x80, 0x80, 0x80, 1})), nil},
		"a list of too much":            {transmission(x25, message(x25, 0x0501, []byte{0xff, 0x8f, 0x0f})), nil},
		"no message":                    {transmission(x25, list(none)), nil},
		"a message of seven":            {transmission(x25, []byte{0x77, 1, 1, 1, 1, 1, 1, 1}), nil},
		"a body of three":               {transmission(x25, message(x25, 0x0501, nil)[:6]), nil},
		"a list without values":         {transmission(x25, message(x25, 0x0701, list(none, none, none))), nil},
		"values that are no list":       {transmission(x25, message(x25, 0x0701, list(none, none, none, none, unsigned(1, 1), none, none))), nil},
		"a server that is no string":    {transmission(x25, message(x25, 0x0701, list(none, unsigned(1, 1), none, none, list(), none, none))), nil},
		"an entry that is no list":      {file(x25, emh, none, measured(1, 7, 0, 27, 0, unsigned(1, 1)), unsigned(1, 1)), nil},
		"an entry of five":              {file(x25, emh, none, measured(1, 7, 0, 27, 0, unsigned(1, 1)), list(none, none, none, none, none)), nil},
		"a status that is a list":       {file(x25, emh, none, entry(code(1, 7, 0), list(none), none, none, none, unsigned(1, 1))), nil},
	} {
		var d sml.Decoder
		before := []point.Reading{{Point: "before"}}
		_, readings, err := d.Decode(before, c.data)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || len(readings) != 1 {
			t.Errorf("%s: %v, %v", name, readings, err)
		}
	}
}

// A message may come without its end, and with more fill than the end says.
func TestDecodeTolerates(t *testing.T) {
	m := message(x25, 0x0701, values(emh, none, measured(1, 7, 0, 27, 0, unsigned(1, 5))))
	for name, data := range map[string][]byte{
		"no end of a message":       transmission(x25, m[:len(m)-1], message(x25, 0x0201, closing)),
		"more fill":                 transmission(x25, m, make([]byte, 9)),
		"two kinds of checksum":     transmission(kermit, m),
		"a short checksum":          transmission(x25, shortCRC(t)),
		"a tag of four bytes":       transmission(x25, wideTag(m)),
		"nothing behind the values": transmission(x25, message(x25, 0x0701, list(none, none, none, none, list(measured(1, 7, 0, 27, 0, unsigned(1, 5)))))),
	} {
		var d sml.Decoder
		if _, readings, err := d.Decode(nil, data); err != nil || show(readings) != "active_power_import = 5.0 W\n" {
			t.Errorf("%s: %v\n%s", name, err, show(readings))
		}
	}
}

// shortCRC is a message whose CRC begins with a zero, which need not be sent.
func shortCRC(t *testing.T) []byte {
	for i := range 1 << 16 {
		m := append([]byte{0x76}, slices.Concat(unsigned(2, uint64(i)), unsigned(1, 0), unsigned(1, 0), list(unsigned(2, 0x0701), values(emh, none, measured(1, 7, 0, 27, 0, unsigned(1, 5)))))...)
		if c := x25(m); c&0xff == 0 {
			return append(m, 0x62, byte(c>>8), 0)
		}
	}
	t.Fatal("no such message")
	return nil
}

func wideTag(m []byte) []byte {
	m = slices.Clone(bytes.Replace(m[:len(m)-4], []byte{0x63, 0x07, 0x01}, []byte{0x65, 0, 0, 0x07, 0x01}, 1))
	c := x25(m)
	return append(m, 0x63, byte(c), byte(c>>8), 0)
}

func TestSplitConforms(t *testing.T) {
	frametest.Conforms(t, sml.Split, sml.MaxFrame, basic, quirky, escaped, transmission(x25))
}

func cut(data []byte) (frame.Stats, [][]byte) {
	var frames [][]byte
	c := frame.NewCutter(sml.Split, sml.MaxFrame)
	c.Feed(data, func(f []byte) { frames = append(frames, slices.Clone(f)) })
	return c.Stats(), frames
}

func TestSplitFaults(t *testing.T) {
	second := []byte{0x1b, 0x1b, 0x1b, 0x1b, 2, 2, 2, 2, 'n', 'e', 'w', '!', 0x1b, 0x1b, 0x1b, 0x1b, 0x1a, 0, 0, 0}
	for name, c := range map[string]struct {
		data   []byte
		frames int
		want   frame.Stats
	}{
		"two":                      {slices.Concat(basic, quirky), 2, frame.Stats{}},
		"version 2 before":         {slices.Concat(second, basic), 1, frame.Stats{Garbage: uint64(len(second))}},
		"version 2 behind a piece": {slices.Concat(basic[:50], second, basic), 1, frame.Stats{Garbage: 50 + uint64(len(second)), Checksum: 1}},
		"escapes before":           {slices.Concat([]byte{0x1b, 0x1b, 0x1b}, basic), 1, frame.Stats{Garbage: 3}},
		"cut off":                  {slices.Concat(basic[:100], basic), 1, frame.Stats{Garbage: 100, Malformed: 1}},
		"cut off in its end":       {slices.Concat(basic[:len(basic)-6], basic), 1, frame.Stats{Garbage: uint64(len(basic) - 6), Malformed: 1}},
		"cut off before its CRC":   {slices.Concat(basic[:len(basic)-2], basic), 1, frame.Stats{Garbage: uint64(len(basic) - 2), Checksum: 1}},
	} {
		stats, frames := cut(c.data)
		stats.Bytes, stats.Frames = 0, 0
		if len(frames) != c.frames || stats != c.want {
			t.Errorf("%s: %d frames, %+v; want %d, %+v", name, len(frames), stats, c.frames, c.want)
		}
	}
}

func TestEveryFlippedBitIsCaught(t *testing.T) {
	n := 0
	for name, good := range all {
		for bit := range 8 * len(good) {
			n++
			damaged := slices.Clone(good)
			damaged[bit/8] ^= 1 << (bit % 8)
			if _, frames := cut(damaged); len(frames) > 0 {
				t.Errorf("%s: bit %d of byte %d flipped is not noticed", name, bit%8, bit/8)
			}
			var d sml.Decoder
			if _, readings, err := d.Decode(nil, damaged); err == nil {
				t.Errorf("%s: bit %d of byte %d flipped is decoded: %v", name, bit%8, bit/8, readings)
			}
		}
	}
	t.Logf("%d bits flipped", n)
}

// Why both CRCs may be right: what sets them apart is never what one flipped bit does.
func TestTwoCRCsCatchOneBit(t *testing.T) {
	apart := uint16(0xffff) // what X-25 begins with, after zeros as long as the data
	bit := uint16(0x8408)   // what the last bit of the data does to the CRC, or one before it
	for size := range sml.MaxFrame {
		if d := apart ^ 0xffff; size > 0 && (d == 0 || bits.OnesCount16(d)%2 != 0) {
			t.Fatalf("of %d bytes the CRCs are %04x apart", size, d)
		}
		for range 8 {
			if bits.OnesCount16(bit)%2 != 1 {
				t.Fatalf("a bit of the last %d bytes changes the CRC by %04x", size, bit)
			}
			apart, bit = apart>>1^0x8408&-(apart&1), bit>>1^0x8408&-(bit&1)
		}
	}
	if zeros := make([]byte, 100); x25(zeros)^kermit(zeros) == 0 {
		t.Error("the encoder has one CRC only")
	}
}

func TestNoAllocations(t *testing.T) {
	var d sml.Decoder
	var dst []point.Reading
	c := frame.NewCutter(sml.Split, sml.MaxFrame)
	take := func(f []byte) {
		var err error
		if _, dst, err = d.Decode(dst[:0], f); err != nil {
			t.Error(err)
		}
	}
	for name, data := range all {
		if n := testing.AllocsPerRun(100, func() { c.Feed(data, take) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	var d sml.Decoder
	var dst []point.Reading
	c := frame.NewCutter(sml.Split, sml.MaxFrame)
	b.SetBytes(int64(len(basic)))
	b.ReportAllocs()
	for b.Loop() {
		c.Feed(basic, func(f []byte) { _, dst, _ = d.Decode(dst[:0], f) })
	}
}

// BenchmarkFlood shows what garbage costs in the chunks of an adapter; 921,600 baud are 0.09 MB/s.
func BenchmarkFlood(b *testing.B) {
	start := basic[:8]
	for name, piece := range map[string][]byte{
		"escapes": {0x1b}, "beginnings": start, "zeros": {0}, "no end": basic[:len(basic)-8], "wrong CRCs": append(slices.Clone(start), 0x1b, 0x1b, 0x1b, 0x1b, 0x1a, 0, 0, 0),
	} {
		b.Run(name, func(b *testing.B) {
			flood := append(slices.Clone(start), bytes.Repeat(piece, 64<<10/len(piece))...)
			c := frame.NewCutter(sml.Split, sml.MaxFrame)
			b.SetBytes(int64(len(flood)))
			for b.Loop() {
				for chunk := range slices.Chunk(flood, 64) {
					c.Feed(chunk, func([]byte) {})
				}
			}
		})
	}
}

func FuzzSML(f *testing.F) {
	for _, data := range all {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 2*sml.MaxFrame {
			return
		}
		frametest.Check(t, sml.Split, sml.MaxFrame, data, basic, quirky)
		var d sml.Decoder
		d.Decode(nil, data)
	})
}

// FuzzList tries what is inside with checksums that are right, which no fuzzer would find.
func FuzzList(f *testing.F) {
	f.Add(values(emh, seconds(5), measured(1, 8, 0, 30, -1, unsigned(4, 1234)), entry(code(96, 1, 0), none, timestamp(1700000000), none, none, octets(emh...))))
	f.Add(values(emh, none, measured(16, 7, 0, 27, -2, signed(2, -1))))
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > sml.MaxFrame/2 {
			return
		}
		for _, tag := range []uint64{0x0101, 0x0701, 0xff01} {
			data := transmission(x25, message(x25, tag, body))
			var d sml.Decoder
			_, readings, err := d.Decode(nil, data)
			if err != nil && len(readings) > 0 || len(readings) > 3*len(data) {
				t.Errorf("%d bytes give %d readings, %v", len(data), len(readings), err)
			}
			if stats, _ := cut(data); stats.Frames != 1 {
				t.Errorf("a transmission with right checksums is cut into %+v", stats)
			}
		}
	})
}
