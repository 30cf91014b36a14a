package encode

// senMLUnit returns what a unit of measure is called in SenML (the registry of RFC 8428, 12.1, with
// RFC 8798), and whether it is a secondary unit, which older readers do not know (RFC 9100). What is
// not registered has no name there: "".
func senMLUnit(uom string) (name string, secondary bool) {
	switch uom {
	case "m", "kg", "g", "s", "A", "K", "cd", "mol", "Hz", "rad", "sr", "N", "Pa", "J", "W", "C", "V", "F",
		"Ohm", "S", "Wb", "T", "H", "Cel", "lm", "lx", "Bq", "Gy", "Sv", "kat", "m2", "m3", "l", "m/s",
		"m/s2", "m3/s", "l/s", "W/m2", "cd/m2", "bit", "bit/s", "lat", "lon", "pH", "dB", "dBW", "Bspl",
		"count", "%RH", "%EL", "EL", "1/s", "1/min", "beat/min", "beats", "S/m", "B", "VA", "VAs", "var",
		"vars", "J/m", "kg/m3", "deg":
		return uom, false
	case "ms", "min", "h", "MHz", "kW", "kVA", "kvar", "Ah", "Wh", "kWh", "varh", "kvarh", "kVAh", "Wh/km",
		"KiB", "GB", "Mbit/s", "B/s", "MB/s", "mV", "mA", "dBm", "ug/m3", "mm/h", "m/h", "ppm", "hPa",
		"mm", "cm", "km", "km/h":
		return uom, true
	case "%": // SenML's own "%" is a ratio from 0 to 1 (RFC 8428, 12.1, note 1)
		return "/100", true
	case "‰":
		return "/1000", true
	case "°C", "℃", "degC":
		return "Cel", false
	case "°":
		return "deg", false
	case "\u03a9", "\u2126", "ohm":
		return "Ohm", false
	case "m²":
		return "m2", false
	case "m³":
		return "m3", false
	case "L":
		return "l", false
	case "m/s²":
		return "m/s2", false
	case "m³/s":
		return "m3/s", false
	case "W/m²":
		return "W/m2", false
	case "kg/m³":
		return "kg/m3", false
	case "\u00b5g/m³", "\u03bcg/m³":
		return "ug/m3", true
	case "mbar":
		return "hPa", true
	case "VAR", "VAr":
		return "var", false
	}
	return "", false
}
