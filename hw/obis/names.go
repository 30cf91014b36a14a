package obis

import "strconv"

// Kind says how a meter writes the values of a code.
type Kind uint8

// The kinds of values. Where a code is not known nothing is known of its values either.
const (
	Unknown Kind = iota
	Number       // a decimal number, with or without a unit of measure
	Count        // an integer without a unit
	Clock        // a date with a time
	ID           // an identification, often as octets in hexadecimal
	Message      // a text for people, as octets in hexadecimal
	Text         // as it stands
)

// known is one line of the table.
type known struct {
	code Code
	name string
	kind Kind
}

// special has the codes whose names do not follow from their parts: DSMR P1 companion standard
// 5.0.2, e-MUCS P1 1.7.1 (Belgium), FNN "Lastenheft EDL" and "BKE" (Germany), IEC 62056-61.
var special = [...]known{
	{Code{0, 0, 1, 0, 0, 255}, "time", Clock},
	{Code{0, 0, 17, 0, 0, 255}, "power_limit", Number},
	{Code{0, 0, 42, 0, 0, 255}, "logical_name", ID},
	{Code{0, 0, 96, 1, 0, 255}, "meter_id", ID},
	{Code{0, 0, 96, 1, 1, 255}, "equipment_id", ID},
	{Code{0, 0, 96, 1, 2, 255}, "connection_id", ID},
	{Code{0, 0, 96, 1, 4, 255}, "p1_version", Text},
	{Code{0, 0, 96, 1, 255, 255}, "serial_number", Text},
	{Code{0, 0, 96, 3, 10, 255}, "breaker", Count},
	{Code{0, 0, 96, 7, 9, 255}, "long_power_failures", Count},
	{Code{0, 0, 96, 7, 21, 255}, "power_failures", Count},
	{Code{0, 0, 96, 8, 0, 255}, "operating_time", Number},
	{Code{0, 0, 96, 13, 0, 255}, "message", Message},
	{Code{0, 0, 96, 13, 1, 255}, "message_code", Message},
	{Code{0, 0, 96, 14, 0, 255}, "tariff", Count},
	{Code{0, 0, 97, 97, 0, 255}, "error_code", Text},
	{Code{0, 0, 98, 1, 0, 255}, "peak_history", Unknown},
	{Code{1, 0, 0, 0, 0, 255}, "property_number", Text},
	{Code{1, 0, 0, 0, 9, 255}, "unit_id", ID},
	{Code{1, 0, 0, 2, 0, 255}, "firmware_version", Text},
	{Code{1, 0, 0, 9, 1, 255}, "time_of_day", Text},
	{Code{1, 0, 0, 9, 2, 255}, "date", Text},
	{Code{1, 0, 31, 4, 0, 255}, "current_limit_l1", Number},
	{Code{1, 0, 51, 4, 0, 255}, "current_limit_l2", Number},
	{Code{1, 0, 71, 4, 0, 255}, "current_limit_l3", Number},
	{Code{1, 0, 81, 7, 1, 255}, "voltage_angle_l2", Number},
	{Code{1, 0, 81, 7, 2, 255}, "voltage_angle_l3", Number},
	{Code{1, 0, 81, 7, 4, 255}, "current_angle_l1", Number},
	{Code{1, 0, 81, 7, 15, 255}, "current_angle_l2", Number},
	{Code{1, 0, 81, 7, 26, 255}, "current_angle_l3", Number},
	{Code{1, 0, 91, 7, 0, 255}, "current_neutral", Number},
	{Code{1, 0, 96, 1, 0, 255}, "server_id", ID},
	{Code{1, 0, 96, 5, 0, 255}, "status_word", Text},
	{Code{1, 0, 96, 5, 5, 255}, "status", Text},
	{Code{1, 0, 96, 8, 0, 255}, "seconds_index", Number},
	{Code{1, 0, 96, 50, 1, 1}, "manufacturer_id", Text},
	{Code{1, 0, 99, 97, 0, 255}, "power_failure_log", Unknown},
	{Code{1, 3, 0, 2, 8, 255}, "dsmr_version", Text},
	{Code{6, 0, 1, 0, 0, 255}, "heat_energy", Number},
	{Code{6, 0, 2, 0, 0, 255}, "heat_volume", Number},
	{Code{7, 0, 3, 0, 0, 255}, "gas_volume", Number},
	{Code{8, 0, 1, 0, 0, 255}, "water_volume", Number},
	{Code{9, 0, 1, 0, 0, 255}, "warm_water_volume", Number},
	{Code{129, 129, 199, 130, 3, 255}, "manufacturer", Text},
	{Code{129, 129, 199, 130, 5, 255}, "public_key", Text},
}

// Name returns the readable name of c and how its values are written, or c itself and Unknown.
// No two codes have one name. Names keeps the names of codes that keep coming.
func Name(c Code) (string, Kind) {
	for i := range special {
		if special[i].code == c {
			return special[i].name, special[i].kind
		}
	}
	var buf [64]byte
	name, kind := buf[:0], Unknown
	switch {
	case c[0] == 0 && c[1] >= 1 && c[1] <= 9 && c[5] == 255:
		name, kind = appendChannel(name, c)
	case c[0] == 1 && c[1] == 0:
		name, kind = appendElectricity(name, c)
	}
	if kind == Unknown {
		name = c.Append(buf[:0])
	}
	return string(name), kind
}

// NameOf returns the name of the point that a configuration means by at: an OBIS code in any of
// the forms that Parse takes, or else at itself.
func NameOf(at string) string {
	if c, ok := Parse([]byte(at)); ok {
		name, _ := Name(c)
		return name
	}
	return at
}

// appendChannel names what a sub-meter on an M-Bus channel says: mbus1_value and so on.
func appendChannel(dst []byte, c Code) ([]byte, Kind) {
	what, kind := "", Unknown
	switch [3]byte(c[2:5]) {
	case [3]byte{24, 1, 0}:
		what, kind = "_type", Count
	case [3]byte{24, 2, 1}:
		what, kind = "_value", Number
	case [3]byte{24, 2, 3}:
		what, kind = "_value_uncorrected", Number
	case [3]byte{24, 4, 0}:
		what, kind = "_valve", Count
	case [3]byte{96, 1, 0}:
		what, kind = "_id", ID
	case [3]byte{96, 1, 1}:
		what, kind = "_equipment_id", ID
	case [3]byte{96, 1, 2}:
		what, kind = "_connection_id", ID
	case [3]byte{96, 3, 10}:
		what, kind = "_breaker", Count
	}
	if c[2] == 24 && c[3] == 2 && kind == Unknown {
		dst = append(strconv.AppendUint(append(dst, "mbus"...), uint64(c[1]), 10), "_value_"...)
		return strconv.AppendUint(dst, uint64(c[4]), 10), Number
	}
	dst = strconv.AppendUint(append(dst, "mbus"...), uint64(c[1]), 10)
	return append(dst, what...), kind
}

// flow is what a quantity C of electricity measures: the words before and after "power" or
// "energy", or a quantity with one word of its own.
type flow struct{ before, after, own string }

// flows are the quantities 1 to 20; 20, 40 and 60 more are those of the phases (IEC 62056-61,
// table 8).
var flows = [21]flow{
	1:  {before: "active_", after: "_import"},
	2:  {before: "active_", after: "_export"},
	3:  {before: "reactive_", after: "_import"},
	4:  {before: "reactive_", after: "_export"},
	5:  {before: "reactive_", after: "_q1"},
	6:  {before: "reactive_", after: "_q2"},
	7:  {before: "reactive_", after: "_q3"},
	8:  {before: "reactive_", after: "_q4"},
	9:  {before: "apparent_", after: "_import"},
	10: {before: "apparent_", after: "_export"},
	11: {own: "current"},
	12: {own: "voltage"},
	13: {own: "power_factor"},
	14: {own: "frequency"},
	15: {before: "active_", after: "_sum"},
	16: {before: "active_"},
	17: {before: "active_", after: "_q1"},
	18: {before: "active_", after: "_q2"},
	19: {before: "active_", after: "_q3"},
	20: {before: "active_", after: "_q4"},
}

// appendElectricity names a quantity of electricity by its parts.
func appendElectricity(dst []byte, c Code) ([]byte, Kind) {
	quantity, processing, tariff := c[2], c[3], c[4]
	if quantity < 1 || quantity > 80 {
		return dst, Unknown
	}
	phase := (quantity - 1) / 20
	f := flows[quantity-20*phase]
	energy, suffix, kind := words(processing, f.own)
	if kind == Unknown || tariff > 63 || processing == 7 && tariff != 0 {
		return dst, Unknown
	}
	dst = append(dst, f.before...)
	switch {
	case f.own != "":
		dst = append(dst, f.own...)
	case energy:
		dst = append(dst, "energy"...)
	default:
		dst = append(dst, "power"...)
	}
	dst = append(append(dst, f.after...), suffix...)
	if phase > 0 {
		dst = append(dst, '_', 'l', '0'+phase)
	}
	if tariff > 0 {
		dst = strconv.AppendUint(append(dst, "_t"...), uint64(tariff), 10)
	}
	return appendPeriod(dst, c, kind)
}

// words says what the processing D makes of a quantity. own is the quantity's own word, where
// it has no energy.
func words(processing byte, own string) (energy bool, suffix string, kind Kind) {
	switch processing {
	case 7:
		return false, "", Number
	case 4:
		return false, "_average", Number
	case 5:
		return false, "_last_average", Number
	case 6:
		return false, "_max", Number
	}
	switch {
	case processing == 3 && own != "":
		return false, "_min", Number
	case processing == 32 && own == "voltage":
		return false, "_sags", Count
	case processing == 36 && own == "voltage":
		return false, "_swells", Count
	case own != "":
		return false, "", Unknown
	case processing == 2:
		return false, "_cumulative_max", Number
	case processing == 8:
		return true, "", Number
	case processing == 9:
		return true, "_period", Number
	case processing == 29:
		return true, "_interval", Number
	}
	return false, "", Unknown
}

// appendPeriod adds the period F. 96 to 100 are what German meters say of the last day, week,
// month and year and since the last reset (FNN Lastenheft EDL); other periods are billings,
// which a meter counts as it likes.
func appendPeriod(dst []byte, c Code, kind Kind) ([]byte, Kind) {
	periods := [...]string{"_1d", "_7d", "_30d", "_365d", "_since_reset"}
	switch {
	case c[5] == 255:
		return dst, kind
	case c[5] >= 96 && c[5] <= 100 && c[3] == 8:
		return append(dst, periods[c[5]-96]...), kind
	}
	return dst, Unknown
}

// Names remembers the names of codes, so that a code that keeps coming costs no allocation. It
// forgets everything when it is full, which bounds what hostile bytes can make it hold. The
// zero Names is ready; one goroutine may use it.
type Names struct{ names map[Code]known }

const maxNames = 1024

// Of returns what Name returns.
func (n *Names) Of(c Code) (string, Kind) {
	if k, ok := n.names[c]; ok {
		return k.name, k.kind
	}
	if n.names == nil || len(n.names) >= maxNames {
		n.names = make(map[Code]known)
	}
	name, kind := Name(c)
	n.names[c] = known{c, name, kind}
	return name, kind
}
