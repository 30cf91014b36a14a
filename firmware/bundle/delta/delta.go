// Package delta makes the smallest patch that turns one image into another. For every segment it
// chooses the windows of the old image that have most in common with it, wherever they lie. The
// trap is memory: what is kept of the old image is an index of fingerprints, never the image.
package delta

import (
	"context"
	"errors"
	"io"

	"ferrule/firmware/manifest"
)

// Options of Encode. The zero value is good.
type Options struct {
	// Progress is called with how many bytes of the new image are done, of how many: from one
	// goroutine at a time, in order. May be nil.
	Progress func(done, all int64)
	// Workers is how many segments are made at a time, each of which takes some 150 MB; 0: 2.
	Workers int
	// Level of effort: 0 is the best; 1 is for tests, three times as fast.
	Level int
}

// Stats tells what an object came to be.
type Stats struct {
	Size     int64 // of the object, in bytes
	SHA256   manifest.Digest
	Segments map[string]int // how many of which kind: zero, raw, copy, zstd, sum
	Digest   Image          // of the new image: what the manifest needs
}

// Image is what a manifest says of an image.
type Image struct {
	Size     int64
	SHA256   manifest.Digest
	Segments []manifest.Digest
}

// Old is the index of an old image.
type Old struct{}

// Index reads old, which has size bytes, and must not change until every Encode with it is done.
func Index(ctx context.Context, old io.ReaderAt, size int64) (*Old, error) {
	return nil, errors.ErrUnsupported
}

// Encode writes the object that makes new, which has size bytes, of old, or of nothing where old is nil.
func Encode(ctx context.Context, w io.Writer, new io.ReaderAt, size int64, old *Old, o Options) (Stats, error) {
	return Stats{}, errors.ErrUnsupported
}
