package text

import "ferrule/internal/quantity"

// Config is the table [line.text] of a line whose protocol is text: how lines of text end, and
// how they become points. Without patterns, columns or a separator the whole line is one point, line.
type Config struct {
	// What ends a line: "\n" (a carriage return before it goes away), "\r", "\u0003" and the
	// like; several are written as a list in delimiters. Default "\n".
	Delimiter string `toml:"delimiter"`
	// Several delimiters, any of which ends a line: ["\r", "\n"]. Default: delimiter alone.
	Delimiters []string `toml:"delimiters"`
	// Bytes that a line may have, its delimiter included; 16 to 65536. What is longer is
	// counted and dropped up to the next delimiter.
	MaxLength int `toml:"max_length"`
	// How bytes above 127 are read: utf-8 (bytes that are not become U+FFFD) or latin1.
	Encoding string `toml:"encoding"`
	// Lines that match this regular expression are chatter: they are neither read nor counted
	// as errors. Default: none are.
	Ignore string `toml:"ignore"`
	// A regular expression (RE2) whose named groups are the points:
	// '(?P<weight>[-+]?[0-9.]+) (?P<weight_uom>kg|g)'. A group x_uom is the unit of measure of
	// the point x; a group unit names the unit. A line that it does not match is an error.
	Pattern string `toml:"pattern"`
	// Several patterns; the first that matches reads the line.
	Patterns []Pattern `toml:"patterns"`
	// What stands between the fields of a line: ",", ";", "\t"; a space stands for any number
	// of spaces and tabs.
	Separator string `toml:"separator"`
	// Names of the fields, in their order; "" leaves one out. A line with another number of
	// fields is an error. Default: f1, f2 and so on, however many there are, up to 256.
	Names []string `toml:"names"`
	// Points at fixed columns of the line.
	Columns []Column `toml:"columns"`
	// Spaces and control characters around a value stay. Default: they go away.
	KeepSpaces bool `toml:"keep_spaces"`
	// The decimal mark of numbers, "." or ",".
	Decimal string `toml:"decimal"`
	// What a point must be: { code = "text", weight = "number" }. A number may then be written
	// as "0012", "- 1.5", ".5" or "1e3", and what is none is bad. Default: what is a number for
	// certain is one ("12", "-0.5", "+0012.5"), everything else is text ("0012", "12 kg").
	Types map[string]string `toml:"types"`
	// Units of measure of points: { weight = "kg" }.
	Uom map[string]string `toml:"uom"`
	// The checksum at the end of each line: xor8 (NMEA), sum8, crc16-modbus and all others that
	// protocol = "frame" knows. Lines with a wrong one are counted and dropped. Default: none.
	Check string `toml:"check"`
	// How the checksum is written: hex or binary.
	CheckForm string `toml:"check_form"`
	// What stands between the checked text and the checksum: "*". Default: nothing, the
	// checksum is the last characters of the line.
	CheckMark string `toml:"check_mark"`
	// The first character that the checksum covers, counted from 0: 1 leaves out a "$".
	CheckFrom int `toml:"check_from"`
	// What to send so that the device answers with a line: "P\r\n". Default: nothing is sent.
	Request string `toml:"request"`
	// How often the request is sent; 10ms to 24h. Default "1s".
	Every quantity.Duration `toml:"every"`
}

// Pattern is one [[line.text.patterns]].
type Pattern struct {
	// The regular expression (RE2); its named groups are the points. Required.
	Match string `toml:"match"`
	// The unit that sends such lines. Default: none has a name, or a group unit gives it.
	Unit string `toml:"unit"`
}

// Column is one [[line.text.columns]]: the characters from to to, counted from 1, both included.
type Column struct {
	// Name of the point. Required.
	Name string `toml:"name"`
	// Its first column, from 1 on. Required.
	From int `toml:"from"`
	// Its last column. Default 0: the end of the line.
	To int `toml:"to"`
}
