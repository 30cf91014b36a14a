package patch

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"ferrule/firmware/manifest"

	"github.com/klauspost/compress/zstd"
)

// sample is an object with a segment of every kind, what it makes, and what it makes it of.
type sample struct {
	old, made []byte
	object    []byte
	table     []byte
	bodies    []byte
	want      Want
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// deflate makes a frame as a foreign writer would.
func deflate(t testing.TB, b, dictionary []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(2*Window), zstd.WithEncoderDictRaw(0, dictionary),
		zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(b, nil)
}

// newSample makes segments that are small variations of old, with a short one at the end.
func newSample(t testing.TB) *sample {
	const size = manifest.SegmentSize
	s := &sample{old: random(1, 3*size)}
	text := bytes.Repeat([]byte("what has not been seen before"), size)[:size]

	zeros := make([]byte, size)
	raw := random(2, size)
	copied := append(bytes.Clone(s.old[2*size+77:3*size]), s.old[:77]...)
	inflated := append(bytes.Clone(s.old[99:size]), text[:99]...)
	window := s.old[size+5 : 2*size+5]
	frame := []byte{2, 0, 8, 0, 5, 100, 8} // 8 bytes from 0 on; 5 bytes further on 100 from 17 on
	summed := bytes.Clone(text[:3000])
	for i := range 8 {
		frame, summed[i] = append(frame, 3), window[i]+3
	}
	for i := range 100 {
		frame, summed[13+i] = append(frame, 0), window[13+4+i]
	}
	frame = append(append(frame, summed[8:13]...), summed[113:]...)
	for i := 0; i < 8; i += 4 { // words, not bytes
		binary.LittleEndian.PutUint32(summed[i:], binary.LittleEndian.Uint32(window[i:])+0x03030303)
	}
	end := int64(0)
	add := func(segment []byte, e Entry, body []byte) {
		e.Body = len(body)
		s.made = append(s.made, segment...)
		s.bodies = append(s.bodies, body...)
		s.want.Segments = append(s.want.Segments, sha256.Sum256(segment))
		s.table, end = AppendEntry(s.table, e, end)
	}
	add(zeros, Entry{Kind: Zero}, nil)
	add(raw, Entry{Kind: Raw}, raw)
	add(copied, Entry{Kind: Copy, Extents: []Extent{{2*size + 77, size - 77}, {0, 77}}}, nil)
	dictionary := append(bytes.Clone(s.old[:size/2]), s.old[size/2:size]...)
	add(inflated, Entry{Kind: Zstd, Extents: []Extent{{0, size / 2}, {size / 2, size / 2}}}, deflate(t, inflated, dictionary))
	add(text, Entry{Kind: Zstd}, deflate(t, text, nil))
	add(summed, Entry{Kind: Sum, Extents: []Extent{{size + 5, size}}}, deflate(t, frame, window))
	s.want.Size, s.want.FromSize = int64(len(s.made)), int64(len(s.old))
	s.want.SHA256, s.want.From = sha256.Sum256(s.made), sha256.Sum256(s.old)
	s.assemble(t)
	return s
}

// assemble puts the object together of its table and bodies.
func (s *sample) assemble(t testing.TB) {
	t.Helper()
	header, err := AppendHeader(nil, s.want, s.table)
	if err != nil {
		t.Fatal(err)
	}
	s.object = append(header, s.bodies...)
	s.want.Object = int64(len(s.object))
}

func (s *sample) plan(t testing.TB) *Plan {
	t.Helper()
	p, err := ReadHeader(bytes.NewReader(s.object), s.want)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEveryKindInAnyOrder(t *testing.T) {
	s := newSample(t)
	r := bytes.NewReader(s.object)
	p, err := ReadHeader(r, s.want)
	if err != nil {
		t.Fatal(err)
	}
	if at := int64(len(s.object) - r.Len()); at != p.Offset(0) {
		t.Fatalf("the header was read up to %d, and the first body begins at %d", at, p.Offset(0))
	}
	if p.Offset(p.Segments()) != s.want.Object {
		t.Fatalf("the last body ends at %d of %d", p.Offset(p.Segments()), s.want.Object)
	}
	dst := make([]byte, 0, manifest.SegmentSize)
	for range 3 {
		for _, k := range rand.Perm(p.Segments()) {
			segment, err := p.Segment(k, s.object[p.Offset(k):p.Offset(k+1)], bytes.NewReader(s.old), dst)
			if err != nil {
				t.Fatal(err)
			}
			at := k * manifest.SegmentSize
			if !bytes.Equal(segment, s.made[at:at+p.Length(k)]) {
				t.Fatalf("segment %d is another", k)
			}
			if &segment[:1][0] != &dst[:1][0] {
				t.Fatalf("segment %d was not made where there was room for it", k)
			}
		}
	}
}

func TestNoSegmentBesideTheLast(t *testing.T) {
	p := newSample(t).plan(t)
	for _, k := range []int{-1, p.Segments()} {
		if _, err := p.Segment(k, nil, nil, nil); err == nil {
			t.Errorf("segment %d of %d was made", k, p.Segments())
		}
	}
}

func TestAHeaderCutShort(t *testing.T) {
	s := newSample(t)
	for n := range int(s.plan(t).Offset(0)) {
		if _, err := ReadHeader(bytes.NewReader(s.object[:n]), s.want); !errors.Is(err, ErrFormat) {
			t.Fatalf("of %d bytes: %v", n, err)
		}
	}
	broken := errors.New("the connection broke")
	if _, err := ReadHeader(io.MultiReader(bytes.NewReader(s.object[:50]), failing{broken}), s.want); !errors.Is(err, broken) || errors.Is(err, ErrFormat) {
		t.Fatalf("a reader that fails says nothing of the object: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error)          { return 0, f.err }
func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestAHeaderWithAFlippedBit(t *testing.T) {
	s := newSample(t)
	for i := range int(s.plan(t).Offset(0)) {
		b := bytes.Clone(s.object)
		b[i] ^= 1 << (i % 8)
		if _, err := ReadHeader(bytes.NewReader(b), s.want); !errors.Is(err, ErrFormat) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
}

func TestABodyWithAFlippedBit(t *testing.T) {
	s := newSample(t)
	p := s.plan(t)
	for k := range p.Segments() {
		body := s.object[p.Offset(k):p.Offset(k+1)]
		for try := range min(len(body), 40) {
			b := bytes.Clone(body)
			b[len(b)*try/40] ^= 1 << (try % 8)
			made, err := p.Segment(k, b, bytes.NewReader(s.old), nil)
			at := k * manifest.SegmentSize
			if err == nil && bytes.Equal(made, s.made[at:at+p.Length(k)]) {
				continue // a bit that says nothing, such as those of a frame's window
			}
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrOutput) {
				t.Fatalf("segment %d, byte %d: %v", k, len(b)*try/40, err)
			}
		}
		for _, b := range [][]byte{append(bytes.Clone(body), 0), body[:max(len(body)-1, 0)]} {
			if len(b) == len(body) {
				continue
			}
			if _, err := p.Segment(k, b, bytes.NewReader(s.old), nil); !errors.Is(err, ErrFormat) {
				t.Fatalf("segment %d of %d bytes for %d: %v", k, len(b), len(body), err)
			}
		}
	}
}

// An old part that is not the one the delta was made for, or cannot be read.
func TestAForeignOldPart(t *testing.T) {
	s := newSample(t)
	p := s.plan(t)
	eio := errors.New("input/output error")
	for k, kind := range []Kind{Zero, Raw, Copy, Zstd, Zstd, Sum} {
		needs := k == 2 || k == 3 || k == 5
		for name, c := range map[string]struct {
			old  io.ReaderAt
			want error
		}{
			"none":    {nil, ErrOld},
			"shorter": {bytes.NewReader(s.old[:100]), ErrOld},
			"broken":  {failing{eio}, eio},
			"another": {bytes.NewReader(random(9, len(s.old))), ErrOutput},
		} {
			_, err := p.Segment(k, s.object[p.Offset(k):p.Offset(k+1)], c.old, nil)
			switch {
			case !needs && err != nil:
				t.Errorf("kind %d needs no old part: %s: %v", kind, name, err)
			case needs && !errors.Is(err, c.want):
				t.Errorf("kind %d: %s: %v", kind, name, err)
			}
		}
	}
}

// What a table may not say, although its checksum is right.
func TestTablesThatLie(t *testing.T) {
	const size = manifest.SegmentSize
	u := func(v ...uint64) (b []byte) {
		for _, v := range v {
			b = binary.AppendUvarint(b, v)
		}
		return b
	}
	extents := func(n int) []byte {
		b := u(uint64(Zstd), 10, uint64(n))
		for range n {
			b = append(b, u(0, 1)...)
		}
		return b
	}
	for name, table := range map[string][]byte{
		"nothing":                           nil,
		"an unknown kind":                   u(5),
		"a kind that overflows":             u(256),
		"too many segments":                 u(0, 0),
		"a number without end":              bytes.Repeat([]byte{0xff}, 11),
		"no body":                           u(uint64(Zstd), 0, 0),
		"a body too long":                   u(uint64(Zstd), BodyLimit+1, 0),
		"a body of 2^63":                    u(uint64(Zstd), 1<<63, 0),
		"a body beyond the object":          u(uint64(Zstd), 11, 0),
		"a body that leaves some":           u(uint64(Zstd), 9, 0),
		"no count":                          u(uint64(Zstd), 10),
		"too many extents":                  extents(MaxExtents + 1),
		"2^64-1 extents":                    u(uint64(Zstd), 10, 1<<64-1),
		"an extent without a length":        u(uint64(Zstd), 10, 1, 0),
		"an extent of nothing":              u(uint64(Zstd), 10, 1, 0, 0),
		"an extent before the beginning":    u(uint64(Zstd), 10, 1, 1, 5),
		"an extent at the lowest number":    u(uint64(Zstd), 10, 1, 1<<64-1, 5),
		"an extent at the highest number":   u(uint64(Zstd), 10, 1, 1<<64-2, 5),
		"an extent after the end":           u(uint64(Zstd), 10, 1, 2*10*size, 1),
		"an extent over the end":            u(uint64(Zstd), 10, 1, 2*(10*size-1), 2),
		"an extent larger than a window":    u(uint64(Zstd), 10, 1, 0, Window+1),
		"an extent of 2^64-1":               u(uint64(Zstd), 10, 1, 2, 1<<64-1),
		"extents larger than a window":      u(uint64(Zstd), 10, 2, 0, Window, 0, 1),
		"a sum of too much":                 u(uint64(Sum), 10, 2, 0, Window, 0, 1),
		"a copy of too little":              u(uint64(Copy), 1, 0, size-1),
		"a copy of too much":                u(uint64(Copy), 1, 0, size+1),
		"a copy of nothing":                 u(uint64(Copy), 0),
		"a second extent that goes too far": u(uint64(Zstd), 10, 2, 0, 5, 2*(10*size), 1),
	} {
		s := &sample{table: table, bodies: random(1, 10)}
		s.want = Want{Size: size, Segments: make([]manifest.Digest, 1), FromSize: 10 * size}
		s.assemble(t)
		p, err := ReadHeader(bytes.NewReader(s.object), s.want)
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %+v", name, err, p)
		}
	}
}

func TestMapsThatLie(t *testing.T) {
	const length, window = 1000, 500
	for name, b := range map[string][]byte{
		"nothing":                  {},
		"a run too few":            {1},
		"a run cut short":          {1, 0, 5},
		"bytes too many":           {0, 0},
		"2^64-1 runs":              binary.AppendUvarint(nil, 1<<64-1),
		"beyond the segment":       {1, 0, 0xe9, 0x07, 0},
		"skipping the segment":     {1, 0xe9, 0x07, 0, 0},
		"beyond the window":        {1, 0, 0xf5, 0x03, 0},
		"before the window":        {1, 0, 1, 1},
		"jumping beyond it":        {1, 0, 0, 0xea, 0x07},
		"jumping 2^62":             binary.AppendVarint([]byte{1, 0, 1}, 1<<62),
		"jumping back 2^63":        append([]byte{1, 0, 1}, binary.AppendUvarint(nil, 1<<64-1)...),
		"skipping 2^63":            append(binary.AppendUvarint([]byte{1}, 1<<63), 0, 0),
		"of 2^63":                  append(binary.AppendUvarint([]byte{1, 0}, 1<<63), 0),
		"a second run that is bad": {2, 0, 5, 0, 0, 0xf5, 0x03, 0},
	} {
		if _, err := readMap(b, length, window); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := add(make([]byte, 10), make([]byte, 9), nil); !errors.Is(err, ErrFormat) {
		t.Errorf("a frame shorter than the segment: %v", err)
	}
}

// bomb is a frame that says nothing of its length and grows to 128 KiB for every 4 bytes.
func bomb(blocks int) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 13 << 3} // window of 8 MiB
	for i := range blocks {
		header := uint32(128<<10)<<3 | 1<<1 // run of one byte
		if i == blocks-1 {
			header |= 1
		}
		b = append(b, byte(header), byte(header>>8), byte(header>>16), 'x')
	}
	return b
}

func TestBombs(t *testing.T) {
	size := bomb(8)
	size[4] = 3 << 6 // an 8-byte length
	huge := append(append(bytes.Clone(size[:6]), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f), size[6:]...)
	wide := bomb(8)
	wide[5] = 0xff
	for name, body := range map[string][]byte{
		"32 GiB":            bomb(BodyLimit / 4),
		"a byte too many":   append(bomb(8)[:6], append([]byte{4, 0, 0, 'x'}, bomb(8)[6:]...)...),
		"2^63 bytes":        huge,
		"a window of 4 TiB": wide,
		"frames of nothing": bytes.Repeat([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0}, BodyLimit/9),
		"frames to skip":    bytes.Repeat([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, BodyLimit/8),
		"a frame to skip":   {0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 0},
	} {
		for _, kind := range []Kind{Zstd, Sum} {
			body := body[:min(len(body), BodyLimit)]
			s := &sample{bodies: body}
			s.table, _ = AppendEntry(nil, Entry{Kind: kind, Body: len(body)}, 0)
			s.want = Want{Size: manifest.SegmentSize, Segments: make([]manifest.Digest, 1)}
			s.assemble(t)
			p := s.plan(t)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := p.Segment(0, body, nil, nil)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrOutput) {
				t.Errorf("%s: %v", name, err)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 6<<20 {
				t.Errorf("%s took %d bytes of memory", name, took)
			}
		}
	}
}

// A part whose manifest cannot be: nothing below checks it again.
func TestWantsThatCannotBe(t *testing.T) {
	for _, w := range []Want{
		{},
		{Size: -1},
		{Size: 1},
		{Size: 1, Segments: make([]manifest.Digest, 2)},
		{Size: 1, Segments: make([]manifest.Digest, 1), FromSize: -1},
		{Size: 1<<63 - 1, Segments: make([]manifest.Digest, 1)},
	} {
		if _, err := ReadHeader(bytes.NewReader(nil), w); err == nil || errors.Is(err, ErrFormat) {
			t.Errorf("%+v: %v", w, err)
		}
	}
}

func TestOfManifest(t *testing.T) {
	part := &manifest.Part{Size: 5, SHA256: manifest.Digest{1}, Segments: make([]manifest.Digest, 1), Full: manifest.Object{Size: 7},
		Deltas: []manifest.Delta{{From: manifest.Digest{2}, FromSize: 3, Object: manifest.Object{Size: 6}}}}
	if w := OfFull(part); w.Size != 5 || w.SHA256 != part.SHA256 || w.Object != 7 || w.FromSize != 0 || w.From != (manifest.Digest{}) {
		t.Errorf("%+v", w)
	}
	if w := OfDelta(part, &part.Deltas[0]); w.Size != 5 || w.Object != 6 || w.FromSize != 3 || w.From != part.Deltas[0].From || len(w.Segments) != 1 {
		t.Errorf("%+v", w)
	}
}

func TestATableTooLong(t *testing.T) {
	if _, err := AppendHeader(nil, Want{}, make([]byte, TableLimit+1)); err == nil {
		t.Error("a table that no device reads was written")
	}
	s := newSample(t)
	binary.LittleEndian.PutUint32(s.object[12:], TableLimit+1)
	if _, err := ReadHeader(bytes.NewReader(s.object), s.want); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

// seal gives a header whose table was changed the right checksum.
func seal(object []byte) {
	if len(object) < FixedSize+SumSize {
		return
	}
	end := uint64(FixedSize) + uint64(binary.LittleEndian.Uint32(object[12:]))
	if end+SumSize <= uint64(len(object)) {
		binary.LittleEndian.PutUint32(object[end:], crc32.Checksum(object[:end], castagnoli()))
	}
}
