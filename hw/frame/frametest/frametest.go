// Package frametest is the conformance suite that every frame.Split passes: the same frames for
// every chunking, the next good frame after garbage, bounded memory, no panic. The trap is the
// frame that comes first: a protocol without a mark at its beginning loses the frame after
// garbage, so what must be found is the one behind it.
package frametest

import (
	"bytes"
	"fmt"
	"math/rand/v2"

	"ferrule/hw/frame"
)

// T is what the suite needs of *testing.T, *testing.F and *rapid.T.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// rounds is how many streams Conforms tries, each in several chunkings.
const rounds = 60

// Conforms tests split with frames of max bytes at most, as a Cutter feeds it. Each of good is
// one good frame as it stands on the wire, all its marks included; together they should show
// every form the protocol has. The streams come from a fixed seed.
func Conforms(t T, split frame.Split, max int, good ...[]byte) {
	t.Helper()
	conforms(t, split, max, false, good)
}

// ConformsInGaps is Conforms for protocols whose frames only a silence of the line sets apart:
// after garbage, a good frame need not be found before the line was silent.
func ConformsInGaps(t T, split frame.Split, max int, good ...[]byte) {
	t.Helper()
	conforms(t, split, max, true, good)
}

func conforms(t T, split frame.Split, max int, gaps bool, good [][]byte) {
	t.Helper()
	if len(good) == 0 {
		t.Fatalf("frametest: no good frames were given")
	}
	want := wanted(t, split, max, gaps, good)
	if want == nil {
		return
	}
	tails(t, split, max, gaps, good, want)
	r := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		check(t, split, max, gaps, stream(r, max, good), good, want)
	}
	for _, c := range alphabet(good) { // a flood of one byte is the worst garbage there is
		check(t, split, max, gaps, bytes.Repeat([]byte{c}, 3*max), good, want)
	}
}

// Check tests what must hold for any data, as a fuzz target has it: the same frames for every
// chunking, no more than max bytes held, and the good frames found behind the data.
func Check(t T, split frame.Split, max int, data []byte, good ...[]byte) {
	t.Helper()
	if want := wanted(t, split, max, false, good); want != nil {
		check(t, split, max, false, data, good, want)
	}
}

// CheckInGaps is Check for protocols whose frames only a silence of the line sets apart.
func CheckInGaps(t T, split frame.Split, max int, data []byte, good ...[]byte) {
	t.Helper()
	if want := wanted(t, split, max, true, good); want != nil {
		check(t, split, max, true, data, good, want)
	}
}

func check(t T, split frame.Split, max int, gaps bool, data []byte, good [][]byte, want []string) {
	t.Helper()
	chunks(t, split, max, gaps, data)
	quiet := newRun(t, split, max, gaps)
	quiet.feed(data, len(data))
	quiet.cutter.Silence(quiet.take)
	quiet.feedAll(good[:1]) // what an unmarked protocol may lose
	quiet.frames = nil
	quiet.feedAll(good)
	quiet.same("after garbage and a silence", data, want)
	if gaps {
		return
	}
	// Without a silence, garbage may look like the beginning of a frame of max bytes: by then
	// the next frame must be found.
	loud := newRun(t, split, max, gaps)
	loud.feed(data, len(data))
	for fed := 0; fed <= 2*max; {
		for _, g := range good {
			loud.feed(g, len(g))
			fed += len(g)
		}
	}
	loud.frames = nil
	loud.feedAll(good)
	loud.same("after garbage without a silence", data, want)
}

// wanted returns the frames that good gives by itself: one each, and a part of it.
func wanted(t T, split frame.Split, max int, gaps bool, good [][]byte) []string {
	t.Helper()
	r := newRun(t, split, max, gaps)
	r.cutter.Silence(r.take) // a silence before the first byte
	r.feedAll(good[:1])
	r.frames = nil
	before := r.cutter.Stats()
	r.feedAll(good)
	ok := len(r.frames) == len(good)
	for i := range min(len(r.frames), len(good)) {
		ok = ok && r.frames[i] != "" && bytes.Contains(good[i], []byte(r.frames[i]))
	}
	if !ok {
		t.Errorf("the good frames %.200q give the frames %.200q", good, r.frames)
		return nil
	}
	after := r.cutter.Stats()
	after.Bytes, after.Frames = before.Bytes, before.Frames
	if after != before {
		t.Errorf("the good frames are counted as faults: %+v before them, %+v after", before, after)
	}
	return r.frames
}

// tails opens the line in the middle of a frame: what is left of it is no frame.
func tails(t T, split frame.Split, max int, gaps bool, good [][]byte, want []string) {
	t.Helper()
	for n, g := range good {
		for i := 1; i < len(g); i++ {
			r := newRun(t, split, max, gaps)
			r.feed(g[i:], len(g)-i)
			for _, f := range r.frames {
				if f != want[n] {
					t.Errorf("the tail %.200q of a frame is taken for the frame %.200q", g[i:], f)
				}
			}
		}
	}
}

// chunks feeds data whole and in pieces, and wants the same frames and the same counts.
func chunks(t T, split frame.Split, max int, gaps bool, data []byte) {
	t.Helper()
	whole := newRun(t, split, max, gaps)
	whole.cutter.Silence(whole.take)
	whole.feed(data, len(data))
	random := rand.New(rand.NewPCG(uint64(len(data)), 3))
	for _, size := range []int{1, 2, 7, max, -1} {
		r := newRun(t, split, max, gaps)
		r.cutter.Silence(r.take)
		for rest := data; len(rest) > 0; {
			n := size
			if n < 0 {
				n = 1 + random.IntN(max)
			}
			n = min(n, len(rest))
			r.feed(rest[:n], n)
			rest = rest[n:]
		}
		r.same(fmt.Sprintf("in chunks of %d (-1: of random sizes)", size), data, whole.frames)
		if r.cutter.Stats() != whole.cutter.Stats() {
			t.Errorf("in chunks of %d %.200x counts %+v; whole it counts %+v", size, data, r.cutter.Stats(), whole.cutter.Stats())
		}
		if string(r.cutter.Pending()) != string(whole.cutter.Pending()) {
			t.Errorf("in chunks of %d %.200x leaves %x; whole it leaves %x", size, data, r.cutter.Pending(), whole.cutter.Pending())
		}
	}
}

// stream returns what a bad line carries: good frames, good frames with bytes lost, flipped or
// doubled, and noise of all bytes or of those that good frames are made of.
func stream(r *rand.Rand, max int, good [][]byte) []byte {
	var s []byte
	letters := alphabet(good)
	for len(s) < 4*max && len(s) < 16<<10 {
		g := good[r.IntN(len(good))]
		switch i := r.IntN(len(g)); r.IntN(7) {
		case 0, 1:
			s = append(s, g...)
		case 2:
			s = append(s, g[:i]...)
		case 3:
			s = append(s, g[i:]...)
		case 4:
			s = append(s, g...)
			s[len(s)-len(g)+i] ^= 1 << r.IntN(8)
		case 5:
			for range r.IntN(max) + 1 {
				s = append(s, byte(r.Uint32()))
			}
		case 6:
			for range r.IntN(max) + 1 {
				s = append(s, letters[r.IntN(len(letters))])
			}
		}
	}
	return s
}

// alphabet returns the bytes that stand at the ends of good frames, where marks are, and the extremes.
func alphabet(good [][]byte) []byte {
	set := map[byte]bool{0: true, 1: true, 0xff: true}
	letters := []byte{0, 1, 0xff}
	for _, g := range good {
		for i, c := range g {
			if (i < 4 || i >= len(g)-4) && !set[c] && len(letters) < 24 {
				set[c] = true
				letters = append(letters, c)
			}
		}
	}
	return letters
}

// run is one Cutter under watch.
type run struct {
	t      T
	max    int
	gaps   bool
	cutter *frame.Cutter
	frames []string
}

func newRun(t T, split frame.Split, max int, gaps bool) *run {
	r := &run{t: t, max: max, gaps: gaps}
	r.cutter = frame.NewCutter(r.watch(split), max)
	if gaps {
		r.cutter.Gap()
	}
	return r
}

// watch returns split with its promises checked at every call.
func (r *run) watch(split frame.Split) frame.Split {
	return func(data []byte, lost bool) frame.Cut {
		before := string(data)
		cut := split(data, lost)
		switch {
		case cut.Skip < 0 || cut.Size < 0 || cut.Skip+cut.Size > len(data):
			r.t.Fatalf("of %d bytes, %.200x, it cuts %+v", len(data), data, cut)
		case cut != split(data, lost):
			r.t.Errorf("asked twice about %.200x it cuts %+v, then something else", data, cut)
		case cut.Skip+cut.Size == 0 && cut != (frame.Cut{}):
			r.t.Errorf("of %.200x it cuts nothing, and says %+v", data, cut)
		case string(data) != before:
			r.t.Errorf("it changes the bytes it is given: %.200x to %.200x", before, data)
		}
		return cut
	}
}

func (r *run) take(f []byte) {
	if len(f) == 0 || len(f) > r.max {
		r.t.Errorf("a frame has %d bytes; 1 to %d are allowed", len(f), r.max)
	}
	r.frames = append(r.frames, string(f))
}

func (r *run) feed(p []byte, n int) {
	r.cutter.Feed(p[:n], r.take)
	if held := len(r.cutter.Pending()); held >= r.max && held > 0 {
		r.t.Errorf("%d bytes are held; a frame has %d at most", held, r.max)
	}
}

func (r *run) feedAll(frames [][]byte) {
	for _, f := range frames {
		r.feed(f, len(f))
		if r.gaps {
			r.cutter.Silence(r.take)
		}
	}
}

func (r *run) same(how string, data []byte, want []string) {
	r.t.Helper()
	if len(r.frames) == len(want) {
		equal := true
		for i := range want {
			equal = equal && r.frames[i] == want[i]
		}
		if equal {
			return
		}
	}
	r.t.Errorf("%s, %d bytes %.200x: %d frames %.300q, want %d %.300q", how, len(data), data, len(r.frames), r.frames, len(want), want)
}
