package delta

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/bits"

	"ferrule/firmware/manifest"
)

// Old is an old image and the index of what it holds: one fingerprint for every block of it. The
// larger the image, the larger the blocks, so the index takes 32 MiB at most.
type Old struct {
	image  io.ReaderAt
	size   int64
	sha256 manifest.Digest
	block  int      // bytes that one fingerprint stands for, a power of two
	slots  []uint64 // fingerprint<<32 | number of the block + 1; 0: empty
	shift  uint     // takes a mixed hash to the slot where its search begins
}

const (
	minBlock  = 32
	maxBlocks = 2 << 20
	// probes is how many slots are looked at for one fingerprint. Blocks that repeat many times
	// over are found where they first were.
	probes = 12
)

// Index reads old once. It must not change until every Encode with the index is done.
func Index(ctx context.Context, old io.ReaderAt, size int64) (*Old, error) {
	o := newOld(old, size)
	sum := sha256.New()
	buffer := make([]byte, max(manifest.SegmentSize, o.block))
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := buffer[:min(int64(len(buffer)), size-at)]
		if err := readAt(old, b, at); err != nil {
			return nil, fmt.Errorf("reading the old image: %w", err)
		}
		sum.Write(b)
		o.addBlocks(b, at/int64(o.block))
		at += int64(len(b))
	}
	sum.Sum(o.sha256[:0])
	return o, nil
}

// newOld returns an empty index with room for all blocks of old, twice over.
func newOld(old io.ReaderAt, size int64) *Old {
	o := &Old{image: old, size: size, block: minBlock}
	for size/int64(o.block) >= maxBlocks {
		o.block *= 2
	}
	log := max(bits.Len64(uint64(size/int64(o.block)))+1, 8)
	o.slots, o.shift = make([]uint64, 1<<log), uint(64-log)
	return o
}

// SHA256 is that of the old image.
func (o *Old) SHA256() manifest.Digest { return o.sha256 }

// Size is that of the old image, in bytes.
func (o *Old) Size() int64 { return o.size }

func readAt(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes at %d: %w", len(b), at, err)
}

// addBlocks enters the blocks of b, the first of which is number n. A block of one value says
// nothing about where it is from, and is left out.
func (o *Old) addBlocks(b []byte, n int64) {
	for ; len(b) >= o.block; b, n = b[o.block:], n+1 {
		if !uniform(b[:o.block]) {
			o.add(mix(fingerprint(b[:o.block])), n)
		}
	}
}

func uniform(b []byte) bool {
	for _, v := range b[1:] {
		if v != b[0] {
			return false
		}
	}
	return true
}

func (o *Old) add(h uint64, n int64) {
	tag := h << 32
	for i, at := 0, h>>o.shift; i < probes; i, at = i+1, (at+1)&uint64(len(o.slots)-1) {
		if o.slots[at] == 0 {
			o.slots[at] = tag | uint64(n+1)
			return
		}
	}
}

// find returns where in old the block with hash h is: at want if it is there, else where it is
// nearest to want.
func (o *Old) find(h uint64, want int64) (int64, bool) {
	best, found := int64(0), false
	tag := h << 32
	for i, at := 0, h>>o.shift; i < probes; i, at = i+1, (at+1)&uint64(len(o.slots)-1) {
		slot := o.slots[at]
		if slot == 0 {
			break
		}
		if slot&^(1<<32-1) != tag {
			continue
		}
		where := (int64(uint32(slot)) - 1) * int64(o.block)
		if !found || abs(where-want) < abs(best-want) {
			best, found = where, true
		}
	}
	return best, found
}

func abs(v int64) int64 { return max(v, -v) }

// prime is the base of the rolling hash, a polynomial of the bytes modulo 2^64.
const prime = 0x9E3779B97F4A7C15 | 1

func fingerprint(b []byte) uint64 {
	h := uint64(0)
	for _, v := range b {
		h = h*prime + uint64(v) + 1
	}
	return h
}

// mix makes all bits of a rolling hash depend on all bytes: its low bits depend on theirs alone.
func mix(h uint64) uint64 {
	h ^= h >> 32
	h *= 0xD6E8FEB86659FD93
	h ^= h >> 32
	h *= 0xD6E8FEB86659FD93
	return h ^ h>>32
}

// rolling is the hash of the block bytes of b that begin at at.
type rolling struct {
	b     []byte
	at    int
	block int
	h     uint64
	out   uint64 // what the first byte of a block weighs
}

func roll(b []byte, block int) *rolling {
	r := &rolling{b: b, block: block, out: 1}
	for range block {
		r.out *= prime
	}
	return r
}

// jump goes to position at; false where no block begins there.
func (r *rolling) jump(at int) bool {
	if at+r.block > len(r.b) {
		return false
	}
	r.at, r.h = at, fingerprint(r.b[at:at+r.block])
	return true
}

// next goes on by one byte.
func (r *rolling) next() bool {
	if r.at+r.block >= len(r.b) {
		return false
	}
	r.h = r.h*prime + uint64(r.b[r.at+r.block]) + 1 - (uint64(r.b[r.at])+1)*r.out
	r.at++
	return true
}
