package blocktest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"ferrule/firmware/slot/blocktest"
)

func sector(c byte) []byte { return bytes.Repeat([]byte{c}, blocktest.Sector) }

func put(t *testing.T, d *blocktest.Disk, at int64, content string) {
	t.Helper()
	var p []byte
	for _, c := range []byte(content) {
		p = append(p, sector(c)...)
	}
	if _, err := d.WriteAt(p, at*blocktest.Sector); err != nil {
		t.Fatal(err)
	}
}

// letters reads a disk whose sectors each hold one letter; . is a sector of zeros.
func letters(t *testing.T, s *blocktest.State) string {
	t.Helper()
	raw := make([]byte, s.Size())
	if _, err := s.ReadAt(raw, 0); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for ; len(raw) > 0; raw = raw[blocktest.Sector:] {
		if !bytes.Equal(raw[:blocktest.Sector], sector(raw[0])) {
			t.Fatalf("%v: a sector is torn", s)
		}
		b.WriteByte(max(raw[0], '.'))
	}
	return b.String()
}

func all(t *testing.T, d *blocktest.Disk, o blocktest.Options) []string {
	t.Helper()
	seen := make(map[string]bool)
	for s := range d.States(o) {
		seen[letters(t, s)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// Where few sectors wait, every choice of them is a state, and what was synced is in all of them.
func TestEveryChoice(t *testing.T) {
	d := blocktest.New(4 * blocktest.Sector)
	put(t, d, 0, "A")
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	put(t, d, 1, "BC")
	put(t, d, 2, "D") // over C
	want := []string{"....", "A...", "A.C.", "A.D.", "AB..", "ABC.", "ABD."}
	if got := all(t, d, blocktest.Options{}); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Where many wait, the classic mistakes show: all but one, one alone, torn, and mixed.
func TestManySectors(t *testing.T) {
	d := blocktest.New(16 * blocktest.Sector)
	put(t, d, 0, "AAAA")
	put(t, d, 4, "BBBB")
	put(t, d, 8, "CCCC")
	got := all(t, d, blocktest.Options{})
	for _, want := range []string{
		"................", "AAAA............", "AAAABBBBCCCC....", "....BBBBCCCC....", "AAAA....CCCC....", "........CCCC....",
		"AAAABBBBC.......", "AAAABBBB.CCC....", "........CCC.....", "AAAABBBBC.CC....",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is missing", want)
		}
	}
	t.Logf("%d states", len(got))
	again := all(t, d, blocktest.Options{})
	if !slices.Equal(got, again) {
		t.Error("another run has other states")
	}
}

// A mark that promises what was not synced is found out.
func TestMarks(t *testing.T) {
	d := blocktest.New(2 * blocktest.Sector)
	put(t, d, 0, "A")
	d.Mark("too early")
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	d.Mark("in time")
	lost := map[string]bool{}
	for s := range d.States(blocktest.Options{}) {
		if n := len(s.Marks()); n > 0 && letters(t, s) != "A." {
			lost[s.Marks()[n-1].(string)] = true
		}
	}
	if !lost["too early"] || lost["in time"] {
		t.Errorf("lost at %v", lost)
	}
}

// After a Sync that failed no later one vouches for what was written before it.
func TestSyncThatFailed(t *testing.T) {
	d := blocktest.New(2 * blocktest.Sector)
	put(t, d, 0, "A")
	d.Fail(func(op blocktest.Op) error {
		if op.Kind == "sync" {
			return syscall.EIO
		}
		return nil
	})
	if err := d.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	d.Fail(nil)
	put(t, d, 1, "B")
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	d.Mark("synced")
	var after []string
	for s := range d.States(blocktest.Options{}) {
		if len(s.Marks()) == 1 {
			after = append(after, letters(t, s))
		}
	}
	slices.Sort(after)
	if got := slices.Compact(after); !slices.Equal(got, []string{".B", "AB"}) {
		t.Errorf("after the second sync: %q", got)
	}
}

func TestFailures(t *testing.T) {
	d := blocktest.New(2 * blocktest.Sector)
	d.Fail(func(op blocktest.Op) error {
		if op.Kind == "write" {
			return &blocktest.ShortWrite{N: 5, Err: syscall.EIO}
		}
		return nil
	})
	if n, err := d.WriteAt([]byte("too much"), 0); n != 5 || !errors.Is(err, syscall.EIO) {
		t.Errorf("%d, %v", n, err)
	}
	d.Fail(nil)
	if n, err := d.WriteAt(make([]byte, 4*blocktest.Sector), blocktest.Sector); n != blocktest.Sector || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("over the end: %d, %v", n, err)
	}
	if _, err := d.WriteAt([]byte("x"), -1); err == nil {
		t.Error("before the beginning")
	}
	got := make([]byte, 8)
	if _, err := d.ReadAt(got, 0); err != nil || string(got) != "too m\x00\x00\x00" {
		t.Errorf("%q, %v", got, err)
	}
}

// A state can be kept, written out, laid over a copy of the base, and gone on from.
func TestStates(t *testing.T) {
	d := blocktest.From(bytes.Repeat(sector('x'), 8))
	put(t, d, 2, "AB")
	put(t, d, 7, "C")
	var kept []*blocktest.State
	var seen []string
	for s := range d.States(blocktest.Options{}) {
		kept, seen = append(kept, s.Keep()), append(seen, letters(t, s))
	}
	for i, s := range kept {
		if got := letters(t, s); got != seen[i] {
			t.Fatalf("kept %q, became %q", seen[i], got)
		}
		var whole bytes.Buffer
		if _, err := s.WriteTo(&whole); err != nil {
			t.Fatal(err)
		}
		patched, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = patched.Write(bytes.Repeat(sector('x'), 8))
		if err := s.Patch(patched); err != nil {
			t.Fatal(err)
		}
		_ = patched.Close()
		if got, _ := os.ReadFile(patched.Name()); !bytes.Equal(got, whole.Bytes()) {
			t.Errorf("%v: the patched copy differs", s)
		}
		on, err := s.Disk()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 8*blocktest.Sector)
		if _, err := on.ReadAt(got, 0); err != nil || !bytes.Equal(got, whole.Bytes()) {
			t.Errorf("%v: the disk differs, %v", s, err)
		}
	}
	t.Logf("%d states", len(kept))
}

// logFile is a log as QEMU's blklogwrites writes it, with log-sector-size=unit.
type logFile struct {
	unit    int
	entries int
	body    []byte
}

func (l *logFile) add(sector, sectors, flags uint64, data []byte) {
	var head []byte
	for _, n := range []uint64{sector, sectors, flags, uint64(len(data))} {
		head = binary.LittleEndian.AppendUint64(head, n)
	}
	l.body = append(l.body, pad(head, l.unit)...)
	l.body = append(l.body, pad(data, l.unit)...)
	l.entries++
}

func pad(p []byte, unit int) []byte {
	for len(p)%unit != 0 {
		p = append(p, 0)
	}
	return p
}

func (l *logFile) bytes() []byte {
	var head []byte
	for _, n := range []uint64{0x6a736677736872, 1, uint64(l.entries)} {
		head = binary.LittleEndian.AppendUint64(head, n)
	}
	head = binary.LittleEndian.AppendUint32(head, uint32(l.unit))
	return append(pad(head, l.unit), l.body...)
}

const flush, fua, discard, mark = 1, 2, 4, 8

func TestLog(t *testing.T) {
	for _, unit := range []int{512, 4096} {
		k := uint64(unit / 512)
		l := &logFile{unit: unit}
		l.add(0, 1, 0, bytes.Repeat([]byte{'A'}, unit))
		l.add(0, 0, flush, nil)
		l.add(1, 1, fua, bytes.Repeat([]byte{'B'}, unit))
		l.add(0, 1, discard, nil)
		l.add(0, 0, mark, []byte("here"))
		log, err := blocktest.OpenLog(bytes.NewReader(l.bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if log.Entries() != 5 || log.Written() != int64(3*k) {
			t.Errorf("%d entries, %d sectors", log.Entries(), log.Written())
		}
		base := bytes.Repeat([]byte{'x'}, 3*unit)
		seen := make(map[string]int)
		for s := range log.States(blocktest.Options{Base: bytes.NewReader(base), Size: int64(len(base)), Exhaustive: 1}) {
			seen[letters(t, s)]++
		}
		short := func(s string) string { // one letter for each unit
			var b strings.Builder
			for _, c := range []byte(s) {
				b.WriteString(strings.Repeat(string(c), int(k)))
			}
			return b.String()
		}
		for _, want := range []string{"xxx", "Axx", "ABx", ".Bx"} {
			if seen[short(want)] == 0 {
				t.Errorf("unit %d: %q is missing: %v", unit, want, seen)
			}
		}
		if seen[short("xBx")] > 0 {
			t.Errorf("unit %d: what was flushed is gone", unit)
		}
	}
}

func TestBadLogs(t *testing.T) {
	l := &logFile{unit: 512}
	l.add(0, 1, 0, sector('A'))
	good := l.bytes()
	for name, raw := range map[string][]byte{
		"empty": nil, "no log": sector('x'), "cut short": good[:600], "without its data": good[:1024],
		"wrong length": func() []byte { b := bytes.Clone(good); b[512+24] = 1; return b }(),
	} {
		if _, err := blocktest.OpenLog(bytes.NewReader(raw)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzLog(f *testing.F) {
	l := &logFile{unit: 512}
	l.add(0, 1, 0, sector('A'))
	l.add(0, 0, flush, nil)
	l.add(9, 1, discard, nil)
	f.Add(l.bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		log, err := blocktest.OpenLog(bytes.NewReader(raw))
		if err != nil {
			return
		}
		n := 0
		for s := range log.States(blocktest.Options{Size: 4 * blocktest.Sector}) {
			_, _ = s.ReadAt(make([]byte, 4*blocktest.Sector), 0)
			if n++; n > 200 {
				return
			}
		}
	})
}

// Rebuilding costs what is read, not what the disk holds.
func BenchmarkStates(b *testing.B) {
	const size = 96 << 20
	d := blocktest.New(size)
	for i := range 17 {
		_, _ = d.WriteAt(bytes.Repeat([]byte{byte(i)}, 1<<20), int64(i)<<20)
		if i%4 == 3 {
			_ = d.Sync()
		}
	}
	env := make([]byte, 0x8000)
	n := 0
	for b.Loop() {
		n = 0
		for s := range d.States(blocktest.Options{}) {
			if _, err := s.ReadAt(env, 0x1100000); err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(n), "states")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/state")
}
