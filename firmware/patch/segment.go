package patch

import (
	"crypto/sha256"
	"fmt"
	"io"

	"ferrule/firmware/manifest"

	"github.com/klauspost/compress/zstd"
)

// buffers are kept from one segment to the next, so that a part of hundreds of segments does not
// leave hundreds of windows to the collector.
type buffers struct {
	window []byte // what of the old part a segment is made of
	sum    []byte // what the frame of a Sum segment yields
}

// Segment makes segment k of its body, which has Body(k) bytes, and of old, which is nil for a
// full object, and returns it once it has the hash that the manifest names. dst, if it has room,
// is where it is made; manifest.SegmentSize is always enough. Calls for one Plan come one after
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
	if cap(dst) < length {
		dst = make([]byte, 0, length)
	}
	out, err := p.make(kind, length, body, e.Extents, old, dst[:0])
	if err != nil {
		return nil, err
	}
	if len(out) != length || p.digest(kind, out) != p.want.Segments[k] {
		return nil, ErrOutput
	}
	return out, nil
}

// digest is the SHA-256 of a segment. The empty parts of a file system are hashed once.
func (p *Plan) digest(kind Kind, segment []byte) manifest.Digest {
	if kind != Zero || len(segment) != manifest.SegmentSize {
		return sha256.Sum256(segment)
	}
	if p.zeros == (manifest.Digest{}) {
		p.zeros = sha256.Sum256(segment)
	}
	return p.zeros
}

// make makes a segment of length bytes, not yet believed.
func (p *Plan) make(kind Kind, length int, body []byte, extents []Extent, old io.ReaderAt, dst []byte) ([]byte, error) {
	switch kind {
	case Zero:
		clear(dst[:length])
		return dst[:length], nil
	case Raw:
		return append(dst, body...), nil
	case Copy:
		return read(old, extents, dst[:length])
	}
	window, err := p.buffers.load(old, p.want.FromSize, extents)
	if err != nil {
		return nil, err
	}
	if kind == Zstd {
		return inflate(body, window, dst[:0:length])
	}
	if p.buffers.sum == nil {
		p.buffers.sum = make([]byte, 0, manifest.SegmentSize+MapLimit)
	}
	sum, err := inflate(body, window, p.buffers.sum[:0:length+MapLimit])
	if err != nil {
		return nil, err
	}
	return add(dst[:length], sum, window)
}

// load reads the window into its buffer, which is as large as it will ever be from the first: one
// that grew would leave what it was to the collector.
func (b *buffers) load(old io.ReaderAt, size int64, extents []Extent) ([]byte, error) {
	if len(extents) == 0 {
		return nil, nil
	}
	if b.window == nil {
		b.window = make([]byte, min(Window, size))
	}
	total := 0
	for _, e := range extents {
		total += e.Length
	}
	if total > len(b.window) { // the same piece of a small old part more than once
		b.window = make([]byte, Window)
	}
	return read(old, extents, b.window[:total])
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
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
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
