package vedirect

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ferrule/hw/frame"
	"ferrule/hw/frame/frametest"
	"ferrule/hw/point"
)

// blockOf returns a block with its checksum: "V\t12800" and so on, one field each.
func blockOf(fields ...string) []byte {
	b := []byte("\r\n" + strings.Join(fields, "\r\n") + "\r\nChecksum\t")
	var sum byte
	for _, c := range b {
		sum += c
	}
	return append(b, -sum)
}

// hexOf returns a hex message with its checksum: the nibble of the command and the bytes.
func hexOf(digits string) string {
	sum := nibble(digits[0])
	for i := 1; i < len(digits); i += 2 {
		sum += nibble(digits[i])<<4 | nibble(digits[i+1])
	}
	return fmt.Sprintf(":%s%02X\n", digits, 0x55-sum)
}

// endsWith returns a block whose checksum is the byte c.
func endsWith(c byte) []byte {
	serial := []byte("HQAAAAAAAAAAA")
	for i := 2; ; {
		b := blockOf("PID\t0x203", "SER#\t"+string(serial))
		if b[len(b)-1] == c {
			return b
		}
		if serial[i]++; serial[i] == 'Z' {
			i++
		}
	}
}

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
	for _, c := range []struct {
		fields []string
		want   string
	}{
		{[]string{"PID\t0xA042", "FW\t0123", "SER#\tHQ1411MYIKN", "V\t12530", "I\t-620", "VPV\t33580", "PPV\t8", "CS\t3", "MPPT\t2", "OR\t0x00000000", "ERR\t0", "LOAD\tON", "IL\t0", "H19\t8272", "H21\t11", "HSDS\t274"},
			"product_id=0xA042; firmware=0123; serial_number=HQ1411MYIKN; battery_voltage=12.53 V; battery_current=-0.62 A; panel_voltage=33.58 V; panel_power=8.0 W; state=bulk; tracker=active; off_reason=none; error=none; load=true; load_current=0.0 A; yield_total=82.72 kWh; power_max_today=11.0 W; day=274"},
		{[]string{"V\t25800", "T\t---", "P\t-92", "CE\t-65473", "SOC\t839", "TTG\t-1", "Alarm\tOFF", "Relay\tOff", "AR\t0", "BMV\t702", "DM\t-12"},
			"battery_voltage=25.8 V; battery_temperature=!nan °C; power=-92.0 W; consumed_charge=-65.473 Ah; state_of_charge=83.9 %; time_to_go=!nan min; alarm=false; relay=false; alarm_reason=none; model=702; midpoint_deviation=-1.2 %"},
		{[]string{"H1\t-149322", "H4\t3", "H7\t11733", "H9\t368003", "H17\t6843", "MON\t-9"},
			"deepest_discharge=-149.322 Ah; charge_cycles=3; battery_voltage_min=11.733 V; time_since_full_charge=368003.0 s; energy_discharged=68.43 kWh; monitor_mode=solar_charger"},
		{[]string{"PID\t0xA231", "MODE\t5", "CS\t9", "AC_OUT_V\t23012", "AC_OUT_I\t5", "AC_OUT_S\t115", "WARN\t257", "AR\t65600"},
			"product_id=0xA231; mode=eco; state=inverting; ac_voltage=230.12 V; ac_current=0.5 A; ac_apparent_power=115.0 VA; warning_reason=low_voltage,overload; alarm_reason=high_temperature,0x10000"},
		{[]string{"CS\t99", "ERR\t200", "OR\t0x101", "MODE\t-"}, "state=99; error=200; off_reason=no_input_power,analysing_input; mode=!nan"},
		{[]string{"V\t12.5", "I\t", "LOAD\tmaybe", "ERR\tx", "V2\t1234567890123456"}, "battery_voltage=!invalid V; load=!invalid; error=!invalid; battery_voltage_2=!invalid V"},
		{[]string{"H99\t007", "NEW\tabc"}, "H99=007; NEW=abc"},
	} {
		var d Decoder
		name, readings, err := d.Decode(nil, blockOf(c.fields...))
		if got := show(readings); name != "" || err != nil || got != c.want {
			t.Errorf("%q: name %q, %v\n     %s\nwant %s", c.fields, name, err, got, c.want)
		}
	}
}

// Hex messages may stand anywhere in a block, and the checksum may be any byte.
func TestHexInBlocks(t *testing.T) {
	for c := range 256 {
		plain := endsWith(byte(c))
		var d Decoder
		_, readings, err := d.Decode(nil, plain)
		want := show(readings)
		if err != nil || len(readings) != 2 {
			t.Fatalf("%q: %v, %v", plain, readings, err)
		}
		for i := range plain {
			data := slices.Concat(plain[:i], []byte(hexOf("7F0ED0071")), plain[i:])
			if i == len(plain)-1 || i == 0 { // there it is the checksum, or between blocks
				continue
			}
			cut := Split(data, false)
			_, readings, err := d.Decode(nil, data)
			if got := show(readings); got != want || err != nil || cut != (frame.Cut{Size: len(data)}) {
				t.Fatalf("%q: %+v, %s, %v; want %s", data, cut, got, err, want)
			}
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := blockOf("PID\t0x203")
	for _, c := range []struct {
		frame []byte
		want  error
	}{
		{nil, ErrBlock}, {good[2:], ErrBlock}, {good[:len(good)-1], ErrBlock}, {append(good, 'x'), ErrBlock},
		{bytes.Replace(good, []byte("0x203"), []byte("0x204"), 1), ErrChecksum},
		{blockOf("PID 0x203"), ErrField}, {blockOf("PID\t1", "\t5"), ErrField}, {blockOf(strings.Repeat("x", 17) + "\t5"), ErrField},
		{blockOf("PID\t" + strings.Repeat("x", 65)), ErrField},
	} {
		var d Decoder
		if _, readings, err := d.Decode(nil, c.frame); !errors.Is(err, c.want) || len(readings) > 0 {
			t.Errorf("%q: %v, %v; want %v", c.frame, readings, err, c.want)
		}
	}
}

// good has every form of block.
func good() [][]byte {
	hex := hexOf("A4F1000010000000000000000000000000001000D0500F904")
	return [][]byte{
		blockOf("PID\t0x203", "V\t12065", "I\t-7625"),
		blockOf("H1\t-149322", "H2\t-82854"),
		[]byte(strings.Replace(string(blockOf("PID\t0x203", "V\t12065")), "065", hex+"065", 1)),
		endsWith(':'), endsWith('\r'), endsWith('\n'), endsWith('\t'),
	}
}

func TestSplitConforms(t *testing.T) { frametest.Conforms(t, Split, MaxFrame, good()...) }

func cut(data []byte) ([]string, frame.Stats) {
	var frames []string
	cutter := frame.NewCutter(Split, MaxFrame)
	cutter.Feed(data, func(f []byte) { frames = append(frames, string(f)) })
	stats := cutter.Stats()
	stats.Bytes = 0
	return frames, stats
}

func TestSplit(t *testing.T) {
	a, b := string(blockOf("PID\t0x203", "V\t12065")), string(blockOf("H1\t-149322", "H2\t1"))
	c := string(blockOf("V\t12065", "I\t0"))
	hex := hexOf("7F0ED0071")
	wrong := ":7F0ED007101\n"
	for _, tt := range []struct {
		why, data string
		want      []string
		stats     frame.Stats
	}{
		{"from the first byte", a + b + c, []string{a, b, c}, frame.Stats{Frames: 3}},
		{"a first block that may be a tail", c + a, []string{a}, frame.Stats{Frames: 1, Garbage: uint64(len(c))}},
		{"a tail first", a[5:] + b, []string{b}, frame.Stats{Frames: 1, Garbage: uint64(len(a) - 5)}},
		{"garbage first, then a block that says where it begins", "xyz" + a, []string{a}, frame.Stats{Frames: 1, Garbage: 3}},
		{"hex messages between blocks", a + hex + hex + b, []string{a, b}, frame.Stats{Frames: 2}},
		{"a wrong hex message", a + wrong + b, []string{a, b}, frame.Stats{Frames: 2, Checksum: 1}},
		{"half a hex message", a + ":7F0ED" + b, []string{a, b}, frame.Stats{Frames: 2, Garbage: 6}},
		{"a wrong block", a + c[:4] + "x" + c[5:] + b, []string{a, b}, frame.Stats{Frames: 2, Checksum: 1}},
		{"noise between blocks", a + "\x00" + b + a, []string{a, a}, frame.Stats{Frames: 2, Malformed: 1}},
		{"noise between blocks", a + "\x00" + a, []string{a, a}, frame.Stats{Frames: 2, Malformed: 1}},
		{"a block that lost its end", a + b[:12] + a + b, []string{a, a, b}, frame.Stats{Frames: 3, Checksum: 1}},
	} {
		got, stats := cut([]byte(tt.data))
		if !slices.Equal(got, tt.want) || stats != tt.stats {
			t.Errorf("%s: %q: %q, %+v; want %q, %+v", tt.why, tt.data, got, stats, tt.want, tt.stats)
		}
	}
}

// No single flipped bit of a block gets through.
func TestFlippedBits(t *testing.T) {
	first := good()[0]
	for _, g := range good() {
		for i := range 8 * len(g) {
			data := bytes.Clone(g)
			data[i/8] ^= 1 << (i % 8)
			got, _ := cut(slices.Concat(first, data, first))
			for _, f := range got {
				if f == string(data) && !sameFields(g, data) {
					t.Errorf("%q became %q and was taken", g, data)
				}
			}
		}
	}
}

// sameFields tells whether two blocks say the same: a bit of a hex message within may flip.
func sameFields(a, b []byte) bool {
	var d Decoder
	_, x, _ := d.Decode(nil, a)
	_, y, _ := d.Decode(nil, b)
	return slices.Equal(x, y)
}

func TestDecodeAllocatesNothing(t *testing.T) {
	var d Decoder
	var dst []point.Reading
	frames := append(good(), blockOf("PID\t0xA042", "AR\t3", "OR\t0x11", "SER#\tHQ1411MYIKN", "NEW\tabc", "T\t---", "CS\t99"))
	if n := testing.AllocsPerRun(100, func() {
		for _, f := range frames {
			_, dst, _ = d.Decode(dst[:0], f)
		}
	}); n != 0 {
		t.Errorf("%d blocks cost %v allocations", len(frames), n)
	}
}

// corpus returns the captures of real products; nothing, and says so, where there are none.
func corpus(t testing.TB) map[string][]byte {
	t.Helper()
	root := os.Getenv("FERRULE_CORPORA")
	if root == "" {
		t.Log("NOT TESTED: real captures; FERRULE_CORPORA is not set")
		return nil
	}
	names, err := filepath.Glob(filepath.Join(root, "vedirect", "*.dump"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no captures in %s: %v", root, err)
	}
	captures := make(map[string][]byte)
	for _, name := range names {
		if captures[filepath.Base(name)], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	return captures
}

// remake makes a capture as it was on the wire: its line ends and checksums were destroyed by
// those who published it. It returns the blocks, with the hex messages behind them, and how many
// fields and hex messages they have.
func remake(data []byte) (blocks [][]byte, fields, hex int) {
	var now []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case line == "":
		case strings.HasPrefix(line, ":"):
			blocks = append(blocks, []byte(line+"\n"))
			hex++
		case strings.HasPrefix(line, "Checksum\t"):
			blocks = append(blocks, blockOf(now...))
			fields += len(now)
			now = nil
			if i := strings.Index(line, ":"); i > 0 && len(line) > i+20 {
				blocks = append(blocks, []byte(line[i:]+"\n"))
				hex++
			}
		default:
			now = append(now, line)
		}
	}
	return blocks, fields, hex
}

// Every field of the captures is delivered with the value that stands there, for every chunking.
func TestCorpus(t *testing.T) {
	captures := corpus(t)
	var blocks, fields, hexes, known, wrong int
	for name, data := range captures {
		parts, n, hex := remake(data)
		fields, hexes, blocks = fields+n, hexes+hex, blocks+len(parts)-hex
		stream := bytes.Join(parts, nil)
		var want []string
		for seed := range uint64(4) {
			var got []string
			var d Decoder
			cutter := frame.NewCutter(Split, MaxFrame)
			random := rand.New(rand.NewPCG(seed, 1))
			for rest := stream; len(rest) > 0; {
				n := min(len(rest), 1+random.IntN(1<<(4*seed)))
				cutter.Feed(rest[:n], func(f []byte) {
					_, readings, err := d.Decode(nil, f)
					if err != nil {
						t.Errorf("%s: %q: %v", name, f, err)
					}
					lines := bytes.Split(f[2:len(f)-1], []byte("\r\n"))
					for i, r := range readings {
						got = append(got, show(readings[i:i+1]))
						if seed == 0 && agrees(t, name, r, string(lines[i])) {
							known++
						}
					}
				})
				rest = rest[n:]
			}
			stats := cutter.Stats()
			wrong += int(stats.Checksum)
			if len(got) != n || stats.Frames != uint64(len(parts)-hex) || stats.Checksum+stats.Malformed+stats.Oversize+stats.Garbage > 0 {
				t.Errorf("%s: %d readings of %d fields; %+v of %d blocks", name, len(got), n, stats, len(parts)-hex)
			}
			if seed > 0 && !slices.Equal(got, want) {
				t.Errorf("%s: other readings in other chunks", name)
			}
			want = got
		}
	}
	if captures != nil {
		t.Logf("%d captures: %d blocks, %d fields, %d of them agree with the capture; %d hex messages skipped, %d of them wrong", len(captures), blocks, fields, known, hexes, wrong)
	}
}

// agrees compares a reading with its line by other means than Decode: decimal places by text.
func agrees(t *testing.T, name string, r point.Reading, line string) bool {
	what, value, _ := strings.Cut(line, "\t")
	l, ok := labels[what]
	if !ok || r.Bad != "" || r.Point != l.point {
		t.Errorf("%s: %q is %+v", name, line, r)
		return false
	}
	want := value
	switch l.kind {
	case kNumber:
		negative := strings.HasPrefix(value, "-")
		digits := strings.TrimPrefix(value, "-")
		for len(digits) <= int(l.places) {
			digits = "0" + digits
		}
		whole, part := digits[:len(digits)-int(l.places)], strings.TrimRight(digits[len(digits)-int(l.places):], "0")
		if want = whole + "." + part; part == "" {
			want += "0"
		}
		if negative {
			want = "-" + want
		}
	case kSwitch:
		want = map[string]string{"ON": "true", "OFF": "false"}[value]
	case kWord, kBits:
		want = map[string]string{"CS\t0": "off", "CS\t3": "bulk", "MPPT\t0": "off", "ERR\t0": "none", "AR\t0": "none"}[line]
	}
	if got := r.Value.String(); got != want {
		t.Errorf("%s: %q is %s, want %s", name, line, got, want)
		return false
	}
	return true
}

func BenchmarkBlock(b *testing.B) {
	block := blockOf("PID\t0xA042", "FW\t0123", "SER#\tHQ1411MYIKN", "V\t12530", "I\t-620", "VPV\t33580", "PPV\t8", "CS\t3", "MPPT\t2",
		"OR\t0x00000000", "ERR\t0", "LOAD\tON", "IL\t0", "H19\t8272", "H20\t0", "H21\t11", "H22\t25", "H23\t119", "HSDS\t274")
	b.ReportAllocs()
	b.SetBytes(int64(len(block)))
	var d Decoder
	var readings []point.Reading
	cutter := frame.NewCutter(Split, MaxFrame)
	take := func(f []byte) { _, readings, _ = d.Decode(readings[:0], f) }
	for b.Loop() {
		cutter.Feed(block, take)
	}
}

func FuzzSplit(f *testing.F) {
	for _, g := range good() {
		f.Add(g)
	}
	f.Add([]byte("\r\nV\t1\r\nChecksum\tx:7F0ED0071\n:AA\r\nPID\t0x203\r\nChecksum\t\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) { frametest.Check(t, Split, MaxFrame, data, good()...) })
}

func FuzzDecode(f *testing.F) {
	for _, g := range good() {
		f.Add(g)
	}
	f.Add([]byte("AR\t65535\r\nOR\t0xFFFFFFFFF\r\nT\t---\r\nTTG\t-1\r\nX\t"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d Decoder
		for _, frame := range [][]byte{data, blockOf(string(data))} {
			name, readings, err := d.Decode(nil, frame)
			if name != "" || err != nil && len(readings) > 0 {
				t.Errorf("%q: name %q, %v, %v", frame, name, readings, err)
			}
			for _, r := range readings {
				if r.Point == "" || (r.Bad == "") == (r.Value.Kind() == point.None) {
					t.Errorf("%q: %+v", frame, r)
				}
			}
		}
	})
}
