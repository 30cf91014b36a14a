package outbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

const dir = "/state/outbox"

var quiet = slog.New(slog.DiscardHandler)

func small() outbox.Config {
	c := outbox.Default()
	c.MaxBytes = 64 << 10
	return c
}

// tester is what testing.T and rapid.T have in common.
type tester interface {
	Helper()
	Context() context.Context
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Fatal(args ...any)
}

// newDisk has a state directory that is durable.
func newDisk(t tester) *disktest.Disk {
	t.Helper()
	d := disktest.New()
	if err := errors.Join(d.MkdirAll("/state", 0o700), d.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	return d
}

// box has a shorter Next.
type box struct{ *outbox.Outbox }

func (b *box) Next(ctx context.Context, entries, bytes int) ([]outbox.Entry, error) {
	return b.Outbox.Next(ctx, outbox.Want{Entries: entries, Bytes: bytes})
}

func open(t tester, fsys disk.FS, c outbox.Config, lines ...outbox.LineConfig) *box {
	t.Helper()
	o, err := tryOpen(fsys, dir, c, lines...)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func tryOpen(fsys disk.FS, dir string, c outbox.Config, lines ...outbox.LineConfig) (*box, error) {
	lanes, err := outbox.Open(outbox.Options{FS: fsys, Dir: dir, Config: c, Lines: lines, Log: quiet})
	return &box{lanes}, err
}

func closeBox(t tester, o *box) {
	t.Helper()
	if err := o.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
}

// payload is what the entry seq of a boot holds, so that one look tells whether it is whole.
func payload(boot, seq uint64) []byte {
	return fmt.Appendf(nil, `{"boot":%d,"seq":%d,"readings":"%s"}`, boot, seq, strings.Repeat("x", int(seq*37%200)))
}

func line(seq uint64) string { return fmt.Sprintf("rs485-%d", seq%3) }

func topic(seq uint64) string { return "ferrule/gw/readings/" + line(seq) + "/meter" }

// add appends entries and returns the number of the last.
func add(t tester, o *box, n int) (last uint64) {
	t.Helper()
	for range n {
		next := o.Status().Seq + 1
		err := o.Append(t.Context(), line(next), func(dst []byte, seq uint64) (string, []byte) {
			last = seq
			return topic(seq), append(dst, payload(o.Boot(), seq)...)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return last
}

// key names an entry.
type key struct{ boot, seq uint64 }

// parse reads the key out of an entry and checks that the entry is what was appended.
func parse(t tester, e outbox.Entry) (k key) {
	t.Helper()
	text := strings.TrimPrefix(string(e.Payload), `{"boot":`)
	boot, text, _ := strings.Cut(text, `,"seq":`)
	seq, _, _ := strings.Cut(text, ",")
	k.boot, _ = strconv.ParseUint(boot, 10, 64)
	k.seq, _ = strconv.ParseUint(seq, 10, 64)
	if !bytes.Equal(e.Payload, payload(k.boot, k.seq)) || e.Topic != topic(k.seq) || e.Line != line(k.seq) {
		t.Fatalf("entry %d/%d is not what was appended: %q %q %q", k.boot, k.seq, e.Line, e.Topic, e.Payload)
	}
	return k
}

// drain hands out what there is, in runs of at most n, and acknowledges it. Where the log is damaged
// there may be less than its depth, which shows at the end; such a test runs in a bubble, where
// waiting costs nothing.
func drain(t tester, o *box, n int) (keys []key) {
	t.Helper()
	for o.Status().Depth > 0 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		run, err := o.Next(ctx, n, 1<<20)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && o.Status().Depth == 0 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range run {
			keys = append(keys, parse(t, e))
		}
		o.Ack(run[len(run)-1].ID)
	}
	return keys
}

func wantRange(t tester, got []key, boot, from, to uint64) {
	t.Helper()
	if len(got) != int(to-from+1) {
		t.Fatalf("%d entries, want %d", len(got), to-from+1)
	}
	for i, k := range got {
		if k != (key{boot, from + uint64(i)}) {
			t.Fatalf("entry %d is %v, want %d/%d", i, k, boot, from+uint64(i))
		}
	}
}

// start runs o until the returned function is called.
func start(t tester, o *box) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- o.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func TestAHealthySessionWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		o := open(t, d, outbox.Default())
		stop := start(t, o)
		synctest.Wait()
		before, syncs := d.Written(), d.Count(disktest.Sync)
		for i := range 3000 {
			add(t, o, 1)
			if i%2 == 0 { // some wait for the next, as they do on a real network
				time.Sleep(300 * time.Millisecond)
				continue
			}
			drain(t, o, 64)
			time.Sleep(300 * time.Millisecond)
		}
		drain(t, o, 64)
		stop()
		closeBox(t, o)
		if d.Written() != before || d.Count(disktest.Sync) != syncs {
			t.Errorf("%d bytes written, %d syncs", d.Written()-before, d.Count(disktest.Sync)-syncs)
		}
		if s := o.Status(); s.Acked != 3000 || s.Depth != 0 || s.Dropped != 0 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestWhatIsNotAcknowledgedIsOnDiskInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		o := open(t, d, outbox.Default())
		stop := start(t, o)
		const n = 200
		owed := int(time.Second/(70*time.Millisecond)) + 1 // younger than a second
		for i := range n {
			add(t, o, 1)
			time.Sleep(70 * time.Millisecond)
			synctest.Wait()
			// Whatever a power cut leaves now holds all that is a second old.
			if i%40 != 39 {
				continue
			}
			again := open(t, d.PowerCut(), outbox.Default())
			if got := again.Status().Depth; got < i+1-owed {
				t.Fatalf("after %d entries, a power cut leaves %d", i+1, got)
			}
			closeBox(t, again)
		}
		if syncs := d.Count(disktest.Sync); syncs > 25 {
			t.Errorf("%d syncs in 14 seconds", syncs)
		}
		wantRange(t, drain(t, o, 7), o.Boot(), 1, n)
		stop()
		closeBox(t, o)
		if names := d.Names(); len(names) > 2 {
			t.Errorf("a drained log left %v", names)
		}
	})
}

func TestAlwaysReturnsAfterTheSync(t *testing.T) {
	d := newDisk(t)
	c := small()
	c.Sync = outbox.Always
	o := open(t, d, c)
	for i := range 20 {
		before := d.Count(disktest.Sync)
		add(t, o, 1)
		if d.Count(disktest.Sync) == before {
			t.Fatalf("entry %d was not synced", i+1)
		}
	}
	again := open(t, d.Kill(), c)
	wantRange(t, drain(t, again, 3), o.Boot(), 1, 20)
	closeBox(t, again)
	closeBox(t, o)
}

// Appenders that come while the disk syncs share the next sync.
func TestAlwaysCommitsInGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		c := outbox.Default()
		c.Sync = outbox.Always
		o := open(t, d, c)
		d.Fail(func(op disktest.Op) error {
			if op.Kind == disktest.Sync {
				time.Sleep(10 * time.Millisecond)
			}
			return nil
		})
		before := d.Count(disktest.Sync)
		done := make(chan error)
		for range 100 {
			go func() {
				done <- o.Append(context.Background(), "l", func(dst []byte, seq uint64) (string, []byte) {
					return "t", append(dst, "payload"...)
				})
			}()
		}
		for range 100 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := d.Count(disktest.Sync) - before; n > 10 {
			t.Errorf("%d syncs for 100 appends at a time", n)
		}
		closeBox(t, o)
	})
}

func TestNextKeepsAWindowAndRewindSendsItAgain(t *testing.T) {
	o := open(t, disktest.New(), small())
	add(t, o, 10)
	first, err := o.Next(t.Context(), 3, 1<<20)
	if err != nil || len(first) != 3 {
		t.Fatalf("%d entries, %v", len(first), err)
	}
	second, err := o.Next(t.Context(), 100, 1) // the bound in bytes still gives one
	if err != nil || len(second) != 1 {
		t.Fatalf("%d entries, %v", len(second), err)
	}
	if s := o.Status(); s.InFlight != 4 || s.Depth != 10 || s.Resent != 0 {
		t.Errorf("status %+v", s)
	}
	o.Ack(first[1].ID)
	o.Rewind()
	o.Ack(second[0].ID) // of the connection that has ended
	if s := o.Status(); s.InFlight != 0 || s.Depth != 8 || s.Acked != 2 {
		t.Errorf("after rewind: %+v", s)
	}
	wantRange(t, drain(t, o, 4), o.Boot(), 3, 10)
	if s := o.Status(); s.Resent != 2 {
		t.Errorf("resent %d, want 2", s.Resent)
	}
	closeBox(t, o)
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, disktest.New(), small())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := o.Next(ctx, 1, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an empty outbox: %v", err)
		}
		got := make(chan []outbox.Entry)
		for range 2 {
			go func() {
				run, err := o.Next(t.Context(), 1, 1)
				if err != nil {
					t.Error(err)
				}
				got <- run
			}()
		}
		synctest.Wait()
		add(t, o, 2)
		if a, b := <-got, <-got; len(a) != 1 || len(b) != 1 || a[0].ID == b[0].ID {
			t.Errorf("two waiters got %v and %v", a, b)
		}
		ended := make(chan error)
		go func() { _, err := o.Next(t.Context(), 1, 1); ended <- err }()
		synctest.Wait()
		closeBox(t, o)
		if err := <-ended; !errors.Is(err, outbox.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
		if err := o.Append(t.Context(), "l", nil); !errors.Is(err, outbox.ErrClosed) {
			t.Errorf("append after close: %v", err)
		}
	})
}

func TestEntriesOfEarlierBootsComeFirst(t *testing.T) {
	d := newDisk(t)
	var boots []uint64
	for range 5 {
		o := open(t, d, small())
		boots = append(boots, o.Boot())
		add(t, o, 30)
		closeBox(t, o)
	}
	o := open(t, d, small())
	add(t, o, 30)
	if got := o.Status().Depth; got != 180 {
		t.Fatalf("depth %d, want 180", got)
	}
	got := drain(t, o, 16)
	for i, boot := range append(boots, o.Boot()) {
		wantRange(t, got[i*30:(i+1)*30], boot, 1, 30)
		if i > 0 && boot != boots[i-1]+1 {
			t.Errorf("boot %d follows %d", boot, boots[i-1])
		}
	}
	closeBox(t, o)
}

// After a kill, only what was acknowledged in the last moments is sent again.
func TestARestartResendsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		o := open(t, d, outbox.Default())
		stop := start(t, o)
		add(t, o, 1000)
		time.Sleep(2 * time.Second) // the broker is away: all is written
		before := d.Count(disktest.Write)
		for range 500 {
			run, err := o.Next(t.Context(), 1, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			o.Ack(run[0].ID)
			time.Sleep(10 * time.Millisecond)
		}
		if n := d.Count(disktest.Write) - before; n > 7 {
			t.Errorf("%d writes for 500 acknowledgements in 5 seconds", n)
		}
		again := open(t, d.Kill(), outbox.Default())
		got := drain(t, again, 100)
		if len(got) < 500 || len(got) > 500+110 {
			t.Errorf("%d entries are sent after a kill; 500 are owed", len(got))
		}
		wantRange(t, got[len(got)-500:], o.Boot(), 501, 1000)
		stop()
		closeBox(t, again)
		closeBox(t, o)

		clean := open(t, d.Kill(), outbox.Default())
		wantRange(t, drain(t, clean, 100), o.Boot(), 501, 1000)
		closeBox(t, clean)
	})
}

func TestSetAsideKeepsThePoisonInAFile(t *testing.T) {
	d := newDisk(t)
	o := open(t, d, small())
	add(t, o, 5)
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	run, err := o.Next(t.Context(), 3, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	o.SetAside(run[1].ID, "three connections ended")
	o.SetAside(run[1].ID, "again") // unknown by now
	o.Rewind()
	got := drain(t, o, 2)
	if len(got) != 4 || got[0].seq != 1 || got[1].seq != 3 {
		t.Errorf("handed out %v", got)
	}
	if s := o.Status(); s.SetAside != 1 || s.Depth != 0 || s.Dropped != 0 {
		t.Errorf("status %+v", s)
	}
	text, ok := d.Content(dir + "/aside.jsonl")
	if !ok || !bytes.Contains(text, []byte(`"reason":"three connections ended"`)) || !bytes.Contains(text, []byte(`"seq":2`)) || bytes.Count(text, []byte("\n")) != 1 {
		t.Errorf("set aside: %q", text)
	}
	closeBox(t, o)

	o = open(t, d, small())
	for range 200 {
		add(t, o, 1)
		run, err := o.Next(t.Context(), 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		o.SetAside(run[0].ID, "no")
	}
	var kept int
	for _, name := range d.Names() {
		if text, _ := d.Content(name); strings.Contains(name, "aside") {
			kept += len(text)
		}
	}
	if kept > 4096+1024 {
		t.Errorf("%d bytes of entries set aside are kept", kept)
	}
	closeBox(t, o)
}

func TestConfig(t *testing.T) {
	if err := outbox.Default().Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*outbox.Config){
		"bytes": func(c *outbox.Config) { c.MaxBytes = 1000 },
		"full":  func(c *outbox.Config) { c.WhenFull = "panic" },
		"sync":  func(c *outbox.Config) { c.Sync = -1 },
	} {
		c := outbox.Default()
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: %+v was accepted", name, c)
		}
		if _, err := tryOpen(disktest.New(), dir, c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	for text, want := range map[string]outbox.Sync{"always": outbox.Always, "1s": outbox.Sync(time.Second), "10ms": outbox.Sync(10 * time.Millisecond)} {
		var s outbox.Sync
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want || s.String() != text {
			t.Errorf("%q: %v, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "0s", "5ms", "-1s", "never"} {
		var s outbox.Sync
		if s.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q was accepted as %v", text, s)
		}
	}
}
