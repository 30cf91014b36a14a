// Package delta makes the smallest patch that turns one image into another. For every segment it
// chooses the windows of the old image that have most in common with it, wherever they lie. The
// trap is memory: what is kept of the old image is an index of fingerprints, never the image.
package delta

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"ferrule/firmware/manifest"
	"ferrule/firmware/patch"
)

// Options of Encode. The zero value is good.
type Options struct {
	// Progress is called with how many bytes of the new image are done, of how many: from one
	// goroutine, in order. May be nil.
	Progress func(done, all int64)
	// Workers is how many segments are made at a time, each of which takes some 120 MB; 0: 2.
	// The object is the same whatever their number.
	Workers int
	// Quick compresses less, in a third of the time.
	Quick bool
	// Dir is where the bodies lie until the table that precedes them is known; "": the system's
	// folder for temporary files. They take as much as the object.
	Dir string
}

// Image is what a manifest says of an image.
type Image struct {
	Size     int64
	SHA256   manifest.Digest
	Segments []manifest.Digest
}

// Stats tells what an object came to be.
type Stats struct {
	Image  Image // the new image
	Size   int64 // of the object, in bytes
	SHA256 manifest.Digest
	Kinds  [5]int // how many segments are Zero, Raw, Copy, Zstd, Sum
}

// Encode writes the object that makes image, which has size bytes, of old, or of nothing where
// old is nil. The same images give the same object. It holds the index of old, and for each
// worker a few segments and the tables of its compressor, whatever the images' sizes.
func Encode(ctx context.Context, w io.Writer, image io.ReaderAt, size int64, old *Old, o Options) (Stats, error) {
	if size <= 0 {
		return Stats{}, errors.New("an image of no bytes makes no update")
	}
	spool, err := os.CreateTemp(o.Dir, "ferrule-object-")
	if err != nil {
		return Stats{}, fmt.Errorf("making a file for the bodies: %w", err)
	}
	defer os.Remove(spool.Name())
	defer spool.Close()
	c := &collector{spool: spool, whole: sha256.New(), options: o, from: old}
	c.stats.Image.Size = size
	if err := segments(ctx, image, size, old, o, c.take); err != nil {
		return Stats{}, err
	}
	if err := c.finish(w); err != nil {
		return Stats{}, err
	}
	return c.stats, nil
}

// collector takes the segments in order.
type collector struct {
	options Options
	from    *Old
	spool   *os.File
	table   []byte
	end     int64 // of the last extent in the table
	done    int64
	whole   hash.Hash
	stats   Stats
}

func (c *collector) take(r result) error {
	c.whole.Write(r.segment)
	c.stats.Image.Segments = append(c.stats.Image.Segments, sha256.Sum256(r.segment))
	c.stats.Kinds[r.entry.Kind]++
	c.table, c.end = patch.AppendEntry(c.table, r.entry, c.end)
	if _, err := c.spool.Write(r.body); err != nil {
		return fmt.Errorf("writing the bodies: %w", err)
	}
	c.done += int64(len(r.segment))
	if c.options.Progress != nil {
		c.options.Progress(c.done, c.stats.Image.Size)
	}
	return nil
}

// finish writes the object.
func (c *collector) finish(w io.Writer) error {
	image := &c.stats.Image
	c.whole.Sum(image.SHA256[:0])
	want := patch.Want{Size: image.Size, SHA256: image.SHA256, Segments: image.Segments}
	if c.from != nil {
		want.From, want.FromSize = c.from.sha256, c.from.size
	}
	header, err := patch.AppendHeader(nil, want, c.table)
	if err != nil {
		return err
	}
	if _, err := c.spool.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("reading the bodies: %w", err)
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	if _, err := out.Write(header); err != nil {
		return fmt.Errorf("writing the object: %w", err)
	}
	n, err := io.Copy(out, c.spool)
	if err != nil {
		return fmt.Errorf("writing the object: %w", err)
	}
	c.stats.Size = int64(len(header)) + n
	sum.Sum(c.stats.SHA256[:0])
	return nil
}

type job struct {
	k      int
	result chan<- result
}

// segments has workers make all segments, and gives them to take in order. No more than two for
// each worker are under way at a time.
func segments(ctx context.Context, image io.ReaderAt, size int64, old *Old, o Options, take func(result) error) error {
	workers := o.Workers
	if workers <= 0 {
		workers = 2
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	jobs := make(chan job)
	order := make(chan chan result, 2*workers)
	n := int((size + manifest.SegmentSize - 1) / manifest.SegmentSize)
	running.Go(func() { // ends with the last job, or with ctx
		defer close(jobs)
		defer close(order)
		for k := range n {
			made := make(chan result, 1)
			select {
			case order <- made:
			case <-ctx.Done():
				return
			}
			select {
			case jobs <- job{k: k, result: made}:
			case <-ctx.Done():
				return
			}
		}
	})
	for range workers {
		running.Go(func() { // ends with jobs
			m := newMaker(image, size, old, n, o)
			for j := range jobs {
				j.result <- m.make(j.k)
			}
		})
	}
	for range n {
		r, err := next(ctx, order)
		if err == nil {
			err = take(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func next(ctx context.Context, order <-chan chan result) (result, error) {
	var made chan result
	select {
	case made = <-order:
	case <-ctx.Done():
		return result{}, ctx.Err()
	}
	if made == nil {
		return result{}, ctx.Err()
	}
	select {
	case r := <-made:
		return r, r.err
	case <-ctx.Done():
		return result{}, ctx.Err()
	}
}
