package encode

import (
	"sync"

	"github.com/klauspost/compress/zstd"

	"ferrule/agent/encode/sparkplug"
)

// The kinds of entries, by their first byte. One of JSON is as it is sent; the others have the byte
// before them, so that Join knows what an entry is that was stored under another configuration.
const (
	kindJSON      = '{'
	kindCBOR      = 1
	kindSenMLJSON = 2
	kindSenMLCBOR = 3
	kindSparkplug = 4
)

func kindOf(entry []byte) byte {
	if len(entry) == 0 {
		return 0
	}
	return entry[0]
}

// Join appends entries of one topic, in their order, to dst as one message: joined, marked, and
// compressed where that makes it smaller. It gives nothing (dst as it was) where they cannot be one
// message now: because births must go first; because the message would be larger than
// Config.Batch.MaxBytes; or because they are of two formats, after a change of the configuration.
// Then publish what Births(false) returns and join again; if that gives nothing too, halve the
// entries. One entry alone gives a message once its births are out, however large.
//
// Messages must be published in the order in which they were joined, and all that was not
// acknowledged joined again on the next connection: Sparkplug's sequence numbers say so.
func (e *Encoder) Join(dst []byte, topic string, entries [][]byte) []byte {
	if len(entries) == 0 {
		return dst
	}
	kind := kindOf(entries[0])
	for _, entry := range entries[1:] {
		if kindOf(entry) != kind {
			return dst
		}
	}
	most := int(e.config.Batch.MaxBytes.Bytes())
	if most == 0 {
		most = mostBytes // the zero Encoder
	}
	switch {
	case kind == kindSparkplug && e.node != nil:
		return e.node.Join(dst, topic, entries, most)
	case e.compressor != nil && kind != kindSparkplug:
		return e.compressor.join(dst, kind, entries, most)
	}
	return join(dst, kind, entries, most)
}

// join is Join without compression.
func join(dst []byte, kind byte, entries [][]byte, most int) []byte {
	start := len(dst)
	switch kind {
	case kindJSON:
		dst = joinJSON(dst, entries)
	case kindCBOR:
		dst = appendHead(dst, cborTag, tagSelf)
		if len(entries) > 1 {
			dst = appendHead(dst, cborArray, uint64(len(entries)))
		}
		for _, entry := range entries {
			dst = append(dst, entry[1:]...)
		}
	case kindSenMLJSON, kindSenMLCBOR:
		dst = joinSenML(dst, kind, entries)
	case kindSparkplug:
		dst = sparkplug.Orphan(dst, entries)
	default: // nobody knows what it is; its topic may
		if len(entries) > 1 {
			return dst
		}
		dst = append(dst, entries[0]...)
	}
	if len(entries) > 1 && len(dst)-start > most {
		return dst[:start]
	}
	return dst
}

func joinJSON(dst []byte, entries [][]byte) []byte {
	if len(entries) == 1 {
		return append(dst, entries[0]...)
	}
	dst = append(dst, '[')
	for i, entry := range entries {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, entry...)
	}
	return append(dst, ']')
}

// compressor compresses messages, each by itself: a lost one costs no other. Its memory is below
// 0.5 MiB; the next level needs 1.3 MiB, and makes batches of readings no smaller.
type compressor struct {
	mu    sync.Mutex
	zstd  *zstd.Encoder
	plain []byte
}

func newCompressor() (*compressor, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	return &compressor{zstd: z}, nil
}

// zstdWindow is how far back repetitions are looked for, and so what a decoder must hold at least.
const zstdWindow = 64 << 10

// join is join, compressed where that is shorter.
func (c *compressor) join(dst []byte, kind byte, entries [][]byte, most int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plain = join(c.plain[:0], kind, entries, most)
	start := len(dst)
	if len(c.plain) > 0 {
		dst = c.zstd.EncodeAll(c.plain, dst)
	}
	if len(dst)-start >= len(c.plain) {
		dst = append(dst[:start], c.plain...)
	}
	if cap(c.plain) > mostBytes+mostBytes/4 {
		c.plain = nil // a single entry was larger than any message
	}
	return dst
}
