package frame

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strings"
)

// Sum is an algorithm of checksums. Build it with ParseSum; it is immutable.
type Sum struct {
	name   string
	size   int // in bytes
	little bool
	of     func(data []byte) uint32
}

// crc is a CRC as the catalogue of parametrised CRC algorithms describes it
// (reveng.sourceforge.io/crc-catalogue); the names differ where devices' manuals do.
type crc struct {
	name            string
	width           int
	poly, init, xor uint32
	reflected       bool
	little          bool
}

var crcs = [...]crc{
	{"crc16-modbus", 16, 0x8005, 0xffff, 0, true, true},           // CRC-16/MODBUS
	{"crc16-arc", 16, 0x8005, 0, 0, true, true},                   // CRC-16/ARC
	{"crc16-x25", 16, 0x1021, 0xffff, 0xffff, true, true},         // CRC-16/IBM-SDLC
	{"crc16-ccitt-false", 16, 0x1021, 0xffff, 0, false, false},    // CRC-16/IBM-3740
	{"crc16-xmodem", 16, 0x1021, 0, 0, false, false},              // CRC-16/XMODEM
	{"crc16-kermit", 16, 0x1021, 0, 0, true, true},                // CRC-16/KERMIT
	{"crc8", 8, 0x07, 0, 0, false, false},                         // CRC-8/SMBUS
	{"crc8-maxim", 8, 0x31, 0, 0, true, false},                    // CRC-8/MAXIM-DOW
	{"crc32", 32, 0x04c11db7, 0xffffffff, 0xffffffff, true, true}, // CRC-32/ISO-HDLC
}

// sums are the algorithms that are no CRC.
var sums = [...]Sum{
	{"sum8", 1, false, sum},
	{"sum16", 2, false, sum},
	{"lrc8", 1, false, func(data []byte) uint32 { return -sum(data) }}, // Modbus over Serial Line V1.02, 6.2.1
	{"xor8", 1, false, xor},
}

// ParseSum returns the algorithm that has the name in the configuration.
func ParseSum(name string) (*Sum, error) {
	for i := range crcs {
		if c := &crcs[i]; c.name == name {
			return &Sum{name, c.width / 8, c.little, c.compile()}, nil
		}
	}
	for i := range sums {
		if sums[i].name == name {
			return &sums[i], nil
		}
	}
	return nil, fmt.Errorf("%q is none of %s", name, strings.Join(SumNames(), ", "))
}

// SumNames returns the names that ParseSum knows.
func SumNames() []string {
	var names []string
	for _, c := range crcs {
		names = append(names, c.name)
	}
	for _, s := range sums {
		names = append(names, s.name)
	}
	return names
}

// Of returns the checksum of data.
func (s *Sum) Of(data []byte) uint32 { return s.of(data) & (1<<(8*s.size) - 1) }

// Size returns how many bytes the checksum has.
func (s *Sum) Size() int { return s.size }

// LowFirst says that protocols with the checksum send its low byte first.
func (s *Sum) LowFirst() bool { return s.little }

func (s *Sum) String() string { return s.name }

func sum(data []byte) uint32 {
	var n uint32
	for _, c := range data {
		n += uint32(c)
	}
	return n
}

// xor folds eight bytes at a time.
func xor(data []byte) uint32 {
	var n uint64
	for ; len(data) >= 8; data = data[8:] {
		n ^= binary.LittleEndian.Uint64(data)
	}
	n ^= n >> 32
	n ^= n >> 16
	n ^= n >> 8
	for _, c := range data {
		n ^= uint64(c)
	}
	return uint32(n & 0xff)
}

// tables hold what a byte does to the CRC when 0 to 7 more bytes follow it: garbage makes a
// Split try a CRC at every byte, so eight bytes at a time is what keeps a flood cheap.
type tables [8][256]uint32

func (c *crc) compile() func([]byte) uint32 {
	if c.name == "crc32" {
		return crc32.ChecksumIEEE
	}
	if c.reflected {
		return c.compileReflected()
	}
	return c.compileForward()
}

func (c *crc) compileReflected() func([]byte) uint32 {
	var t tables
	poly := bits.Reverse32(c.poly) >> (32 - c.width)
	for i := range t[0] {
		r := uint32(i)
		for range 8 {
			r = r>>1 ^ poly&-(r&1)
		}
		t[0][i] = r
	}
	for k := 1; k < len(t); k++ {
		for i := range t[k] {
			r := t[k-1][i]
			t[k][i] = r>>8 ^ t[0][r&0xff]
		}
	}
	init, last := bits.Reverse32(c.init)>>(32-c.width), c.xor
	return func(data []byte) uint32 {
		r := init
		for ; len(data) >= 8; data = data[8:] {
			r ^= binary.LittleEndian.Uint32(data)
			r = t[7][r&0xff] ^ t[6][r>>8&0xff] ^ t[5][r>>16&0xff] ^ t[4][r>>24] ^
				t[3][data[4]] ^ t[2][data[5]] ^ t[1][data[6]] ^ t[0][data[7]]
		}
		for _, b := range data {
			r = r>>8 ^ t[0][byte(r)^b]
		}
		return r ^ last
	}
}

// compileForward keeps the CRC at the high end of 32 bits, so that all widths are alike.
func (c *crc) compileForward() func([]byte) uint32 {
	var t tables
	spare := 32 - c.width
	poly := c.poly << spare
	for i := range t[0] {
		r := uint32(i) << 24
		for range 8 {
			r = r<<1 ^ poly&-(r>>31)
		}
		t[0][i] = r
	}
	for k := 1; k < len(t); k++ {
		for i := range t[k] {
			r := t[k-1][i]
			t[k][i] = r<<8 ^ t[0][r>>24]
		}
	}
	init, last := c.init<<spare, c.xor
	return func(data []byte) uint32 {
		r := init
		for ; len(data) >= 8; data = data[8:] {
			r ^= binary.BigEndian.Uint32(data)
			r = t[7][r>>24] ^ t[6][r>>16&0xff] ^ t[5][r>>8&0xff] ^ t[4][r&0xff] ^
				t[3][data[4]] ^ t[2][data[5]] ^ t[1][data[6]] ^ t[0][data[7]]
		}
		for _, b := range data {
			r = r<<8 ^ t[0][byte(r>>24)^b]
		}
		return r>>spare ^ last
	}
}

// Check is a checksum in a frame: how it is written, and which bytes it covers.
type Check struct {
	Sum    *Sum
	Little bool // the low byte stands first
	Hex    bool // two hexadecimal characters for each byte
	// From is the first byte that is covered, counted from the first of the frame, and To
	// where the cover ends: 0 right before the check (for Enclosed: behind the end mark), or so
	// many bytes earlier, as a negative number.
	From, To int
}

// size returns how many bytes the check occupies on the wire; a nil check none.
func (c *Check) size() int {
	switch {
	case c == nil:
		return 0
	case c.Hex:
		return 2 * c.Sum.size
	}
	return c.Sum.size
}

// strong says that the check alone shows where a frame begins: one window in 65,536 of random
// bytes passes by chance, where an 8-bit check would make a wrong frame of every 256th.
func (c *Check) strong() bool { return c != nil && c.Sum.size > 1 && c.Sum.name != "sum16" }

// Right reports whether written is the check of covered, the frame up to the check. A nil
// check is always right.
func (c *Check) Right(covered, written []byte) bool {
	if c == nil {
		return true
	}
	end := len(covered) + c.To
	if c.From > end || len(written) != c.size() {
		return false
	}
	said, ok := c.parse(written)
	return ok && said == c.Sum.Of(covered[c.From:end])
}

// parse reads the check as it stands on the wire.
func (c *Check) parse(written []byte) (said uint32, ok bool) {
	for i := range c.Sum.size {
		var b byte
		if c.Hex {
			high, low := nibble(written[2*i]), nibble(written[2*i+1])
			if high|low > 15 {
				return 0, false
			}
			b = high<<4 | low
		} else {
			b = written[i]
		}
		if c.Little {
			said |= uint32(b) << (8 * i)
		} else {
			said = said<<8 | uint32(b)
		}
	}
	return said, true
}

// nibble returns the value of a hexadecimal character, or 255.
func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}
