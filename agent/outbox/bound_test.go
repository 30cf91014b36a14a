package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/disk"
)

func TestABlockedAppendWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		c := small()
		c.WhenFull = outbox.Block
		o := open(t, d, c)
		stop := start(t, o)
		var taken int
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			for {
				err := o.Append(ctx, "rs485-0", func(dst []byte, seq uint64) (string, []byte) {
					return topic(seq), append(dst, payload(o.Boot(), seq)...)
				})
				if err != nil {
					ended <- err
					return
				}
				taken++
			}
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		s := o.Status()
		if s.Bytes > 64<<10 || s.Dropped > 0 || s.Depth != taken {
			t.Errorf("blocked with %d taken: %+v", taken, s)
		}
		before := taken
		for range 10 {
			run, err := o.Next(ctx, 20, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			o.Ack(run[len(run)-1].ID)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if taken < before+150 {
			t.Errorf("%d taken after 200 were acknowledged, %d before", taken, before)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		// The number that waited in vain shows as a gap that is named.
		if s := o.Status(); s.Dropped != 1 || len(s.DroppedRanges) != 1 || s.DroppedRanges[0].From != s.Seq {
			t.Errorf("status %+v", s)
		}
		stop()
		closeBox(t, o)
	})
}

// The bound holds on the disk, nothing in flight is dropped, and every number is handed out or named.
func TestTheBoundHolds(t *testing.T) {
	for _, policy := range []string{outbox.DropOldest, outbox.DropNewest} {
		t.Run(policy, func(t *testing.T) {
			d := newDisk(t)
			c := small()
			c.WhenFull = policy
			o := open(t, d, c)
			var inFlight []outbox.Entry
			for i := range 300 {
				add(t, o, 10)
				if i%3 == 0 {
					if err := o.Sync(); err != nil {
						t.Fatal(err)
					}
				}
				if i == 20 {
					var err error
					if inFlight, err = o.Next(t.Context(), 15, 1<<20); err != nil {
						t.Fatal(err)
					}
				}
				used := int64(0)
				for _, name := range d.Names() {
					data, _ := d.Content(name)
					used += int64(len(data)+4095) / 4096 * 4096
				}
				if s := o.Status(); used > 64<<10 || s.Bytes > 64<<10 {
					t.Fatalf("round %d: %d bytes on disk, %+v", i, used, s)
				}
			}
			if err := o.Sync(); err != nil {
				t.Fatal(err)
			}
			o.Rewind()
			accounted := map[uint64]bool{}
			for i, k := range drain(t, o, 33) {
				if i < len(inFlight) && k != parse(t, inFlight[i]) {
					t.Fatalf("entry %d is %v; in flight was %v", i, k, parse(t, inFlight[i]))
				}
				accounted[k.seq] = true
			}
			s := o.Status()
			for _, r := range s.DroppedRanges {
				for seq := r.From; seq <= r.To; seq++ {
					if accounted[seq] {
						t.Fatalf("%d is called dropped twice, or was handed out: %v", seq, s.DroppedRanges)
					}
					accounted[seq] = true
				}
			}
			if len(accounted) != 3000 || s.Seq != 3000 || int(s.Dropped)+int(s.Acked) != 3000 {
				t.Errorf("%d of 3000 numbers are accounted for: %+v", len(accounted), s)
			}
			closeBox(t, o)
		})
	}
}

func TestAnEntryThatIsTooLongIsDropped(t *testing.T) {
	o := open(t, newDisk(t), small())
	err := o.Append(t.Context(), "l", func(dst []byte, _ uint64) (string, []byte) {
		return "t", append(dst, make([]byte, 20<<10)...)
	})
	if s := o.Status(); err != nil || s.Dropped != 1 || s.Depth != 0 {
		t.Errorf("%v, %+v", err, s)
	}
	closeBox(t, o)
}

// A week without broker: the backlog is on disk, not in memory, and comes back in bounded memory.
func TestABacklogLeavesMemory(t *testing.T) {
	const n = 60_000
	o, err := tryOpen(disk.OS(), filepath.Join(t.TempDir(), "outbox"), outbox.Default())
	if err != nil {
		t.Fatal(err)
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	fill := func(n int) {
		for i := range n {
			err := o.Append(t.Context(), "rs485-1", func(dst []byte, seq uint64) (string, []byte) {
				return "ferrule/gw/readings/rs485-1/meter", fmt.Appendf(dst, `{"seq":%d,"fill":"%0220d"}`, seq, seq)
			})
			if err != nil {
				t.Fatal(err)
			}
			if i%500 == 499 {
				if err := o.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	fill(n)
	if grown := heap() - before; grown > 2<<20 {
		t.Errorf("%d entries, %d bytes on disk, take %d bytes of memory", n, o.Status().DiskBytes, grown)
	}
	most := int64(0)
	for got := 0; got < n; {
		run, err := o.Next(t.Context(), 100, 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range run {
			var seq int
			if _, err := fmt.Sscanf(string(e.Payload), `{"seq":%d`, &seq); err != nil || seq != got+1 {
				t.Fatalf("%q after %d: %v", e.Payload, got, err)
			}
			got++
		}
		o.Ack(run[len(run)-1].ID)
		if got%10_000 < 100 {
			most = max(most, heap()-before)
		}
	}
	if most > 2<<20 {
		t.Errorf("draining takes %d bytes of memory", most)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}
