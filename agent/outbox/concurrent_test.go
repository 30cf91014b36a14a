package outbox_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"ferrule/agent/outbox"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

// Lines append while a session takes, acknowledges, loses its connection, and Run writes: all arrives, in
// the order of each line.
func TestLinesAndSessionAtOnce(t *testing.T) {
	for _, sync := range []outbox.Sync{outbox.Sync(10e6), outbox.Always} {
		t.Run(sync.String(), func(t *testing.T) {
			c := outbox.Default()
			c.MaxBytes, c.Sync = 4<<20, sync
			o, err := tryOpen(disk.OS(), filepath.Join(t.TempDir(), "outbox"), c)
			if err != nil {
				t.Fatal(err)
			}
			stop := start(t, o)
			linesAndSession(t, o)
			stop()
			if s := o.Status(); s.Depth != 0 || s.Dropped != 0 || s.Damaged != 0 || s.Problem != "" || s.UnsavedBytes != 0 {
				t.Errorf("status %+v", s)
			}
			closeBox(t, o)
		})
	}
}

func linesAndSession(t *testing.T, o *box) {
	const lines, each = 4, 500
	var group sync.WaitGroup
	for l := range lines {
		group.Go(func() {
			for i := range each {
				err := o.Append(t.Context(), fmt.Sprint(l), func(dst []byte, _ uint64) (string, []byte) {
					return "t", fmt.Appendf(dst, "%d %d", l, i)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 1))
	var next [lines]int // acknowledged up to here
	var flight []outbox.Entry
	for acked := 0; acked < lines*each; {
		if len(flight) < 64 {
			ctx, cancel := context.WithCancel(t.Context())
			if len(flight) > 0 {
				cancel() // only what is there
			}
			run, err := o.Next(ctx, 1+rng.IntN(20), 1<<20)
			cancel()
			if err != nil && len(flight) == 0 {
				t.Fatal(err)
			}
			flight = append(flight, run...)
		}
		if rng.IntN(20) == 0 {
			o.Rewind()
			flight = nil
			continue
		}
		n := 1 + rng.IntN(len(flight))
		for _, e := range flight[:n] {
			var l, i int
			if _, err := fmt.Sscan(string(e.Payload), &l, &i); err != nil || i != next[l] {
				t.Fatalf("line %d: %d comes after %d: %v", l, i, next[l]-1, err)
			}
			next[l]++
		}
		o.Ack(flight[n-1].ID)
		acked += n
		flight = flight[n:]
	}
	group.Wait()
}

// A segment is replaced while its entries are being read back: they are read again from where they are now.
func TestASegmentIsReplacedWhileItIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		o := open(t, d, small())
		add(t, o, 12)
		if err := o.Sync(); err != nil {
			t.Fatal(err)
		}
		first, err := o.Next(t.Context(), 3, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		o.Ack(first[2].ID) // the copies stand elsewhere in the segment
		slow, failed := make(chan struct{}), false
		d.Fail(func(op disktest.Op) error {
			switch {
			case op.Kind == disktest.Read && !failed:
				<-slow
			case op.Kind == disktest.Sync && !failed:
				failed = true
				return syscall.EIO
			}
			return nil
		})
		got := make(chan []key)
		go func() { got <- drain(t, o, 100) }()
		synctest.Wait() // it reads
		add(t, o, 3)
		_ = o.Sync() // condemns
		if err := o.Sync(); err != nil {
			t.Error(err)
		}
		close(slow)
		wantRange(t, <-got, o.Boot(), 4, 15)
		if s := o.Status(); s.Damaged != 0 || s.Depth != 0 {
			t.Errorf("status %+v", s)
		}
		closeBox(t, o)
	})
}
