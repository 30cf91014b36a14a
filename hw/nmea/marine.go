package nmea

// marine holds the sentences of wind, water, weather and waypoints, by formatter (IEC 61162-1).
var marine = map[string]*sentence{
	"VHW": {title: "heading and speed through the water", fields: []field{
		{point: "heading_true", at: 1, uom: "°"},
		{point: "heading_magnetic", at: 3, uom: "°"},
		{point: "water_speed", at: 5, uom: "kn"},
		{point: "water_speed_kmh", at: 7, uom: "km/h"},
	}},
	"VBW": {title: "speeds along and across the ship", fields: []field{
		{point: "water_speed_along", at: 1, uom: "kn", guard: 3},
		{point: "water_speed_across", at: 2, uom: "kn", guard: 3},
		{point: "ground_speed_along", at: 4, uom: "kn", guard: 6},
		{point: "ground_speed_across", at: 5, uom: "kn", guard: 6},
		{point: "stern_water_speed_across", at: 7, uom: "kn", guard: 8},
		{point: "stern_ground_speed_across", at: 9, uom: "kn", guard: 10},
	}},
	"VLW": {title: "distance travelled", fields: []field{
		{point: "water_distance", at: 1, uom: "nmi"},
		{point: "water_distance_trip", at: 3, uom: "nmi"},
		{point: "ground_distance", at: 5, uom: "nmi"},
		{point: "ground_distance_trip", at: 7, uom: "nmi"},
	}},
	"VDR": {title: "set and drift of the current", fields: []field{
		{point: "current_direction", at: 1, uom: "°"},
		{point: "current_direction_magnetic", at: 3, uom: "°"},
		{point: "current_speed", at: 5, uom: "kn"},
	}},
	"MWV": {title: "wind, apparent or true", more: wind, fields: []field{
		{point: "status", kind: kWord, at: 5, words: states},
	}, groups: []field{
		{point: "wind_angle_apparent", at: 1, uom: "°"},
		{point: "wind_speed_apparent", kind: kSpeed, at: 3},
		{point: "wind_angle_true", at: 1, uom: "°"},
		{point: "wind_speed_true", kind: kSpeed, at: 3},
	}},
	"MWD": {title: "wind direction and speed", fields: []field{
		{point: "wind_direction", at: 1, uom: "°"},
		{point: "wind_direction_magnetic", at: 3, uom: "°"},
		{point: "wind_speed", at: 5, uom: "kn"},
		{point: "wind_speed_ms", at: 7, uom: "m/s"},
	}},
	"VWR": {title: "apparent wind (old)", fields: []field{
		{point: "wind_angle_apparent", kind: kBow, at: 1, uom: "°"},
		{point: "wind_speed_apparent", at: 3, uom: "kn"},
		{point: "wind_speed_apparent_ms", at: 5, uom: "m/s"},
		{point: "wind_speed_apparent_kmh", at: 7, uom: "km/h"},
	}},
	"VWT": {title: "true wind (old)", fields: []field{
		{point: "wind_angle_true", kind: kBow, at: 1, uom: "°"},
		{point: "wind_speed_true", at: 3, uom: "kn"},
		{point: "wind_speed_true_ms", at: 5, uom: "m/s"},
		{point: "wind_speed_true_kmh", at: 7, uom: "km/h"},
	}},
	"DBT": {title: "depth below the transducer", fields: depths},
	"DBS": {title: "depth below the surface", fields: depths},
	"DBK": {title: "depth below the keel", fields: depths},
	"DPT": {title: "depth below the transducer, and where the transducer is", fields: []field{
		{point: "depth", at: 1, uom: "m"},
		{point: "depth_offset", at: 2, uom: "m"},
		{point: "depth_range", at: 3, uom: "m"},
	}},
	"MTW": {title: "water temperature", fields: []field{{point: "water_temperature", at: 1, uom: "°C"}}},
	"MTA": {title: "air temperature", fields: []field{{point: "air_temperature", at: 1, uom: "°C"}}},
	"MMB": {title: "barometer", fields: []field{
		{point: "pressure_inhg", at: 1, uom: "inHg"},
		{point: "pressure", at: 3, uom: "bar"},
	}},
	"MHU": {title: "humidity", fields: []field{
		{point: "humidity", at: 1, uom: "%"},
		{point: "absolute_humidity", at: 2, uom: "%"},
		{point: "dew_point", at: 3, uom: "°C"},
	}},
	"MDA": {title: "weather", fields: []field{
		{point: "pressure_inhg", at: 1, uom: "inHg"},
		{point: "pressure", at: 3, uom: "bar"},
		{point: "air_temperature", at: 5, uom: "°C"},
		{point: "water_temperature", at: 7, uom: "°C"},
		{point: "humidity", at: 9, uom: "%"},
		{point: "absolute_humidity", at: 10, uom: "%"},
		{point: "dew_point", at: 11, uom: "°C"},
		{point: "wind_direction", at: 13, uom: "°"},
		{point: "wind_direction_magnetic", at: 15, uom: "°"},
		{point: "wind_speed", at: 17, uom: "kn"},
		{point: "wind_speed_ms", at: 19, uom: "m/s"},
	}},
	"RMB": {title: "way to the waypoint", void: voidState(1, 14), fields: []field{
		{point: "status", kind: kWord, at: 1, words: states},
		{point: "cross_track_error", at: 2, uom: "nmi", guard: ifFix},
		{point: "steer", kind: kWord, at: 3, words: sides},
		{point: "origin", kind: kText, at: 4},
		{point: "destination", kind: kText, at: 5},
		{point: "destination_latitude", kind: kLatitude, at: 6, uom: "°"},
		{point: "destination_longitude", kind: kLongitude, at: 8, uom: "°"},
		{point: "range", at: 10, uom: "nmi", guard: ifFix},
		{point: "bearing", at: 11, uom: "°", guard: ifFix},
		{point: "closing_speed", at: 12, uom: "kn", guard: ifFix},
		{point: "mode", kind: kWord, at: 14, words: modes},
	}},
	"BOD": {title: "bearing from origin to destination", fields: []field{
		{point: "bearing", at: 1, uom: "°"},
		{point: "bearing_magnetic", at: 3, uom: "°"},
		{point: "destination", kind: kText, at: 5},
		{point: "origin", kind: kText, at: 6},
	}},
	"BWC": {title: "bearing and distance to the waypoint", fields: bearings},
	"BWR": {title: "bearing and distance to the waypoint along the rhumb line", fields: bearings},
	"WPL": {title: "waypoint", fields: []field{
		{point: "waypoint_latitude", kind: kLatitude, at: 1, uom: "°"},
		{point: "waypoint_longitude", kind: kLongitude, at: 3, uom: "°"},
		{point: "waypoint", kind: kText, at: 5},
	}},
	"XTE": {title: "cross-track error", void: voidState(1, 6), fields: []field{
		{point: "status", kind: kWord, at: 1, words: states},
		{point: "cross_track_error", at: 3, uom: "nmi", guard: ifFix},
		{point: "steer", kind: kWord, at: 4, words: sides},
		{point: "mode", kind: kWord, at: 6, words: modes},
	}},
}

var depths = []field{
	{point: "depth_feet", at: 1, uom: "ft"},
	{point: "depth", at: 3, uom: "m"},
	{point: "depth_fathoms", at: 5, uom: "fathom"},
}

var bearings = []field{
	{point: "time", kind: kClock, at: 1},
	{point: "waypoint_latitude", kind: kLatitude, at: 2, uom: "°"},
	{point: "waypoint_longitude", kind: kLongitude, at: 4, uom: "°"},
	{point: "bearing", at: 6, uom: "°"},
	{point: "bearing_magnetic", at: 8, uom: "°"},
	{point: "distance", at: 10, uom: "nmi"},
	{point: "waypoint", kind: kText, at: 12},
	{point: "mode", kind: kWord, at: 13, words: modes},
}
