package frame_test

import (
	"testing"

	"pgregory.net/rapid"

	"ferrule/hw/frame"
)

// TestSumCatalogue holds every algorithm against the check value of the catalogue, its
// checksum of "123456789" (reveng.sourceforge.io/crc-catalogue); sums were counted by hand.
func TestSumCatalogue(t *testing.T) {
	want := map[string]uint32{
		"crc16-modbus": 0x4b37, "crc16-arc": 0xbb3d, "crc16-x25": 0x906e, "crc16-ccitt-false": 0x29b1,
		"crc16-xmodem": 0x31c3, "crc16-kermit": 0x2189, "crc8": 0xf4, "crc8-maxim": 0xa1, "crc32": 0xcbf43926,
		"sum8": 0xdd, "sum16": 0x01dd, "lrc8": 0x23, "xor8": 0x31,
	}
	for _, name := range frame.SumNames() {
		s, err := frame.ParseSum(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Of([]byte("123456789")); got != want[name] || s.String() != name {
			t.Errorf("%s of 123456789 is %#x, want %#x", s, got, want[name])
		}
		delete(want, name)
	}
	if len(want) != 0 {
		t.Errorf("not known: %v", want)
	}
	if _, err := frame.ParseSum("crc16"); err == nil {
		t.Error("crc16 alone says too little")
	}
}

// slow is the definition of a CRC, one bit at a time.
func slow(data []byte, width int, poly, init, last uint32, reflected bool) uint32 {
	r := init
	top := uint32(1) << (width - 1)
	for _, b := range data {
		for i := range 8 {
			bit := uint32(b>>(7-i)) & 1
			if reflected {
				bit = uint32(b>>i) & 1
			}
			out := (r&top != 0) != (bit != 0)
			r = r << 1 & (top<<1 - 1)
			if out {
				r ^= poly
			}
		}
	}
	if reflected {
		var m uint32
		for i := range width {
			m |= r >> i & 1 << (width - 1 - i)
		}
		r = m
	}
	return r ^ last
}

func TestSumOfAnyLength(t *testing.T) {
	parse := func(name string) *frame.Sum {
		s, err := frame.ParseSum(name)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	modbus, ccitt, crc8, maxim, crc32 := parse("crc16-modbus"), parse("crc16-ccitt-false"), parse("crc8"), parse("crc8-maxim"), parse("crc32")
	xor8, sum8 := parse("xor8"), parse("sum8")
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "data")
		var x, s byte
		for _, b := range data {
			x, s = x^b, s+b
		}
		for _, c := range []struct {
			sum  *frame.Sum
			want uint32
		}{
			{modbus, slow(data, 16, 0x8005, 0xffff, 0, true)},
			{ccitt, slow(data, 16, 0x1021, 0xffff, 0, false)},
			{crc8, slow(data, 8, 0x07, 0, 0, false)},
			{maxim, slow(data, 8, 0x31, 0, 0, true)},
			{crc32, slow(data, 32, 0x04c11db7, 0xffffffff, 0xffffffff, true)},
			{xor8, uint32(x)},
			{sum8, uint32(s)},
		} {
			if got := c.sum.Of(data); got != c.want {
				t.Fatalf("%s of %x is %#x, want %#x", c.sum, data, got, c.want)
			}
		}
	})
}
