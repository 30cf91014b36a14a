package patch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"ferrule/firmware/manifest"
)

// HeaderLimit is the most bytes that precede the first body.
const HeaderLimit = FixedSize + TableLimit + SumSize

// Plan is the table of segments of one object that may make the part that is wanted. It takes the
// table, at most TableLimit, and 24 bytes for each segment.
type Plan struct {
	want    Want
	table   []byte
	marks   []mark
	buffers buffers
	zeros   manifest.Digest // of a segment of zeros, once there was one
}

// mark is where a segment begins. There is one more than there are segments.
type mark struct {
	body  int64 // in the object
	entry int   // in the table
	old   int64 // where the extent before it ended: offsets in the table count from there
}

// ReadHeader reads an object from its first byte to the first byte of its first body, and no
// further, and checks that its table makes what want says and accounts for every byte of the
// object. Errors are ErrFormat, or r's own.
func ReadHeader(r io.Reader, want Want) (*Plan, error) {
	if err := want.check(); err != nil {
		return nil, err
	}
	var fixed [FixedSize]byte
	if err := readFull(r, fixed[:]); err != nil {
		return nil, err
	}
	length, err := checkFixed(fixed[:], want)
	if err != nil {
		return nil, err
	}
	rest := make([]byte, length+SumSize)
	if err := readFull(r, rest); err != nil {
		return nil, err
	}
	table, sum := rest[:length], rest[length:]
	if crc32.Update(crc32.Checksum(fixed[:], castagnoli()), castagnoli(), table) != binary.LittleEndian.Uint32(sum) {
		return nil, fmt.Errorf("%w: the checksum of its table is wrong", ErrFormat)
	}
	p := &Plan{want: want, table: table}
	if err := p.survey(); err != nil {
		return nil, err
	}
	return p, nil
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// readFull tells an object that ends too early from a reader that failed.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it ends within its header", ErrFormat)
	default:
		return fmt.Errorf("reading the object's header: %w", err)
	}
}

// check refuses what a checked manifest cannot say, so that nothing below needs to ask.
func (w *Want) check() error {
	segments := (w.Size + manifest.SegmentSize - 1) / manifest.SegmentSize
	if w.Size <= 0 || w.FromSize < 0 || segments != int64(len(w.Segments)) {
		return fmt.Errorf("a part of %d bytes made of one of %d has no %d segments", w.Size, w.FromSize, len(w.Segments))
	}
	return nil
}

// checkFixed checks what precedes the table, and returns the table's length.
func checkFixed(b []byte, want Want) (int, error) {
	le := binary.LittleEndian
	if string(b[:8]) != Magic {
		return 0, fmt.Errorf("%w: it does not begin with %s", ErrFormat, Magic)
	}
	if version := le.Uint32(b[8:]); version != Version {
		return 0, fmt.Errorf("%w: its format is number %d, and only %d is known here", ErrFormat, version, Version)
	}
	length := le.Uint32(b[12:])
	switch {
	case length > TableLimit:
		return 0, fmt.Errorf("%w: a table of %d bytes is too long", ErrFormat, length)
	case le.Uint64(b[16:]) != uint64(want.Size) || manifest.Digest(b[32:64]) != want.SHA256:
		return 0, fmt.Errorf("%w: it makes another part than the manifest names", ErrFormat)
	case le.Uint64(b[24:]) != uint64(want.FromSize) || manifest.Digest(b[64:96]) != want.From:
		return 0, fmt.Errorf("%w: it needs another old part than the manifest names", ErrFormat)
	}
	return int(length), nil
}

// survey reads the whole table once, and notes where each segment begins.
func (p *Plan) survey() error {
	n := len(p.want.Segments)
	p.marks = make([]mark, n+1)
	at := mark{body: int64(FixedSize + len(p.table) + SumSize)}
	for k := range n {
		p.marks[k] = at
		var err error
		if at, _, err = p.entry(k, nil); err != nil {
			return fmt.Errorf("%w: segment %d: %w", ErrFormat, k, err)
		}
	}
	p.marks[n] = at
	if at.entry != len(p.table) {
		return fmt.Errorf("%w: its table has %d bytes too many", ErrFormat, len(p.table)-at.entry)
	}
	if at.body != p.want.Object {
		return fmt.Errorf("%w: its table is that of an object of %d bytes, and this one has %d", ErrFormat, at.body, p.want.Object)
	}
	return nil
}

// entry reads the k-th entry, checks it, and returns where the next begins. The extents are
// appended to e's where e is not nil.
func (p *Plan) entry(k int, e *Entry) (mark, Kind, error) {
	at := p.marks[k]
	in := numbers{b: p.table[at.entry:]}
	kind := Kind(in.next())
	if in.bad || kind >= kinds {
		return at, 0, errors.New("its kind is unknown")
	}
	length := p.Length(k)
	body, count := uint64(0), uint64(0)
	switch kind {
	case Raw:
		body = uint64(length)
	case Zstd, Sum:
		body = in.next()
		count = in.next()
		if body == 0 || body > BodyLimit {
			return at, 0, fmt.Errorf("a body of %d bytes", body)
		}
	case Copy:
		count = in.next()
	}
	if count > MaxExtents {
		return at, 0, fmt.Errorf("made of %d pieces of the old part", count)
	}
	total, end := 0, at.old
	for range count {
		start, n := end+in.signed(), in.next()
		if in.bad || start < 0 || start > p.want.FromSize || n == 0 || n > uint64(Window-total) || int64(n) > p.want.FromSize-start {
			return at, 0, errors.New("made of what the old part does not have")
		}
		total, end = total+int(n), start+int64(n)
		if e != nil {
			e.Extents = append(e.Extents, Extent{Offset: start, Length: int(n)})
		}
	}
	if in.bad {
		return at, 0, errors.New("the table ends within it")
	}
	if kind == Copy && total != length {
		return at, 0, fmt.Errorf("made of %d bytes of the old part", total)
	}
	return mark{body: at.body + int64(body), entry: len(p.table) - len(in.b), old: end}, kind, nil
}

// numbers reads the variable-length integers of encoding/binary, and goes bad at the first that
// is cut short or too large.
type numbers struct {
	b   []byte
	bad bool
}

func (n *numbers) next() uint64 {
	v, used := binary.Uvarint(n.b)
	if used <= 0 || n.bad {
		n.bad = true
		return 0
	}
	n.b = n.b[used:]
	return v
}

func (n *numbers) signed() int64 {
	v := n.next()
	return int64(v>>1) ^ -int64(v&1)
}

// Segments is how many there are.
func (p *Plan) Segments() int { return len(p.want.Segments) }

// Offset is where the body of segment k begins in the object; that of Segments() is the object's
// length.
func (p *Plan) Offset(k int) int64 { return p.marks[k].body }

// Body is how many bytes of the object segment k takes: 0 to BodyLimit.
func (p *Plan) Body(k int) int { return int(p.marks[k+1].body - p.marks[k].body) }

// Length is how many bytes segment k makes: manifest.SegmentSize, and for the last one what is
// left of the part.
func (p *Plan) Length(k int) int {
	return int(min(manifest.SegmentSize, p.want.Size-int64(k)*manifest.SegmentSize))
}
