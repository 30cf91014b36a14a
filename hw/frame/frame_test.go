package frame

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// line is the least Split: frames end at a line feed and have no mark at their beginning.
func line(data []byte, lost bool) Cut {
	switch i := bytes.IndexByte(data, '\n'); {
	case i < 0:
		return Cut{}
	case lost || i == 0:
		return Cut{Skip: i + 1, Quiet: i == 0}
	default:
		return Cut{Size: i + 1}
	}
}

func collect(c *Cutter, chunks ...[]byte) (frames []string) {
	take := func(frame []byte) { frames = append(frames, string(frame)) }
	for _, chunk := range chunks {
		c.Feed(chunk, take)
	}
	return frames
}

func TestCutterSkipsTheFirstOfAnUnmarkedProtocol(t *testing.T) {
	c := NewCutter(line, 16)
	got := collect(c, []byte("3.4\n12"), []byte(".5\n\n6.7\n8"))
	if want := []string{"12.5\n", "6.7\n"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if string(c.Pending()) != "8" || c.Stats() != (Stats{Bytes: 15, Frames: 2, Garbage: 4}) {
		t.Errorf("pending %q, %+v", c.Pending(), c.Stats())
	}
}

func TestCutterGivesUpWhatIsTooLong(t *testing.T) {
	c := NewCutter(line, 8)
	got := collect(c, []byte("\n"), bytes.Repeat([]byte("x"), 21), []byte("tail\nok\n"))
	if want := []string{"ok\n"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q: the end of what was too long is no frame", got, want)
	}
	if s := c.Stats(); s.Oversize != 3 || s.Frames != 1 {
		t.Errorf("%+v", s)
	}
}

func TestCutterSilence(t *testing.T) {
	var got []string
	take := func(frame []byte) { got = append(got, string(frame)) }
	c := NewCutter(line, 16)
	c.Feed([]byte("\n12"), take)
	c.Silence(take)
	c.Feed([]byte(".5\n6.7\n"), take)
	if want := []string{"6.7\n"}; !slices.Equal(got, want) || c.Stats().Cutoff != 1 {
		t.Errorf("got %q, want %q; %+v", got, want, c.Stats())
	}
	got = nil
	c.Gap()
	c.Feed([]byte("8"), take)
	c.Silence(take)
	c.Feed([]byte("9.0\n"), take)
	if want := []string{"9.0\n"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCutterIsDeafToChunks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.SampledFrom([]byte("ab\n")), 0, 200).Draw(t, "data")
		size := rapid.IntRange(1, 20).Draw(t, "size")
		whole := NewCutter(line, size)
		want := collect(whole, data)
		c := NewCutter(line, size)
		var got []string
		for rest := data; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "chunk")
			got = append(got, collect(c, rest[:n])...)
			rest = rest[n:]
		}
		if !slices.Equal(got, want) || c.Stats() != whole.Stats() {
			t.Fatalf("got %q %+v, want %q %+v", got, c.Stats(), want, whole.Stats())
		}
		if s := c.Stats(); s.Frames != uint64(len(got)) || s.Bytes != uint64(len(data)) {
			t.Fatalf("%+v", s)
		}
	})
}

func TestCutterAllocatesNothing(t *testing.T) {
	c, data, n := NewCutter(line, 16), []byte("12.5\n6.7\nab"), 0
	take := func([]byte) { n++ }
	if got := testing.AllocsPerRun(100, func() { c.Feed(data, take) }); got != 0 || n == 0 {
		t.Errorf("%v allocations, %d frames", got, n)
	}
}
