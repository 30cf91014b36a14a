package session

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/agenttest"
	"ferrule/agent/outbox"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

const budgetPath = "/state/budget"

// newTestBudget opens a budget of 32 MB on d, with a clock that goes wrong by skew.
func newTestBudget(t testing.TB, d disk.FS, skew *time.Duration, trusted *bool) *budget {
	t.Helper()
	return newBudget(32e6, d, budgetPath, func() time.Time { return time.Now().Add(*skew) },
		func() bool { return *trusted }, slog.New(slog.DiscardHandler))
}

func stateDisk(t testing.TB) *disktest.Disk {
	t.Helper()
	d := disktest.New()
	if err := d.MkdirAll("/state", 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestBudgetOfADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // begins at midnight, UTC
		var skew time.Duration
		trusted := true
		b := newTestBudget(t, stateDisk(t), &skew, &trusted)
		expect := func(what string, normal, all int64, continues time.Duration) {
			t.Helper()
			n, ends := b.room(false)
			a, _ := b.room(true)
			if n != normal || a != all || time.Until(ends) != continues {
				t.Errorf("%s: room for %d, with the reserve %d, ends in %v", what, n, a, time.Until(ends))
			}
		}
		expect("at first", 288e5, 32e6, day)
		<-time.After(10 * time.Hour)
		b.spend(28e6)
		expect("spent", 8e5, 4e6, 14*time.Hour)
		b.spend(1e6)
		expect("into the reserve", 0, 3e6, 14*time.Hour)
		if st := b.status(); !st.UsedUp || st.Spent != 29e6 || !st.Continues.Equal(time.Now().Add(14*time.Hour)) {
			t.Errorf("status: %+v", st)
		}
		skew = -20 * time.Hour // the day before
		expect("set back", 0, 3e6, 10*time.Hour)
		skew = 0
		expect("and forth: nothing is won", 288e5, 32e6, 14*time.Hour) // a day begins once more at most
		b.spend(29e6)
		trusted = false
		<-time.After(13 * time.Hour)
		expect("nobody vouches", 0, 3e6, time.Hour)
		<-time.After(2 * time.Hour)
		expect("24 hours are over", 288e5, 32e6, day)
		b.spend(30e6)
		trusted = true
		expect("vouched for", 0, 2e6, 23*time.Hour)
		<-time.After(23 * time.Hour)
		expect("the next day", 288e5, 32e6, day)
	})
}

// A restart begins no new day, whatever the clock is worth; and what was spent is written seldom.
func TestBudgetIsKept(t *testing.T) {
	for _, trusted := range []bool{true, false} {
		t.Run(fmt.Sprintf("trusted=%t", trusted), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := stateDisk(t)
				var skew time.Duration
				writes := 0
				d.Fail(func(op disktest.Op) error {
					if op.Kind == disktest.Rename {
						writes++
					}
					return nil
				})
				run := func(cut bool, work func(b *budget)) {
					b := newTestBudget(t, d, &skew, &trusted)
					ctx, cancel := context.WithCancel(t.Context())
					kept := make(chan struct{})
					go func() { defer close(kept); b.keep(ctx) }()
					work(b)
					synctest.Wait()
					if cut {
						d.Fail(func(op disktest.Op) error {
							if op.Kind.Changes() {
								return context.Canceled
							}
							return nil
						})
					}
					cancel()
					<-kept
					d.Fail(nil)
				}
				run(false, func(b *budget) {
					for range 20_000 {
						b.spend(1000)
						<-time.After(time.Second)
						synctest.Wait()
					}
				})
				if writes > 50 {
					t.Errorf("%d writes for 20,000 readings", writes)
				}
				run(true, func(b *budget) {
					if n, ends := b.room(false); n != 88e5 || time.Until(ends).Round(time.Second) != day-20_000*time.Second {
						t.Errorf("after a stop: room for %d, ends in %v", n, time.Until(ends))
					}
					b.spend(100)
				})
				run(true, func(b *budget) {
					if n, _ := b.room(false); n > 88e5-100 || n < 78e5-100 {
						t.Errorf("after a power cut: room for %d", n)
					}
					<-time.After(day)
					if n, _ := b.room(false); n != 288e5 {
						t.Errorf("the next day: room for %d", n)
					}
				})
			})
		})
	}
}

// Whatever a power cut leaves, the budget opens, and knows what it knew before or after.
func TestBudgetSurvivesEveryPowerCut(t *testing.T) {
	var skew time.Duration
	trusted := true
	disktest.Replay(t, func(d *disktest.Disk) {
		if err := d.MkdirAll("/state", 0o700); err != nil {
			t.Fatal(err)
		}
		b := newTestBudget(t, d, &skew, &trusted)
		for range 3 {
			b.spend(9e6)
			b.write(false)
		}
	}, func(t testing.TB, state *disktest.Disk) {
		b := newTestBudget(t, state, &skew, &trusted)
		if n, _ := b.room(true); n != 32e6 && n != 22e6 && n != 13e6 && n != 4e6 {
			t.Errorf("room for %d", n)
		}
	})
}

func FuzzBudget(f *testing.F) {
	f.Add(fmt.Sprintf(budgetFormat, 20000, int64(1)<<40, 86400))
	f.Add("ferrule-budget date=-1 spent=9 passed=0\n")
	f.Fuzz(func(t *testing.T, text string) {
		date, spent, passed, err := parseBudget(text)
		if err != nil {
			return
		}
		if date < 0 || spent < 0 || passed < 0 || passed > day || text != fmt.Sprintf(budgetFormat, date, spent, int64(passed/time.Second)) {
			t.Errorf("%q: %d, %d, %v", text, date, spent, passed)
		}
	})
}

// When nine tenths are used up readings wait, while urgent ones, commands and the status go on;
// the next day they follow, in order.
func TestReadingsWaitWhenTheDayIsUsedUp(t *testing.T) {
	w := newWorld(t)
	b, got := w.broker()
	lanes := must[*outbox.Outbox](t)(outbox.Open(outbox.Options{
		FS: disk.OS(), Dir: t.TempDir(), Config: outbox.Default(), Lines: []outbox.LineConfig{{Name: "alarm", Urgent: true}}, Log: w.log.logger()}))
	t.Cleanup(func() { _ = lanes.Close() })
	var ahead atomic.Int64
	s := w.session(b.Address(), joining, commands(func(Command) (string, []byte) { return "c1", []byte("done") }), func(o *Options) {
		o.Source, o.DailyBytes = lanes, 1<<20
		o.State = State{FS: disk.OS(), Dir: t.TempDir()}
		o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	w.run(s)
	until(t, "the subscription", func() bool { return s.Status().Subscribed })
	add := func(line string, n int) {
		t.Helper()
		for range n {
			if err := lanes.Append(context.Background(), line, func(dst []byte, seq uint64) (string, []byte) {
				return "readings/" + line, appendEntry(dst, seq, 1000)
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	add("meter", 1500)
	until(t, "the budget to be used up", func() bool { return s.Status().Budget.UsedUp })
	add("alarm", 1)
	until(t, "the alarm", func() bool { return len(got.of("readings/alarm")) == 1 })
	if err := b.Publish("ferrule/device-1/command/read", []byte("x"), false); err != nil {
		t.Fatal(err)
	}
	until(t, "the reply", func() bool { return len(got.of("ferrule/device-1/reply/c1")) == 1 })
	st := s.Status()
	if st.Budget.Spent > 1<<20 || st.Budget.Continues.IsZero() || st.Wire.Sent < 800<<10 || lanes.Status().Depth == 0 {
		t.Errorf("budget %+v, wire %+v, %d entries wait", st.Budget, st.Wire, lanes.Status().Depth)
	}
	ahead.Store(int64(day))
	b.Cut() // a new link looks at the clock at once; this one within the hour
	if err := b.Mend(); err != nil {
		t.Fatal(err)
	}
	until(t, "the rest", func() bool { return lanes.Status().Depth == 0 })
	all := seqs(t, got.of("readings/meter"))
	for i := 1; i < len(all); i++ {
		if all[i] > all[i-1]+1 && all[i] != 1502 {
			t.Fatalf("%d follows %d", all[i], all[i-1])
		}
	}
	if all[len(all)-1] != 1500 || !strings.HasPrefix(got.of("readings/alarm")[0], `{"seq":1501,`) {
		t.Errorf("the last is %d", all[len(all)-1])
	}
}

// Attempts that come to nothing cost, too.
func TestFailedAttemptsAreCharged(t *testing.T) {
	w := newWorld(t)
	b, _ := w.broker(func(c *agenttest.BrokerConfig) {
		c.TLS.ClientCAs = must[*agenttest.CA](t)(agenttest.NewCA("other")).Pool()
	})
	s := w.session(b.Address(), func(o *Options) { o.DailyBytes = 1 << 20 })
	w.run(s)
	until(t, "a refusal", func() bool { return s.Status().LastFailure != nil })
	if st := s.Status(); st.Connects != 0 || st.Wire.Sent < 300 || st.Budget.Spent < int64(st.Wire.Sent) {
		t.Errorf("wire %+v, budget %+v", st.Wire, st.Budget)
	}
}
