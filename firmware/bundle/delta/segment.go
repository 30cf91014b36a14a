package delta

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"ferrule/firmware/manifest"
	"ferrule/firmware/patch"

	"github.com/klauspost/compress/zstd"
)

// result is one segment of the new image, and how it is made.
type result struct {
	segment []byte
	entry   patch.Entry
	body    []byte
	err     error
}

// maker makes one segment after another.
type maker struct {
	image   io.ReaderAt
	size    int64
	old     *Old
	extents int // how many a segment may have, so that the table of so many segments is not too long
	level   zstd.EncoderLevel
	encoder *zstd.Encoder
	window  []byte
	aligner aligner
	sum     []byte
}

func newMaker(image io.ReaderAt, size int64, old *Old, segments int, o Options) *maker {
	m := &maker{image: image, size: size, old: old, level: zstd.SpeedBestCompression}
	if o.Quick {
		m.level = zstd.SpeedDefault
	}
	// An entry takes at most 6 bytes, and 10 for each extent.
	m.extents = max(1, min(patch.MaxExtents, (patch.TableLimit/segments-6)/10))
	return m
}

func (m *maker) make(k int) result {
	at := int64(k) * manifest.SegmentSize
	segment := make([]byte, min(manifest.SegmentSize, m.size-at))
	if err := readAt(m.image, segment, at); err != nil {
		return result{err: fmt.Errorf("reading the new image: %w", err)}
	}
	r := result{segment: segment}
	if segment[0] == 0 && uniform(segment) {
		r.entry.Kind = patch.Zero
		return r
	}
	if m.old == nil || m.old.size == 0 {
		r.err = m.full(&r)
	} else {
		r.err = m.delta(&r, at)
	}
	if r.err == nil && r.entry.Kind != patch.Copy && len(r.body) >= len(segment) {
		r.entry, r.body = patch.Entry{Kind: patch.Raw}, segment
	}
	r.entry.Body = len(r.body)
	return r
}

// full makes r of nothing.
func (m *maker) full(r *result) error {
	r.entry.Kind = patch.Zstd
	err := m.dictionary()
	if err == nil {
		r.body, err = m.deflate(r.segment)
	}
	return err
}

// delta makes r of the old image: in the smallest way that it knows. A device reads every byte of
// a window, so a wide one must be worth it.
func (m *maker) delta(r *result, at int64) error {
	found := m.old.matches(r.segment, at)
	if copied, err := m.copied(r, found); copied || err != nil {
		return err
	}
	tight := m.old.choose(found, at, m.extents, tightWindow)
	if err := m.from(r, tight); err != nil {
		return err
	}
	new := len(r.segment)
	for _, s := range found {
		new -= int(s.weight)
	}
	if m.level != zstd.SpeedBestCompression || len(r.body) < 256 || len(r.body) > new-new/16 {
		return nil // small enough, or what is new in it is noise, of which no window knows anything
	}
	wide := m.old.choose(found, at, m.extents, patch.Window)
	if slices.Equal(tight, wide) {
		return nil
	}
	other := result{segment: r.segment}
	if err := m.from(&other, wide); err != nil {
		return err
	}
	if len(other.body) < len(r.body)-len(r.body)/100 {
		*r = other
	}
	return nil
}

// tightWindow is how wide a window is made where what was found is not wider by itself.
const tightWindow = 3 * manifest.SegmentSize / 2

// from makes r of extents, as a dictionary or as a sum.
func (m *maker) from(r *result, extents []patch.Extent) error {
	if err := m.load(extents); err != nil {
		return err
	}
	if err := m.dictionary(); err != nil {
		return err
	}
	body, err := m.deflate(r.segment)
	if err != nil {
		return err
	}
	r.entry, r.body = patch.Entry{Kind: patch.Zstd, Extents: extents}, body
	m.aligner.index(m.window)
	m.sum = subtract(m.sum, r.segment, m.window, m.aligner.align(r.segment))
	if len(m.sum)-len(r.segment) > patch.MapLimit {
		return nil
	}
	body, err = m.deflate(m.sum)
	if err == nil && len(body) < len(r.body)-len(r.body)/200 { // a sum is more work for a device
		r.entry.Kind, r.body = patch.Sum, body
	}
	return err
}

// copied makes r a copy where it lies in the old image as it is.
func (m *maker) copied(r *result, found []span) (bool, error) {
	if len(found) == 0 {
		return false, nil
	}
	start, length := found[0].start-found[0].to, len(r.segment)
	if start < 0 || start+int64(length) > m.old.size {
		return false, nil
	}
	extents := []patch.Extent{{Offset: start, Length: length}}
	if err := m.load(extents); err != nil || !bytes.Equal(m.window, r.segment) {
		return false, err
	}
	r.entry = patch.Entry{Kind: patch.Copy, Extents: extents}
	return true, nil
}

// load reads the window.
func (m *maker) load(extents []patch.Extent) error {
	if m.window == nil {
		m.window = make([]byte, 0, patch.Window)
	}
	m.window = m.window[:0]
	for _, e := range extents {
		start := len(m.window)
		m.window = m.window[:start+e.Length]
		if err := readAt(m.old.image, m.window[start:], e.Offset); err != nil {
			return fmt.Errorf("reading the old image: %w", err)
		}
	}
	return nil
}

// dictionary makes the window that of the next calls of deflate. That the compressor was used
// before makes no difference to what it makes.
func (m *maker) dictionary() error {
	if m.encoder != nil {
		return m.encoder.ResetWithOptions(nil, zstd.WithEncoderDictRaw(0, m.window))
	}
	options := []zstd.EOption{zstd.WithEncoderLevel(m.level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(2 * patch.Window), zstd.WithLowerEncoderMem(true), zstd.WithAllLitEntropyCompression(true)}
	if len(m.window) > 0 {
		options = append(options, zstd.WithEncoderDictRaw(0, m.window))
	}
	var err error
	m.encoder, err = zstd.NewWriter(nil, options...)
	return err
}

// deflate compresses b. It writes a stream, since EncodeAll would load the dictionary, which is
// most of the work, once more.
func (m *maker) deflate(b []byte) ([]byte, error) {
	var body bytes.Buffer
	m.encoder.ResetContentSize(&body, int64(len(b)))
	if _, err := m.encoder.Write(b); err != nil {
		return nil, err
	}
	err := m.encoder.Close()
	return body.Bytes(), err
}
