package frame_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

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

// worst returns the bytes that cost a Split most: each could begin a frame of great length.
func worst(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 3
	}
	return b
}

// BenchmarkCutter cuts 64 KiB in the chunks that a read at 921,600 baud gives. Frames may have
// 1024 bytes, as by default. A line at that speed brings 0.092 MB/s; 20 % of a core are 0.46 MB/s.
func BenchmarkCutter(b *testing.B) {
	const size, chunk = 64 << 10, 64
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
		}{{"good", good[:size]}, {"noise", noise(size)}, {"worst", worst(size)}} {
			b.Run(name+"/"+c.name, func(b *testing.B) {
				split, max, err := frame.Compile(d.config)
				if err != nil {
					b.Fatal(err)
				}
				cutter := frame.NewCutter(split, max)
				cutter.Begin()
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					for rest := c.data; len(rest) > 0; rest = rest[chunk:] {
						cutter.Feed(rest[:chunk], func([]byte) {})
					}
				}
			})
		}
	}
}

// BenchmarkCRCAtEveryByte is the most that garbage can cost: at each byte a length that is
// good, and a checksum that is not.
func BenchmarkCRCAtEveryByte(b *testing.B) {
	for _, sum := range []string{"crc16-modbus", "crc16-ccitt-false", "crc32", "xor8"} {
		b.Run(sum, func(b *testing.B) {
			c := frame.Config{Kind: "length", Start: "03", LengthAt: number(1), LengthSize: 2, Check: sum, LengthCounts: "frame"}
			split, max, err := frame.Compile(c)
			if err != nil {
				b.Fatal(err)
			}
			cutter, data := frame.NewCutter(split, max), worst(64<<10) // 0x0303 are 771 bytes
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				for rest := data; len(rest) > 0; rest = rest[64:] {
					cutter.Feed(rest[:64], func([]byte) {})
				}
			}
		})
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
