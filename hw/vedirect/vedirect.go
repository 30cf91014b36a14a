// Package vedirect decodes the text blocks of Victron's VE.Direct ports. The trap is the hex message,
// which may stand in the middle of a block and counts for nothing there.
package vedirect

import (
	"errors"

	"ferrule/hw/frame"
	"ferrule/hw/point"
)

// MaxFrame is the size of the longest frame in bytes: a block with the hex messages inside of it.
const MaxFrame = 4096

// Split cuts blocks.
func Split(data []byte, lost bool) frame.Cut { return frame.Cut{Skip: len(data)} }

// Decoder decodes frames that Split cut. The zero Decoder is ready; one goroutine may use it.
type Decoder struct{ names point.Strings }

// Decode appends the readings of one frame to dst.
func (d *Decoder) Decode(dst []point.Reading, f []byte) (name string, readings []point.Reading, err error) {
	return "", dst, errors.New("nothing is decoded yet")
}
