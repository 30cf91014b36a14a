package outbox_test

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/disk"
)

// outage is a broker that is away while lines go on at ten messages a second, one in a hundred an alarm: what
// is measured is the room that they take, on the disk and in memory.
type outage struct {
	tb        testing.TB
	dir       string
	o         *box
	c         outbox.Config
	heap      int64 // at the start
	mostHeap  int64
	mostBytes int64
}

const (
	outageTick = 1000 // entries between two looks
	outageSync = 100  // entries between two syncs
)

func newOutage(tb testing.TB, c outbox.Config) *outage {
	w := &outage{tb: tb, dir: filepath.Join(tb.TempDir(), "outbox"), c: c}
	var err error
	if w.o, err = tryOpen(disk.OS(), w.dir, c, alarms); err != nil {
		tb.Fatal(err)
	}
	w.heap = heapBytes()
	return w
}

func heapBytes() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// last appends n entries.
func (w *outage) last(n int) {
	for i := range n {
		name := "rs485-1"
		if i%100 == 99 {
			name = alarms.Name
		}
		err := w.o.Append(w.tb.Context(), name, func(dst []byte, seq uint64) (string, []byte) {
			return "ferrule/gw/readings/" + name + "/meter", fmt.Appendf(dst, `{"seq":%d,"fill":"%0180d"}`, seq, seq)
		})
		if err != nil {
			w.tb.Fatal(err)
		}
		if i%outageSync == outageSync-1 {
			if err := w.o.Sync(); err != nil {
				w.tb.Fatal(err)
			}
		}
		if i%outageTick == outageTick-1 {
			w.mostBytes = max(w.mostBytes, w.used())
		}
		if i%(n/10) == n/10-1 {
			w.mostHeap = max(w.mostHeap, heapBytes()-w.heap)
		}
	}
}

// end drains what is left, in order and in bounded memory, and accounts for every number.
func (w *outage) end() (drained int) {
	s := w.o.Status()
	last := map[string]uint64{}
	for w.o.Status().Depth > 0 {
		run, err := w.o.Next(w.tb.Context(), 256, 64<<10)
		if err != nil {
			w.tb.Fatal(err)
		}
		for _, e := range run {
			if e.Seq <= last[e.Line] || e.Line == alarms.Name && last["rs485-1"] > 0 {
				w.tb.Fatalf("%d of %s comes after %v", e.Seq, e.Line, last)
			}
			last[e.Line] = e.Seq
		}
		w.o.Ack(run[len(run)-1].ID)
		if drained += len(run); drained%100_000 < len(run) {
			w.mostHeap = max(w.mostHeap, heapBytes()-w.heap)
		}
	}
	if drained+int(s.Dropped) != int(s.Seq) || named(s.DroppedRanges) != s.Dropped || s.DroppedRangesLeftOut > 0 || s.Problem != "" {
		w.tb.Errorf("%d drained: %+v", drained, s)
	}
	if w.mostBytes > w.c.MaxBytes.Bytes() || w.mostHeap > 2<<20 {
		w.tb.Errorf("%d bytes of disk, of %d; %d bytes of memory", w.mostBytes, w.c.MaxBytes.Bytes(), w.mostHeap)
	}
	if err := w.o.Close(); err != nil {
		w.tb.Error(err)
	}
	return drained
}

// Few survivors of many stale entries do not keep the memory of all.
func TestSurvivorsTakeTheirOwnMemoryOnly(t *testing.T) {
	for _, where := range []string{"disk", "memory"} {
		t.Run(where, func(t *testing.T) {
			lanes, err := outbox.Open(outbox.Options{
				FS: disk.OS(), Dir: filepath.Join(t.TempDir(), "outbox"), Config: outbox.Default(), Log: quiet,
				Lines: []outbox.LineConfig{{Name: "brief", MaxAge: time.Nanosecond}},
			})
			if err != nil {
				t.Fatal(err)
			}
			o := &box{lanes}
			const n = 40_000
			before := heapBytes()
			for i := range n {
				name := "brief"
				if i%80 == 0 {
					name = "lasting"
				}
				if err := o.Append(t.Context(), name, encodeSeq); err != nil {
					t.Fatal(err)
				}
			}
			if where == "disk" {
				if err := o.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			run, err := o.Next(t.Context(), n/80+1, 1<<20)
			if err != nil || len(run) != n/80 || o.Status().Expired != n-n/80 {
				t.Fatalf("%d entries, %v, %d expired", len(run), err, o.Status().Expired)
			}
			if grown := heapBytes() - before; grown > 2<<20 {
				t.Errorf("%d survivors keep %d bytes", len(run), grown)
			}
			runtime.KeepAlive(run)
			closeBox(t, o)
		})
	}
}

// TestAnOutage is some two hours of one, in a tenth of the room that they need. BenchmarkWeek is a week.
func TestAnOutage(t *testing.T) {
	c := outbox.Default()
	c.MaxBytes = 2 << 20
	w := newOutage(t, c)
	w.last(60_000)
	if s := w.o.Status(); s.Lanes[0].Depth != 600 || s.Dropped < 30_000 {
		t.Errorf("status %+v", s)
	}
	w.end()
}

// BenchmarkWeek is a week without a broker at ten messages a second, 1.7 GB of entries in the room of the
// default configuration: run it by -bench Week -benchtime 1x.
func BenchmarkWeek(b *testing.B) {
	for b.Loop() {
		w := newOutage(b, outbox.Default())
		w.last(7 * 24 * 3600 * 10)
		b.ReportMetric(float64(w.mostBytes)/(1<<20), "disk-MiB")
		n := w.end()
		b.ReportMetric(float64(n), "drained")
		b.ReportMetric(float64(w.mostHeap)/(1<<20), "heap-MiB")
	}
}

func (w *outage) used() (n int64) {
	err := filepath.WalkDir(w.dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if err != nil {
		w.tb.Fatal(err)
	}
	return n
}
