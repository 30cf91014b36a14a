// Package nmea decodes NMEA 0183 sentences, and passes AIS and UBX through whole. The trap is the
// sentence nobody wrote a parser for: every sentence with a right checksum is delivered, a known
// one as named points, any other as its fields f1, f2, … in text.
package nmea

import (
	"errors"

	"ferrule/hw/frame"
	"ferrule/hw/point"
)

// MaxFrame is the size of the longest frame in bytes: a UBX message with 8184 bytes of payload.
const MaxFrame = 8192

// Split cuts sentences, TAG blocks and UBX messages.
func Split(data []byte, lost bool) frame.Cut { return frame.Cut{Skip: len(data)} }

// Decoder decodes frames that Split cut. The zero Decoder is ready; one goroutine may use it.
type Decoder struct{ names point.Strings }

// Decode appends the readings of one frame to dst.
func (d *Decoder) Decode(dst []point.Reading, f []byte) (name string, readings []point.Reading, err error) {
	return "", dst, errors.New("nothing is decoded yet")
}
