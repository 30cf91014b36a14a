package frame

import "ferrule/internal/quantity"

// Config is the table [line.frame] of a line whose protocol is frame: how its frames are marked,
// and how they are checked. Bytes are written in hexadecimal: "02", "0D 0A".
type Config struct {
	// What marks a frame: delimiter (ends at certain bytes), fixed (has always the same size),
	// length (says how long it is), stx-etx (stands between start and end), slip (RFC 1055),
	// cobs or cobs-r (ends at a zero, consistent overhead byte stuffing), or silence (stands
	// between two silences of the line). Required.
	Kind string `toml:"kind"`
	// Bytes that a frame may have, its marks and its check included; 2 to 65536. What is
	// longer is counted and dropped. Not for fixed.
	MaxLength int `toml:"max_length"`
	// How long the line is silent between two frames, where nothing else marks them, and how
	// long a frame may stall. Default: the line's own; 1ms to 1m.
	Silence quantity.Duration `toml:"silence"`
	// delimiter: the bytes that end a frame, ["0D 0A"]; any of several.
	Delimiters []string `toml:"delimiters"`
	// fixed: how many bytes a frame has, its marks and its check included.
	Size int `toml:"size"`
	// fixed, length and stx-etx: the bytes that a frame begins with. Default for stx-etx "02".
	Start string `toml:"start"`
	// fixed, length and stx-etx: the bytes that a frame ends with; those of fixed and length
	// stand behind the check. Default for stx-etx "03".
	End string `toml:"end"`
	// length: where the length stands, in bytes from the first of the frame. Default: behind start.
	LengthAt *int `toml:"length_at"`
	// length: how many bytes the length has, 1, 2, 3 or 4.
	LengthSize int `toml:"length_size"`
	// length: the byte order of the length, big or little.
	LengthOrder string `toml:"length_order"`
	// length: which bytes the length counts: frame (all of the frame), rest (those behind the
	// length), or payload (those behind it but for the check and the end).
	LengthCounts string `toml:"length_counts"`
	// length: how many bytes more there are than the length says; negative where fewer.
	LengthAdjust int `toml:"length_adjust"`
	// stx-etx: the byte that makes the next one data, "10" for DLE. Where end begins with it
	// (DLE ETX), it is doubled in the data; else it stands before each start, end or itself in
	// the data. Default: none, the data has neither start nor end in it.
	Escape string `toml:"escape"`
	// How the frame is checked: crc16-modbus, crc16-arc, crc16-x25, crc16-ccitt-false,
	// crc16-xmodem, crc16-kermit, crc8, crc8-maxim, crc32, sum8, sum16, lrc8 (the sum's two's
	// complement), xor8. Default: not at all.
	Check string `toml:"check"`
	// The byte order of the check, big or little. Default: as its protocols have it, little
	// for crc16-modbus, -arc, -x25, -kermit and crc32, else big.
	CheckOrder string `toml:"check_order"`
	// How the check is written: binary, or hex (two characters for each byte).
	CheckForm string `toml:"check_form"`
	// The first byte of the frame that the check covers, counted from 0. Default: the first of
	// all; of stx-etx the first behind start.
	CheckFrom *int `toml:"check_from"`
	// Where the check's cover ends: 0 right before the check, -1 one byte earlier. Default 0.
	CheckTo int `toml:"check_to"`
	// stx-etx: the check stands before end, not behind it.
	CheckInside bool `toml:"check_inside"`
}
