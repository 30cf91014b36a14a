package patch

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// AppendEntry appends the entry of a segment to a table: for those who write objects. The last
// extent before it ended at end; the last one of e ends at what is returned.
func AppendEntry(table []byte, e Entry, end int64) ([]byte, int64) {
	table = binary.AppendUvarint(table, uint64(e.Kind))
	if e.Kind == Zstd || e.Kind == Sum {
		table = binary.AppendUvarint(table, uint64(e.Body))
	}
	if e.Kind == Zero || e.Kind == Raw {
		return table, end
	}
	table = binary.AppendUvarint(table, uint64(len(e.Extents)))
	for _, x := range e.Extents {
		table = binary.AppendVarint(table, x.Offset-end)
		table = binary.AppendUvarint(table, uint64(x.Length))
		end = x.Offset + int64(x.Length)
	}
	return table, end
}

// AppendHeader appends what precedes the first body of the object that want describes.
func AppendHeader(b []byte, want Want, table []byte) ([]byte, error) {
	if len(table) > TableLimit {
		return nil, fmt.Errorf("a table of %d bytes is longer than the %d that a device reads", len(table), TableLimit)
	}
	start := len(b)
	b = append(b, Magic...)
	b = binary.LittleEndian.AppendUint32(b, Version)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(table)))
	b = binary.LittleEndian.AppendUint64(b, uint64(want.Size))
	b = binary.LittleEndian.AppendUint64(b, uint64(want.FromSize))
	b = append(b, want.SHA256[:]...)
	b = append(b, want.From[:]...)
	b = append(b, table...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli())), nil
}
