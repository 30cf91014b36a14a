package frame_test

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"ferrule/hw/frame"
)

// noise returns bytes of a line whose speed is wrong: any value.
func noise(n int) []byte {
	r, b := rand.New(rand.NewPCG(4, 5)), make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// flood returns n times the byte that costs a Split most of all.
func flood(b *testing.B, c frame.Config, n int) []byte {
	var slowest byte
	var longest time.Duration
	for i := range 256 {
		cutter, data, took := newCutter(b, c), bytes.Repeat([]byte{byte(i)}, 4096), time.Hour
		for range 4 { // the least is what the others were before something else ran
			start := time.Now()
			feed(cutter, data)
			took = min(took, time.Since(start))
		}
		if took > longest {
			slowest, longest = byte(i), took
		}
	}
	return bytes.Repeat([]byte{slowest}, n)
}

func newCutter(b *testing.B, c frame.Config) *frame.Cutter {
	split, max, err := frame.Compile(c)
	if err != nil {
		b.Fatal(err)
	}
	cutter := frame.NewCutter(split, max)
	cutter.Begin()
	return cutter
}

// feed gives data in the chunks that a read at 921,600 baud gives.
func feed(cutter *frame.Cutter, data []byte) {
	const chunk = 64
	for ; len(data) > 0; data = data[chunk:] {
		cutter.Feed(data[:chunk], func([]byte) {})
	}
}

// BenchmarkCutter cuts 64 KiB. Frames may have 1024 bytes, as by default. A line at 921,600 baud
// brings 0.092 MB/s; 20 % of a core are 0.46 MB/s.
func BenchmarkCutter(b *testing.B) {
	const size = 64 << 10
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		d := devices[name]
		if d.config.Kind != "fixed" {
			d.config.MaxLength = 1024
		}
		var good []byte
		for i := 0; len(good) < size; i++ {
			good = append(good, d.frames(b)[i%len(d.good)]...)
		}
		for _, c := range []struct {
			name string
			data []byte
		}{{"good", good[:size]}, {"noise", noise(size)}, {"flood", flood(b, d.config, size)}} {
			b.Run(name+"/"+c.name, func(b *testing.B) { cutting(b, d.config, c.data) })
		}
	}
}

// BenchmarkWorst has what costs most: starts that are followed by a length that is good, or by
// an end, and by a checksum that is not.
func BenchmarkWorst(b *testing.B) {
	for _, sum := range []string{"crc16-modbus", "crc16-ccitt-false", "crc32", "xor8"} {
		b.Run("length/"+sum, func(b *testing.B) { // 0x0707 are 1799 bytes
			cutting(b, frame.Config{
				Kind: "length", Start: "07", LengthAt: number(1), LengthSize: 2, Check: sum, LengthCounts: "frame", MaxLength: 2048,
			}, bytes.Repeat([]byte{7}, 64<<10))
		})
	}
	escaped := append(bytes.Repeat([]byte{0x10, 2}, 1000), 3, 0xff)
	b.Run("stx-etx, all starts escaped", func(b *testing.B) {
		cutting(b, frame.Config{Kind: "stx-etx", Escape: "10", Check: "xor8", MaxLength: 2048}, bytes.Repeat(append([]byte{2}, escaped...), 64)[:62<<10])
	})
	b.Run("stx-etx, no end", func(b *testing.B) {
		cutting(b, frame.Config{Kind: "stx-etx", MaxLength: 65536}, append([]byte{2}, make([]byte, 64<<10-1)...))
	})
	b.Run("slip, all escaped", func(b *testing.B) {
		cutting(b, frame.Config{Kind: "slip", MaxLength: 65536, Check: "crc16-modbus"}, append(bytes.Repeat([]byte{0xdb, 0xdc}, 32<<10-1), 0, 0xc0))
	})
	b.Run("two delimiters, none there", func(b *testing.B) {
		cutting(b, frame.Config{Kind: "delimiter", Delimiters: []string{"0D 0A", "0B"}, MaxLength: 65536}, bytes.Repeat([]byte{0x0d}, 64<<10))
	})
}

func cutting(b *testing.B, c frame.Config, data []byte) {
	cutter := newCutter(b, c)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		feed(cutter, data)
	}
}

func BenchmarkSum(b *testing.B) {
	data := noise(256)
	for _, name := range frame.SumNames() {
		s, err := frame.ParseSum(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				s.Of(data)
			}
		})
	}
}
