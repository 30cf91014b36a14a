package outbox_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/record"
)

// fleeting makes every third entry of the tests stale after a minute.
var fleeting = outbox.LineConfig{Name: "rs485-1", MaxAge: time.Minute}

func stales(seq uint64) bool { return line(seq) == fleeting.Name }

// watch is a clock that can be wrong.
type watch struct {
	ahead   time.Duration
	trusted bool
}

func (w *watch) now() (time.Time, bool) { return time.Now().Add(w.ahead), w.trusted }

func openBy(t tester, d *disktest.Disk, w *watch, lines ...outbox.LineConfig) *box {
	t.Helper()
	lanes, err := outbox.Open(outbox.Options{FS: d, Dir: dir, Config: small(), Lines: lines, Now: w.now, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return &box{lanes}
}

// wantExpired checks that of the entries 1 to n those of the fleeting line were let go and named, and all
// others handed out.
func wantExpired(t tester, o *box, got []key, boot uint64, n int) {
	t.Helper()
	var want []uint64
	gone := 0
	for seq := uint64(1); seq <= uint64(n); seq++ {
		if stales(seq) {
			gone++
		} else {
			want = append(want, seq)
		}
	}
	if list := seqs(got); !slices.Equal(list, want) {
		t.Fatalf("handed out %v", list)
	}
	s := o.Status()
	if s.Expired != uint64(gone) || !maps.Equal(s.ExpiredLines, map[string]uint64{fleeting.Name: uint64(gone)}) || s.Dropped != 0 {
		t.Errorf("%d should have been let go: %+v", gone, s)
	}
	for _, r := range s.ExpiredRanges {
		if r.Boot != boot || r.Count == 0 && (r.From != r.To || !stales(r.From)) {
			t.Errorf("named %+v", r)
		}
	}
	if named(s.ExpiredRanges) != s.Expired {
		t.Errorf("%d are named of %d: %v", named(s.ExpiredRanges), s.Expired, s.ExpiredRanges)
	}
}

func TestStaleEntriesAreLetGoWhenTheirTurnComes(t *testing.T) {
	for _, where := range []string{"memory", "disk", "former boot"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, w := newDisk(t), &watch{trusted: true}
				o := openBy(t, d, w, fleeting)
				boot := o.Boot()
				add(t, o, 90)
				switch where {
				case "disk":
					if err := o.Sync(); err != nil {
						t.Fatal(err)
					}
				case "former boot":
					closeBox(t, o)
					o = openBy(t, d, w, fleeting)
				}
				time.Sleep(time.Minute)
				if s := o.Status(); s.Expired != 0 || s.Depth != 90 {
					t.Errorf("before their turn: %+v", s)
				}
				time.Sleep(time.Second)
				wantExpired(t, o, drain(t, o, 7), boot, 90)
				closeBox(t, o)
				if left := segments(d); len(left) != 0 {
					t.Errorf("left %v", left)
				}
				o = openBy(t, d.Kill(), w, fleeting)
				if s := o.Status(); s.Depth != 0 {
					t.Errorf("back after a kill: %+v", s)
				}
				closeBox(t, o)
			})
		})
	}
}

// Next ends with nothing but stale entries there, and waits for a fresh one.
func TestNextWaitsThroughStaleEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		all := []outbox.LineConfig{fleeting, {Name: "rs485-0", MaxAge: time.Second, Urgent: true}, {Name: "rs485-2", MaxAge: time.Hour}}
		o := openBy(t, d, &watch{trusted: true}, all...)
		stop := start(t, o)
		add(t, o, 3000)
		time.Sleep(2 * time.Hour)
		got := make(chan []outbox.Entry)
		go func() {
			run, err := o.Next(t.Context(), 100, 1<<20)
			if err != nil {
				t.Error(err)
			}
			got <- run
		}()
		synctest.Wait()
		if s := o.Status(); s.Depth != 0 || s.Expired+s.Dropped != 3000 || s.Expired == 0 || len(s.ExpiredRanges) > 64 {
			t.Errorf("status %+v", s)
		}
		add(t, o, 1)
		if run := <-got; len(run) != 1 || run[0].Seq != 3001 {
			t.Errorf("handed out %v", run)
		}
		stop()
		closeBox(t, o)
		if left := segments(d); len(left) > 2 {
			t.Errorf("left %v", left)
		}
	})
}

// What is in flight is never let go; after a Rewind it waits again.
func TestNothingInFlightIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := openBy(t, newDisk(t), &watch{trusted: true}, fleeting)
		add(t, o, 9)
		keys, ids := take(t, o, 6)
		time.Sleep(time.Hour)
		rest, _ := take(t, o, 9)
		if s := o.Status(); !slices.Equal(seqs(rest), []uint64{8, 9}) || s.Expired != 1 || s.InFlight != 8 {
			t.Errorf("handed out %v, then %v: %+v", seqs(keys), seqs(rest), s)
		}
		o.Ack(ids[1])
		o.Rewind()
		if got := seqs(drain(t, o, 9)); !slices.Equal(got, []uint64{3, 5, 6, 8, 9}) || o.Status().Expired != 2 {
			t.Errorf("after rewind: %v, %+v", got, o.Status())
		}
		closeBox(t, o)
	})
}

// A clock that nobody vouches for, or that steps, makes no entry older or younger.
func TestOnlyATrustedClockAgesEntries(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, test := range map[string]struct {
		before, during, after watch
		restart               bool
		sleep                 time.Duration
		stale                 bool
	}{
		"untrusted, same boot":               {sleep: 2 * time.Minute, stale: true},
		"untrusted, same boot, fresh":        {sleep: 30 * time.Second},
		"untrusted, then set, fresh":         {before: watch{ahead: -year}, during: watch{trusted: true}, sleep: 30 * time.Second},
		"untrusted, restart":                 {restart: true, sleep: 2 * time.Minute, after: watch{trusted: true}},
		"trusted, restart":                   {before: watch{trusted: true}, restart: true, after: watch{trusted: true}, sleep: 2 * time.Minute, stale: true},
		"trusted, restart, fresh":            {before: watch{trusted: true}, restart: true, after: watch{trusted: true}, sleep: 30 * time.Second},
		"trusted, restart without a clock":   {before: watch{trusted: true}, restart: true, after: watch{ahead: year}, sleep: 2 * time.Minute},
		"trusted, same boot, loses its sync": {before: watch{trusted: true}, during: watch{ahead: year}, sleep: 2 * time.Minute, stale: true},
		"trusted, same boot, steps ahead":    {before: watch{trusted: true}, during: watch{trusted: true, ahead: year}, sleep: 30 * time.Second},
		"trusted, same boot, steps back":     {before: watch{trusted: true}, during: watch{trusted: true, ahead: -time.Hour}, sleep: 2 * time.Minute, stale: true},
		"from the future":                    {before: watch{trusted: true, ahead: year}, restart: true, after: watch{trusted: true}, sleep: 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, w := newDisk(t), test.before
				o := openBy(t, d, &w, fleeting)
				time.Sleep(time.Hour)
				add(t, o, 90)
				boot := o.Boot()
				if err := o.Sync(); err != nil { // most of it leaves memory
					t.Fatal(err)
				}
				if w = test.during; test.restart {
					closeBox(t, o)
					w = test.after
					o = openBy(t, d, &w, fleeting)
				}
				time.Sleep(test.sleep)
				got := drain(t, o, 7)
				if test.stale {
					wantExpired(t, o, got, boot, 90)
				} else if len(got) != 90 || o.Status().Expired != 0 {
					t.Errorf("%d handed out, %+v", len(got), o.Status())
				}
				closeBox(t, o)
			})
		})
	}
}

// oldSegment is a segment as it was written before there were lanes, the payload of one of its entries taken
// at the Unix time 1.
func oldSegment(nonce, boot uint64, n int) (name string, data []byte) {
	seed := record.NewSeed(nonce)
	uvarint := func(dst []byte, values ...uint64) []byte {
		for _, v := range values {
			for ; v >= 0x80; v >>= 7 {
				dst = append(dst, byte(v)|0x80)
			}
			dst = append(dst, byte(v))
		}
		return dst
	}
	text := func(dst []byte, s string) []byte { return append(uvarint(dst, uint64(len(s))), s...) }
	data = seed.Append(data, uvarint([]byte{1}, boot, 1_700_000_000_000, 0, 0))
	for seq := uint64(1); seq <= uint64(n); seq++ {
		e := uvarint([]byte{2}, boot, seq, 1_700_000_000_000)
		e = text(text(e, line(seq)), topic(seq))
		data = seed.Append(data, append(e, payload(boot, seq)...))
	}
	return fmt.Sprintf("%s/%016x-%016x.log", dir, 1, nonce), data
}

// plant puts a file on a disk.
func plant(t *testing.T, d *disktest.Disk, name string, data []byte) {
	t.Helper()
	if err := atomicfile.Write(d, name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// An upgrade in the field keeps its backlog: of entries of before, nobody knows how old they are.
func TestALogOfBeforeLanesIsRead(t *testing.T) {
	d := newDisk(t)
	closeBox(t, open(t, d, small()))
	name, data := oldSegment(77, 4, 12)
	plant(t, d, name, data)
	lines := []outbox.LineConfig{fleeting, alarms}
	o := openBy(t, d, &watch{trusted: true}, lines...)
	add(t, o, 3)
	if s := o.Status(); s.Depth != 15 || s.Lanes[0].Depth != 0 {
		t.Errorf("status %+v", s)
	}
	got := drain(t, o, 5)
	wantRange(t, got[:12], 4, 1, 12)
	wantRange(t, got[12:], o.Boot(), 1, 3)
	if s := o.Status(); s.Expired+s.Dropped+s.Damaged != 0 {
		t.Errorf("status %+v", s)
	}
	add(t, o, 3)
	if s := o.Status(); s.Lanes[0].Depth != 1 {
		t.Errorf("not urgent: %+v", s)
	}
	closeBox(t, o)

	// The program of before, after a rollback, has written once more: its entries of the urgent line come
	// before the next ones.
	name, data = oldSegment(78, 5, 12)
	plant(t, d, name, data)
	o = openBy(t, d, &watch{trusted: true}, lines...)
	add(t, o, 6)
	if s := o.Status(); s.Depth != 3+12+6 || s.Lanes[0].Depth != 1 {
		t.Errorf("status %+v", s)
	}
	got = drain(t, o, 5)
	got = slices.DeleteFunc(got, func(k key) bool { return line(k.seq) != alarms.Name })
	if want := []key{{o.Boot() - 1, 6}, {5, 3}, {5, 6}, {5, 9}, {5, 12}, {o.Boot(), 3}, {o.Boot(), 6}}; !slices.Equal(got, want) {
		t.Errorf("handed out %v, want %v", got, want)
	}
	closeBox(t, o)
}

// The log of stale entries is read once, front to back.
func TestStaleEntriesAreReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := outbox.Default()
		d, w := newDisk(t), &watch{trusted: true}
		lanes, err := outbox.Open(outbox.Options{FS: d, Dir: dir, Config: c, Lines: []outbox.LineConfig{fleeting}, Now: w.now, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		o := &box{lanes}
		for range 20_000 {
			if err := o.Append(t.Context(), fleeting.Name, encodeSeq); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.Sync(); err != nil {
			t.Fatal(err)
		}
		bytes := o.Status().DiskBytes
		time.Sleep(time.Hour)
		read := 0
		d.Fail(func(op disktest.Op) error {
			if op.Kind == disktest.Read {
				read += op.Size
			}
			return nil
		})
		add(t, o, 1) // 20001: rs485-0
		if keys, _ := take(t, o, 10); len(keys) != 1 {
			t.Errorf("handed out %v", keys)
		}
		if s := o.Status(); s.Expired != 20_000 || len(s.ExpiredRanges) != 1 || int64(read) > bytes+bytes/10 || read == 0 {
			t.Errorf("%d bytes read of %d: %+v", read, bytes, s)
		}
		closeBox(t, o)
	})
}
