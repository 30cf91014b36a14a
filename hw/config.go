package hw

import (
	"ferrule/hw/frame"
	"ferrule/hw/profile"
	"ferrule/hw/text"
	"ferrule/internal/quantity"
)

// LineConfig is one [[line]]: a serial port, its settings, and the units on it.
type LineConfig struct {
	// Name of the line in topics, payloads and commands. Required; at most 64 bytes of UTF-8
	// without control characters and without / + #, which mean something in topics; unique.
	Name string `toml:"name"`
	// Serial port: a path such as /dev/ttyUSB0; a name that survives replugging:
	// usb:VID:PID:SERIAL:INTERFACE, by-id/… or by-path/… (ferrule ports lists them); or
	// tcp://host:port for Modbus RTU and all others behind a serial device server. Required;
	// one port belongs to one line.
	Port string `toml:"port"`
	// Baud rate, then data bits (5 to 8), parity (N, E, O, M, S) and stop bits (1, 2). Default:
	// what is usual for the protocol: "19200 8E1" for modbus-rtu, "9600 7E1" modbus-ascii,
	// "2400 8E1" mbus, "115200 8N1" dsmr ("300 7E1" as master), "9600 8N1" sml, text, frame and
	// raw, "19200 8N1" vedirect, "4800 8N1" nmea.
	Settings string `toml:"settings"`
	// What is spoken on the line: modbus-rtu, which is the default, modbus-ascii, mbus, dsmr,
	// sml, vedirect, nmea, text, frame or raw.
	Protocol string `toml:"protocol"`
	// What the line is: "master" asks its units; "listen" sends nothing and hears talkers, or,
	// with Modbus, units that somebody else asks; "unit" answers a Modbus master such as a PLC,
	// which then writes the readings. Default: "master" for Modbus and M-Bus, "listen" for all
	// others; dsmr as "master" asks for the read-out of an IEC 62056-21 meter, and text as
	// "master" sends line.text.request.
	Role Role `toml:"role"`
	// Which entries go first when more than one waits for the broker: those of lines that are
	// "urgent" go before those that are "normal", as alarms have to pass a backlog. Default
	// "normal".
	Priority string `toml:"priority"`
	// How old an entry of the line may get before it is sent; one that is older when its turn
	// comes is let go and counted, and its number is named in the status. What was read while
	// nobody vouched for the clock counts as fresh after a restart. 1s to 8760h. Default "0s": any
	// age.
	MaxAge quantity.Duration `toml:"max_age"`
	// RS-485 by the kernel's driver. Default: the adapter sees to the direction by itself.
	RS485 *RS485Config `toml:"rs485"`
	// How lines of text become readings; protocol "text".
	Text *text.Config `toml:"text"`
	// How frames are cut from the bytes; protocol "frame".
	Frame *frame.Config `toml:"frame"`
	// The units on the line.
	Units []UnitConfig `toml:"unit"`
}

// The values of LineConfig.Priority; "" is Normal.
const (
	Normal = "normal"
	Urgent = "urgent"
)

// RS485Config is [line.rs485]: the driver switches the transceiver by RTS (TIOCSRS485).
type RS485Config struct {
	// Who switches: "auto" asks the driver, and warns where it cannot, as most USB adapters see
	// to it themselves; "kernel" refuses a port whose driver cannot; "off" tells the driver not
	// to. Default "auto".
	Mode string `toml:"mode"`
	// The level of RTS while sending: high or low. Default "high".
	RTS string `toml:"rts"`
	// From raising RTS to the first bit; at most 100ms. Default "0s".
	DelayBefore quantity.Duration `toml:"delay_before"`
	// From the last bit to lowering RTS; at most 100ms. Default "0s".
	DelayAfter quantity.Duration `toml:"delay_after"`
	// Switch the terminating resistor on, where the board has one. Default false.
	Terminate bool `toml:"terminate"`
}

// UnitConfig is one [[line.unit]]: one sensor on the line.
type UnitConfig struct {
	// Name of the unit in topics, payloads and commands. Required; spelt like the name of a
	// line; unique on its line.
	Name string `toml:"name"`
	// Address of the unit: 1 to 247 for Modbus, 0 to 250 for M-Bus. Required there, but for
	// M-Bus units with a secondary address; unique on its line.
	Address int `toml:"address"`
	// M-Bus secondary address, instead of address: eight digits, and if need be manufacturer,
	// version and medium: "12345678-ACW-14-07"; F stands for any digit.
	Secondary string `toml:"secondary"`
	// dsmr as master: the address of the meter, up to 32 letters and digits. Default: the only
	// meter on the line.
	Device string `toml:"device"`
	// Modbus: everything on the line at once (address 0). Its points can only be written, and
	// nobody confirms that. Default false.
	Broadcast bool `toml:"broadcast"`
	// Lines that listen: the talkers that are this unit, by the name that the protocol gives
	// them, with * for any characters: "GPRMC", "*GGA". Default: all.
	Match string `toml:"match"`
	// The profile that names the points of the unit: ferrule check --profiles lists them.
	// "sunspec" asks the unit itself. Points below add to it, or override.
	Profile string `toml:"profile"`
	// Which points of the profile are wanted, with * for any characters: ["power*", "energy"].
	// Default: all.
	Select []string `toml:"select"`
	// Settings of this unit, where it cannot be set to those of the line.
	Settings string `toml:"settings"`
	// How often the points of the unit are polled that say nothing else; on lines that listen,
	// how often they are reported at most. Default "1s", "10s" for mbus, "1m" for the read-out
	// of dsmr; on lines that listen, and for text as master, "0s": whenever it speaks. 10ms to
	// 24h.
	Every quantity.Duration `toml:"every"`
	// How long the unit may take to begin its answer; 10ms to 1m. Default: four times what it
	// takes usually, at least 50ms and at most 1s. On lines that listen: how long it may be
	// silent before its points are bad; default "30s" for nmea, dsmr, sml and vedirect, three
	// requests and 2s for text as master, else for ever.
	Timeout quantity.Duration `toml:"timeout"`
	// Modbus: silence that the unit wants before it is addressed; at most 1s. Default "0s".
	Turnaround quantity.Duration `toml:"turnaround"`
	// Modbus: how many registers the unit gives in one answer. Default 125.
	MaxRegisters int `toml:"max_registers"`
	// Modbus: how many coils or discrete inputs the unit gives in one answer. Default 2000.
	MaxBits int `toml:"max_bits"`
	// Modbus: whether addresses between two points are read where that is faster: "learn" does,
	// and never again those that the unit refuses; "fill" does always; "never". Default "learn".
	Holes string `toml:"holes"`
	// The points of the unit.
	Points []profile.Point `toml:"point"`
}
