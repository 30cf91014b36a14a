package mbus

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"ferrule/hw/frame"
	"ferrule/hw/point"
)

func cut(chunk int, data []byte) (frames [][]byte, stats frame.Stats) {
	c := frame.NewCutter(Split, MaxFrame)
	take := func(f []byte) { frames = append(frames, bytes.Clone(f)) }
	for len(data) > 0 {
		n := min(chunk, len(data))
		c.Feed(data[:n], take)
		data = data[n:]
	}
	c.Silence(take)
	return frames, c.Stats()
}

func TestSplit(t *testing.T) {
	short := AppendShort(nil, ReqUD2, 5)
	long, err := AppendLong(nil, RspUD, 5, ciVariable, []byte{1, 2, startLong, ack, startShort})
	if err != nil {
		t.Fatal(err)
	}
	control, _ := AppendLong(nil, SndUD, networkAddress, ciReset, nil)
	longest, _ := AppendLong(nil, RspUD, 5, ciVariable, make([]byte, 252))
	bad := bytes.Clone(long)
	bad[8]++
	for name, test := range map[string]struct {
		data  []byte
		want  [][]byte
		fault frame.Stats
	}{
		"all forms":          {slices.Concat(short, long, []byte{ack}, control, longest), [][]byte{short, long, {ack}, control, longest}, frame.Stats{}},
		"noise between":      {slices.Concat([]byte{0, 1, stop}, short, []byte{7, startLong, 7}, long), [][]byte{short, long}, frame.Stats{Garbage: 6}},
		"a wrong checksum":   {slices.Concat([]byte{startShort, 1, 2, 9, stop}, short), [][]byte{short}, frame.Stats{Garbage: 5, Checksum: 1}},
		"two lengths":        {slices.Concat([]byte{startLong, 9, 8, startLong}, short), [][]byte{short}, frame.Stats{Garbage: 4}},
		"no stop":            {slices.Concat(long[:len(long)-1], short), [][]byte{{ack}, short}, frame.Stats{Malformed: 1, Garbage: uint64(len(long) - 2)}},
		"a frame in a frame": {slices.Concat([]byte{startLong, 20, 20, startLong}, short), [][]byte{short}, frame.Stats{Garbage: 4, Cutoff: 1}},
	} {
		for _, chunk := range []int{1, 2, 7, 1000} {
			got, stats := cut(chunk, test.data)
			if !slices.EqualFunc(got, test.want, bytes.Equal) {
				t.Errorf("%s, %d at a time: got % X, want % X", name, chunk, got, test.want)
			}
			if stats.Garbage != test.fault.Garbage || stats.Checksum != test.fault.Checksum || stats.Malformed != test.fault.Malformed || stats.Cutoff != test.fault.Cutoff {
				t.Errorf("%s, %d at a time: %+v", name, chunk, stats)
			}
		}
	}
	if _, err := Parse(bad); !errors.Is(err, ErrChecksum) {
		t.Errorf("got %v", err)
	}
	if _, err := AppendLong(nil, RspUD, 5, ciVariable, make([]byte, 253)); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
	f, err := Parse(long)
	if err != nil || f.Kind != Long || f.C != RspUD || f.A != 5 || f.CI != ciVariable || len(f.Data) != 5 {
		t.Errorf("%+v, %v", f, err)
	}
}

// Whatever comes, in whatever chunks: the same frames, each of which Parse takes and the codec writes
// again; and a good frame behind it is found.
func FuzzSplit(f *testing.F) {
	long, _ := AppendLong(nil, RspUD, 5, ciVariable, []byte{1, 2, 3})
	f.Add(slices.Concat(AppendShort(nil, ReqUD2, 5), []byte{ack}, long), uint8(3))
	f.Add([]byte{startLong, 255, 255, startLong}, uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, chunk uint8) {
		data = append(data, make([]byte, MaxFrame)...) // the end of whatever began
		data = append(data, long...)
		whole, want := cut(len(data), data)
		parts, got := cut(int(chunk)+1, data)
		if !slices.EqualFunc(whole, parts, bytes.Equal) || want != got {
			t.Fatalf("% X in one piece, % X in pieces of %d; %+v, %+v", whole, parts, chunk, want, got)
		}
		if len(whole) == 0 || !bytes.Equal(whole[len(whole)-1], long) {
			t.Fatalf("the good frame at the end is not found: % X", whole)
		}
		for _, raw := range whole {
			p, err := Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			again := AppendAck(nil)
			switch p.Kind {
			case Short:
				again = AppendShort(nil, p.C, p.A)
			case Long:
				if again, err = AppendLong(nil, p.C, p.A, p.CI, p.Data); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(again, raw) {
				t.Fatalf("% X is written again as % X", raw, again)
			}
		}
	})
}

// Whatever a telegram holds: no panic, bounded memory, names that are names and come once, the same
// readings again, and none with an error.
func FuzzDecode(f *testing.F) {
	f.Add(byte(ciVariable), unhex(f, head+"0C 06 78 56 34 12 0D FD 11 03 43 42 41 02 FC 03 48 52 25 74 D4 11 8B 60 04 37 18 02"))
	f.Add(byte(ciVariable), unhex(f, head+"01 93 7B 05 04 AB 6E 1E 0C B5 35 07 FB 68 FF FF FF FF FF FF FF 7F 05 93 7B 01 02 03 04 1F 05"))
	f.Add(byte(ciFixed), unhex(f, "78 56 34 12 0A 00 E9 7E 01 00 00 00 35 01 00 00"))
	var d Decoder
	f.Fuzz(func(t *testing.T, ci byte, data []byte) {
		frame, err := AppendLong(nil, RspUD, 5, ci, data[:min(len(data), 252)])
		if err != nil {
			t.Fatal(err)
		}
		name, readings, err := d.Decode(nil, frame)
		if err != nil && readings != nil {
			t.Fatalf("%v with %v", err, readings)
		}
		seen := make(map[string]bool)
		for _, r := range readings {
			if r.Point == "" || seen[r.Point] || (r.Bad == "") == (r.Value.Kind() == point.None) {
				t.Fatalf("%+v among %+v", r, readings)
			}
			seen[r.Point] = true
		}
		var fresh Decoder
		name2, again, err2 := fresh.Decode(nil, frame)
		if name != name2 || !slices.Equal(readings, again) || (err == nil) != (err2 == nil) {
			t.Fatalf("%v, then %v", readings, again)
		}
		if len(d.meanings) > maxKnown || len(d.numbered) > maxKnown {
			t.Fatal("it remembers too much")
		}
		if name != "" {
			if a, err := ParseSecondary(name); err == nil {
				h, _ := ParseHeader(frame)
				if !a.Matches(&h) {
					t.Fatalf("%s does not match its own header", name)
				}
			}
		}
	})
}
