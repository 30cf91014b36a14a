package hw

import (
	"ferrule/hw/profile"
	"ferrule/internal/quantity"
)

// LineConfig is one [[line]]: a serial port, its settings, and the units on it.
type LineConfig struct {
	// Name of the line in topics, payloads and commands. Required; at most 64 bytes of UTF-8
	// without control characters and without / + #, which mean something in topics; unique.
	Name string `toml:"name"`
	// Serial port: a path such as /dev/ttyUSB0, or a name that survives replugging, below
	// by-id/ or by-path/ (ferrule ports lists them). Required; one port belongs to one line.
	Port string `toml:"port"`
	// Baud rate, then data bits (8 for Modbus RTU), parity (N, E, O, M, S) and stop bits (1, 2).
	// Default "19200 8E1", as the Modbus specification says.
	Settings string `toml:"settings"`
	// What is spoken on the line: modbus-rtu, which is the default.
	Protocol string `toml:"protocol"`
	// The units on the line.
	Units []UnitConfig `toml:"unit"`
}

// UnitConfig is one [[line.unit]]: one sensor on the line.
type UnitConfig struct {
	// Name of the unit in topics, payloads and commands. Required; spelt like the name of a
	// line; unique on its line.
	Name string `toml:"name"`
	// Modbus address of the unit, 1 to 247. Required; unique on its line.
	Address int `toml:"address"`
	// How often the points of the unit are polled that say nothing else. Default "1s"; 10ms
	// to 24h.
	Every quantity.Duration `toml:"every"`
	// How long the unit may take to begin its answer. Default "500ms"; 10ms to 1m.
	Timeout quantity.Duration `toml:"timeout"`
	// The points of the unit.
	Points []profile.Point `toml:"point"`
}
