package profile

import (
	"ferrule/internal/quantity"
)

// Profile is one make of meter: what a unit of it is called, how it is asked, and its points.
type Profile struct {
	// Name that a unit's key profile says: small letters, digits and dashes; the file's name
	// without .toml. Required.
	Name string `toml:"name"`
	// One line for people: "Eastron SDM630, three-phase meter". Required.
	Title string `toml:"title"`
	// Who makes the meter.
	Manufacturer string `toml:"manufacturer"`
	// The models that the profile is for, as their labels say.
	Models []string `toml:"models"`
	// What the meter speaks: "modbus-rtu", which is the default, or "modbus-ascii".
	Protocol string `toml:"protocol"`
	// Where the register numbers come from: a manual, a project, your own tries. Required.
	Source string `toml:"source"`
	// How the unit is asked where its configuration does not say.
	Unit Unit `toml:"unit"`
	// The points of the meter, [[point]]. Required.
	Points []Point `toml:"point"`
}

// Unit is [unit] of a profile: keys of a [[line.unit]] as the meter needs them. What the
// configuration says goes before.
type Unit struct {
	// Settings that the maker ships the meter with: "9600 8N1". They are a hint for people; a
	// line's own settings hold.
	Settings string `toml:"settings"`
	// Address that the maker ships the meter with; a hint like settings. 0: not known.
	Address int `toml:"address"`
	// How often the points are polled that say nothing else.
	Every quantity.Duration `toml:"every"`
	// How long the meter may take to begin its answer.
	Timeout quantity.Duration `toml:"timeout"`
	// Silence that the meter wants before it is addressed.
	Turnaround quantity.Duration `toml:"turnaround"`
	// How many registers the meter gives in one answer. 0: 125.
	MaxRegisters int `toml:"max_registers"`
	// How many coils or discrete inputs the meter gives in one answer. 0: 2000.
	MaxBits int `toml:"max_bits"`
	// Whether addresses between two points are read where that is faster: learn, fill, never.
	Holes string `toml:"holes"`
}

// Summary is one line of a list of profiles.
type Summary struct {
	Name         string   `json:"name"`
	Title        string   `json:"title"`
	Manufacturer string   `json:"manufacturer,omitempty"`
	Models       []string `json:"models,omitempty"`
	Protocol     string   `json:"protocol"`
	Points       int      `json:"points"`
	// File is the path of a file of the user's own, which goes before a profile of the same
	// name that is built in; "" for one that is built in.
	File string `json:"file,omitempty"`
}
