package delta

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"ferrule/firmware/patch"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// prose is data that compresses: words of a vocabulary of its own.
func prose(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 300)
	for i := range words {
		b := make([]byte, 2+r.IntN(9))
		for j := range b {
			b[j] = 'a' + byte(r.IntN(26))
		}
		words[i] = string(b)
	}
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(words[int(float64(len(words))*r.Float64()*r.Float64())])
		b.WriteByte(' ')
	}
	return []byte(b.String()[:n])
}

// program is data as machine code is: words of which some hold addresses, all of which lie
// further on by shift than in a program that is the same otherwise.
func program(seed uint64, n int, shift uint32) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, 0, n)
	for len(b) < n {
		v := r.Uint32()&0x0003ffff | 0xe5900000
		if r.IntN(4) == 0 {
			v = 0x10000 + r.Uint32N(0xffffff) + shift
		}
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
	}
	return b[:n]
}

// encode makes an object, decodes it, and returns it.
func encode(t testing.TB, image, old []byte, o Options) ([]byte, Stats) {
	t.Helper()
	var index *Old
	if old != nil {
		var err error
		if index, err = Index(t.Context(), bytes.NewReader(old), int64(len(old))); err != nil {
			t.Fatal(err)
		}
	}
	var object bytes.Buffer
	stats, err := Encode(t.Context(), &object, bytes.NewReader(image), int64(len(image)), index, o)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Size != int64(object.Len()) || stats.Image.Size != int64(len(image)) {
		t.Fatalf("%d bytes are said to be %d, of an image of %d", object.Len(), stats.Size, stats.Image.Size)
	}
	want := patch.Want{Size: stats.Image.Size, SHA256: stats.Image.SHA256, Segments: stats.Image.Segments, Object: stats.Size}
	if index != nil {
		want.From, want.FromSize = index.SHA256(), index.Size()
	}
	if decoded := decode(t, object.Bytes(), want, old); !bytes.Equal(decoded, image) {
		t.Fatal("what was decoded is not what was encoded")
	}
	return object.Bytes(), stats
}

func decode(t testing.TB, object []byte, want patch.Want, old []byte) []byte {
	t.Helper()
	p, err := patch.ReadHeader(bytes.NewReader(object), want)
	if err != nil {
		t.Fatal(err)
	}
	var made []byte
	for k := range p.Segments() {
		segment, err := p.Segment(k, object[p.Offset(k):p.Offset(k+1)], bytes.NewReader(old), nil)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, segment...)
	}
	return made
}

func TestTheKindThatFits(t *testing.T) {
	noise, text := random(1, 3*mib), prose(2, mib)
	zeros := make([]byte, mib)
	code, moved := program(3, mib, 0), program(3, mib, 0x1234)
	for name, c := range map[string]struct {
		image, old []byte
		kinds      [5]int
		most       int // bytes of the object
	}{
		"full":                      {slices.Concat(zeros, noise[:mib], text), nil, [5]int{1, 1, 0, 1, 0}, mib + mib/2},
		"the same":                  {noise, noise, [5]int{0, 0, 3, 0, 0}, 130},
		"moved by one":              {noise[1 : 2*mib+1], noise, [5]int{0, 0, 2, 0, 0}, 130},
		"moved by a mebibyte":       {noise[mib:], noise, [5]int{0, 0, 2, 0, 0}, 130},
		"the other way round":       {slices.Concat(noise[mib:], noise[:mib]), noise, [5]int{0, 0, 3, 0, 0}, 140},
		"of nothing known":          {random(4, mib), noise, [5]int{0, 1, 0, 0, 0}, mib + 130},
		"zeros of something":        {zeros, noise, [5]int{1, 0, 0, 0, 0}, 110},
		"addresses that have moved": {moved, code, [5]int{0, 0, 0, 0, 1}, mib / 10},
		"of an empty file":          {text, []byte{}, [5]int{0, 0, 0, 1, 0}, mib / 2},
	} {
		_, stats := encode(t, c.image, c.old, Options{Quick: true})
		if stats.Kinds != c.kinds || int(stats.Size) > c.most {
			t.Errorf("%s: zero, raw, copy, zstd, sum are %v, and not %v; %d bytes, at most %d", name, stats.Kinds, c.kinds, stats.Size, c.most)
		}
	}
}

// Pieces of the old image from all over it, in another order, with something new between them.
func TestWhatHasMovedAnywhere(t *testing.T) {
	old := random(5, 20*mib)
	r := rand.New(rand.NewPCG(6, 6))
	var image []byte
	for len(image) < 2*mib {
		at, n := r.IntN(len(old)-200<<10), 60<<10+r.IntN(140<<10)
		image = append(image, old[at:at+n]...)
		image = append(image, random(r.Uint64(), 100)...)
	}
	image = image[:2*mib]
	object, stats := encode(t, image, old, Options{Quick: true})
	if len(object) > 8<<10 {
		t.Errorf("%d bytes (%v) for pieces of the old image", len(object), stats.Kinds)
	}
}

// The same images make the same object, however many workers there are and whatever they made before.
func TestSameImagesSameObject(t *testing.T) {
	old := slices.Concat(prose(1, mib/2), program(2, mib/2, 0), random(3, mib/4))
	image := slices.Concat(program(2, mib/2, 0x40), random(4, 3*mib/4), old[:mib/2+99], random(9, 3*mib/4))
	for _, o := range []Options{{}, {Quick: true}} {
		for _, old := range [][]byte{old, nil} {
			o.Workers = 1
			first, _ := encode(t, image, old, o)
			o.Workers = 3
			if again, _ := encode(t, image, old, o); !bytes.Equal(first, again) {
				t.Fatal("three workers make another object than one")
			}
		}
	}
}

func TestProgress(t *testing.T) {
	image := random(1, 2*mib+5)
	var seen []int64
	encode(t, image, nil, Options{Quick: true, Progress: func(done, all int64) {
		if all != int64(len(image)) {
			t.Errorf("of %d bytes", all)
		}
		seen = append(seen, done)
	}})
	if !slices.Equal(seen, []int64{mib, 2 * mib, 2*mib + 5}) {
		t.Error(seen)
	}
}

type failing struct {
	io.ReaderAt
	from int64
	err  error
}

func (f failing) ReadAt(b []byte, at int64) (int, error) {
	if at >= f.from {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(b, at)
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestFailures(t *testing.T) {
	image := random(1, 4*mib)
	broken := errors.New("input/output error")
	index, err := Index(t.Context(), bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(image))
	encode := func(r io.ReaderAt, size int64, w io.Writer, dir string) error {
		_, err := Encode(t.Context(), w, r, size, index, Options{Dir: dir})
		return err
	}
	if err := encode(failing{bytes.NewReader(image), 2 * mib, broken}, size, io.Discard, ""); !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "reading the new image: ") {
		t.Error(err)
	}
	if err := encode(bytes.NewReader(image), size+1, io.Discard, ""); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an image shorter than it was: %v", err)
	}
	if err := encode(bytes.NewReader(image), 0, io.Discard, ""); err == nil {
		t.Error("an image of nothing")
	}
	if err := encode(bytes.NewReader(image), size, full{}, ""); err == nil || !strings.HasPrefix(err.Error(), "writing the object: ") {
		t.Error(err)
	}
	if err := encode(bytes.NewReader(image), size, io.Discard, "/nowhere"); err == nil {
		t.Error("bodies were put nowhere")
	}
	if _, err := Index(t.Context(), failing{bytes.NewReader(image), mib, broken}, size); !errors.Is(err, broken) {
		t.Error(err)
	}
	index.image = failing{bytes.NewReader(image), mib, broken}
	if err := encode(bytes.NewReader(image), size, io.Discard, ""); !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "reading the old image: ") {
		t.Error(err)
	}
}

func TestCancelled(t *testing.T) {
	image := random(1, 8*mib)
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	_, err := Encode(ctx, io.Discard, bytes.NewReader(image), int64(len(image)), nil, Options{Dir: dir, Progress: func(done, _ int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := Index(ctx, bytes.NewReader(image), int64(len(image))); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The table of the largest image there can be is one that a device reads.
func TestTheTableOfAHugeImage(t *testing.T) {
	for segments := 1; segments <= 64<<10; segments *= 2 {
		m := newMaker(nil, 0, nil, segments, Options{})
		entry := patch.Entry{Kind: patch.Sum, Body: patch.BodyLimit}
		for range m.extents {
			entry.Extents = append(entry.Extents, patch.Extent{Offset: 64 << 30, Length: patch.Window})
		}
		table, _ := patch.AppendEntry(nil, entry, 0)
		if all := len(table) * segments; all > patch.TableLimit || m.extents < 1 {
			t.Errorf("%d segments with %d extents take %d bytes", segments, m.extents, all)
		}
	}
}

// The index of the largest image there can be takes no more than others.
func TestTheIndexOfAHugeImage(t *testing.T) {
	for size := int64(1); size <= 64<<30; size *= 2 {
		o := newOld(nil, size)
		if len(o.slots)*8 > 64<<20 || len(o.slots) < 2*int(size/int64(o.block)) {
			t.Errorf("an image of %d bytes has %d slots for blocks of %d", size, len(o.slots), o.block)
		}
	}
}

// Extents keep the bounds that the decoder sets, whatever was found.
func TestExtentsKeepTheirBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 1<<36).Draw(t, "size")
		o := &Old{size: size, block: int(min(1<<15, size))}
		count := rapid.IntRange(1, patch.MaxExtents).Draw(t, "count")
		var found []span
		for range rapid.IntRange(0, 300).Draw(t, "n") {
			n := int64(rapid.IntRange(1, int(min(int64(o.block)*30, size))).Draw(t, "length"))
			start := rapid.Int64Range(0, size-n).Draw(t, "start")
			found = append(found, span{start: start, end: start + n, weight: n})
		}
		extents := o.choose(found, rapid.Int64Range(0, 1<<36).Draw(t, "at"), count, rapid.Int64Range(1<<20, patch.Window).Draw(t, "width"))
		total, end := 0, int64(0)
		for _, e := range extents {
			if e.Offset < end || e.Length <= 0 || e.Offset+int64(e.Length) > size {
				t.Fatalf("%+v of an image of %d bytes", extents, size)
			}
			total, end = total+e.Length, e.Offset+int64(e.Length)
		}
		if len(extents) > count || total > patch.Window || len(extents) == 0 {
			t.Fatalf("%d extents of %d, %d bytes", len(extents), count, total)
		}
	})
}

// What Index entered is found, at every position and after every jump.
func TestRollingHash(t *testing.T) {
	b := random(1, 1000)
	for _, block := range []int{32, 64, 256} {
		r := roll(b, block)
		for ok, at := r.jump(0), 0; ok; ok, at = r.next(), at+1 {
			if r.at != at || r.h != fingerprint(b[at:at+block]) {
				t.Fatalf("at %d of block %d", at, block)
			}
		}
		if r.at != len(b)-block || r.jump(len(b)-block+1) || !r.jump(len(b)-block) {
			t.Fatal("the last block is not the last")
		}
	}
}

// What was aligned and subtracted is what add makes again.
func FuzzEncode(f *testing.F) {
	f.Add([]byte("what was there before, and more of it, and more of it"), []byte("what was there before, and else"), uint16(3), uint16(1))
	f.Add([]byte{}, []byte{0}, uint16(0), uint16(0))
	f.Fuzz(func(t *testing.T, old, image []byte, times, shift uint16) {
		if len(image) == 0 {
			return
		}
		old = bytes.Repeat(old, 1+int(times%50))
		image = slices.Concat(image, old[min(int(shift), len(old)):], image)
		if len(old) > mib || len(image) > 2*mib {
			return
		}
		for i := 0; i+4 <= len(image) && shift > 0; i += int(shift) { // addresses move
			image[i] += byte(times)
		}
		encode(t, image, old, Options{Quick: true, Workers: 1})
	})
}

func BenchmarkIndex(b *testing.B) {
	old := random(1, 16*mib)
	b.SetBytes(int64(len(old)))
	for b.Loop() {
		if _, err := Index(b.Context(), bytes.NewReader(old), int64(len(old))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	old := slices.Concat(program(1, 4*mib, 0), prose(2, 4*mib))
	image := slices.Concat(program(1, 4*mib, 0x120), prose(2, 4*mib))
	index, err := Index(b.Context(), bytes.NewReader(old), int64(len(old)))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(image)))
	for b.Loop() {
		if _, err := Encode(b.Context(), io.Discard, bytes.NewReader(image), int64(len(image)), index, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
