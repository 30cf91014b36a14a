package tuf_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"ferrule/firmware/tuf"
)

// The cases here follow the client tests of theupdateframework/tuf-conformance that are not
// attacks: what a client must accept, and what it must ask for.

func TestRefreshAsksForNoMoreThanItNeeds(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.accept()
	want := []string{"2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"}
	if !slices.Equal(w.server.requests, want) {
		t.Errorf("the first asks for %q", w.server.requests)
	}
	written := w.disk.Written()
	w.accept()
	if want = want[:2]; !slices.Equal(w.server.requests, want) || w.disk.Written() != written {
		t.Errorf("a second, with nothing new, asks for %q and writes %d bytes", w.server.requests, w.disk.Written()-written)
	}
	w.open()
	w.accept()
	if !slices.Equal(w.server.requests, want) {
		t.Errorf("after a restart it asks for %q", w.server.requests)
	}
	w.expect(1, 1, 1, 1)
}

func TestStatus(t *testing.T) {
	w := newWorld(t, newSim(t))
	if s := w.client.Status(); s.Root.Version != 1 || !s.Root.Expires.Equal(later) || s.Timestamp != (tuf.RoleStatus{}) || !s.Refreshed.IsZero() {
		t.Errorf("before the first refresh: %+v", s)
	}
	w.repo.snapshot.Signed.Expires = today.AddDate(0, 0, 7)
	w.repo.publish(snapshot, timestamp)
	w.accept()
	s := w.client.Status()
	if !s.Refreshed.Equal(today) || !s.ClockTrusted || !s.Snapshot.Expires.Equal(today.AddDate(0, 0, 7)) || len(s.Damaged) > 0 {
		t.Errorf("after a refresh: %+v", s)
	}
	if !w.last.Expires().Equal(today.AddDate(0, 0, 7)) {
		t.Errorf("the targets expire on %v, and the snapshot before them", w.last.Expires())
	}
}

// Without a clock there is a time that has certainly passed: what expired before it is refused,
// what expires after it is not, and Status says that this was half a check.
func TestClockThatIsNotTrusted(t *testing.T) {
	repo := newSim(t)
	w := newWorld(t, repo)
	c, err := tuf.Open(tuf.Options{FS: w.disk, Dir: "/d", Root: w.pin, Now: func() (time.Time, bool) { return w.now, false }})
	if err != nil {
		t.Fatal(err)
	}
	w.server.files = repo.files
	if _, err := c.Refresh(t.Context(), w.server); err != nil || c.Status().ClockTrusted {
		t.Errorf("error %v, status %+v", err, c.Status())
	}
	w.now = later.Add(time.Second)
	_, err = c.Refresh(t.Context(), w.server)
	checkRefusal(t, err, tuf.ErrExpired, "root version 1")
}

// Expiry is judged at one time, the start: time that passes while files arrive does not count.
func TestTimeStandsStillDuringARefresh(t *testing.T) {
	repo := newSim(t)
	w := newWorld(t, repo)
	asked := 0
	c, err := tuf.Open(tuf.Options{FS: w.disk, Dir: "/d", Root: w.pin, Now: func() (time.Time, bool) { asked++; return w.now, true }})
	if err != nil {
		t.Fatal(err)
	}
	w.server.files = repo.files
	if _, err := c.Refresh(t.Context(), w.server); err != nil || asked != 1 {
		t.Errorf("asked for the time %d times: %v", asked, err)
	}
}

func TestOldLocalFilesDoNotHinder(t *testing.T) {
	t.Run("root", func(t *testing.T) {
		w := newWorld(t, newSim(t))
		w.repo.root.Signed.Expires = today.AddDate(0, 0, 7)
		w.repo.publish(root)
		w.accept()
		w.repo.root.Signed.Expires = today.AddDate(0, 0, 21)
		w.repo.publish(root)
		w.now = today.AddDate(0, 0, 18)
		w.accept()
		w.expect(3, 1, 1, 1)
	})
	t.Run("timestamp", func(t *testing.T) {
		w := newWorld(t, newSim(t))
		w.repo.timestamp.Signed.Expires = today.AddDate(0, 0, 7)
		w.repo.publish(timestamp)
		w.accept()
		w.repo.timestamp.Signed.Expires = today.AddDate(0, 0, 21)
		w.repo.publish(targets, snapshot, timestamp)
		w.now = today.AddDate(0, 0, 18)
		w.accept()
		w.expect(1, 3, 2, 2)
	})
	t.Run("intermediate root", func(t *testing.T) {
		w := newWorld(t, newSim(t))
		w.repo.root.Signed.Expires = today.AddDate(-1, 0, 0)
		w.repo.publish(root)
		w.repo.root.Signed.Expires = later
		w.repo.publish(root)
		w.accept()
		w.expect(3, 1, 1, 1)
	})
}

// An expired timestamp still says what is older (rollback protection outlives it).
func TestExpiredLocalTimestampStillProtects(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.repo.timestamp.Signed.Expires = today.AddDate(0, 0, 7)
	w.repo.publish(timestamp, timestamp)
	w.accept()
	w.now = today.AddDate(0, 0, 18)
	w.repo.timestamp.Signed.Version, w.repo.timestamp.Signed.Expires = 1, later
	w.repo.publish(timestamp)
	w.open()
	w.reject(tuf.ErrRollback, "timestamp version 2: older than what is trusted: version 3")
}

// A timestamp of the same version is the same timestamp, whatever it says.
func TestTimestampOfTheSameVersionIsNotRead(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.accept()
	w.repo.timestamp.Signed.Meta["snapshot.json"].Version = 100
	w.repo.write(timestamp)
	w.accept()
	w.expect(1, 1, 1, 1)
	if last := w.server.requests[len(w.server.requests)-1]; last != "timestamp.json" {
		t.Errorf("asked for %s", last)
	}
}

// A refresh that was interrupted between two files is finished by the next.
func TestHalfARefreshIsFinished(t *testing.T) {
	for _, name := range []string{"2.snapshot.json", "2.targets.json"} {
		w := newWorld(t, newSim(t))
		w.accept()
		w.repo.publish(targets, snapshot, timestamp)
		w.server.fail = map[string]error{name: errServer}
		if ours, theirs := w.refresh(); ours == nil || theirs == nil {
			t.Fatalf("ours %v, theirs %v", ours, theirs)
		}
		w.server.fail = nil
		w.open()
		w.accept()
		w.expect(1, 2, 2, 2)
	}
}

func TestFilesAreKeptAsTheyCame(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.repo.indent = true
	w.repo.publish(targets, snapshot, timestamp)
	w.repo.files["timestamp.json"] = append(w.repo.files["timestamp.json"], ' ', '\n')
	w.accept()
	for _, name := range w.disk.Names() {
		data, _ := w.disk.Content(name)
		base, _, _ := strings.Cut(name[len("/state/tuf/"):], "-")
		base = strings.TrimSuffix(base, ".json") + ".json"
		base = strings.TrimPrefix(base, "2.")
		if base != "timestamp.json" && base != "1.root.json" {
			base = "2." + base
		}
		if !bytes.Equal(data, w.repo.files[base]) {
			t.Errorf("%s is not %s", name, base)
		}
	}
}

func TestMembersThatNobodyKnows(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.accept()
	k := w.repo.newSigner()
	k.key.UnrecognizedFields = map[string]any{"keyid_hash_algorithms": "md5", "extra": map[string]any{"a": "1"}}
	k.key.Value.UnrecognizedFields = map[string]any{"private": ""}
	k = &signer{key: copyKey(k.key), sign: k.sign}
	k.id = must(k.key.ID())
	w.repo.root.Signed.UnrecognizedFields = map[string]any{"custom-field": "value", "ä\n": []any{nil, true}}
	w.repo.root.Signed.Roles[snapshot].UnrecognizedFields = map[string]any{"another": "value"}
	w.repo.root.Signed.Roles[snapshot].KeyIDs, w.repo.signers[snapshot] = nil, []*signer{k}
	w.repo.trust(snapshot, k)
	w.repo.targets.Signed.Targets["gw/1.0"].UnrecognizedFields = map[string]any{"x": "y"}
	w.repo.snapshot.Signed.UnrecognizedFields = map[string]any{"x": "y"}
	w.repo.publish(allRoles...)
	w.repo.edit("timestamp.json", func(file map[string]any) { file["unsigned"] = 1.5e3 })
	w.repo.replace("timestamp.json", "1500", `"1500"`)
	w.accept()
	w.expect(2, 2, 2, 2)
}

func copyKey(k *metadata.Key) *metadata.Key {
	return &metadata.Key{Type: k.Type, Scheme: k.Scheme, Value: k.Value, UnrecognizedFields: k.UnrecognizedFields}
}

func TestBadSignatureBesideAGoodOne(t *testing.T) {
	w := newWorld(t, newSim(t))
	good := w.repo.signers[timestamp][0]
	second := w.repo.addKey(timestamp)
	spoil := func(sig string) {
		w.repo.edit("timestamp.json", func(file map[string]any) {
			for _, s := range file["signatures"].([]any) {
				if s := s.(map[string]any); s["keyid"] == good.id {
					s["sig"] = sig
				}
			}
		})
	}
	w.repo.publish(root, timestamp)
	spoil(strings.Repeat("ab", 64))
	w.accept()
	w.repo.publish(timestamp)
	spoil("")
	w.accept()
	w.expect(2, 3, 1, 1)
	w.repo.publish(timestamp)
	spoil("not hexadecimal")
	// go-tuf refuses the file for it; we count it as what it is, a signature that does not verify.
	if ours, theirs := w.refresh(); ours != nil || theirs == nil {
		t.Errorf("ours %v, theirs %v", ours, theirs)
	}
	w.repo.signers[timestamp] = []*signer{second}
	w.repo.publish(timestamp)
	w.accept()
}

// A hash that we know is enough, whatever stands beside it.
func TestUnknownHashBesideAKnownOne(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.repo.hashes = true
	w.repo.publish(targets)
	w.repo.snapshot.Signed.Meta["targets.json"].Hashes["blake3"] = []byte{1}
	w.repo.publish(snapshot, timestamp)
	// go-tuf refuses what it cannot check, also beside what it can.
	if ours, theirs := w.refresh(); ours != nil || theirs == nil {
		t.Errorf("ours %v, theirs %v", ours, theirs)
	}
}

// Names are names: nothing here makes a path of them.
func TestUnusualNames(t *testing.T) {
	w := newWorld(t, newSim(t))
	names := []string{"", "#", "../../etc/passwd", "/gw", "?", "a\nb", "gw/1.0", "ü\u2028"}
	for _, name := range names {
		w.repo.addTarget(name, name, "")
		if name != "gw/1.0" {
			w.repo.snapshot.Signed.Meta[name+".json"] = metadata.MetaFile(1)
		}
	}
	w.repo.publish(targets, snapshot, timestamp)
	w.accept()
	var got []string
	for _, target := range w.last.All() {
		got = append(got, target.Path())
		if target.Length() != int64(len(target.Path())) || target.Custom() != nil {
			t.Errorf("target %q: %d bytes, custom %s", target.Path(), target.Length(), target.Custom())
		}
	}
	if !slices.Equal(got, names) {
		t.Errorf("targets %q", got)
	}
	for _, name := range w.disk.Names() {
		if !strings.HasPrefix(name, "/state/tuf/2.") && name != "/state/tuf/1.root.json" {
			t.Errorf("left %s", name)
		}
	}
}

func TestNoTargetsAtAll(t *testing.T) {
	w := newWorld(t, newSim(t))
	clear(w.repo.targets.Signed.Targets)
	w.repo.publish(targets, snapshot, timestamp)
	w.accept()
	if len(w.last.All()) != 0 {
		t.Error(w.last.All())
	}
}

func TestInvalidPinnedRoot(t *testing.T) {
	for name, test := range map[string]struct {
		change func(s *sim)
		kind   error
		reason string
	}{
		"no version": {func(s *sim) { s.forge("1.root.json", root, set(nil, "version")) }, tuf.ErrFormat, "reading the pinned root: refusing the root: not valid metadata: its version"},
		"no signature": {func(s *sim) { s.edit("1.root.json", func(f map[string]any) { f["signatures"] = []any{} }) },
			tuf.ErrSignature, "reading the pinned root: refusing the root version 1: not signed as required: 0 of 1"},
		"not a root": {func(s *sim) { s.files["1.root.json"] = s.files["timestamp.json"] }, tuf.ErrFormat, `it says that it is a "timestamp"`},
		"none":       {func(s *sim) { s.files["1.root.json"] = nil }, tuf.ErrNoRoot, "opening /state/tuf: no trusted root"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t)
			test.change(s)
			w := &world{disk: newWorld(t, newSim(t)).disk}
			_, err := openAt(w.disk, s.files["1.root.json"], nil)
			checkRefusal(t, err, test.kind, test.reason)
		})
	}
}

// waiting is a source that hangs until its context ends.
type waiting struct{ asked chan struct{} }

func (s waiting) Metadata(ctx context.Context, _ string, _ int64) ([]byte, error) {
	close(s.asked)
	<-ctx.Done()
	return nil, ctx.Err()
}

// One refresh at a time; who waits can give up, and Status never waits.
func TestConcurrentUse(t *testing.T) {
	w := newWorld(t, newSim(t))
	w.oracle = ""
	ctx, cancel := context.WithCancel(t.Context())
	hung := waiting{make(chan struct{})}
	done := make(chan error)
	go func() {
		_, err := w.client.Refresh(ctx, hung)
		done <- err
	}()
	<-hung.asked
	if w.client.Status().Root.Version != 1 {
		t.Error(w.client.Status())
	}
	gone, give := context.WithCancel(t.Context())
	give()
	if _, err := w.client.Refresh(gone, &server{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	w.accept()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := w.client.Refresh(t.Context(), &server{files: w.repo.files}); err != nil {
				t.Error(err)
			}
			_ = w.client.Status()
		})
	}
	all.Wait()
}
