package frame_test

import (
	"maps"
	"slices"
	"testing"

	"ferrule/hw/frame"
	"ferrule/hw/frame/frametest"
)

// FuzzFrame feeds any bytes to every kind of frame, and decodes what comes out.
func FuzzFrame(f *testing.F) {
	names := slices.Sorted(maps.Keys(devices))
	for i, name := range names {
		for _, g := range devices[name].frames(f) {
			f.Add(uint8(i), append(g, g...))
		}
	}
	units := []frame.Unit{
		{Match: "4? ??", Points: []frame.Point{{At: "byte:2", Type: "string(3)"}, {At: "byte:-4", Type: "float32", Scale: 0.1}, {At: "byte:3", Type: "bcd32"}}},
		{Match: "byte:-2=??"},
	}
	f.Fuzz(func(t *testing.T, i uint8, data []byte) {
		if len(data) > 1024 {
			return
		}
		d := devices[names[int(i)%len(names)]]
		split, max, err := frame.Compile(d.config)
		if err != nil {
			t.Fatal(err)
		}
		check := frametest.Check
		if d.gaps {
			check = frametest.CheckInGaps
		}
		check(t, split, max, data, d.frames(t)...)
		cutter, decoder, err := frame.New(d.config, units)
		if err != nil {
			t.Fatal(err)
		}
		take := func(f []byte) {
			if _, readings, err := decoder.Decode(nil, f); err == nil && len(readings) == 0 {
				t.Errorf("% x says nothing, and is no error", f)
			}
		}
		cutter.Feed(data, take)
		cutter.Silence(take)
		if _, _, err := decoder.Decode(nil, data); err == nil && len(data) == 0 {
			t.Error("a frame of no bytes is decoded")
		}
	})
}

// FuzzMatch wants no match to take what it does not say, and no panic.
func FuzzMatch(f *testing.F) {
	f.Add("41 ?? 02", []byte{0x41, 1, 2})
	f.Add("byte:-1=0?", []byte{3})
	f.Fuzz(func(t *testing.T, s string, payload []byte) {
		m, err := frame.ParseMatch(s)
		if err == nil && m.Of(payload) && len(payload) == 0 {
			t.Errorf("%q takes an empty payload", s)
		}
	})
}
