// Package record is the one format of Ferrule's append-only files: length, checksums, payload.
// A log is read in whatever state it was left, so the reader finds the next sound record after
// damage. The trap is inventing one: bytes that look like a record may come from a block of an
// older file, or from inside a payload, so every checksum is seeded with the log's own number.
package record

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// HeaderSize is what a record costs beside its payload, in bytes: payload length, CRC32C of the
// payload, CRC32C of seed and the eight bytes before; each a little-endian uint32.
const HeaderSize = 12

// chunk is how much the Reader asks for at a time, in bytes.
const chunk = 64 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seed separates the records of one log from those of all others.
type Seed uint32

// NewSeed makes a seed of a log's number.
func NewSeed(number uint64) Seed {
	return Seed(crc32.Checksum(binary.LittleEndian.AppendUint64(nil, number), castagnoli))
}

// Begin reserves room for a header at the end of dst. The caller appends the payload and calls Seal.
func Begin(dst []byte) []byte {
	return append(dst, make([]byte, HeaderSize)...)
}

// Seal fills in the header of the record that starts at dst[start] and ends with dst.
func (s Seed) Seal(dst []byte, start int) {
	h, payload := dst[start:start+HeaderSize], dst[start+HeaderSize:]
	binary.LittleEndian.PutUint32(h[0:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(h[4:], crc32.Checksum(payload, castagnoli))
	binary.LittleEndian.PutUint32(h[8:], s.header(h))
}

// Append adds one record to dst. An empty payload is not a record: zeros would look like one.
func (s Seed) Append(dst, payload []byte) []byte {
	start := len(dst)
	dst = append(Begin(dst), payload...)
	s.Seal(dst, start)
	return dst
}

func (s Seed) header(h []byte) uint32 { return crc32.Update(uint32(s), castagnoli, h[:8]) }

// size returns the whole length of the record whose header h begins with, or 0.
func (s Seed) size(h []byte, limit int64) int64 {
	n := int64(binary.LittleEndian.Uint32(h))
	if n == 0 || n > limit || binary.LittleEndian.Uint32(h[8:]) != s.header(h) {
		return 0
	}
	return HeaderSize + n
}

// Record is what Next found.
type Record struct {
	Offset  int64  // of the header, in the file
	Payload []byte // never changed afterwards; it shares its array with its neighbours
	Damaged int64  // bytes before Offset that are no record
}

// End is the offset after the record.
func (r Record) End() int64 { return r.Offset + HeaderSize + int64(len(r.Payload)) }

// Reader reads the records of one log in order. Its memory is one chunk, or one record.
type Reader struct {
	src      io.ReaderAt
	seed     Seed
	off, end int64 // where the next record should start, where the log ends
	limit    int64 // longest payload
	buf      []byte
	bufOff   int64
}

// NewReader reads src from off to end; limit is the longest payload that can be, in bytes.
func NewReader(src io.ReaderAt, off, end int64, seed Seed, limit int64) *Reader {
	return &Reader{src: src, seed: seed, off: off, end: end, limit: limit}
}

// Offset is where the next record is looked for.
func (r *Reader) Offset() int64 { return r.off }

// Extend moves the end of the log, which has grown.
func (r *Reader) Extend(end int64) { r.end = end }

// Next returns the next sound record. At the end the error is io.EOF, and Damaged tells how many
// bytes before it were no record. After any other error the same Next may be tried again.
func (r *Reader) Next() (Record, error) {
	start := r.off
	at := start
	for {
		if r.end-at < HeaderSize {
			r.off = r.end
			return Record{Offset: r.end, Damaged: r.end - start}, io.EOF
		}
		b, err := r.window(at, HeaderSize)
		if err != nil {
			return Record{}, err
		}
		size := r.seed.size(b, r.limit)
		if size == 0 || at+size > r.end {
			at += r.skip(b)
			continue
		}
		if b, err = r.window(at, size); err != nil {
			return Record{}, err
		}
		payload := b[HeaderSize:size:size]
		if binary.LittleEndian.Uint32(b[4:]) != crc32.Checksum(payload, castagnoli) {
			at += size // the header vouches for the length: only this one record is lost
			continue
		}
		r.off = at + size
		return Record{Offset: at, Payload: payload, Damaged: at - start}, nil
	}
}

// skip returns how far the next possible header in b is from its start, at least 1. A full
// chunk of damage costs one call.
func (r *Reader) skip(b []byte) int64 {
	for i := 1; i+HeaderSize <= len(b); i++ {
		if r.seed.size(b[i:], r.limit) != 0 {
			return int64(i)
		}
	}
	return int64(max(1, len(b)-HeaderSize+1))
}

// window returns what is buffered from off on, at least n bytes. Payloads handed out point into
// the old buffer, so more bytes need a new one.
func (r *Reader) window(off, n int64) ([]byte, error) {
	if have := r.bufOff + int64(len(r.buf)) - off; off >= r.bufOff && have >= n {
		return r.buf[off-r.bufOff:], nil
	}
	buf := make([]byte, min(max(n, chunk), r.end-off))
	got, err := r.src.ReadAt(buf, off)
	if int64(got) < n {
		if err == nil || errors.Is(err, io.EOF) {
			// Shorter than its size says: cut off. What is missing reads as zeros, which are no record.
			clear(buf[got:])
			got = len(buf)
		} else {
			return nil, err
		}
	}
	r.buf, r.bufOff = buf[:got], off
	return r.buf, nil
}
