package mbus

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"ferrule/internal/hint"
)

// The primary addresses that are not a unit's own (EN 13757-2, 5.7.5).
const (
	MaxAddress     = 250 // the last that a unit may have; 0 is that of a unit fresh from the factory
	networkAddress = 0xFD
	testAddress    = 0xFE
)

// Address is how a unit is asked: by its primary address, 0 to 250, or by what stands in the header of
// its answers, any part of which may be left open. Addresses are comparable with ==.
type Address struct {
	secondary bool
	primary   byte
	mask      [8]byte // as on the wire: identification, manufacturer, version, medium; F and FF are open
}

// Primary returns the primary address a.
func Primary(a byte) Address { return Address{primary: a} }

// Everybody is the secondary address that every unit has.
func Everybody() Address {
	return Address{secondary: true, mask: [8]byte{255, 255, 255, 255, 255, 255, 255, 255}}
}

// ParseSecondary reads a secondary address: "12345678", or "12345678-HYD-28-04" with manufacturer (three
// letters), version and medium (two hexadecimal digits each), as Header.String writes it. An F in place
// of a digit of the identification, FFF as the manufacturer, FF as version or medium leave it open. The
// manufacturer may also be four hexadecimal digits, and the sixteen digits of libmbus are read as well:
// "1234567824400107", the manufacturer's bytes in the order of the wire.
func ParseSecondary(s string) (Address, error) {
	a := Everybody()
	parts := strings.Split(s, "-")
	if len(parts) == 1 && len(s) == 16 {
		parts = []string{s[:8], s[10:12] + s[8:10], s[12:14], s[14:]}
	}
	if len(parts) != 1 && len(parts) != 4 {
		return Address{}, secondaryError(s, "it has one part or four")
	}
	if !a.parseID(parts[0]) {
		return Address{}, secondaryError(s, "the identification has eight digits")
	}
	if len(parts) == 1 {
		return a, nil
	}
	manufacturer, err := parseManufacturer(parts[1])
	if err != nil {
		return Address{}, secondaryError(s, err.Error())
	}
	version, err1 := strconv.ParseUint(parts[2], 16, 8)
	medium, err2 := strconv.ParseUint(parts[3], 16, 8)
	if err1 != nil || err2 != nil || len(parts[2]) != 2 || len(parts[3]) != 2 {
		return Address{}, secondaryError(s, "version and medium have two hexadecimal digits")
	}
	a.mask[4], a.mask[5], a.mask[6], a.mask[7] = byte(manufacturer), byte(manufacturer>>8), byte(version), byte(medium)
	return a, nil
}

func secondaryError(s, why string) error {
	return hint.With(fmt.Errorf("reading secondary address %q: %s", s, why),
		"write the number on the meter, as 12345678, or with manufacturer, version and medium, as 12345678-HYD-28-04; ferrule scan finds it")
}

func (a *Address) parseID(s string) bool {
	if len(s) != 8 {
		return false
	}
	for i := range 8 {
		digit := s[i]
		switch {
		case digit >= '0' && digit <= '9':
			digit -= '0'
		case digit == 'F' || digit == 'f':
			digit = 0xF
		default:
			return false
		}
		a.setDigit(i, digit)
	}
	return true
}

// setDigit sets digit i of the identification, the first being the most significant.
func (a *Address) setDigit(i int, digit byte) {
	b := &a.mask[3-i/2]
	if i%2 == 0 {
		*b = *b&0x0F | digit<<4
	} else {
		*b = *b&0xF0 | digit
	}
}

// parseManufacturer reads three letters, FFF for any, or four hexadecimal digits.
func parseManufacturer(s string) (uint16, error) {
	if len(s) == 4 {
		if n, err := strconv.ParseUint(s, 16, 16); err == nil {
			return uint16(n), nil
		}
	}
	if strings.EqualFold(s, "FFF") {
		return 0xFFFF, nil
	}
	if len(s) != 3 {
		return 0, errors.New("the manufacturer has three letters")
	}
	var n uint16
	for _, c := range []byte(strings.ToUpper(s)) {
		if c < 'A' || c > 'Z' {
			return 0, errors.New("the manufacturer has three letters")
		}
		n = n<<5 | uint16(c-'A'+1)
	}
	return n, nil
}

// Secondary reports whether the unit is asked by its secondary address.
func (a Address) Secondary() bool { return a.secondary }

// Primary returns the primary address, or -1 where the unit is asked by its secondary address.
func (a Address) Primary() int {
	if a.secondary {
		return -1
	}
	return int(a.primary)
}

// Matches reports whether h is the header of a unit with this address. A primary address stands in
// the frame, not in the header, and so matches all.
func (a Address) Matches(h *Header) bool {
	if !a.secondary {
		return true
	}
	if h.Short {
		return false
	}
	id := [4]byte{byte(h.ID), byte(h.ID >> 8), byte(h.ID >> 16), byte(h.ID >> 24)}
	for i, want := range a.mask[:4] {
		if want&0xF0 != 0xF0 && want&0xF0 != id[i]&0xF0 || want&0x0F != 0x0F && want&0x0F != id[i]&0x0F {
			return false
		}
	}
	if h.Fixed { // its header has no more than the identification
		return true
	}
	manufacturer := uint16(a.mask[4]) | uint16(a.mask[5])<<8
	return (manufacturer == 0xFFFF || manufacturer == h.Manufacturer) &&
		(a.mask[6] == 0xFF || a.mask[6] == h.Version) && (a.mask[7] == 0xFF || a.mask[7] == h.Medium)
}

func (a Address) String() string {
	if !a.secondary {
		return strconv.Itoa(int(a.primary))
	}
	id := fmt.Sprintf("%02X%02X%02X%02X", a.mask[3], a.mask[2], a.mask[1], a.mask[0])
	if [4]byte(a.mask[4:]) == [4]byte{255, 255, 255, 255} {
		return id
	}
	return fmt.Sprintf("%s-%s-%02X-%02X", id, manufacturerName(uint16(a.mask[4])|uint16(a.mask[5])<<8), a.mask[6], a.mask[7])
}
