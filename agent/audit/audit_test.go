package audit_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ferrule/agent/audit"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/jws"
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

func (c clock) Trusted() bool { return !c.untrusted }

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
	return []byte{b ^ 0x01, b ^ 0x80}
}

func TestEveryFlippedByteIsFound(t *testing.T) {
	d := disktest.New()
	w := newWorld(t, d)
	sample(t, w, 2, 2)
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
