package nmea

// The sentences of IEC 61162-1 and NMEA 0183, by formatter. Fields count from 1; those that hold
// only the letter of a unit are left out.

var modes = []word{
	{"A", "autonomous"}, {"D", "differential"}, {"E", "estimated"}, {"F", "rtk_float"}, {"M", "manual"},
	{"N", "none"}, {"P", "precise"}, {"R", "rtk"}, {"S", "simulator"},
}

var qualities = []word{
	{"0", "none"}, {"1", "autonomous"}, {"2", "differential"}, {"3", "precise"}, {"4", "rtk"},
	{"5", "rtk_float"}, {"6", "estimated"}, {"7", "manual"}, {"8", "simulator"},
}

var (
	dimensions   = []word{{"1", "none"}, {"2", "2d"}, {"3", "3d"}}
	states       = []word{{"A", "valid"}, {"V", "void"}}
	navigational = []word{{"S", "safe"}, {"C", "caution"}, {"U", "unsafe"}, {"V", "void"}}
	selections   = []word{{"A", "automatic"}, {"M", "manual"}}
	severities   = []word{{"00", "error"}, {"01", "warning"}, {"02", "notice"}, {"07", "user"}}
	sides        = []word{{"L", "left"}, {"R", "right"}}
	sources      = []word{{"S", "shaft"}, {"E", "engine"}}
)

// voidState returns a test of the status and, if it is there, mode fields.
func voidState(status, mode uint8) func(d *Decoder) bool {
	return func(d *Decoder) bool {
		return status > 0 && string(d.field(status)) == "V" || mode > 0 && string(d.field(mode)) == "N"
	}
}

// voidQuality is the test of GGA: no quality is not said to be good.
func voidQuality(d *Decoder) bool { return string(d.field(6)) == "0" }

// voidModes is the test of GNS: one letter for each system, and no system has a fix.
func voidModes(d *Decoder) bool {
	for _, c := range d.field(6) {
		if c != 'N' {
			return false
		}
	}
	return len(d.field(6)) > 0
}

var standard = map[string]*sentence{
	"RMC": {title: "recommended minimum of a receiver", void: voidState(2, 12), fields: []field{
		{point: "time", kind: kStamp, at: 1, arg: 9},
		{point: "status", kind: kWord, at: 2, words: states},
		{point: "latitude", kind: kLatitude, at: 3, uom: "°", guard: ifFix},
		{point: "longitude", kind: kLongitude, at: 5, uom: "°", guard: ifFix},
		{point: "speed", at: 7, uom: "kn", guard: ifFix},
		{point: "course", at: 8, uom: "°", guard: ifFix},
		{point: "variation", kind: kEast, at: 10, uom: "°"},
		{point: "mode", kind: kWord, at: 12, words: modes},
		{point: "navigational_status", kind: kWord, at: 13, words: navigational},
	}},
	"GGA": {title: "position and quality", void: voidQuality, fields: []field{
		{point: "time", kind: kClock, at: 1},
		{point: "latitude", kind: kLatitude, at: 2, uom: "°", guard: ifFix},
		{point: "longitude", kind: kLongitude, at: 4, uom: "°", guard: ifFix},
		{point: "mode", kind: kWord, at: 6, words: qualities},
		{point: "satellites_used", kind: kCount, at: 7},
		{point: "hdop", at: 8},
		{point: "altitude", at: 9, uom: "m", guard: ifFix},
		{point: "geoid_separation", at: 11, uom: "m"},
		{point: "differential_age", at: 13, uom: "s"},
		{point: "differential_station", kind: kText, at: 14},
	}},
	"GNS": {title: "position and quality of several systems", void: voidModes, fields: []field{
		{point: "time", kind: kClock, at: 1},
		{point: "latitude", kind: kLatitude, at: 2, uom: "°", guard: ifFix},
		{point: "longitude", kind: kLongitude, at: 4, uom: "°", guard: ifFix},
		{point: "modes", kind: kText, at: 6},
		{point: "satellites_used", kind: kCount, at: 7},
		{point: "hdop", at: 8},
		{point: "altitude", at: 9, uom: "m", guard: ifFix},
		{point: "geoid_separation", at: 10, uom: "m"},
		{point: "differential_age", at: 11, uom: "s"},
		{point: "differential_station", kind: kText, at: 12},
		{point: "navigational_status", kind: kWord, at: 13, words: navigational},
	}},
	"GLL": {title: "position", void: voidState(6, 7), fields: []field{
		{point: "latitude", kind: kLatitude, at: 1, uom: "°", guard: ifFix},
		{point: "longitude", kind: kLongitude, at: 3, uom: "°", guard: ifFix},
		{point: "time", kind: kClock, at: 5},
		{point: "status", kind: kWord, at: 6, words: states},
		{point: "mode", kind: kWord, at: 7, words: modes},
	}},
	"GSA": {title: "satellites used and dilution of precision", more: usedSatellites, fields: []field{
		{point: "selection", kind: kWord, at: 1, words: selections},
		{point: "dimension", kind: kWord, at: 2, words: dimensions},
		{point: "pdop", at: 15},
		{point: "hdop", at: 16},
		{point: "vdop", at: 17},
		{point: "system", kind: kText, at: 18},
	}, groups: []field{{point: "satellite_used_n", kind: kCount, at: 3}}},
	"GSV": {title: "satellites in view; n counts over the messages of one round", more: viewedSatellites, fields: []field{
		{point: "message_count", kind: kCount, at: 1},
		{point: "message", kind: kCount, at: 2},
		{point: "satellites_in_view", kind: kCount, at: 3},
	}, groups: []field{
		{point: "satellite_n_id", kind: kCount, at: 4},
		{point: "satellite_n_elevation", at: 5, uom: "°"},
		{point: "satellite_n_azimuth", at: 6, uom: "°"},
		{point: "satellite_n_snr", at: 7, uom: "dBHz"},
		{point: "signal", kind: kText, at: 8},
	}},
	"VTG": &vtg,
	"ZDA": {title: "time and date", fields: []field{
		{point: "time", kind: kCalendar, at: 1, arg: 2},
		{point: "zone_hours", kind: kCount, at: 5, uom: "h"},
		{point: "zone_minutes", kind: kCount, at: 6, uom: "min"},
	}},
	"GST": {title: "errors of the position", fields: []field{
		{point: "time", kind: kClock, at: 1},
		{point: "residual_rms", at: 2, uom: "m"},
		{point: "error_major", at: 3, uom: "m"},
		{point: "error_minor", at: 4, uom: "m"},
		{point: "error_orientation", at: 5, uom: "°"},
		{point: "latitude_error", at: 6, uom: "m"},
		{point: "longitude_error", at: 7, uom: "m"},
		{point: "altitude_error", at: 8, uom: "m"},
	}},
	"GBS": {title: "satellite fault detection", fields: []field{
		{point: "time", kind: kClock, at: 1},
		{point: "latitude_error", at: 2, uom: "m"},
		{point: "longitude_error", at: 3, uom: "m"},
		{point: "altitude_error", at: 4, uom: "m"},
		{point: "failed_satellite", kind: kCount, at: 5},
		{point: "missed_probability", at: 6},
		{point: "bias", at: 7, uom: "m"},
		{point: "bias_deviation", at: 8, uom: "m"},
		{point: "system", kind: kText, at: 9},
		{point: "signal", kind: kText, at: 10},
	}},
	"GRS": {title: "range residuals", more: residuals, fields: []field{
		{point: "time", kind: kClock, at: 1},
		{point: "residual_mode", kind: kCount, at: 2},
		{point: "system", kind: kText, at: 15},
		{point: "signal", kind: kText, at: 16},
	}, groups: []field{{point: "residual_n", at: 3, uom: "m"}}},
	"DTM": {title: "datum", fields: []field{
		{point: "datum", kind: kText, at: 1},
		{point: "datum_subdivision", kind: kText, at: 2},
		{point: "reference_datum", kind: kText, at: 8},
	}},
	"TXT": {title: "text", fields: []field{
		{point: "text_count", kind: kCount, at: 1},
		{point: "text_number", kind: kCount, at: 2},
		{point: "severity", kind: kWord, at: 3, words: severities},
		{point: "text", kind: kRest, at: 4},
	}},
	"HDT": {title: "true heading", fields: []field{{point: "heading_true", at: 1, uom: "°"}}},
	"HDM": {title: "magnetic heading", fields: []field{{point: "heading_magnetic", at: 1, uom: "°"}}},
	"HDG": {title: "heading of the sensor, and what corrects it", fields: []field{
		{point: "heading_sensor", at: 1, uom: "°"},
		{point: "deviation", kind: kEast, at: 2, uom: "°"},
		{point: "variation", kind: kEast, at: 4, uom: "°"},
	}},
	"THS": {title: "true heading and status", fields: []field{
		{point: "heading_true", at: 1, uom: "°", guard: 2},
		{point: "mode", kind: kWord, at: 2, words: append([]word{{"V", "void"}}, modes...)},
	}},
	"ROT": {title: "rate of turn", fields: []field{
		{point: "rate_of_turn", at: 1, uom: "°/min", guard: 2},
		{point: "status", kind: kWord, at: 2, words: states},
	}},
	"RSA": {title: "rudder angle; a single rudder is starboard", fields: []field{
		{point: "rudder_starboard", at: 1, uom: "°", guard: 2},
		{point: "rudder_port", at: 3, uom: "°", guard: 4},
	}},
	"RPM": {title: "revolutions", fields: []field{
		{point: "source", kind: kWord, at: 1, words: sources},
		{point: "source_number", kind: kCount, at: 2},
		{point: "revolutions", at: 3, uom: "1/min", guard: 5},
		{point: "propeller_pitch", at: 4, uom: "%", guard: 5},
		{point: "status", kind: kWord, at: 5, words: states},
	}},
	"XDR": {title: "transducers; each is called as the sentence calls it, in lower case, or by its kind and number", more: transducers,
		groups: []field{{point: "temperature_n, pressure_n, humidity_n, angle_n, …, or its name", at: 2}}},
	"VDM": {title: "AIS message of another ship", fields: ais},
	"VDO": {title: "AIS message of the own ship", fields: ais},
}

var ais = []field{
	{point: "fragment_count", kind: kCount, at: 1},
	{point: "fragment", kind: kCount, at: 2},
	{point: "message_id", kind: kCount, at: 3},
	{point: "channel", kind: kText, at: 4},
	{point: "payload", kind: kText, at: 5},
	{point: "fill_bits", kind: kCount, at: 6},
}

var vtg = sentence{title: "course and speed over ground", void: voidState(0, 9), fields: []field{
	{point: "course", at: 1, uom: "°", guard: ifFix},
	{point: "course_magnetic", at: 3, uom: "°", guard: ifFix},
	{point: "speed", at: 5, uom: "kn", guard: ifFix},
	{point: "speed_kmh", at: 7, uom: "km/h", guard: ifFix},
	{point: "mode", kind: kWord, at: 9, words: modes},
}}

// oldVTG is VTG as before NMEA 0183 2.0: no letters between the numbers.
var oldVTG = sentence{title: vtg.title, fields: []field{
	{point: "course", at: 1, uom: "°"},
	{point: "course_magnetic", at: 2, uom: "°"},
	{point: "speed", at: 3, uom: "kn"},
	{point: "speed_kmh", at: 4, uom: "km/h"},
}}
