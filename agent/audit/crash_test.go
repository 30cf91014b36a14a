package audit_test

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ferrule/agent/audit"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/jws"
	"ferrule/internal/quantity"
)

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
