package patch

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"

	"ferrule/firmware/manifest"
)

// Whatever an object says, its plan accounts for its bytes, and what is made of it is what the
// manifest names, or an error that says why not.
func FuzzObject(f *testing.F) {
	s := newSample(f)
	f.Add(s.object[:s.plan(f).Offset(0)], uint32(len(s.old)))
	f.Add(bytes.Repeat([]byte{0xff}, 200), uint32(5))
	f.Fuzz(func(t *testing.T, b []byte, from uint32) {
		b = bytes.Clone(b)
		want := s.want
		want.FromSize = int64(from % (8 << 20))
		if len(b) >= FixedSize { // what would be refused at once is put right
			copy(b, s.object[:12])
			copy(b[16:], s.object[16:FixedSize])
			binary.LittleEndian.PutUint64(b[24:], uint64(want.FromSize))
			seal(b)
		}
		want.Object = int64(len(b))
		p, err := ReadHeader(bytes.NewReader(b), want)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		for k := range p.Segments() {
			n := p.Body(k)
			if n < 0 || n > BodyLimit || p.Offset(k) < 0 || p.Offset(k+1) > want.Object {
				t.Fatalf("segment %d lies from %d to %d of %d", k, p.Offset(k), p.Offset(k+1), want.Object)
			}
			try(t, p, k, b[p.Offset(k):p.Offset(k+1)], s.old)
		}
	})
}

func try(t *testing.T, p *Plan, k int, body, old []byte) {
	segment, err := p.Segment(k, body, bytes.NewReader(old), nil)
	switch {
	case err == nil && manifest.Digest(sha256.Sum256(segment)) != p.want.Segments[k]:
		t.Fatal("a segment that the manifest does not name was believed")
	case err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrOutput) && !errors.Is(err, ErrOld):
		t.Fatal(err)
	}
}

// Whatever a body says, in the place of one that is right.
func FuzzBody(f *testing.F) {
	s := newSample(f)
	p := s.plan(f)
	for k := range p.Segments() {
		if body := s.object[p.Offset(k):p.Offset(k+1)]; len(body) < 64<<10 {
			f.Add(body, byte(k), uint16(0))
		}
	}
	f.Add(bomb(9), byte(4), uint16(0))
	f.Fuzz(func(t *testing.T, body []byte, kind byte, window uint16) {
		if len(body) == 0 || len(body) > BodyLimit {
			return
		}
		s := &sample{bodies: body, want: s.want}
		s.want.Size, s.want.Segments = manifest.SegmentSize, s.want.Segments[:1]
		e := Entry{Kind: Zstd + Kind(kind%2), Body: len(body)}
		if window > 0 {
			e.Extents = []Extent{{Offset: int64(window), Length: int(window)}}
		}
		s.table, _ = AppendEntry(nil, e, 0)
		s.assemble(t)
		try(t, s.plan(t), 0, body, s.old)
	})
}

// A map does what it says: no byte of the segment is made twice, none is left out, and none is
// taken from beside the window.
func FuzzMap(f *testing.F) {
	f.Add([]byte{0}, uint16(10), uint16(10))
	f.Add([]byte{2, 0, 8, 0, 5, 100, 8}, uint16(300), uint16(200))
	f.Add([]byte{1, 3, 5, 1}, uint16(9), uint16(9))
	f.Fuzz(func(t *testing.T, b []byte, length, window uint16) {
		w := random(3, int(window))
		differences := random(4, int(length))
		got, err := add(make([]byte, length), append(bytes.Clone(b), differences...), w)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		runs, err := readMap(b, int(length), int(window))
		if err != nil {
			t.Fatal(err)
		}
		if want := slowly(runs, differences, w); !bytes.Equal(got, want) {
			t.Fatalf("%x\n%x", got, want)
		}
	})
}

// slowly is what add is to do, said the other way round: where does each byte come from?
func slowly(r runs, differences, window []byte) []byte {
	source := make([]int, len(differences)) // position in the window, or -1
	for i := range source {
		source[i] = -1
	}
	starts := map[int]int{} // of runs, and their ends
	for r.more() {
		x := r.next()
		for i := range x.n {
			source[x.to+i] = x.from + i
		}
		starts[x.to] = max(starts[x.to], x.to+x.n)
	}
	made := make([]byte, len(differences))
	inRuns := 0
	for _, from := range source {
		if from >= 0 {
			inRuns++
		}
	}
	terms, rest := differences[:inRuns], differences[inRuns:]
	for at, end := 0, 0; at < len(made); {
		end = max(end, starts[at])
		switch {
		case source[at] < 0:
			made[at], rest = rest[0], rest[1:]
			at++
		case at%4 == 0 && at+4 <= end:
			carry := uint(0)
			for i := range 4 {
				v := uint(terms[i]) + uint(window[source[at+i]]) + carry
				made[at+i], carry = byte(v), v>>8
			}
			at, terms = at+4, terms[4:]
		default:
			made[at], terms = terms[0]+window[source[at]], terms[1:]
			at++
		}
	}
	return made
}
