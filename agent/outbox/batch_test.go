package outbox_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/outbox"
)

// minute is a batch of at most a minute and 16 KiB.
var minute = outbox.Want{Entries: 1000, Bytes: 64 << 10, MaxAge: time.Minute, BatchBytes: 16 << 10}

// asked is a Next under way.
type asked struct {
	run []outbox.Entry
	err error
	at  time.Time
}

func ask(ctx context.Context, o *box, w outbox.Want) <-chan asked {
	got := make(chan asked, 1)
	go func() {
		run, err := o.Outbox.Next(ctx, w)
		got <- asked{run, err, time.Now()}
	}()
	synctest.Wait()
	return got
}

func TestABatchWaits(t *testing.T) {
	roomy := outbox.Default()
	for name, test := range map[string]struct {
		want  outbox.Want
		every time.Duration // an entry of some 120 bytes
		after time.Duration // is handed out
		n     int
	}{
		"for its time":          {want: minute, every: time.Second, after: time.Minute, n: 61},
		"for its bytes":         {want: minute, every: 100 * time.Millisecond, after: 13500 * time.Millisecond, n: 138},
		"for its entries":       {want: outbox.Want{Entries: 5, Bytes: 1 << 20, MaxAge: time.Minute, BatchBytes: 1 << 20}, every: time.Second, after: 4 * time.Second, n: 5},
		"for what a run takes":  {want: outbox.Want{Entries: 1000, Bytes: 1000, MaxAge: time.Minute}, every: time.Second, after: 8 * time.Second, n: 8},
		"not":                   {want: outbox.Want{Entries: 1000, Bytes: 64 << 10, BatchBytes: 16 << 10}, every: time.Second, n: 1},
		"however long it takes": {want: outbox.Want{Entries: 1000, Bytes: 64 << 10, MaxAge: time.Hour, BatchBytes: 16 << 10}, every: 10 * time.Minute, after: time.Hour, n: 7},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := open(t, newDisk(t), roomy, alarms)
				stop := start(t, o)
				got := ask(t.Context(), o, test.want)
				begin := time.Now()
				var a asked
				for a.at.IsZero() {
					if err := o.Append(t.Context(), "rs485-1", encodeSeq); err != nil {
						t.Fatal(err)
					}
					select {
					case a = <-got:
					case <-time.After(test.every):
					}
				}
				if took := a.at.Sub(begin); a.err != nil || took < test.after || took > test.after+test.after/20 || len(a.run) < test.n-1 || len(a.run) > test.n {
					t.Errorf("%d entries after %s, %v", len(a.run), took, a.err)
				}
				o.Ack(a.run[len(a.run)-1].ID)
				stop()
				closeBox(t, o)
			})
		})
	}
}

// An urgent entry does not wait, and takes with it what waits.
func TestAnAlarmEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, newDisk(t), small(), alarms)
		add(t, o, 2)
		got := ask(t.Context(), o, minute)
		time.Sleep(10 * time.Second)
		begin := time.Now()
		add(t, o, 1)
		a := <-got
		if a.at != begin || len(a.run) != 3 || a.run[0].Seq != 3 {
			t.Errorf("%+v", a)
		}
		closeBox(t, o)
	})
}

func TestABacklogDoesNotWait(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, o *box) *box{
		"on disk": func(t *testing.T, o *box) *box {
			add(t, o, 50)
			if err := o.Sync(); err != nil {
				t.Fatal(err)
			}
			return o
		},
		"of a former boot": func(t *testing.T, o *box) *box {
			add(t, o, 1)
			return nil
		},
		"of a lost connection": func(t *testing.T, o *box) *box {
			add(t, o, 1)
			take(t, o, 1)
			o.Rewind()
			return o
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDisk(t)
				before := open(t, d, small())
				o := make(t, before)
				if o == nil {
					closeBox(t, before)
					o = open(t, d, small())
				}
				begin := time.Now()
				if a := <-ask(t.Context(), o, minute); a.err != nil || a.at != begin || len(a.run) == 0 {
					t.Errorf("%d entries after %s, %v", len(a.run), a.at.Sub(begin), a.err)
				}
				closeBox(t, o)
			})
		})
	}
}

// What grows too large for memory while it waits is a backlog.
func TestABatchEndsWhereItLeavesMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, newDisk(t), small())
		got := ask(t.Context(), o, minute)
		begin := time.Now()
		add(t, o, 1)
		synctest.Wait() // it has seen one
		add(t, o, 30)
		if err := o.Sync(); err != nil {
			t.Fatal(err)
		}
		if a := <-got; a.err != nil || a.at != begin || len(a.run) == 0 {
			t.Errorf("%d entries after %s, %v", len(a.run), a.at.Sub(begin), a.err)
		}
		closeBox(t, o)
	})
}

// Those who wait for a batch do not keep an entry from one who waits for any, and end when they have to.
func TestSeveralWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, newDisk(t), small())
		ctx, cancel := context.WithCancel(t.Context())
		patient := []<-chan asked{ask(ctx, o, minute), ask(ctx, o, minute)}
		eager := []<-chan asked{ask(t.Context(), o, outbox.Want{Entries: 1, Bytes: 1}), ask(t.Context(), o, outbox.Want{Entries: 1, Bytes: 1})}
		patient = append(patient, ask(t.Context(), o, minute))
		begin := time.Now()
		add(t, o, 3)
		for _, got := range eager {
			if a := <-got; a.err != nil || len(a.run) != 1 || a.at != begin {
				t.Errorf("%+v", a)
			}
		}
		synctest.Wait()
		time.Sleep(30 * time.Second)
		cancel()
		for _, got := range patient[:2] {
			if a := <-got; !errors.Is(a.err, context.Canceled) {
				t.Errorf("%+v", a)
			}
		}
		if a := <-patient[2]; a.err != nil || len(a.run) != 1 || a.at.Sub(begin) != time.Minute {
			t.Errorf("%+v after %s", a, a.at.Sub(begin))
		}
		last := ask(t.Context(), o, minute)
		add(t, o, 1)
		synctest.Wait()
		closeBox(t, o)
		if a := <-last; !errors.Is(a.err, outbox.ErrClosed) {
			t.Errorf("%+v", a)
		}
	})
}

// A batch of a thousand entries wakes who waits for it a few times, not a thousand times. How often it looks is
// seen by the clock that it asks.
func TestABatchWakesSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int64
		var appending atomic.Bool
		lanes, err := outbox.Open(outbox.Options{
			FS: newDisk(t), Dir: dir, Config: outbox.Default(), Log: quiet,
			Now: func() (time.Time, bool) {
				if !appending.Load() {
					looks.Add(1)
				}
				return time.Now(), true
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		o := &box{lanes}
		got := ask(t.Context(), o, outbox.Want{Entries: 5000, Bytes: 1 << 20, MaxAge: time.Minute, BatchBytes: 1 << 20})
		looks.Store(0)
		for range 1000 {
			appending.Store(true)
			if err := o.Append(t.Context(), "rs485-1", encodeSeq); err != nil {
				t.Fatal(err)
			}
			appending.Store(false)
			synctest.Wait()
			time.Sleep(10 * time.Millisecond)
		}
		if a := <-got; a.err != nil || len(a.run) != 1000 {
			t.Errorf("%d entries, %v", len(a.run), a.err)
		}
		if looks.Load() > 4 {
			t.Errorf("it looked %d times", looks.Load())
		}
		closeBox(t, o)
	})
}

// A line whose entries get stale while the batch waits loses them, and the others wait their time.
func TestABatchOfStaleEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		brief := outbox.LineConfig{Name: "rs485-1", MaxAge: 10 * time.Second}
		o := open(t, newDisk(t), small(), brief)
		add(t, o, 6)
		got := ask(t.Context(), o, minute)
		if a := <-got; a.err != nil || !slices.EqualFunc(a.run, []uint64{2, 3, 5, 6}, func(e outbox.Entry, seq uint64) bool { return e.Seq == seq }) {
			t.Errorf("%+v", a)
		}
		if s := o.Status(); s.Expired != 2 {
			t.Errorf("status %+v", s)
		}
		closeBox(t, o)
	})
}
