package nmea

var navStates = []word{
	{"NF", "none"}, {"DR", "dead_reckoning"}, {"G2", "2d"}, {"G3", "3d"}, {"D2", "2d_differential"},
	{"D3", "3d_differential"}, {"RK", "combined"}, {"TT", "time_only"},
}

var (
	garminModes  = []word{{"M", "manual"}, {"A", "automatic"}}
	garminFixes  = []word{{"0", "none"}, {"1", "2d"}, {"2", "3d"}}
	garminHeight = []word{{"1", "none"}, {"2", "user"}, {"3", "gps"}}
)

// proprietary holds the sentences of makers, by the name that Decode gives them. Whatever is not
// here is delivered in fields.
var proprietary = map[string]*sentence{
	// u-blox M8 protocol specification, 31.3
	"PUBX-00": {title: "u-blox: position", void: func(d *Decoder) bool { return string(d.field(8)) == "NF" }, fields: []field{
		{point: "time", kind: kClock, at: 2},
		{point: "latitude", kind: kLatitude, at: 3, uom: "°", guard: ifFix},
		{point: "longitude", kind: kLongitude, at: 5, uom: "°", guard: ifFix},
		{point: "altitude_ellipsoid", at: 7, uom: "m", guard: ifFix},
		{point: "mode", kind: kWord, at: 8, words: navStates},
		{point: "horizontal_accuracy", at: 9, uom: "m"},
		{point: "vertical_accuracy", at: 10, uom: "m"},
		{point: "speed_kmh", at: 11, uom: "km/h", guard: ifFix},
		{point: "course", at: 12, uom: "°", guard: ifFix},
		{point: "speed_down", at: 13, uom: "m/s", guard: ifFix},
		{point: "differential_age", at: 14, uom: "s"},
		{point: "hdop", at: 15},
		{point: "vdop", at: 16},
		{point: "tdop", at: 17},
		{point: "satellites_used", kind: kCount, at: 18},
	}},
	"PUBX-03": {title: "u-blox: satellites", more: trackedSatellites, fields: []field{
		{point: "satellites_in_view", kind: kCount, at: 2},
	}, groups: []field{
		{point: "satellite_n_id", kind: kCount, at: 3},
		{point: "satellite_n_use", kind: kText, at: 4},
		{point: "satellite_n_azimuth", at: 5, uom: "°"},
		{point: "satellite_n_elevation", at: 6, uom: "°"},
		{point: "satellite_n_snr", at: 7, uom: "dBHz"},
		{point: "satellite_n_lock", at: 8, uom: "s"},
	}},
	"PUBX-04": {title: "u-blox: time", fields: []field{
		{point: "time", kind: kStamp, at: 2, arg: 3},
		{point: "utc_time_of_week", at: 4, uom: "s"},
		{point: "utc_week", kind: kCount, at: 5},
		{point: "leap_seconds", kind: kText, at: 6},
		{point: "clock_bias", at: 7, uom: "ns"},
		{point: "clock_drift", at: 8, uom: "ns/s"},
		{point: "pulse_granularity", at: 9, uom: "ns"},
	}},
	// Garmin, Proprietary NMEA 0183 Sentences
	"PGRME": {title: "Garmin: estimated errors", fields: []field{
		{point: "horizontal_error", at: 1, uom: "m"},
		{point: "vertical_error", at: 3, uom: "m"},
		{point: "position_error", at: 5, uom: "m"},
	}},
	"PGRMZ": {title: "Garmin: altitude", fields: []field{
		{point: "altitude_feet", at: 1, uom: "ft"},
		{point: "altitude_source", kind: kWord, at: 3, words: garminHeight},
	}},
	"PGRMM": {title: "Garmin: datum", fields: []field{{point: "datum", kind: kRest, at: 1}}},
	"PGRMV": {title: "Garmin: velocity", fields: []field{
		{point: "speed_east", at: 1, uom: "m/s"},
		{point: "speed_north", at: 2, uom: "m/s"},
		{point: "speed_up", at: 3, uom: "m/s"},
	}},
	"PGRMF": {title: "Garmin: position", void: func(d *Decoder) bool { return string(d.field(11)) == "0" }, fields: []field{
		{point: "gps_week", kind: kCount, at: 1},
		{point: "gps_time_of_week", at: 2, uom: "s"},
		{point: "time", kind: kStamp, at: 4, arg: 3},
		{point: "leap_seconds", kind: kCount, at: 5, uom: "s"},
		{point: "latitude", kind: kLatitude, at: 6, uom: "°", guard: ifFix},
		{point: "longitude", kind: kLongitude, at: 8, uom: "°", guard: ifFix},
		{point: "selection", kind: kWord, at: 10, words: garminModes},
		{point: "dimension", kind: kWord, at: 11, words: garminFixes},
		{point: "speed_kmh", at: 12, uom: "km/h", guard: ifFix},
		{point: "course", at: 13, uom: "°", guard: ifFix},
		{point: "pdop", at: 14},
		{point: "tdop", at: 15},
	}},
	"PASHR": {title: "attitude (Ashtech, and inertial systems of others)", fields: []field{
		{point: "time", kind: kClock, at: 1},
		{point: "heading_true", at: 2, uom: "°"},
		{point: "roll", at: 4, uom: "°"},
		{point: "pitch", at: 5, uom: "°"},
		{point: "heave", at: 6, uom: "m"},
		{point: "roll_error", at: 7, uom: "°"},
		{point: "pitch_error", at: 8, uom: "°"},
		{point: "heading_error", at: 9, uom: "°"},
	}},
	"PRDID": {title: "attitude (RD Instruments)", fields: []field{
		{point: "pitch", at: 1, uom: "°"},
		{point: "roll", at: 2, uom: "°"},
		{point: "heading_true", at: 3, uom: "°"},
	}},
	"PTNTHTM": {title: "True North compass", fields: []field{
		{point: "heading_magnetic", at: 1, uom: "°"},
		{point: "pitch", at: 3, uom: "°"},
		{point: "roll", at: 5, uom: "°"},
		{point: "magnetic_dip", at: 7, uom: "°"},
		{point: "magnetic_field", at: 8},
	}},
	"PERC-GPavp": {title: "Ericsson: averaged position", fields: []field{
		{point: "latitude", kind: kLatitude, at: 2, uom: "°"},
		{point: "longitude", kind: kLongitude, at: 4, uom: "°"},
		{point: "altitude", at: 6, uom: "m"},
	}},
	// SkyTraq binary messages, AN0028
	"PSTI-030": {title: "SkyTraq: position and velocity", void: voidState(3, 13), fields: []field{
		{point: "time", kind: kStamp, at: 2, arg: 12},
		{point: "status", kind: kWord, at: 3, words: states},
		{point: "latitude", kind: kLatitude, at: 4, uom: "°", guard: ifFix},
		{point: "longitude", kind: kLongitude, at: 6, uom: "°", guard: ifFix},
		{point: "altitude", at: 8, uom: "m", guard: ifFix},
		{point: "speed_east", at: 9, uom: "m/s", guard: ifFix},
		{point: "speed_north", at: 10, uom: "m/s", guard: ifFix},
		{point: "speed_up", at: 11, uom: "m/s", guard: ifFix},
		{point: "mode", kind: kWord, at: 13, words: modes},
		{point: "rtk_age", at: 14, uom: "s"},
		{point: "rtk_ratio", at: 15},
	}},
}
