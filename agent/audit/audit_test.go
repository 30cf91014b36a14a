package audit_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/audit"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/jws"
	"ferrule/internal/quantity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const dir = "/state/audit"

// signer counts what it signs, as a TPM would.
type signer struct {
	crypto.Signer
	count atomic.Int64
	fail  atomic.Bool
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{Signer: key}
}

func (s *signer) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	if s.count.Add(1); s.fail.Load() {
		return nil, errors.New("TPM_RC_LOCKOUT")
	}
	return s.Signer.Sign(r, digest, o)
}

type clock struct{ untrusted bool }

func (c clock) Now() time.Time { return time.Now() }
func (c clock) Trusted() bool  { return !c.untrusted }

// world is one device's log and what surrounds it.
type world struct {
	disk disk.FS
	mu   sync.Mutex
	key  crypto.Signer
	conf audit.Config
}

func newWorld(t testing.TB, fsys disk.FS) *world {
	return &world{disk: fsys, key: newSigner(t), conf: audit.Default()}
}

func (w *world) use(key crypto.Signer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.key = key
}

func (w *world) signer() crypto.Signer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.key
}

func (w *world) open(t testing.TB) *audit.Log {
	t.Helper()
	l, err := audit.Open(audit.Options{
		Config: w.conf, FS: w.disk, Dir: dir, Device: func() string { return "gw-17" }, Key: w.signer,
		Clock: clock{}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (w *world) verify(t testing.TB, keys ...crypto.Signer) audit.Report {
	t.Helper()
	if len(keys) == 0 {
		keys = []crypto.Signer{w.signer()}
	}
	var public []crypto.PublicKey
	for _, key := range keys {
		public = append(public, key.Public())
	}
	r, err := audit.Verify(w.disk, dir, public...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func whole(t testing.TB, r audit.Report) {
	t.Helper()
	if r.Break != nil {
		t.Errorf("a break where none is: %+v", *r.Break)
	}
}

func appendAll(t testing.TB, l *audit.Log, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		e := audit.Event{Name: "command.accepted", Essential: true, Attrs: []slog.Attr{slog.Int("n", i), slog.String("jti", fmt.Sprintf("J%d", i))}}
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// sample makes a log of several starts and returns its disk.
func sample(t testing.TB, w *world, starts, lines int) {
	t.Helper()
	for s := range starts {
		l := w.open(t)
		appendAll(t, l, s*lines, (s+1)*lines)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// flips returns every change of one byte of text that matters: each bit pattern would be the same work.
func flips(b byte) []byte {
	return []byte{b ^ 0x01, b ^ 0x80, '\n'}
}

func TestEveryFlippedByteIsFound(t *testing.T) {
	d := disktest.New()
	w := newWorld(t, d)
	sample(t, w, 2, 3)
	whole(t, w.verify(t))
	tried := 0
	for _, name := range d.Names() {
		good, _ := d.Content(name)
		for i, b := range good {
			for _, other := range flips(b) {
				if other == b {
					continue
				}
				tried++
				bad := slices.Clone(good)
				bad[i] = other
				d.SetContent(name, bad)
				if r := w.verify(t); r.Break == nil {
					t.Fatalf("%s: byte %d changed from %q to %q, and nothing is found: %+v", name, i, b, other, r)
				}
			}
		}
		d.SetContent(name, good)
	}
	whole(t, w.verify(t))
	t.Logf("%d changes of %d files found", tried, len(d.Names()))
}

// Whoever can write the disk, and has no key, changes the log so.
func TestTamperingIsFound(t *testing.T) {
	lines := func(text []byte) [][]byte {
		return bytes.SplitAfter(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	}
	join := func(l [][]byte) []byte {
		if len(l) == 0 {
			return nil
		}
		return append(bytes.TrimSuffix(bytes.Join(l, nil), []byte("\n")), '\n')
	}
	for name, c := range map[string]struct {
		change func(l [][]byte) [][]byte
		code   string
	}{
		"removed":        {func(l [][]byte) [][]byte { return slices.Delete(l, 3, 4) }, audit.BreakChain},
		"first removed":  {func(l [][]byte) [][]byte { return l[1:] }, audit.BreakBegin},
		"last removed":   {func(l [][]byte) [][]byte { return l[:len(l)-1] }, audit.BreakCut},
		"all removed":    {func([][]byte) [][]byte { return nil }, audit.BreakCut},
		"doubled":        {func(l [][]byte) [][]byte { return slices.Insert(l, 3, l[3]) }, audit.BreakChain},
		"exchanged":      {func(l [][]byte) [][]byte { l[3], l[4] = l[4], l[3]; return l }, audit.BreakChain},
		"old one put in": {func(l [][]byte) [][]byte { return slices.Insert(l, 5, l[0]) }, audit.BreakChain},
		"something else": {func(l [][]byte) [][]byte { return slices.Insert(l, 5, []byte("{}\n")) }, audit.BreakLine},
		"torn in the middle": {func(l [][]byte) [][]byte {
			l[4] = append(slices.Clone(l[4][:20]), '\n')
			return l
		}, audit.BreakLine},
	} {
		t.Run(name, func(t *testing.T) {
			d := disktest.New()
			w := newWorld(t, d)
			sample(t, w, 1, 10)
			segment := segmentsOf(d)[0]
			text, _ := d.Content(segment)
			d.SetContent(segment, join(c.change(lines(text))))
			r := w.verify(t)
			if r.Break == nil || r.Break.Code != c.code {
				t.Fatalf("want a break %q, got %+v", c.code, r.Break)
			}
			// The device starts again on it: what it finds must not make the log look whole.
			l := w.open(t)
			appendAll(t, l, 100, 102)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if r := w.verify(t); r.Break == nil {
				t.Fatal("the next start hid the break")
			}
		})
	}
}

func segmentsOf(d *disktest.Disk) (found []string) {
	for _, name := range d.Names() {
		if strings.HasSuffix(name, ".jsonl") {
			found = append(found, name)
		}
	}
	return found
}

func headsOf(d *disktest.Disk) (found []string) {
	for _, name := range d.Names() {
		if strings.HasSuffix(name, ".jws") {
			found = append(found, name)
		}
	}
	return found
}

// A log that was written anew from a line on, with every hash and sum right, is found by the head; a start on it, or
// without the head, does not sign it away.
func TestForgedChain(t *testing.T) {
	for name, spoil := range map[string]func(d *disktest.Disk, forged []byte){
		"head kept":    func(*disktest.Disk, []byte) {},
		"head removed": func(d *disktest.Disk, _ []byte) { _ = d.Remove(headsOf(d)[0]) },
		"head garbage": func(d *disktest.Disk, _ []byte) { d.SetContent(headsOf(d)[0], []byte("a.b.c")) },
	} {
		t.Run(name, func(t *testing.T) {
			d, forger := disktest.New(), disktest.New()
			w, other := newWorld(t, d), newWorld(t, forger)
			sample(t, w, 1, 100)
			l := other.open(t)
			appendAll(t, l, 1000, 1100)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			forged, _ := forger.Content(segmentsOf(forger)[0])
			d.SetContent(segmentsOf(d)[0], forged)
			spoil(d, forged)
			if r := w.verify(t); r.Break == nil {
				t.Fatal("a forged log passes")
			}
			sample(t, w, 2, 3)
			if r := w.verify(t); r.Break == nil || r.Break.Code != audit.BreakReported {
				t.Fatalf("two starts later: %+v", r.Break)
			}
		})
	}
}

func TestHeadOfAnotherDevice(t *testing.T) {
	d, e := disktest.New(), disktest.New()
	w, other := newWorld(t, d), newWorld(t, e)
	sample(t, w, 1, 4)
	sample(t, other, 1, 4)
	if r := w.verify(t, other.signer()); r.Break == nil || r.Break.Code != audit.BreakHead {
		t.Errorf("another device's key: %+v", r.Break)
	}
	text, _ := e.Content(headsOf(e)[0])
	d.SetContent(headsOf(d)[0], text)
	if r := w.verify(t); r.Break == nil || r.Break.Code != audit.BreakHead {
		t.Errorf("another device's head under our name: %+v", r.Break)
	}
	// An old head of ours proves less, and what it proves is true.
	sample(t, w, 1, 1)
	old, _ := d.Content(headsOf(d)[0])
	sample(t, w, 1, 1)
	d.SetContent(headsOf(d)[0], old)
	if r := w.verify(t); r.Break != nil || r.Unsigned != 1 {
		t.Errorf("an old head: %+v, %d unsigned", r.Break, r.Unsigned)
	}
}

// Lines that were not signed when the agent started are named in the log: it signs them, and did not necessarily write them.
func TestUnsignedLinesAreNamed(t *testing.T) {
	d, forger := disktest.New(), disktest.New()
	w := newWorld(t, d)
	sample(t, w, 1, 4)
	head, _ := d.Content(headsOf(d)[0])
	// Whoever can write the disk adds lines that follow well.
	text, _ := d.Content(segmentsOf(d)[0])
	put(t, forgedDir(t, forger), segmentsOf(d)[0], text)
	put(t, forger, headsOf(d)[0], head)
	evil := &world{disk: forger, key: w.signer(), conf: audit.Default()}
	sample(t, evil, 1, 2)
	longer, _ := forger.Content(segmentsOf(forger)[0])
	d.SetContent(segmentsOf(d)[0], longer)
	sample(t, w, 1, 1)
	r := w.verify(t)
	whole(t, r)
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "lines 5 to 6 were on the disk, and not signed") {
		t.Errorf("notes: %q", r.Notes)
	}
}

func forgedDir(t *testing.T, d *disktest.Disk) *disktest.Disk {
	t.Helper()
	if err := d.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

// A token of another kind by the same key, a receipt say, is no head.
func TestNoOtherTokenIsAHead(t *testing.T) {
	d := disktest.New()
	w := newWorld(t, d)
	sample(t, w, 1, 4)
	for _, typ := range []string{"JWT", audit.KeyType, ""} {
		text, err := jws.Sign(w.signer(), map[string]any{"typ": typ}, map[string]any{"seq": 1, "first": 1, "hash": strings.Repeat("0", 64)})
		if err != nil {
			t.Fatal(err)
		}
		d.SetContent(headsOf(d)[0], []byte(text))
		if r := w.verify(t); r.Break == nil || r.Break.Code != audit.BreakHead {
			t.Errorf("typ %q: %+v", typ, r.Break)
		}
	}
}

// Every disk that a power cut may leave is whole to Verify, holds every line that was synced before, and
// is taken up by the next start.
func TestPowerCut(t *testing.T) {
	key := newSigner(t)
	build := func(d *disktest.Disk) {
		prepare(t, d)
		w := &world{disk: d, key: key, conf: audit.Default()}
		for start := range 2 {
			l := w.open(t)
			for i := range 2 {
				appendAll(t, l, 10*start+i, 10*start+i+1)
				if err := l.Flush(); err != nil {
					t.Fatal(err)
				}
				d.Mark(10*start + i)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			d.Mark("closed")
		}
	}
	states := disktest.Replay(t, build, func(t testing.TB, state *disktest.Disk) {
		w := &world{disk: state, key: key, conf: audit.Default()}
		settled(t, w, state, false)
		l := w.open(t)
		appendAll(t, l, 90, 92)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		settled(t, w, state, true)
	})
	t.Logf("%d states", states)
}

// prepare makes the state directory, which is there before the agent.
func prepare(t testing.TB, d *disktest.Disk) {
	t.Helper()
	if err := errors.Join(d.MkdirAll("/state", 0o700), d.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
}

// settled checks a disk: nothing is called tampering, and nothing is missing that was durable.
func settled(t testing.TB, w *world, state *disktest.Disk, again bool) {
	t.Helper()
	marks := state.Marks()
	signed := slices.Contains(marks, any("closed"))
	if len(headsOf(state)) == 0 && !signed {
		return // nothing was ever signed
	}
	r := w.verify(t)
	if r.Break != nil {
		t.Fatalf("after a power cut (again: %v): %+v\n%s", again, *r.Break, state)
	}
	var text []byte
	for _, name := range segmentsOf(state) {
		content, _ := state.Content(name)
		text = append(text, content...)
	}
	for _, m := range marks {
		if n, ok := m.(int); ok && !bytes.Contains(text, fmt.Appendf(nil, `"n":%d,`, n)) {
			t.Fatalf("line %d was synced, and is gone", n)
		}
	}
	if again && r.Unsigned != 0 {
		t.Fatalf("%d lines unsigned after a clean stop", r.Unsigned)
	}
}

// Rotation keeps the chain, the bounds, and says where the log begins; a segment that somebody else removes is missed.
func TestRotation(t *testing.T) {
	d := disktest.New()
	w := newWorld(t, d)
	w.conf.MaxBytes = 256 << 10
	for i := range 30 {
		sample(t, w, 1, 60)
		var total int64
		for _, name := range segmentsOf(d) {
			text, _ := d.Content(name)
			total += int64(len(text))
		}
		if limit := w.conf.MaxBytes.Bytes(); total > limit+limit/8 {
			t.Fatalf("start %d: %d bytes, of %d allowed", i, total, limit)
		}
	}
	r := w.verify(t)
	whole(t, r)
	if r.First < 2 || r.Last != 30*60 || r.Unsigned != 0 {
		t.Errorf("lines %d to %d, %d unsigned", r.First, r.Last, r.Unsigned)
	}
	if err := d.Remove(segmentsOf(d)[0]); err != nil {
		t.Fatal(err)
	}
	if r := w.verify(t); r.Break == nil || r.Break.Code != audit.BreakBegin {
		t.Errorf("the oldest segment removed: %+v", r.Break)
	}
}

func TestRotationAndPowerCut(t *testing.T) {
	key := newSigner(t)
	conf := audit.Config{MaxBytes: 256 << 10, SignEvery: quantity.Duration(time.Minute)}
	first := disktest.New()
	filler := &world{disk: first, key: key, conf: conf}
	for len(segmentsOf(first)) < 9 && first.Written() < 4<<20 {
		sample(t, filler, 1, 60)
		if text, _ := first.Content(segmentsOf(first)[0]); len(text) == 0 {
			break
		}
		if r := filler.verify(t); r.First > 1 {
			break
		}
	}
	d := first.Kill()
	w := &world{disk: d, key: key, conf: conf}
	for range 3 {
		sample(t, w, 1, 40)
	}
	n := 0
	for name, state := range d.CrashStates() {
		n++
		w := &world{disk: state, key: key, conf: conf}
		if r := w.verify(t); r.Break != nil {
			t.Fatalf("power cut %s: %+v", name, *r.Break)
		}
	}
	t.Logf("%d states", n)
}

func TestKeyChange(t *testing.T) {
	d := disktest.New()
	w := newWorld(t, d)
	old, next := w.signer(), newSigner(t)
	l := w.open(t)
	appendAll(t, l, 0, 3)
	if err := l.KeyChange(t.Context(), old, next); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = w.open(t) // with both keys, as the agent is while the new one is staged
	last := l.Status().Last
	if err := l.KeyChange(t.Context(), old, next); err != nil || l.Status().Last != last {
		t.Errorf("told twice, the log has %d lines instead of %d: %v", l.Status().Last, last, err)
	}
	appendAll(t, l, 3, 5)
	w.use(next)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole(t, w.verify(t, next))
	r := w.verify(t, old) // whoever kept the old certificate follows
	whole(t, r)
	if thumbprint, _ := jws.Thumbprint(next.Public()); r.Key != thumbprint || r.Unsigned != 0 {
		t.Errorf("the old key alone proves lines to %d by %s", r.Signed, r.Key)
	}
	sample(t, w, 1, 2)
	whole(t, w.verify(t, old))
	if r := w.verify(t, newSigner(t)); r.Break == nil {
		t.Error("a stranger's key proves the log")
	}
}

// The power goes at any point of a change of keys, and the device wakes with either.
func TestPowerCutInAKeyChange(t *testing.T) {
	old, next := newSigner(t), newSigner(t)
	build := func(d *disktest.Disk) {
		prepare(t, d)
		w := &world{disk: d, key: old, conf: audit.Default()}
		sample(t, w, 1, 2)
		l := w.open(t)
		appendAll(t, l, 2, 3)
		d.Mark("begin")
		if err := l.KeyChange(t.Context(), old, next); err != nil {
			t.Fatal(err)
		}
		d.Mark("staged")
		w.use(next)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	disktest.Replay(t, build, func(t testing.TB, state *disktest.Disk) {
		marks := state.Marks()
		if !slices.Contains(marks, any("begin")) {
			return
		}
		key := crypto.Signer(old)
		if slices.Contains(marks, any("staged")) {
			key = next
		}
		w := &world{disk: state, key: key, conf: audit.Default()}
		sample(t, w, 1, 2)
		if r := w.verify(t, old); r.Break != nil {
			t.Fatalf("%+v\n%s", *r.Break, state)
		}
		if r := w.verify(t, key); r.Break != nil {
			t.Fatalf("%+v", *r.Break)
		}
	})
}

// Without a word of the old key the log goes on and says so.
func TestKeyChangeUnannounced(t *testing.T) {
	d := disktest.New()
	w := newWorld(t, d)
	next := newSigner(t)
	l := w.open(t)
	appendAll(t, l, 0, 3)
	if err := errors.Join(l.Flush(), l.Sign()); err != nil {
		t.Fatal(err)
	}
	w.use(next)
	appendAll(t, l, 3, 4)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := w.verify(t, next)
	whole(t, r)
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "without a word") {
		t.Errorf("notes: %q", r.Notes)
	}
}

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
