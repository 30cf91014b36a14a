// Package profile is the library of sensor profiles: which points a make of meter has, as data
// files. The trap is the manual: the same meter counts its registers from 0 in one and from 1 in
// another, so every profile says its table and counts from 0.
package profile

import "ferrule/internal/quantity"

// Point is one [[line.unit.point]] of a configuration, or one [[point]] of a profile: one value
// of a unit. Package hw checks it.
type Point struct {
	// Name of the point in payloads and commands. Required; spelt like the name of a line;
	// unique in its unit.
	Name string `toml:"name"`
	// Where the point is: coil, discrete, input or holding, a colon and the address from 0 on,
	// decimal or 0x…; or the documents' numbers from 1 on: "00001", "10001", "30013", "40101".
	// Required.
	At string `toml:"at"`
	// How its registers are read: bit@n, bits@a..b (bits a to b as a number; above bit 15 of two
	// registers), int8/16/32/48/64, uint8/16/32/48/64 (int8h and uint8h are the high byte of
	// the register), float16/32/64, bcd16/32/48/64, string(n); coils and discrete inputs are
	// bit. Default bit for coils and discrete inputs, uint16 for registers.
	Type string `toml:"type"`
	// The order of the bytes, named after those of a 32-bit value: ABCD, CDAB (registers
	// swapped), BADC (bytes swapped) or DCBA (both). Default "ABCD".
	Order string `toml:"order"`
	// The value is raw × scale + offset. Default 1; 0 counts as absent.
	Scale float64 `toml:"scale"`
	// The value is raw × scale + offset. Default 0.
	Offset float64 `toml:"offset"`
	// Another power of ten that the value is multiplied by: the name of another point of the
	// unit, or the address of its register, that holds the exponent, -10 to 10, as SunSpec has
	// it. Default: none.
	ScaleFactor string `toml:"scale_factor"`
	// What the registers hold when the unit has no value: "0x8000", "0xFFFFFFFF", or a number
	// before scale and offset, "-9999". The point is bad then, with the reason nan. NaN of a
	// float always is. Default: none.
	NaN []string `toml:"nan"`
	// Names of numbers before scale and offset: { 0 = "off", 1 = "on" }. The value is the name
	// then, and is written as one; a number without a name stays a number. Default: none.
	Values map[string]string `toml:"values"`
	// Names of bits, 0 the least significant: { 0 = "overheat", 3 = "fan" }. The value is the
	// names of those that are set, joined by commas: "overheat,fan", "bit5" where one has no
	// name, "" when none is set. Default: none.
	Flags map[string]string `toml:"flags"`
	// Unit of measure of the value: "W", "°C". Only for those who read the configuration.
	Uom string `toml:"uom"`
	// How often the point is polled. Default: every of its unit; 10ms to 24h.
	Every quantity.Duration `toml:"every"`
	// Report the point only when it differs by more than this from the value reported last, in
	// its unit of measure; bits and text whenever they change; a failure when it begins and
	// when its reason changes. Default 0: every poll reports.
	Deadband float64 `toml:"deadband"`
	// With a deadband, report the point at least this often in spite of it, if only that it is
	// bad. Default "0s": never. Without a deadband it says how often a point is reported as bad
	// while the line is down, where the default is once.
	MaxSilence quantity.Duration `toml:"max_silence"`
	// Makes the point writable, within bounds. Default: the point is read only.
	Write *Write `toml:"write"`
}

// Write bounds what may be written to a point.
type Write struct {
	// Smallest value that may be written. Default: whatever the type holds.
	Min *float64 `toml:"min"`
	// Largest value that may be written. Default: whatever the type holds.
	Max *float64 `toml:"max"`
}
