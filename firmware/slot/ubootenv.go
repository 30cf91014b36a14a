package slot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path"
	"slices"
	"strconv"
	"strings"
)

// variables is an environment: NAME=VALUE, in the order in which they were found. What is no
// such thing is kept as it is.
type variables []string

// get returns the last value of a name: where one comes twice, U-Boot keeps the later.
func (v variables) get(name string) string {
	for _, entry := range slices.Backward(v) {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

// with returns v with one value for a name, where it stood first; "" removes it.
func (v variables) with(name, value string) variables {
	out := make(variables, 0, len(v)+1)
	placed := value == ""
	for _, entry := range v {
		if !strings.HasPrefix(entry, name+"=") {
			out = append(out, entry)
		} else if !placed {
			placed = true
			out = append(out, name+"="+value)
		}
	}
	if !placed {
		out = append(out, name+"="+value)
	}
	return out
}

// layout is how one copy lies: the CRC-32 of the data, little-endian, the byte of flags that a
// redundant environment of U-Boot's own has, and the data (env_t in include/env_internal.h).
type layout struct {
	size  int // of the copy, in bytes
	flags bool
}

func (l layout) header() int {
	if l.flags {
		return 5
	}
	return 4
}

var (
	errChecksum = errors.New("its checksum is wrong")
	errFull     = errors.New("it is full")
)

// decode reads one copy.
func (l layout) decode(raw []byte) (v variables, flags byte, err error) {
	if len(raw) != l.size {
		return nil, 0, fmt.Errorf("it has %d bytes instead of %d", len(raw), l.size)
	}
	data := raw[l.header():]
	if binary.LittleEndian.Uint32(raw) != crc32.ChecksumIEEE(data) {
		return nil, 0, errChecksum
	}
	for len(data) > 0 && data[0] != 0 {
		entry, rest, _ := bytes.Cut(data, []byte{0})
		v, data = append(v, string(entry)), rest
	}
	return v, raw[4], nil
}

// encode is the inverse of decode.
func (l layout) encode(v variables, flags byte) ([]byte, error) {
	raw := make([]byte, l.header(), l.size)
	if l.flags {
		raw[4] = flags
	}
	for _, entry := range v {
		raw = append(append(raw, entry...), 0)
	}
	if len(raw) >= l.size { // one more zero ends the list
		return nil, fmt.Errorf("%w: %d bytes do not fit into %d", errFull, len(raw)+1, l.size)
	}
	raw = raw[:l.size]
	binary.LittleEndian.PutUint32(raw, crc32.ChecksumIEEE(raw[l.header():]))
	return raw, nil
}

// place is where one copy lies.
type place struct {
	path   string
	offset int64
	size   int
}

const (
	minCopy = 64
	maxCopy = 1 << 20
)

// parseConfig reads fw_env.config as U-Boot's tools do (sscanf "%ms %lli %lx"): device, offset, size of the environment, which
// is hexadecimal with or without 0x, and what flash needs, which is ignored; # begins a comment. One
// line is one copy, two are two.
func parseConfig(text string) ([]place, error) {
	var places []place
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) < 3 || !path.IsAbs(words[0]) {
			return nil, fmt.Errorf("line %d: want an absolute path, an offset and a size", n+1)
		}
		offset, err := strconv.ParseInt(words[1], 0, 64)
		if err != nil || offset < 0 || offset > 1<<50 {
			return nil, fmt.Errorf("line %d: offset %q is not a number from 0 on", n+1, words[1])
		}
		size, err := strconv.ParseInt(strings.TrimPrefix(strings.ToLower(words[2]), "0x"), 16, 64)
		if err != nil || size < minCopy || size > maxCopy {
			return nil, fmt.Errorf("line %d: size %q is not a hexadecimal number from %#x to %#x", n+1, words[2], minCopy, maxCopy)
		}
		places = append(places, place{words[0], offset, int(size)})
	}
	switch len(places) {
	case 1:
	case 2:
		a, b := places[0], places[1]
		if a.size != b.size {
			return nil, errors.New("the two copies differ in size")
		}
		if path.Clean(a.path) == path.Clean(b.path) && a.offset < b.offset+int64(b.size) && b.offset < a.offset+int64(a.size) {
			return nil, errors.New("the two copies overlap")
		}
	default:
		return nil, fmt.Errorf("%d copies are described; there are 1 or 2", len(places))
	}
	return places, nil
}
