package nmea

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"ferrule/hw/frame"
	"ferrule/hw/point"
)

// corpus returns the logs of real receivers, by name; nothing, and says so, where there are none.
func corpus(t testing.TB) map[string][]byte {
	t.Helper()
	root := os.Getenv("FERRULE_CORPORA")
	if root == "" {
		t.Log("NOT TESTED: real captures; FERRULE_CORPORA is not set")
		return nil
	}
	names, err := filepath.Glob(filepath.Join(root, "nmea", "*.log"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no logs in %s: %v", root, err)
	}
	logs := make(map[string][]byte)
	metadata := regexp.MustCompile(`(?m)^#.*\n`) // was never on the wire
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		logs[filepath.Base(name)] = metadata.ReplaceAll(data, nil)
	}
	return logs
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// cut feeds data in chunks of random sizes up to max, or whole for 0, and returns the frames.
func cut(split frame.Split, data []byte, max int, seed uint64) ([]string, frame.Stats) {
	var frames []string
	cutter := frame.NewCutter(split, MaxFrame)
	random := rand.New(rand.NewPCG(seed, 7))
	for len(data) > 0 {
		n := len(data)
		if max > 0 {
			n = min(n, 1+random.IntN(max))
		}
		cutter.Feed(data[:n], func(f []byte) { frames = append(frames, string(f)) })
		data = data[n:]
	}
	return frames, cutter.Stats()
}

// rightLine is what a line with a checksum looks like to somebody who has not read Split.
var rightLine = regexp.MustCompile(`(?s)^[^$!]*([$!](.+)\*([0-9A-Fa-f]{2}))\s*$`)

// right returns the sentence of a line whose checksum is right.
func right(line []byte) (string, bool) {
	m := rightLine.FindSubmatch(line)
	if m == nil {
		return "", false
	}
	var sum byte
	for _, c := range m[2] {
		sum ^= c
	}
	stated, err := strconv.ParseUint(string(m[3]), 16, 8)
	return string(m[1]), err == nil && byte(stated) == sum
}

// Every line with a right checksum is delivered, in order, and every other is counted.
func TestCorpusDeliversAllRightLines(t *testing.T) {
	var lines, good, fieldsOnly, extra int
	refused := make(map[string]int)
	names := make(map[string]bool)
	logs := corpus(t)
	for _, log := range sorted(logs) {
		var want []string
		for _, line := range regexp.MustCompile(`[\r\n]+`).Split(string(logs[log]), -1) {
			switch sentence, ok := right([]byte(line)); {
			case line == "":
			case ok:
				lines++
				good++
				want = append(want, sentence)
			default:
				lines++
				refused[why(t, line)]++
			}
		}
		frames, _ := cut(Split, logs[log], 0, 0)
		var d Decoder
		for _, f := range frames {
			name, readings, err := d.Decode(nil, []byte(f))
			if err != nil || name == "" {
				t.Errorf("%s: %q: name %q, %v", log, f, name, err)
			}
			names[name] = true
			if len(readings) > 0 && readings[0].Point == "f1" || len(readings) > 1 && readings[1].Point == "f2" {
				fieldsOnly++
			}
			if len(want) > 0 && want[0] == f {
				want = want[1:]
				continue
			}
			extra++
			t.Logf("%s: delivered from the middle of a spoilt line, or binary: %.80q", log, f)
		}
		if len(want) > 0 {
			t.Errorf("%s: %d lines not delivered, or not in order; the first is %q", log, len(want), want[0])
		}
	}
	if logs != nil {
		t.Logf("%d logs: %d lines, %d right and delivered, of these and %d more %d in fields f1…; %d kinds of sentence",
			len(logs), lines, good, extra, fieldsOnly, len(names))
		t.Logf("refused, by what was counted: %v", refused)
	}
}

// why returns what a bad line by itself is counted as.
func why(t *testing.T, line string) string {
	frames, stats := cut(Split, []byte(line+"\r\n"), 0, 0)
	switch {
	case stats.Checksum > 0:
		return "checksum"
	case stats.Malformed > 0:
		return "malformed"
	case stats.Oversize > 0:
		return "oversize"
	case stats.Garbage == 0 && len(frames) > 1:
		return "two right sentences in one line"
	case stats.Garbage > 0 && len(frames) > 0:
		return "garbage behind a right sentence"
	case stats.Garbage > 0:
		return "garbage"
	}
	t.Errorf("counted as nothing: %q", line)
	return "nothing"
}

// The same frames for every chunking of every log.
func TestCorpusInChunks(t *testing.T) {
	logs := corpus(t)
	for _, log := range sorted(logs) {
		want, stats := cut(Split, logs[log], 0, 0)
		for seed, max := range []int{1, 3, 32, 100, 1000, 5000} {
			got, counted := cut(Split, logs[log], max, uint64(seed))
			if !slices.Equal(got, want) || counted != stats {
				t.Errorf("%s in chunks of up to %d: %d frames, want %d; %+v, want %+v", log, max, len(got), len(want), counted, stats)
			}
		}
	}
}

// BenchmarkCorpus cuts and decodes all logs; ns/op is of one sentence.
func BenchmarkCorpus(b *testing.B) {
	var all [][]byte
	total := 0
	logs := corpus(b)
	for _, log := range sorted(logs) {
		frames, _ := cut(Split, logs[log], 0, 0)
		for _, f := range frames {
			all = append(all, []byte(f+"\r\n"))
			total += len(f) + 2
		}
	}
	benchmark(b, all, total)
}

func benchmark(b *testing.B, sentences [][]byte, bytesInAll int) {
	if len(sentences) == 0 {
		return
	}
	stream := bytes.Join(sentences, nil)
	b.ReportAllocs()
	b.SetBytes(int64(bytesInAll / len(sentences)))
	var d Decoder
	var readings []point.Reading
	cutter := frame.NewCutter(Split, MaxFrame)
	n := 0
	take := func(f []byte) {
		_, readings, _ = d.Decode(readings[:0], f)
		n++
	}
	for n < b.N {
		for rest := stream; len(rest) > 0 && n < b.N; {
			size := min(len(rest), 1000)
			cutter.Feed(rest[:size], take)
			rest = rest[size:]
		}
	}
}
