package mbus

import (
	"fmt"
)

// The CI fields of what a unit sends (EN 13757-7, table 2; 04h set: the most significant byte first).
const (
	ciError         = 0x70
	ciAlarm         = 0x71
	ciVariable      = 0x72
	ciFixed         = 0x73
	ciVariableMSB   = 0x76
	ciFixedMSB      = 0x77
	ciNoHeader      = 0x78
	ciShortHeader   = 0x7A
	ciReset         = 0x50
	ciSelect        = 0x52
	headerSize      = 12
	shortHeaderSize = 4
)

// Header is what stands before the records of a telegram: who speaks, and how it fares.
type Header struct {
	ID           uint32 // eight BCD digits, as they are: 0x12345678
	Manufacturer uint16 // three letters of five bits; see Letters
	Version      byte
	Medium       byte // Medium names it
	Access       byte // counts the unit's answers
	Status       Status
	Signature    uint16
	Fixed        bool // of the fixed data structure, which has no manufacturer and no version
	Short        bool // the telegram has a short header or none, and so says nothing of the unit
}

// Status is the status byte of a variable header (EN 13757-3, 5.6).
type Status byte

// What a Status says beside the manufacturer's own bits, 20h and above.
const (
	StatusBusy      Status = 1 // of the lowest two bits: application busy
	StatusError     Status = 2 // any application error
	StatusAbnormal  Status = 3 // abnormal condition, alarm
	StatusPowerLow  Status = 0x04
	StatusPermanent Status = 0x08 // permanent error
	StatusTemporary Status = 0x10 // temporary error
)

// Application returns the lowest two bits: 0, StatusBusy, StatusError or StatusAbnormal.
func (s Status) Application() Status { return s & 3 }

// parseHeader reads the header of the telegram in f and returns what is behind it: ErrFormat,
// ErrEncrypted, ErrUnsupported or an ApplicationError.
func parseHeader(f *Frame) (h Header, body []byte, err error) {
	d := f.Data
	switch f.CI {
	case ciVariable, ciVariableMSB:
		if len(d) < headerSize {
			return h, nil, fmt.Errorf("%w: %d bytes are too few for a header", ErrFormat, len(d))
		}
		h = variableHeader(d, f.CI == ciVariableMSB)
		d = d[headerSize:]
	case ciFixed, ciFixedMSB:
		if len(d) < fixedSize {
			return h, nil, fmt.Errorf("%w: %d bytes are too few for the fixed structure", ErrFormat, len(d))
		}
		h = fixedHeader(d, f.CI == ciFixedMSB)
		return h, d[6:], nil
	case ciShortHeader:
		if len(d) < shortHeaderSize {
			return h, nil, fmt.Errorf("%w: %d bytes are too few for a short header", ErrFormat, len(d))
		}
		h = Header{Short: true, Access: d[0], Status: Status(d[1]), Signature: uint16(d[2]) | uint16(d[3])<<8}
		d = d[shortHeaderSize:]
	case ciNoHeader:
		return Header{Short: true}, d, nil
	case ciError:
		code := ApplicationError(0)
		if len(d) > 0 {
			code = ApplicationError(d[0])
		}
		return h, nil, code
	case ciAlarm:
		return h, nil, fmt.Errorf("%w: an alarm", ErrUnsupported)
	default:
		return h, nil, fmt.Errorf("%w: CI field %02Xh", ErrUnsupported, f.CI)
	}
	if mode := h.Encryption(); mode != 0 {
		return h, nil, fmt.Errorf("%w: mode %d", ErrEncrypted, mode)
	}
	return h, d, nil
}

func variableHeader(d []byte, msb bool) Header {
	return Header{
		ID:           uint32(littleEndian(d[0:4], msb)),
		Manufacturer: uint16(littleEndian(d[4:6], msb)),
		Version:      d[6], Medium: d[7], Access: d[8], Status: Status(d[9]),
		Signature: uint16(littleEndian(d[10:12], msb)),
	}
}

// littleEndian reads up to eight bytes, the least significant first, or last where msb is set.
func littleEndian(b []byte, msb bool) (u uint64) {
	for i, c := range b {
		if msb {
			u = u<<8 | uint64(c)
		} else {
			u |= uint64(c) << (8 * i)
		}
	}
	return u
}

// Encryption returns the mode of encryption, 0 where there is none (EN 13757-7, 7.6.3: bits 8 to 12
// of the signature). Numbers from 16 on are no mode: meters older than the modes put a signature of
// their own there, and send plain text.
func (h *Header) Encryption() int {
	if mode := int(h.Signature >> 8 & 0x1F); mode < 16 {
		return mode
	}
	return 0
}

// Letters returns the manufacturer as the FLAG association registers it: "HYD".
func (h *Header) Letters() string { return manufacturerName(h.Manufacturer) }

func manufacturerName(m uint16) string {
	if m == 0xFFFF {
		return "FFF"
	}
	letters := [3]byte{byte(m>>10&0x1F) + '@', byte(m>>5&0x1F) + '@', byte(m&0x1F) + '@'}
	for _, c := range letters {
		if c < 'A' || c > 'Z' || m > 0x7FFF {
			return fmt.Sprintf("%04X", m)
		}
	}
	return string(letters[:])
}

// String returns the unit's secondary address, as ParseSecondary reads it: "12345678-HYD-28-04", or
// "12345678" where the telegram has a fixed structure; "" where it does not say who speaks.
func (h *Header) String() string {
	switch {
	case h.Short:
		return ""
	case h.Fixed:
		return fmt.Sprintf("%08X", h.ID)
	}
	return fmt.Sprintf("%08X-%s-%02X-%02X", h.ID, h.Letters(), h.Version, h.Medium)
}

// MediumName returns what a medium, or device type, means (EN 13757-7, table 13); "" where it is not known.
func MediumName(m byte) string {
	if int(m) < len(mediumNames) {
		return mediumNames[m]
	}
	return ""
}

var mediumNames = [...]string{
	0x00: "other", 0x01: "oil", 0x02: "electricity", 0x03: "gas", 0x04: "heat (outlet)", 0x05: "steam",
	0x06: "warm water", 0x07: "water", 0x08: "heat cost allocator", 0x09: "compressed air",
	0x0A: "cooling (outlet)", 0x0B: "cooling (inlet)", 0x0C: "heat (inlet)", 0x0D: "heat and cooling",
	0x0E: "bus or system component", 0x0F: "unknown", 0x10: "irrigation water", 0x11: "water data logger",
	0x12: "gas data logger", 0x13: "gas converter", 0x14: "calorific value", 0x15: "hot water",
	0x16: "cold water", 0x17: "dual water", 0x18: "pressure", 0x19: "A/D converter", 0x1A: "smoke detector",
	0x1B: "room sensor", 0x1C: "gas detector", 0x20: "breaker", 0x21: "valve", 0x25: "customer unit",
	0x28: "waste water", 0x29: "garbage", 0x2A: "carbon dioxide", 0x31: "communication controller",
	0x32: "unidirectional repeater", 0x33: "bidirectional repeater", 0x36: "radio converter (system side)",
	0x37: "radio converter (meter side)", 0x38: "wired adapter",
}
