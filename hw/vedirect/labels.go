package vedirect

// kind says how the value of a label is read.
type kind uint8

const (
	kNumber kind = iota // a whole number of 10^-places units: a float64
	kCount              // a whole number
	kText               // text as it stands
	kSwitch             // ON or OFF: a bool
	kWord               // a number that names one of words; what it does not name stays a number
	kBits               // a number whose bits name words
)

// label is what one label of the protocol means.
type label struct {
	point  string
	kind   kind
	places uint8
	uom    string
	words  map[int64]string
}

// labels holds the labels of the text protocol (Victron Energy, VE.Direct Protocol 3.33, table
// "Field descriptions").
var labels = map[string]label{
	"V":        {point: "battery_voltage", places: 3, uom: "V"},
	"V2":       {point: "battery_voltage_2", places: 3, uom: "V"},
	"V3":       {point: "battery_voltage_3", places: 3, uom: "V"},
	"VS":       {point: "starter_voltage", places: 3, uom: "V"},
	"VM":       {point: "midpoint_voltage", places: 3, uom: "V"},
	"DM":       {point: "midpoint_deviation", places: 1, uom: "%"},
	"VPV":      {point: "panel_voltage", places: 3, uom: "V"},
	"PPV":      {point: "panel_power", uom: "W"},
	"I":        {point: "battery_current", places: 3, uom: "A"},
	"I2":       {point: "battery_current_2", places: 3, uom: "A"},
	"I3":       {point: "battery_current_3", places: 3, uom: "A"},
	"IL":       {point: "load_current", places: 3, uom: "A"},
	"LOAD":     {point: "load", kind: kSwitch},
	"T":        {point: "battery_temperature", uom: "°C"},
	"P":        {point: "power", uom: "W"},
	"CE":       {point: "consumed_charge", places: 3, uom: "Ah"},
	"SOC":      {point: "state_of_charge", places: 1, uom: "%"},
	"TTG":      {point: "time_to_go", uom: "min"},
	"Alarm":    {point: "alarm", kind: kSwitch},
	"Relay":    {point: "relay", kind: kSwitch},
	"AR":       {point: "alarm_reason", kind: kBits, words: alarms},
	"WARN":     {point: "warning_reason", kind: kBits, words: alarms},
	"OR":       {point: "off_reason", kind: kBits, words: offReasons},
	"H1":       {point: "deepest_discharge", places: 3, uom: "Ah"},
	"H2":       {point: "last_discharge", places: 3, uom: "Ah"},
	"H3":       {point: "average_discharge", places: 3, uom: "Ah"},
	"H4":       {point: "charge_cycles", kind: kCount},
	"H5":       {point: "full_discharges", kind: kCount},
	"H6":       {point: "cumulative_discharge", places: 3, uom: "Ah"},
	"H7":       {point: "battery_voltage_min", places: 3, uom: "V"},
	"H8":       {point: "battery_voltage_max", places: 3, uom: "V"},
	"H9":       {point: "time_since_full_charge", uom: "s"},
	"H10":      {point: "synchronizations", kind: kCount},
	"H11":      {point: "low_voltage_alarms", kind: kCount},
	"H12":      {point: "high_voltage_alarms", kind: kCount},
	"H13":      {point: "low_starter_voltage_alarms", kind: kCount},
	"H14":      {point: "high_starter_voltage_alarms", kind: kCount},
	"H15":      {point: "starter_voltage_min", places: 3, uom: "V"},
	"H16":      {point: "starter_voltage_max", places: 3, uom: "V"},
	"H17":      {point: "energy_discharged", places: 2, uom: "kWh"},
	"H18":      {point: "energy_charged", places: 2, uom: "kWh"},
	"H19":      {point: "yield_total", places: 2, uom: "kWh"},
	"H20":      {point: "yield_today", places: 2, uom: "kWh"},
	"H21":      {point: "power_max_today", uom: "W"},
	"H22":      {point: "yield_yesterday", places: 2, uom: "kWh"},
	"H23":      {point: "power_max_yesterday", uom: "W"},
	"ERR":      {point: "error", kind: kWord, words: errorCodes},
	"CS":       {point: "state", kind: kWord, words: operations},
	"BMV":      {point: "model", kind: kText},
	"FW":       {point: "firmware", kind: kText},
	"FWE":      {point: "firmware_24bit", kind: kText},
	"PID":      {point: "product_id", kind: kText},
	"SER#":     {point: "serial_number", kind: kText},
	"HSDS":     {point: "day", kind: kCount},
	"MODE":     {point: "mode", kind: kWord, words: deviceModes},
	"AC_OUT_V": {point: "ac_voltage", places: 2, uom: "V"},
	"AC_OUT_I": {point: "ac_current", places: 1, uom: "A"},
	"AC_OUT_S": {point: "ac_apparent_power", uom: "VA"},
	"MPPT":     {point: "tracker", kind: kWord, words: trackers},
	"MON":      {point: "monitor_mode", kind: kWord, words: monitors},
	"DC_IN_V":  {point: "dc_input_voltage", places: 2, uom: "V"},
	"DC_IN_I":  {point: "dc_input_current", places: 1, uom: "A"},
	"DC_IN_P":  {point: "dc_input_power", uom: "W"},
}

// alarms names the bits of AR and WARN.
var alarms = map[int64]string{
	0x0001: "low_voltage",
	0x0002: "high_voltage",
	0x0004: "low_state_of_charge",
	0x0008: "low_starter_voltage",
	0x0010: "high_starter_voltage",
	0x0020: "low_temperature",
	0x0040: "high_temperature",
	0x0080: "midpoint_voltage",
	0x0100: "overload",
	0x0200: "dc_ripple",
	0x0400: "low_ac_voltage",
	0x0800: "high_ac_voltage",
	0x1000: "short_circuit",
	0x2000: "bms_lockout",
}

// offReasons names the bits of OR.
var offReasons = map[int64]string{
	0x0001: "no_input_power",
	0x0002: "switched_off",
	0x0004: "switched_off_by_mode",
	0x0008: "remote_input",
	0x0010: "protection",
	0x0020: "pay_as_you_go",
	0x0040: "bms",
	0x0080: "engine_shutdown",
	0x0100: "analysing_input",
}

var operations = map[int64]string{
	0:   "off",
	1:   "low_power",
	2:   "fault",
	3:   "bulk",
	4:   "absorption",
	5:   "float",
	6:   "storage",
	7:   "equalize",
	9:   "inverting",
	11:  "power_supply",
	245: "starting",
	246: "repeated_absorption",
	247: "auto_equalize",
	248: "battery_safe",
	252: "external_control",
}

var deviceModes = map[int64]string{
	1:   "charger",
	2:   "inverter",
	4:   "off",
	5:   "eco",
	253: "hibernate",
}

var trackers = map[int64]string{
	0: "off",
	1: "limited",
	2: "active",
}

// monitors names what a shunt measures: sources are negative, loads positive.
var monitors = map[int64]string{
	-9: "solar_charger",
	-8: "wind_turbine",
	-7: "shaft_generator",
	-6: "alternator",
	-5: "fuel_cell",
	-4: "water_generator",
	-3: "dc_dc_charger",
	-2: "ac_charger",
	-1: "source",
	0:  "battery_monitor",
	1:  "load",
	2:  "electric_drive",
	3:  "fridge",
	4:  "water_pump",
	5:  "bilge_pump",
	6:  "dc_system",
	7:  "inverter",
	8:  "water_heater",
}

var errorCodes = map[int64]string{
	0:   "none",
	2:   "battery_voltage_too_high",
	17:  "charger_too_hot",
	18:  "charger_over_current",
	19:  "charger_current_reversed",
	20:  "bulk_time_exceeded",
	21:  "current_sensor",
	26:  "terminals_too_hot",
	28:  "converter",
	33:  "input_voltage_too_high",
	34:  "input_current_too_high",
	38:  "input_shutdown_battery_voltage",
	39:  "input_shutdown_current_while_off",
	65:  "communication_lost",
	66:  "synchronised_charging_configuration",
	67:  "bms_connection_lost",
	68:  "network_misconfigured",
	116: "calibration_lost",
	117: "invalid_firmware",
	119: "user_settings_invalid",
}
