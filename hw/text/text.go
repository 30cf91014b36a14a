// Package text turns lines of text into readings: scales, barcode readers, Arduinos, modems. The
// trap is the text that looks like a number: "0012" on a label is not 12, and "1,5" is 1.5 only
// where somebody said so; what is not a number for certain stays text.
package text

import (
	"errors"

	"ferrule/hw/frame"
	"ferrule/hw/point"
)

// ErrNoMatch says that a line has none of the forms that were configured. Decoder.Refused has it.
var ErrNoMatch = errors.New("the line has none of the configured forms")

// Default returns the Config of a table that says nothing.
func Default() Config { return Config{} }

// Validate finds all mistakes in c at once; each error names its key.
func (c Config) Validate() error { return nil }

// New returns what cuts and decodes the lines that c describes, or what is wrong with c.
func New(c Config) (*frame.Cutter, *Decoder, error) { return nil, nil, errors.New("not built yet") }

// Decoder makes readings of lines. One goroutine may use it.
type Decoder struct{}

// Decode appends the readings of one line to dst.
func (d *Decoder) Decode(dst []point.Reading, line []byte) (name string, readings []point.Reading, err error) {
	return "", dst, ErrNoMatch
}
