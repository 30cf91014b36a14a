package mbus

import (
	"encoding/hex"
)

// readVIFEs applies the combinable codes (EN 13757-3:2018, tables 15 to 17) to the unit. Each adds a
// word to the name, but those that only scale.
func (m *meaning) readVIFEs(vifes []byte) {
	for i := 0; i < len(vifes); i++ {
		code := vifes[i] &^ extension
		switch {
		case code == vifeOwn:
			m.word("x" + hex.EncodeToString(vifes[i+1:]))
			return
		case code == vifeExtension && i+1 < len(vifes):
			i++
			m.readSecondVIFE(vifes[i] &^ extension)
		case code < 0x20:
			m.readReport(code)
		case code < 0x40:
			m.readPer(code)
		case code < 0x70:
			m.readLimit(code)
		default:
			m.readCorrection(code)
		}
	}
}

func (m *meaning) word(w string) { m.parts = append(m.parts, w) }

// readReport reads what a unit says of the record as a whole: the codes below 20h. Errors (table 17)
// leave the name as it is, so that the point is the same one whether it has a value or not.
func (m *meaning) readReport(code byte) {
	switch {
	case code == 0x00: // no error
	case code == 0x15: // no data available
		m.bad = "nan"
	case code <= 0x07 || code >= 0x0B && code <= 0x0F || code >= 0x16 && code <= 0x18 || code == 0x1C:
		m.bad = "invalid"
	case code == 0x12:
		m.word("average")
	case code == 0x13:
		m.profile("inverse_profile")
	case code == 0x14:
		m.word("relative_deviation")
	case code == 0x1D:
		m.profile("standard_content")
	case code == 0x1E:
		m.profile("register_profile")
	case code == 0x1F:
		m.profile("profile")
	default:
		m.word(unknownVIFE("", code))
	}
}

// profile says that the data is a series of values of a form of its own.
func (m *meaning) profile(w string) {
	m.word(w)
	m.coding, m.uom = opaque, ""
}

// per holds the codes 20h to 3Eh.
var per = [...]struct{ word, uom string }{
	0x00: {"per_second", "/s"}, 0x01: {"per_minute", "/min"}, 0x02: {"per_hour", "/h"}, 0x03: {"per_day", "/d"},
	0x04: {"per_week", "/week"}, 0x05: {"per_month", "/month"}, 0x06: {"per_year", "/year"},
	0x07: {"per_measurement", ""},
	0x08: {"per_input_pulse_0", "/pulse"}, 0x09: {"per_input_pulse_1", "/pulse"},
	0x0A: {"per_output_pulse_0", "/pulse"}, 0x0B: {"per_output_pulse_1", "/pulse"},
	0x0C: {"per_litre", "/l"}, 0x0D: {"per_m3", "/m3"}, 0x0E: {"per_kg", "/kg"}, 0x0F: {"per_kelvin", "/K"},
	0x10: {"per_kwh", "/kWh"}, 0x11: {"per_gj", "/GJ"}, 0x12: {"per_kw", "/kW"}, 0x13: {"per_kelvin_litre", "/(K·l)"},
	0x14: {"per_volt", "/V"}, 0x15: {"per_ampere", "/A"},
	0x16: {"times_second", "·s"}, 0x17: {"times_second_per_volt", "·s/V"}, 0x18: {"times_second_per_ampere", "·s/A"},
	0x1A: {"uncorrected", ""}, 0x1B: {"forward", ""}, 0x1C: {"backward", ""}, 0x1E: {"base_conditions", ""},
}

// readPer reads the codes 20h to 3Fh.
func (m *meaning) readPer(code byte) {
	switch code {
	case 0x39:
		m.word("start")
		m.asMoment()
	case 0x3D: // the unit is one of another system, which the code does not name
		m.word("non_metric")
		m.asCount()
	case 0x3F:
		m.word("obis")
		m.asCount()
	default:
		p := per[code-0x20]
		m.word(p.word)
		if m.uom != "" || p.uom != "" {
			m.uom += p.uom
		}
	}
}

// readLimit reads the codes 40h to 6Fh: limits, when and how often and for how long they were exceeded.
func (m *meaning) readLimit(code byte) {
	upper, last, end := code>>3&1, code>>2&1, code&1
	limit := [...]string{"lower_limit", "upper_limit"}[upper]
	order := [...]string{"first", "last"}[last]
	switch {
	case code&0x77 == 0x40:
		m.word(limit)
	case code&0x77 == 0x41:
		m.word(limit + "_exceeds")
		m.asCount()
	case code&0x72 == 0x42:
		m.word(limit + "_" + order + [...]string{"_begin", "_end"}[end])
		m.asMoment()
	case code&0x70 == 0x50:
		m.word(limit + "_" + order + "_duration")
		m.asDuration(code)
	case code&0x78 == 0x60:
		m.word(order + "_duration")
		m.asDuration(code)
	case code&0x77 == 0x60: // 68h; 60h is above
		m.word("during_lower_limit_exceed")
	case code == 0x6C:
		m.word("during_upper_limit_exceed")
	case code == 0x69:
		m.word("leakage")
	case code == 0x6D:
		m.word("overflow")
	case code&0x7A == 0x6A:
		m.word(order + [...]string{"_begin", "_end"}[end])
		m.asMoment()
	default:
		m.word(unknownVIFE("", code))
	}
}

// readCorrection reads the codes 70h to 7Eh. The factor is of the value, the constant of its unit.
func (m *meaning) readCorrection(code byte) {
	switch {
	case code < 0x78:
		m.exp += int(code&7) - 6
	case code < 0x7C:
		m.thousandth += [...]int64{1, 10, 100, 1000}[code&3]
	case code == 0x7D:
		m.exp += 3
	case code == 0x7E:
		m.word("future")
	default:
		m.word(unknownVIFE("", code))
	}
}

// readSecondVIFE reads the codes behind VIFE FC (table 16).
func (m *meaning) readSecondVIFE(code byte) {
	words := [...]string{
		0x01: "l1", 0x02: "l2", 0x03: "l3", 0x04: "n", 0x05: "l1_l2", 0x06: "l2_l3", 0x07: "l3_l1",
		0x08: "q1", 0x09: "q2", 0x0A: "q3", 0x0B: "q4", 0x0C: "import_less_export",
		0x10: "absolute", 0x13: "to_unit", 0x14: "from_unit",
	}
	switch {
	case code == 0x11 || code == 0x12: // the data is unsigned, or a set of bits
		if m.coding == number {
			m.coding = bits
		}
	case int(code) < len(words) && words[code] != "":
		m.word(words[code])
	default:
		m.word(unknownVIFE("fc_", code))
	}
}

// asMoment makes the record the time at which something was, whatever its unit.
func (m *meaning) asMoment() {
	m.scaled = scaled{quantity: m.quantity, mult: 1, coding: moment, known: true}
}

// asCount makes the record a number without a unit.
func (m *meaning) asCount() { m.scaled = scaled{quantity: m.quantity, mult: 1, known: true} }

// asDuration makes the record a time span in the unit of the lowest two bits.
func (m *meaning) asDuration(nn byte) {
	m.scaled = scaled{quantity: m.quantity, uom: "s", mult: seconds(int(nn)), known: true}
}
