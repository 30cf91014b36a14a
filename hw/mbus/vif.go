package mbus

// coding says how the bytes of a record become a value.
type coding uint8

const (
	number coding = iota // signed, to be scaled
	bits                 // unsigned, as it stands: flags, versions, identifications
	moment               // a date or a time: types F, G, I, J of EN 13757-3, annex A, by their size
	opaque               // no value of ours: shown in hexadecimal
)

// step says how the codes of a range differ from its first.
type step uint8

const (
	plain  step = iota // all mean the same
	tens               // each is ten times the one before
	times              // second, minute, hour, day
	spans              // hour, day, month, year
	calend             // month, year
)

// entry is a range of codes of a VIF table.
type entry struct {
	first, last byte
	quantity    string
	uom         string
	exp         int8 // power of ten of the first code
	step        step
	coding      coding
}

// scaled is what a code makes of the number in a record: raw × mult × 10^exp.
type scaled struct {
	quantity string
	uom      string
	exp      int
	mult     int64
	coding   coding
	halves   int8 // more powers of two, negative: rating factors of heat cost allocators
	known    bool
}

// lookup finds code, whose extension bit is cleared, in a table.
func lookup(table []entry, code byte) scaled {
	for i := range table {
		if e := &table[i]; code >= e.first && code <= e.last {
			return e.at(int(code - e.first))
		}
	}
	return scaled{mult: 1}
}

func (e *entry) at(n int) scaled {
	s := scaled{quantity: e.quantity, uom: e.uom, exp: int(e.exp), mult: 1, coding: e.coding, known: true}
	switch e.step {
	case tens:
		s.exp += n
	case times:
		s.uom, s.mult = "s", seconds(n)
	case spans:
		if n < 2 {
			s.uom, s.mult = "s", seconds(n+2)
		} else {
			s.uom = calendar(n - 2)
		}
	case calend:
		s.uom = calendar(n)
	}
	return s
}

// seconds is the time unit nn: second, minute, hour, day.
func seconds(nn int) int64 { return [...]int64{1, 60, 3600, 86400}[nn&3] }

// calendar is a unit that has no fixed number of seconds.
func calendar(n int) string { return [...]string{"month", "year"}[n&1] }

// primaryTable holds the primary codes (EN 13757-3:2018, table 10).
var primaryTable = []entry{
	{0x00, 0x07, "energy", "Wh", -3, tens, number},
	{0x08, 0x0F, "energy", "J", 0, tens, number},
	{0x10, 0x17, "volume", "m3", -6, tens, number},
	{0x18, 0x1F, "mass", "kg", -3, tens, number},
	{0x20, 0x23, "on_time", "", 0, times, number},
	{0x24, 0x27, "operating_time", "", 0, times, number},
	{0x28, 0x2F, "power", "W", -3, tens, number},
	{0x30, 0x37, "power", "J/h", 0, tens, number},
	{0x38, 0x3F, "volume_flow", "m3/h", -6, tens, number},
	{0x40, 0x47, "volume_flow", "m3/min", -7, tens, number},
	{0x48, 0x4F, "volume_flow", "m3/s", -9, tens, number},
	{0x50, 0x57, "mass_flow", "kg/h", -3, tens, number},
	{0x58, 0x5B, "flow_temperature", "°C", -3, tens, number},
	{0x5C, 0x5F, "return_temperature", "°C", -3, tens, number},
	{0x60, 0x63, "temperature_difference", "K", -3, tens, number},
	{0x64, 0x67, "external_temperature", "°C", -3, tens, number},
	{0x68, 0x6B, "pressure", "bar", -3, tens, number},
	{0x6C, 0x6C, "date", "", 0, plain, moment},
	{0x6D, 0x6D, "date_time", "", 0, plain, moment},
	{0x6E, 0x6E, "heat_cost_units", "", 0, plain, number},
	{0x70, 0x73, "averaging_duration", "", 0, times, number},
	{0x74, 0x77, "actuality_duration", "", 0, times, number},
	{0x78, 0x78, "fabrication_number", "", 0, plain, bits},
	{0x79, 0x79, "identification", "", 0, plain, bits},
	{0x7A, 0x7A, "address", "", 0, plain, bits},
	{0x7E, 0x7E, "any", "", 0, plain, number},
}

// mainTable holds the codes behind VIF FD (EN 13757-3:2018, table 12).
var mainTable = []entry{
	{0x00, 0x03, "credit", "", -3, tens, number},
	{0x04, 0x07, "debit", "", -3, tens, number},
	{0x08, 0x08, "access_number", "", 0, plain, bits},
	{0x09, 0x09, "medium", "", 0, plain, bits},
	{0x0A, 0x0A, "manufacturer", "", 0, plain, bits},
	{0x0B, 0x0B, "parameter_set", "", 0, plain, bits},
	{0x0C, 0x0C, "model_version", "", 0, plain, bits},
	{0x0D, 0x0D, "hardware_version", "", 0, plain, bits},
	{0x0E, 0x0E, "firmware_version", "", 0, plain, bits},
	{0x0F, 0x0F, "software_version", "", 0, plain, bits},
	{0x10, 0x10, "customer_location", "", 0, plain, bits},
	{0x11, 0x11, "customer", "", 0, plain, bits},
	{0x12, 0x12, "access_code_user", "", 0, plain, bits},
	{0x13, 0x13, "access_code_operator", "", 0, plain, bits},
	{0x14, 0x14, "access_code_system_operator", "", 0, plain, bits},
	{0x15, 0x15, "access_code_developer", "", 0, plain, bits},
	{0x16, 0x16, "password", "", 0, plain, bits},
	{0x17, 0x17, "error_flags", "", 0, plain, bits},
	{0x18, 0x18, "error_mask", "", 0, plain, bits},
	{0x19, 0x19, "security_key", "", 0, plain, bits},
	{0x1A, 0x1A, "digital_output", "", 0, plain, bits},
	{0x1B, 0x1B, "digital_input", "", 0, plain, bits},
	{0x1C, 0x1C, "baud_rate", "Bd", 0, plain, bits},
	{0x1D, 0x1D, "response_delay", "bit times", 0, plain, bits},
	{0x1E, 0x1E, "retries", "", 0, plain, bits},
	{0x1F, 0x1F, "remote_control", "", 0, plain, bits},
	{0x20, 0x20, "first_storage", "", 0, plain, bits},
	{0x21, 0x21, "last_storage", "", 0, plain, bits},
	{0x22, 0x22, "storage_block_size", "", 0, plain, bits},
	{0x23, 0x23, "tariff_descriptor", "", 0, plain, bits},
	{0x24, 0x27, "storage_interval", "", 0, times, number},
	{0x28, 0x29, "storage_interval", "", 0, calend, number},
	{0x2A, 0x2A, "operator_data", "", 0, plain, bits},
	{0x2B, 0x2B, "time_point_second", "", 0, plain, bits},
	{0x2C, 0x2F, "duration_since_readout", "", 0, times, number},
	{0x30, 0x30, "tariff_start", "", 0, plain, moment},
	{0x31, 0x31, "tariff_duration", "s", 0, plain, number}, // minutes, see behindFD
	{0x32, 0x32, "tariff_duration", "s", 0, plain, number},
	{0x33, 0x33, "tariff_duration", "s", 0, plain, number},
	{0x34, 0x37, "tariff_period", "", 0, times, number},
	{0x38, 0x39, "tariff_period", "", 0, calend, number},
	{0x3A, 0x3A, "dimensionless", "", 0, plain, number},
	{0x3B, 0x3B, "wireless_container", "", 0, plain, opaque},
	{0x3C, 0x3F, "transmission_period", "", 0, times, number},
	{0x40, 0x4F, "voltage", "V", -9, tens, number},
	{0x50, 0x5F, "current", "A", -12, tens, number},
	{0x60, 0x60, "reset_counter", "", 0, plain, bits},
	{0x61, 0x61, "cumulation_counter", "", 0, plain, bits},
	{0x62, 0x62, "control_signal", "", 0, plain, bits},
	{0x63, 0x63, "day_of_week", "", 0, plain, bits},
	{0x64, 0x64, "week_number", "", 0, plain, bits},
	{0x65, 0x65, "day_change", "", 0, plain, moment},
	{0x66, 0x66, "parameter_activation", "", 0, plain, bits},
	{0x67, 0x67, "supplier_information", "", 0, plain, bits},
	{0x68, 0x6B, "duration_since_cumulation", "", 0, spans, number},
	{0x6C, 0x6F, "battery_operating_time", "", 0, spans, number},
	{0x70, 0x70, "battery_change", "", 0, plain, moment},
	{0x71, 0x71, "rf_level", "dBm", 0, plain, number},
	{0x72, 0x72, "daylight_saving", "", 0, plain, opaque},
	{0x73, 0x73, "listening_window", "", 0, plain, opaque},
	{0x74, 0x74, "battery_remaining", "d", 0, plain, number},
	{0x75, 0x75, "stop_counter", "", 0, plain, bits},
	{0x76, 0x76, "manufacturer_container", "", 0, plain, opaque},
}

// secondTable holds the codes behind VIF FD, FD (EN 13757-3:2018, table 13).
var secondTable = []entry{
	{0x00, 0x00, "application", "", 0, plain, bits},
	{0x02, 0x03, "battery_remaining", "", 0, calend, number},
}

// alternateTable holds the codes behind VIF FB (EN 13757-3:2018, table 14). The gallons and the
// degrees Fahrenheit were taken back in 2004; meters of before still send them.
var alternateTable = []entry{
	{0x00, 0x01, "energy", "Wh", 5, tens, number},
	{0x02, 0x03, "reactive_energy", "varh", 3, tens, number},
	{0x04, 0x05, "apparent_energy", "VAh", 3, tens, number},
	{0x08, 0x09, "energy", "J", 8, tens, number},
	{0x0C, 0x0F, "energy", "cal", 5, tens, number},
	{0x10, 0x11, "volume", "m3", 2, tens, number},
	{0x14, 0x17, "reactive_power", "var", 0, tens, number},
	{0x18, 0x19, "mass", "kg", 5, tens, number},
	{0x1A, 0x1B, "relative_humidity", "%", -1, tens, number},
	{0x20, 0x20, "volume", "ft3", 0, plain, number},
	{0x21, 0x21, "volume", "ft3", -1, plain, number},
	{0x22, 0x23, "volume", "gal", -1, tens, number},
	{0x24, 0x24, "volume_flow", "gal/min", -3, plain, number},
	{0x25, 0x25, "volume_flow", "gal/min", 0, plain, number},
	{0x26, 0x26, "volume_flow", "gal/h", 0, plain, number},
	{0x28, 0x29, "power", "W", 5, tens, number},
	{0x2A, 0x2A, "phase_voltage_voltage", "°", -1, plain, number},
	{0x2B, 0x2B, "phase_voltage_current", "°", -1, plain, number},
	{0x2C, 0x2F, "frequency", "Hz", -3, tens, number},
	{0x30, 0x31, "power", "J/h", 8, tens, number},
	{0x34, 0x37, "apparent_power", "VA", 0, tens, number},
	{0x58, 0x5B, "flow_temperature", "°F", -3, tens, number},
	{0x5C, 0x5F, "return_temperature", "°F", -3, tens, number},
	{0x60, 0x63, "temperature_difference", "°F", -3, tens, number},
	{0x64, 0x67, "external_temperature", "°F", -3, tens, number},
	{0x68, 0x68, "rating_factor", "", 0, plain, number},
	{0x69, 0x69, "rating_factor_output", "W", 0, plain, number},
	{0x6A, 0x6A, "rating_factor_coupling", "", 0, plain, number},
	{0x6B, 0x6B, "rating_factor_room", "", 0, plain, number},
	{0x6C, 0x6C, "rating_factor_heater", "", 0, plain, number},
	{0x6D, 0x6D, "rating_factor_low_temperature", "", 0, plain, number},
	{0x6E, 0x6E, "display_factor", "", 0, plain, number},
	{0x70, 0x73, "temperature_limit", "°F", -3, tens, number},
	{0x74, 0x77, "temperature_limit", "°C", -3, tens, number},
	{0x78, 0x7F, "cumulated_max_power", "W", -3, tens, number},
}

// behindFD reads a code of the main extension table.
func behindFD(code byte) scaled {
	s := lookup(mainTable, code)
	if code >= 0x31 && code <= 0x33 {
		s.mult = seconds(int(code & 3))
	}
	return s
}

// behindFB reads a code of the alternate extension table. The rating factors count in 2^-12.
func behindFB(code byte) scaled {
	s := lookup(alternateTable, code)
	if code >= 0x68 && code <= 0x6E && code != 0x69 {
		s.halves = -12
	}
	return s
}
