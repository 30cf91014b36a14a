// Package patch makes a part out of an object of the repository and, where it is a delta, of an
// old part. It works segment by segment (docs/bundle-format.md), each of which can be made and
// checked without the others, so memory is bounded whatever the part's size and an interrupted
// download goes on at the segment it had come to. The trap: the object is hostile until its
// output has the hash that the manifest names, so nothing it says sizes a buffer.
package patch

import (
	"errors"
	"hash/crc32"

	"ferrule/firmware/manifest"
)

// Bounds of the format, which encoder and decoder share.
const (
	// Magic begins every object, and Version follows it.
	Magic   = "FRLpatch"
	Version = 1
	// FixedSize is how many bytes precede the table of segments, and SumSize follow it.
	FixedSize = 96
	SumSize   = crc32.Size
	// TableLimit is the most bytes that the table of segments takes.
	TableLimit = 1 << 20
	// Window is the most bytes of the old part that one segment is made of.
	Window = 4 << 20
	// MaxExtents is the most pieces of the old part that a Window is put together of.
	MaxExtents = 64
	// BodyLimit is the most bytes that a segment takes in the object.
	BodyLimit = manifest.SegmentSize + 64<<10
	// MapLimit is the most bytes of the map that precedes the differences of a Sum segment.
	MapLimit = 128 << 10
)

// Kind is how a segment is made.
type Kind byte

// The kinds of segments.
const (
	Zero Kind = iota // of nothing: it is all zeros
	Raw              // of the body, as it is
	Copy             // of the window, as it is
	Zstd             // of a zstd frame (RFC 8878) that has the window as its raw dictionary
	Sum              // of such a frame, which yields a map and differences from the window
	kinds
)

// Extent is a piece of the old part.
type Extent struct {
	Offset int64
	Length int
}

// Entry is one segment in the table.
type Entry struct {
	Kind    Kind
	Body    int      // bytes in the object
	Extents []Extent // put together they are the window; nil for Zero and Raw
}

// Errors that say what is to be done next.
var (
	// ErrFormat: the object is not one that makes this part of this old part. Another copy of it
	// may be sound; this one never will be. Of a segment it can also mean what ErrOutput means.
	ErrFormat = errors.New("the object is damaged")
	// ErrOutput: a segment came out different from what the manifest names. Either its body was
	// damaged on the way, or the old part is not what it was: get it once more, then the full object.
	ErrOutput = errors.New("the segment is not what the manifest names")
	// ErrOld: the old part could not be read. The full object needs none.
	ErrOld = errors.New("reading the old part")
)

// Want is what a manifest says of a part, and of the object that is to make it.
type Want struct {
	Size     int64
	SHA256   manifest.Digest
	Segments []manifest.Digest
	Object   int64           // the object's length
	From     manifest.Digest // of the old part; zero for a full object
	FromSize int64           // 0 for a full object
}

// OfFull is what the full object of p must be.
func OfFull(p *manifest.Part) Want {
	return Want{Size: p.Size, SHA256: p.SHA256, Segments: p.Segments, Object: p.Full.Size}
}

// OfDelta is what the object of d, one of p's deltas, must be.
func OfDelta(p *manifest.Part, d *manifest.Delta) Want {
	return Want{Size: p.Size, SHA256: p.SHA256, Segments: p.Segments, Object: d.Object.Size, From: d.From, FromSize: d.FromSize}
}
