package audit_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/audit"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/jws"
	"ferrule/internal/quantity"
)

// Foreign text stays inside its field, and in printable ASCII.
func TestForeignTextIsEscaped(t *testing.T) {
	d := disktest.New()
	w := newWorld(t, d)
	evil := "x\"}\n{\"seq\":9}\r\x1b[2J\u202e\u009b31m\x00\xff\U0001F600" + strings.Repeat("\u2028", 4000)
	l := w.open(t)
	attrs := []slog.Attr{slog.String(evil, evil), slog.Any("any", errors.New(evil)), slog.Group(evil, slog.Float64("f", 1e300))}
	for range 40 {
		attrs = append(attrs, slog.String("again", evil))
	}
	for _, e := range []audit.Event{{Name: evil, Attrs: attrs}, {Name: "after"}} {
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole(t, w.verify(t))
	text, _ := d.Content(segmentsOf(d)[0])
	if lines := bytes.Count(text, []byte("\n")); lines != 2 {
		t.Fatalf("%d lines", lines)
	}
	for _, b := range text {
		if (b < ' ' || b > '~') && b != '\n' {
			t.Fatalf("the byte %#x stands in the log", b)
		}
	}
	var line struct{ Event string }
	if err := json.Unmarshal(text[:bytes.IndexByte(text, '\n')], &line); err != nil || !strings.HasPrefix(line.Event, "x\"}\n{") {
		t.Errorf("%v: %q", err, line.Event)
	}
}

// The disk is full, or fails a sync, and is well again: no line is lost that fits the queue, and the log is whole.
func TestADiskThatRefuses(t *testing.T) {
	for name, fail := range map[string]func(op disktest.Op) error{
		"full":          func(op disktest.Op) error { return onlyIf(op.Kind == disktest.Write, syscall.ENOSPC) },
		"half a write":  func(op disktest.Op) error { return short(op) },
		"sync":          func(op disktest.Op) error { return onlyIf(op.Kind == disktest.Sync, syscall.EIO) },
		"folder's sync": func(op disktest.Op) error { return onlyIf(op.Kind == disktest.SyncDir, syscall.EIO) },
		"read-only":     func(op disktest.Op) error { return onlyIf(op.Kind.Changes(), syscall.EROFS) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := disktest.New()
				w := newWorld(t, d)
				l := w.open(t)
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- l.Run(ctx) }()
				appendAll(t, l, 0, 3)
				synctest.Wait()
				d.Fail(fail)
				appendAll(t, l, 3, 6)
				time.Sleep(20 * time.Minute) // the head is due, too
				if l.Status().Problem == "" {
					t.Error("nobody is told")
				}
				d.Fail(nil)
				time.Sleep(2 * time.Minute)
				if p := l.Status().Problem; p != "" {
					t.Errorf("the disk is well, and: %s", p)
				}
				appendAll(t, l, 6, 8)
				stop()
				<-done
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				r := w.verify(t)
				whole(t, r)
				var text []byte
				for _, name := range segmentsOf(d) {
					content, _ := d.Content(name)
					text = append(text, content...)
				}
				for i := range 8 {
					if !bytes.Contains(text, fmt.Appendf(nil, `"n":%d,`, i)) {
						t.Errorf("line %d is lost", i)
					}
				}
				if n := len(segmentsOf(d)); n > 3 {
					t.Errorf("%d segments after one fault", n)
				}
				for name, state := range d.CrashStates() {
					r, err := audit.Verify(state, dir, w.signer().Public())
					if err == nil && r.Break != nil && r.Break.Code != audit.BreakHead {
						t.Errorf("power cut %s: %+v", name, *r.Break)
					}
				}
			})
		})
	}
}

func onlyIf(is bool, err error) error {
	if is {
		return err
	}
	return nil
}

func short(op disktest.Op) error {
	if op.Kind == disktest.Write {
		return &disktest.ShortWrite{N: op.Size / 2, Err: syscall.ENOSPC}
	}
	return nil
}

// However much is appended, a disk that refuses is asked ever more rarely.
func TestABadDiskIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := disktest.New()
		w := newWorld(t, d)
		l := w.open(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		d.Fail(func(op disktest.Op) error { return onlyIf(op.Kind.Changes(), syscall.EIO) })
		for i := range 6000 {
			_ = l.Append(t.Context(), audit.Event{Name: "e", Essential: true, Attrs: []slog.Attr{slog.Int("n", i)}})
			time.Sleep(100 * time.Millisecond)
		}
		if n := d.Count(disktest.Create) + d.Count(disktest.Mkdir); n > 20 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		stop()
		<-done
		d.Fail(nil)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		whole(t, w.verify(t))
	})
}

// What costs a TPM command or a write is bounded, and nothing happens while nothing happens.
func TestQuietAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := disktest.New()
		w := newWorld(t, d)
		key := w.signer().(*signer)
		l := w.open(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		appendAll(t, l, 0, 1)
		time.Sleep(time.Hour)
		if n := key.count.Load(); n != 1 {
			t.Errorf("%d signatures at the start", n)
		}
		written, syncs := d.Written(), d.Count(disktest.Sync)
		time.Sleep(30 * 24 * time.Hour)
		if d.Written() != written || d.Count(disktest.Sync) != syncs || key.count.Load() != 1 {
			t.Errorf("a month of nothing: %d bytes, %d syncs, %d signatures", d.Written()-written, d.Count(disktest.Sync)-syncs, key.count.Load()-1)
		}
		// A flood: 10 an hour would be noticed; 36,000 must not wear out flash or TPM.
		before := key.count.Load()
		for i := range 36000 {
			_ = l.Append(t.Context(), audit.Event{Name: "command.refused", Attrs: []slog.Attr{slog.Int("n", i)}})
			time.Sleep(100 * time.Millisecond)
		}
		if n := key.count.Load() - before; n > 10 {
			t.Errorf("%d signatures in an hour of flood", n)
		}
		if n := l.Status().Last; n > 100 {
			t.Errorf("%d lines in an hour of flood", n)
		}
		if l.Status().Suppressed == 0 {
			t.Error("nobody is told what was left out")
		}
		stop()
		<-done
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		whole(t, w.verify(t))
		if err := l.Append(t.Context(), audit.Event{Name: "late"}); !errors.Is(err, audit.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// A key that does not sign is asked once a minute, and the lines are kept.
func TestAKeyThatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := disktest.New()
		w := newWorld(t, d)
		key := w.signer().(*signer)
		key.fail.Store(true)
		l := w.open(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		for i := range 100 {
			appendAll(t, l, i, i+1)
			time.Sleep(time.Second)
		}
		if n := key.count.Load(); n > 3 {
			t.Errorf("a key that refuses was asked %d times in 100 seconds", n)
		}
		if l.Status().Problem == "" {
			t.Error("nobody is told")
		}
		key.fail.Store(false)
		time.Sleep(2 * time.Minute)
		if s := l.Status(); s.Problem != "" || s.Signed != s.Last {
			t.Errorf("%+v", s)
		}
		stop()
		<-done
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		whole(t, w.verify(t))
	})
}

// Append does not wait for a disk that hangs.
func TestAppendNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := disktest.New()
		w := newWorld(t, d)
		l := w.open(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		d.Fail(func(op disktest.Op) error {
			if op.Kind == disktest.Sync {
				time.Sleep(time.Hour)
			}
			return nil
		})
		start, lost := time.Now(), 0
		for i := range 1000 {
			if errors.Is(l.Append(t.Context(), audit.Event{Name: "e", Essential: true, Attrs: []slog.Attr{slog.Int("n", i)}}), audit.ErrFull) {
				lost++
			}
		}
		if time.Since(start) != 0 || lost == 0 {
			t.Errorf("1000 events took %v, %d lost", time.Since(start), lost)
		}
		d.Fail(nil)
		time.Sleep(2 * time.Hour)
		stop()
		<-done
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		whole(t, w.verify(t))
		text, _ := d.Content(segmentsOf(d)[0])
		told := 0
		for _, m := range regexp.MustCompile(`"event":"audit.lost","fields":{"lines":(\d+)}`).FindAllSubmatch(text, -1) {
			n, _ := strconv.Atoi(string(m[1]))
			told += n
		}
		if told != lost {
			t.Errorf("%d lines are lost; the log says %d", lost, told)
		}
	})
}

// A key of a kind that cannot sign heads is said, and nothing else suffers.
func TestKeyThatCannot(t *testing.T) {
	d := disktest.New()
	w := newWorld(t, d)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.use(p384)
	l := w.open(t)
	appendAll(t, l, 0, 2)
	if err := l.Close(); !errors.Is(err, jws.ErrKey) {
		t.Errorf("Close: %v", err)
	}
	_, software, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.use(software)
	sample(t, w, 1, 1)
	whole(t, w.verify(t))
}

func TestVerifyAnEmptyFolder(t *testing.T) {
	d := disktest.New()
	if err := d.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := audit.Verify(d, dir, newSigner(t).Public())
	if err != nil || r.Break == nil || r.Break.Code != audit.BreakHead {
		t.Errorf("%v, %+v", err, r.Break)
	}
	if _, err := audit.Verify(d, "/nowhere", newSigner(t).Public()); err == nil {
		t.Error("no folder, no error")
	}
}

func TestConfig(t *testing.T) {
	if err := audit.Default().Validate(); err != nil {
		t.Error(err)
	}
	for _, c := range []audit.Config{{MaxBytes: 1, SignEvery: quantity.Duration(time.Hour)}, {MaxBytes: 1 << 20}} {
		if c.Validate() == nil {
			t.Errorf("%+v passes", c)
		}
	}
}
