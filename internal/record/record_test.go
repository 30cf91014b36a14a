package record_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"ferrule/internal/record"
)

const limit = 1 << 20

func read(t testing.TB, log []byte, seed record.Seed) (payloads [][]byte, damaged int64) {
	t.Helper()
	r := record.NewReader(bytes.NewReader(log), 0, int64(len(log)), seed, limit)
	var sound, end int64
	for {
		rec, err := r.Next()
		damaged += rec.Damaged
		if errors.Is(err, io.EOF) {
			if sound+damaged != int64(len(log)) {
				t.Fatalf("%d sound and %d damaged bytes of %d", sound, damaged, len(log))
			}
			return payloads, damaged
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Offset < end {
			t.Fatalf("record at %d begins before the end %d of the one before", rec.Offset, end)
		}
		end = rec.End()
		sound += end - rec.Offset
		payloads = append(payloads, rec.Payload)
	}
}

func sample(n int, seed record.Seed) (log []byte, payloads [][]byte, ends []int) {
	for i := range n {
		p := fmt.Appendf(nil, `{"boot":17,"seq":%d,"fill":%q}`, i, bytes.Repeat([]byte{'x'}, i*7%90))
		log = seed.Append(log, p)
		payloads = append(payloads, p)
		ends = append(ends, len(log))
	}
	return log, payloads, ends
}

func TestReaderLosesOnlyTheRecordABitFlipIsIn(t *testing.T) {
	seed := record.NewSeed(7)
	log, want, ends := sample(8, seed)
	for bit := range len(log) * 8 {
		broken := bytes.Clone(log)
		broken[bit/8] ^= 1 << (bit % 8)
		hit := slices.IndexFunc(ends, func(end int) bool { return bit/8 < end })
		got, _ := read(t, broken, seed)
		if rest := slices.Delete(slices.Clone(want), hit, hit+1); !slices.EqualFunc(got, rest, bytes.Equal) {
			t.Fatalf("bit %d, in record %d: read %q", bit, hit, got)
		}
	}
}

func TestReaderKeepsWhatATruncationLeft(t *testing.T) {
	seed := record.NewSeed(7)
	log, want, ends := sample(8, seed)
	for n := range len(log) + 1 {
		whole := 0
		for whole < len(ends) && ends[whole] <= n {
			whole++
		}
		if got, _ := read(t, log[:n], seed); !slices.EqualFunc(got, want[:whole], bytes.Equal) {
			t.Fatalf("cut at %d: read %d records, want %d", n, len(got), whole)
		}
	}
}

func TestReaderFindsItsWayAfterAHole(t *testing.T) {
	seed := record.NewSeed(7)
	log, want, ends := sample(4000, seed) // several chunks
	for _, fill := range []byte{0, 0xFF, ' '} {
		broken := bytes.Clone(log)
		for i := 60_000; i < 60_000+4096; i++ {
			broken[i] = fill
		}
		got, damaged := read(t, broken, seed)
		first := slices.IndexFunc(ends, func(end int) bool { return end > 60_000 })
		last := slices.IndexFunc(ends, func(end int) bool { return end >= 60_000+4096 })
		if rest := slices.Delete(slices.Clone(want), first, last+1); !slices.EqualFunc(got, rest, bytes.Equal) {
			t.Fatalf("fill %#x: %d records of %d", fill, len(got), len(rest))
		}
		if damaged < 4096-256 || damaged > 4096+512 {
			t.Errorf("fill %#x: %d bytes called damaged", fill, damaged)
		}
	}
}

func TestRecordsOfAnotherLogAreNotRecords(t *testing.T) {
	log, _, _ := sample(10, record.NewSeed(8))
	if got, damaged := read(t, log, record.NewSeed(7)); len(got) != 0 || damaged != int64(len(log)) {
		t.Errorf("%d records of a foreign log were read, %d bytes damaged", len(got), damaged)
	}
	// A payload that holds a whole record of another log, with its own header broken.
	outer := record.NewSeed(7).Append(nil, log)
	outer[0] ^= 1
	if got, _ := read(t, outer, record.NewSeed(7)); len(got) != 0 {
		t.Errorf("%d records came out of a payload", len(got))
	}
}

func TestReaderToldALongerEndThanThereIs(t *testing.T) {
	seed := record.NewSeed(7)
	log, want, _ := sample(5, seed)
	r := record.NewReader(bytes.NewReader(log), 0, int64(len(log))+5000, seed, limit)
	for range want {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if rec, err := r.Next(); !errors.Is(err, io.EOF) || rec.Damaged != 5000 {
		t.Errorf("after the last: %d damaged, %v", rec.Damaged, err)
	}
}

type flaky struct {
	*bytes.Reader
	fail bool
}

func (f *flaky) ReadAt(p []byte, off int64) (int, error) {
	if f.fail = !f.fail; f.fail {
		return 0, io.ErrUnexpectedEOF
	}
	return f.Reader.ReadAt(p, off)
}

func TestAReadErrorIsTriedAgain(t *testing.T) {
	seed := record.NewSeed(7)
	log, want, _ := sample(3000, seed)
	r := record.NewReader(&flaky{Reader: bytes.NewReader(log)}, 0, int64(len(log)), seed, limit)
	for i := 0; ; {
		rec, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			if i != len(want) {
				t.Fatalf("%d records of %d", i, len(want))
			}
			return
		case err == nil:
			if !bytes.Equal(rec.Payload, want[i]) || rec.Damaged != 0 {
				t.Fatalf("record %d differs", i)
			}
			i++
		}
	}
}

func FuzzReader(f *testing.F) {
	seed := record.NewSeed(7)
	log, _, _ := sample(5, seed)
	f.Add(log)
	f.Add(log[3:])
	f.Add(bytes.Repeat([]byte{0}, 100))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, _ := read(t, data, seed)
		var again []byte
		for _, p := range got {
			again = seed.Append(again, p)
		}
		if back, damaged := read(t, again, seed); damaged != 0 || !slices.EqualFunc(got, back, bytes.Equal) {
			t.Fatalf("%d records written, %d read, %d bytes damaged", len(got), len(back), damaged)
		}
	})
}

func BenchmarkResyncThroughGarbage(b *testing.B) {
	seed := record.NewSeed(7)
	garbage := bytes.Repeat([]byte{1, 0, 0}, limit/3) // every third offset is a plausible length
	b.SetBytes(int64(len(garbage)))
	for b.Loop() {
		read(b, garbage, seed)
	}
}
