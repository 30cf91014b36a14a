package frame_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/hw/frame"
	"ferrule/hw/frame/frametest"
	"ferrule/internal/quantity"
)

// unhex reads bytes as people write them.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// device is a kind of frame: its configuration, frames as they stand on the wire, and what they say.
type device struct {
	config     frame.Config
	gaps       bool
	good, says []string
}

func number(n int) *int { return &n }

// devices has every kind of frame, with checks of every form.
var devices = map[string]device{
	"delimiter": {
		config: frame.Config{Kind: "delimiter", Delimiters: []string{"0D 0A"}, MaxLength: 32},
		good:   []string{"41 42 0D 0A", "0D 43 0D 0D 0A"}, says: []string{"4142", "0d430d"},
	},
	"two delimiters": {
		config: frame.Config{Kind: "delimiter", Delimiters: []string{"0D", "0A"}, MaxLength: 32},
		good:   []string{"41 42 0D 0A", "43 0D", "0A 44 0A"}, says: []string{"4142", "43", "44"},
	},
	"delimiter, xor in hex": {
		config: frame.Config{Kind: "delimiter", Delimiters: []string{"0D"}, MaxLength: 32, Check: "xor8", CheckForm: "hex"},
		good:   []string{"31 32 33 33 30 0D"}, says: []string{"313233"}, // 31^32^33 = 30
	},
	"fixed": {
		config: frame.Config{Kind: "fixed", Size: 4}, gaps: true,
		good: []string{"01 02 03 04", "05 06 07 08"}, says: []string{"01020304", "05060708"},
	},
	"fixed, sum8": {
		config: frame.Config{Kind: "fixed", Size: 4, Check: "sum8"}, gaps: true,
		good: []string{"01 02 03 06", "FF 02 03 04"}, says: []string{"010203", "ff0203"},
	},
	"fixed, CRC": {
		config: frame.Config{Kind: "fixed", Size: 8, Check: "crc16-modbus"},
		good:   []string{"01 03 00 00 00 0A C5 CD"}, says: []string{"01030000000a"}, // Modbus: read 10 registers
	},
	"fixed, start, end and lrc": { // 0xFF and 0xAA mark, the LRC leaves them out
		config: frame.Config{Kind: "fixed", Size: 6, Start: "FF", End: "AA", Check: "lrc8", CheckFrom: number(1)},
		good:   []string{"FF 01 02 03 FA AA", "FF 10 20 30 A0 AA"}, says: []string{"ff010203", "ff102030"},
	},
	"length": {
		config: frame.Config{Kind: "length", MaxLength: 16}, gaps: true,
		good: []string{"02 41 42", "03 05 06 07"}, says: []string{"024142", "03050607"},
	},
	"length, start and sum16": { // as the PMS5003 counts: what follows the length, with the check
		config: frame.Config{Kind: "length", Start: "42 4D", LengthSize: 2, Check: "sum16", MaxLength: 32},
		good:   []string{"42 4D 00 04 01 02 00 96", "42 4D 00 03 07 00 99"}, says: []string{"424d00040102", "424d000307"},
	},
	"length of the frame, little-endian, CRC": {
		config: frame.Config{
			Kind: "length", LengthAt: number(1), LengthSize: 2, LengthOrder: "little", LengthCounts: "frame",
			Check: "crc16-xmodem", MaxLength: 24,
		},
		good: []string{"11 06 00 55 D5 E3"}, says: []string{"11060055"},
	},
	"length of the payload, end": { // as wired M-Bus: the length leaves out start, check and stop
		config: frame.Config{
			Kind: "length", Start: "68", LengthCounts: "payload", Check: "sum8", CheckFrom: number(2), End: "16", MaxLength: 24,
		},
		good: []string{"68 03 08 05 7A 87 16"}, says: []string{"680308057a"},
	},
	"stx-etx": {
		config: frame.Config{Kind: "stx-etx", MaxLength: 24},
		good:   []string{"02 31 32 03", "02 33 03"}, says: []string{"3132", "33"},
	},
	"stx-etx, BCC": {
		config: frame.Config{Kind: "stx-etx", Check: "xor8", MaxLength: 24},
		good:   []string{"02 31 32 03 00", "02 33 32 03 02", "02 35 35 03 03"}, says: []string{"3132", "3332", "3535"},
	},
	"stx-etx, BCC with STX and without ETX, in hex": {
		config: frame.Config{Kind: "stx-etx", Check: "sum8", CheckForm: "hex", CheckFrom: number(0), CheckTo: -1, MaxLength: 24},
		good:   []string{"02 31 32 03 36 35"}, says: []string{"3132"},
	},
	"stx-etx, check inside": {
		config: frame.Config{Kind: "stx-etx", Check: "xor8", CheckForm: "hex", CheckInside: true, MaxLength: 24},
		good:   []string{"02 41 42 30 33 03"}, says: []string{"4142"},
	},
	"DLE STX, DLE ETX": {
		config: frame.Config{Kind: "stx-etx", Start: "10 02", End: "10 03", Escape: "10", MaxLength: 24},
		good:   []string{"10 02 41 10 10 03 02 10 03", "10 02 10 10 10 03"}, says: []string{"41100302", "10"},
	},
	"STX, DLE before marks, CRC inside": {
		config: frame.Config{
			Kind: "stx-etx", Escape: "10", Check: "crc16-xmodem", CheckInside: true, CheckFrom: number(1), MaxLength: 24,
		},
		good: []string{"02 10 02 10 03 56 01 03", "02 41 58 E5 03"}, says: []string{"0203", "41"},
	},
	"slip":         {config: frame.Config{Kind: "slip", MaxLength: 24}, good: []string{"C0 41 DB DC 42 C0", "DB DD C0"}, says: []string{"41c042", "db"}},
	"slip, crc8":   {config: frame.Config{Kind: "slip", Check: "crc8", MaxLength: 24}, good: []string{"C0 C2 40 C0"}, says: []string{"c2"}},
	"cobs":         {config: frame.Config{Kind: "cobs", MaxLength: 24}, good: []string{"01 02 11 01 00", "03 11 22 02 33 00", "02 11 00"}, says: []string{"001100", "11220033", "11"}},
	"cobs, modbus": {config: frame.Config{Kind: "cobs", Check: "crc16-modbus", MaxLength: 24}, good: []string{"08 01 03 02 0A 11 7E E8 00"}, says: []string{"0103020a11"}},
	"cobs-r":       {config: frame.Config{Kind: "cobs-r", MaxLength: 24}, good: []string{"02 11 00", "03 11 22 00", "22 11 00"}, says: []string{"11", "1122", "1122"}},
}

func (d device) frames(t testing.TB) (all [][]byte) {
	for _, g := range d.good {
		all = append(all, unhex(t, g))
	}
	return all
}

func TestConforms(t *testing.T) {
	for name, d := range devices {
		t.Run(name, func(t *testing.T) {
			split, max, err := frame.Compile(d.config)
			if err != nil {
				t.Fatal(err)
			}
			conforms := frametest.Conforms
			if d.gaps {
				conforms = frametest.ConformsInGaps
			}
			conforms(t, split, max, d.frames(t)...)
		})
	}
}

// TestPayloads decodes the good frames of every device, the way a line does.
func TestPayloads(t *testing.T) {
	for name, d := range devices {
		t.Run(name, func(t *testing.T) {
			cutter, decoder, err := frame.New(d.config, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			take := func(f []byte) {
				unit, readings, err := decoder.Decode(nil, f)
				if err != nil || unit != "" || len(readings) != 1 || readings[0].Point != "frame" {
					t.Errorf("% x: %q %v %v", f, unit, readings, err)
					return
				}
				got = append(got, readings[0].Value.String())
			}
			cutter.Silence(take)
			cutter.Begin()
			for _, f := range d.frames(t) {
				cutter.Feed(f, take)
			}
			if !slices.Equal(got, d.says) || cutter.Stats().Frames != uint64(len(d.says)) {
				t.Errorf("got %q, want %q; %+v", got, d.says, cutter.Stats())
			}
		})
	}
}

// TestFaults spoils every bit of a frame: what has a check is never handed out.
func TestFaults(t *testing.T) {
	for name, d := range devices {
		if d.config.Check == "" {
			continue
		}
		cutter, _, err := frame.New(d.config, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range d.frames(t) {
			for bit := range 8 * len(g) {
				bad := bytes.Clone(g)
				bad[bit/8] ^= 1 << (bit % 8)
				cutter.Reset()
				cutter.Silence(func([]byte) {})
				cutter.Begin()
				take := func(f []byte) {
					if d.config.CheckForm == "hex" && bytes.EqualFold(f, g) || d.config.Kind == "slip" && bytes.Contains(g, f) {
						return // the case of a digit says nothing, and a spoilt END in front leaves the frame whole
					}
					t.Errorf("%s: % x with bit %d spoilt gives % x", name, g, bit, f)
				}
				cutter.Feed(bad, take)
			}
		}
		cutter.Silence(func([]byte) {})
		if s := cutter.Stats(); s.Checksum+s.Malformed+s.Oversize+s.Cutoff+s.Garbage == 0 {
			t.Errorf("%s: nothing is counted: %+v", name, s)
		}
	}
}

func TestSilence(t *testing.T) {
	c := frame.Config{Kind: "silence", MaxLength: 8, Check: "crc16-modbus"}
	cutter, decoder, err := frame.New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	take := func(f []byte) {
		_, readings, err := decoder.Decode(nil, f)
		got = append(got, fmt.Sprint(readings, err))
	}
	for _, chunk := range []string{"01 03 00 00", "00 0A C5 CD", "01 03 01"} {
		cutter.Feed(unhex(t, chunk), take)
	}
	cutter.Silence(take)
	cutter.Silence(take)
	want := []string{"[{frame 01030000000a  }] <nil>", "[] the checksum of the frame is wrong"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if s := cutter.Stats(); s != (frame.Stats{Bytes: 11, Frames: 2}) {
		t.Errorf("%+v", s)
	}
}

// TestFirstFrameOfAnUnmarkedProtocol is a line that was opened in a silence: the first frame may
// be a tail, the one behind the next silence is none.
func TestFirstFrameOfAnUnmarkedProtocol(t *testing.T) {
	cutter, _, err := frame.New(frame.Config{Kind: "fixed", Size: 4}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	take := func(f []byte) { got = append(got, string(f)) }
	for _, f := range []string{"1111", "2222", "3333"} {
		cutter.Feed([]byte(f), take)
		if len(cutter.Pending()) > 0 {
			cutter.Silence(take)
		}
	}
	if want := []string{"2222", "3333"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPause(t *testing.T) {
	for _, c := range []struct {
		config frame.Config
		want   time.Duration
	}{
		{frame.Raw(), 50 * time.Millisecond},
		{frame.Config{Kind: "fixed", Size: 4}, 50 * time.Millisecond},
		{frame.Config{Kind: "fixed", Size: 4, Start: "02"}, 500 * time.Millisecond},
		{frame.Config{Kind: "slip", Silence: quantity.Duration(time.Second)}, time.Second},
	} {
		if got := c.config.Pause(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.config, got, c.want)
		}
	}
}

func TestUnstuff(t *testing.T) {
	long := bytes.Repeat([]byte{7}, 254)
	for _, c := range []struct {
		decode     func(dst, frame []byte) ([]byte, error)
		wire, says string
		err        error
	}{
		{frame.UnescapeSLIP, "41 DB DC DB DD C0", "41c0db", nil},
		{frame.UnescapeSLIP, "41 DB 41 C0", "", frame.ErrEscape},
		{frame.UnescapeSLIP, "41 DB C0", "", frame.ErrEscape},
		{frame.UnstuffCOBS, "01 01 00", "00", nil}, // Cheshire and Baker
		{frame.UnstuffCOBS, "01 01 01 00", "0000", nil},
		{frame.UnstuffCOBS, "05 41 42 43 44 00", "41424344", nil},
		{frame.UnstuffCOBS, "01 00", "", nil},
		{frame.UnstuffCOBS, "FF" + hex.EncodeToString(long) + "00", hex.EncodeToString(long), nil},
		{frame.UnstuffCOBS, "FF" + hex.EncodeToString(long) + "02 08 00", hex.EncodeToString(long) + "08", nil},
		{frame.UnstuffCOBS, "03 41 00", "", frame.ErrOverhead},
		{frame.UnstuffCOBSR, "05 41 42 43 44 00", "41424344", nil},
		{frame.UnstuffCOBSR, "44 41 42 43 00", "41424344", nil},
		{frame.UnstuffCOBSR, "01 41 00", "0041", nil},
	} {
		got, err := c.decode(nil, unhex(t, c.wire))
		if err != c.err || err == nil && hex.EncodeToString(got) != c.says {
			t.Errorf("%.40s gives %.40x, %v; want %.40s, %v", c.wire, got, err, c.says, c.err)
		}
	}
}
