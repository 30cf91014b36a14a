package mbus

// fixedSize is that of all data of the fixed structure: identification, access number, status, media
// and units, two counters (M-Bus 4.8, 6.4.4; EN 1434-3:1997).
const fixedSize = 16

// The bits of the status byte of the fixed structure that say what its counters are.
const (
	fixedBinary = 0x01 // else BCD
	fixedStored = 0x02 // values of the last fixed date, else present ones
)

func fixedHeader(d []byte, msb bool) Header {
	units := littleEndian(d[6:8], msb)
	return Header{
		Fixed: true, ID: uint32(littleEndian(d[0:4], msb)), Access: d[4], Status: Status(d[5]),
		Medium: byte(units>>6&3) | byte(units>>14&3)<<2,
	}
}

// fixedTable holds the units of the counters (M-Bus 4.8, 6.4.4).
var fixedTable = []entry{
	{0x00, 0x00, "time", "h,m,s", 0, plain, number},
	{0x01, 0x01, "date", "D,M,Y", 0, plain, number},
	{0x02, 0x0A, "energy", "Wh", 0, tens, number},
	{0x0B, 0x13, "energy", "J", 3, tens, number},
	{0x14, 0x1C, "power", "W", 0, tens, number},
	{0x1D, 0x25, "power", "J/h", 3, tens, number},
	{0x26, 0x2E, "volume", "m3", -6, tens, number},
	{0x2F, 0x37, "volume_flow", "m3/h", -6, tens, number},
	{0x38, 0x38, "temperature", "°C", -3, plain, number},
	{0x39, 0x39, "heat_cost_units", "", 0, plain, number},
	{0x3F, 0x3F, "counter", "", 0, plain, number},
}

// fixedHistoric is the unit of a second counter that holds an older value of the first.
const fixedHistoric = 0x3E

// fixedMeaning is what the unit byte of counter n says; first is that of the first counter.
func fixedMeaning(status Status, first, unit byte) *meaning {
	m := &meaning{}
	if status&fixedStored != 0 {
		m.storage = 1
	}
	code := unit & 0x3F
	if code == fixedHistoric {
		code = first & 0x3F
		m.storage = 1 // an older value of the first counter
	}
	m.scaled = lookup(fixedTable, code)
	m.nameUnknown("unit_", code)
	m.name = m.fullName()
	return m
}

// fixed reads the two counters; body is what follows the status byte.
func (d *Decoder) fixed(h *Header, body []byte, msb bool, take func(*meaning, block, decoded)) {
	units := [2]byte{body[0] & 0x3F, body[1] & 0x3F}
	if msb {
		units[0], units[1] = units[1], units[0]
	}
	for i, unit := range units {
		key := [...]byte{difFiller, byte(h.Status) & fixedStored, units[0], unit} // no head begins so
		m, ok := d.meanings[string(key[:])]
		if !ok {
			m = d.learn(key[:], fixedMeaning(h.Status, units[0], unit))
		}
		b := block{data: body[2+4*i : 6+4*i]}
		take(m, b, counter(m, h.Status, b.data, msb))
	}
}

// counter reads four bytes of a fixed structure: BCD, or a binary number, which is signed.
func counter(m *meaning, status Status, data []byte, msb bool) decoded {
	u := littleEndian(data, msb)
	if status&fixedBinary != 0 {
		return m.scale(int64(int32(u)), 0)
	}
	return m.bcd([]byte{byte(u), byte(u >> 8), byte(u >> 16), byte(u >> 24)}, false)
}
