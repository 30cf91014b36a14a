package patch

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"ferrule/firmware/manifest"

	"github.com/klauspost/compress/zstd"
)

// window is what of the old part a segment is made of. Its buffer is kept from one segment to the
// next, so that a part of hundreds of segments does not leave hundreds of windows to the collector.
type window struct{ buffer []byte }

// Segment makes segment k of its body, which has Body(k) bytes, and of old, which is nil for a
// full object, and returns it once it has the hash that the manifest names. dst, if it has room,
// is where it is made; Room is always enough. Calls for one Plan come one after
// another. Errors are ErrFormat, ErrOutput and ErrOld.
func (p *Plan) Segment(k int, body []byte, old io.ReaderAt, dst []byte) ([]byte, error) {
	if k < 0 || k >= p.Segments() {
		return nil, fmt.Errorf("making segment %d of %d: there is none", k, p.Segments())
	}
	out, err := p.segment(k, body, old, dst)
	if err != nil {
		return nil, fmt.Errorf("making segment %d of %d: %w", k, p.Segments(), err)
	}
	return out, nil
}

func (p *Plan) segment(k int, body []byte, old io.ReaderAt, dst []byte) ([]byte, error) {
	if len(body) != p.Body(k) {
		return nil, fmt.Errorf("%w: %d bytes where there must be %d", ErrFormat, len(body), p.Body(k))
	}
	var e Entry
	_, kind, err := p.entry(k, &e)
	if err != nil {
		return nil, err
	}
	length := p.Length(k)
	if cap(dst) < length+MapLimit {
		dst = make([]byte, 0, length+MapLimit)
	}
	out, err := p.make(kind, length, body, e.Extents, old, dst[:0])
	if err != nil {
		return nil, err
	}
	if len(out) != length || manifest.Digest(sha256.Sum256(out)) != p.want.Segments[k] {
		return nil, ErrOutput
	}
	return out, nil
}

// make makes a segment of length bytes, not yet believed.
func (p *Plan) make(kind Kind, length int, body []byte, extents []Extent, old io.ReaderAt, dst []byte) ([]byte, error) {
	if kind == Copy {
		return read(old, extents, dst[:length])
	}
	if kind == Raw {
		return append(dst, body...), nil
	}
	if kind == Zero {
		clear(dst[:length])
		return dst[:length], nil
	}
	window, err := p.old.load(old, extents)
	if err != nil {
		return nil, err
	}
	if kind == Zstd {
		return inflate(body, window, dst[:0:length])
	}
	out, err := inflate(body, window, dst[:0:length+MapLimit])
	if err != nil {
		return nil, err
	}
	return add(out, length, window)
}

// load reads the window into its buffer.
func (w *window) load(old io.ReaderAt, extents []Extent) ([]byte, error) {
	total := 0
	for _, e := range extents {
		total += e.Length
	}
	if cap(w.buffer) < total {
		w.buffer = nil // before the next one is made: two windows at once are too much
		w.buffer = make([]byte, min(Window, max(total, 2*manifest.SegmentSize)))
	}
	return read(old, extents, w.buffer[:total])
}

// read fills b with the extents of old, one after another.
func read(old io.ReaderAt, extents []Extent, b []byte) ([]byte, error) {
	if len(extents) > 0 && old == nil {
		return nil, fmt.Errorf("%w: there is none", ErrOld)
	}
	at := 0
	for _, e := range extents {
		n, err := old.ReadAt(b[at:at+e.Length], e.Offset)
		if n < e.Length {
			return nil, fmt.Errorf("%w: %d bytes at %d: %w", ErrOld, e.Length, e.Offset, err)
		}
		at += e.Length
	}
	return b, nil
}

// inflate decompresses into dst's capacity and no further. The decoder is a fresh one for every
// segment: one that is used again could keep, or lose, the dictionary of the segment before.
func inflate(body, window, dst []byte) ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(2*Window), zstd.WithDecoderMaxWindow(2*Window),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderDictRaw(0, window))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	out, err := d.DecodeAll(body, dst)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return out, nil
}

// add takes the map from the front of b, which precedes length bytes of data, adds to them what
// of the window it names, and returns them.
//
// The map is a count and as many runs of three numbers: how many bytes after the end of the run
// before it begins, its length, and how much further on in the window it begins than the run
// before, so continued, would lie. Machine code that has moved differs from what it was in a few
// bytes of every address, so the sum's other term is nearly all zeros.
func add(b []byte, length int, window []byte) ([]byte, error) {
	wrong := errors.New("its map is wrong")
	if len(b) < length {
		return nil, fmt.Errorf("%w: %w", ErrFormat, wrong)
	}
	in, data := numbers{b: b[:len(b)-length]}, b[len(b)-length:]
	runs := in.next()
	to, from := 0, 0
	for ; runs > 0; runs-- {
		skip, n, jump := in.next(), in.next(), in.signed()
		if in.bad || skip > uint64(length-to) || jump > Window || jump < -Window {
			return nil, fmt.Errorf("%w: %w", ErrFormat, wrong)
		}
		to += int(skip)
		from += int(skip) + int(jump)
		if from < 0 || from > len(window) || n > uint64(length-to) || n > uint64(len(window)-from) {
			return nil, fmt.Errorf("%w: %w", ErrFormat, wrong)
		}
		sum(data[to:to+int(n)], window[from:])
		to, from = to+int(n), from+int(n)
	}
	if len(in.b) != 0 || in.bad {
		return nil, fmt.Errorf("%w: %w", ErrFormat, wrong)
	}
	return data, nil
}

func sum(a, b []byte) {
	b = b[:len(a)]
	for i := range a {
		a[i] += b[i]
	}
}
