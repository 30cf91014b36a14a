package trust

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
)

const file = "roots.pem"

// chain is a verified chain that ends in root.
func chain(leaf *party, root *party) [][]*x509.Certificate {
	return [][]*x509.Certificate{{leaf.Certificate, root.Certificate}}
}

// twoRoots are an old and a new authority, each with a broker.
type twoRoots struct{ old, fresh, oldBroker, freshBroker *party }

func newTwoRoots(t testing.TB) *twoRoots {
	r := &twoRoots{old: (*party)(nil).issue(t, "old", authority), fresh: (*party)(nil).issue(t, "new", authority)}
	r.oldBroker, r.freshBroker = r.old.issue(t, "broker.example", server), r.fresh.issue(t, "broker.example", server)
	return r
}

func openRoots(t testing.TB, o Options) *Roots {
	t.Helper()
	return must[*Roots](t)(OpenRoots(RootsConfig{Name: "broker", File: file}, o))
}

// believes says whether r vouches for a broker.
func believes(r *Roots, broker *party) bool {
	_, err := broker.Verify(x509.VerifyOptions{Roots: r.Pool(), DNSName: "broker.example"})
	return err == nil
}

func check(t testing.TB, r *Roots, two *twoRoots, old, fresh bool) {
	t.Helper()
	if gotOld, gotNew := believes(r, two.oldBroker), believes(r, two.freshBroker); gotOld != old || gotNew != fresh {
		t.Errorf("believed: old %v, new %v; want %v, %v (%+v)", gotOld, gotNew, old, fresh, r.Status())
	}
}

// Roots that vouch for the registrar and not for what it gives do not suffice. They cannot be dropped,
// and can be added to.
func TestRootsHaveToVouchForAll(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	put(w.disk, file, pemOf(two.old))
	r := openRoots(t, w.Options)
	if err := r.Stage(pemOf(two.fresh)); err != nil {
		t.Fatal(err)
	}
	r.VerifiedAll(chain(two.oldBroker, two.old), chain(two.freshBroker, two.fresh))
	if err := r.Confirm(); !errors.Is(err, ErrNotSeen) {
		t.Errorf("confirmed: %v", err)
	}
	for _, refused := range []error{r.Discard(), r.Stage(pemOf(two.old))} {
		if !errors.Is(refused, ErrInUse) {
			t.Errorf("what the connection hangs on was dropped: %v", refused)
		}
	}
	if err := r.Stage(append(pemOf(two.fresh), pemOf(two.old)...)); err != nil {
		t.Fatal(err)
	}
	check(t, r, two, true, true)
	if err := r.Confirm(); !errors.Is(err, ErrNotSeen) {
		t.Errorf("confirmed what no connection has seen: %v", err)
	}
	r.VerifiedAll(chain(two.oldBroker, two.old), chain(two.freshBroker, two.fresh))
	if err := r.Confirm(); err != nil {
		t.Error(err)
	}
	check(t, r, two, true, true)
}

func TestRootsAreChangedFromAfar(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	put(w.disk, file, pemOf(two.old))
	r := openRoots(t, w.Options)
	check(t, r, two, true, false)
	if err := r.Confirm(); !errors.Is(err, ErrNothingStaged) {
		t.Error(err)
	}
	if err := r.Discard(); !errors.Is(err, ErrNothingStaged) {
		t.Error(err)
	}
	if err := r.Stage(append(pemOf(two.fresh), pemOf(two.fresh)...)); err != nil {
		t.Fatal(err)
	}
	check(t, r, two, true, true)
	if st := r.Status(); len(st.Staged.Roots) != 1 || st.Staged.Seen || st.Staged.Expires.IsZero() {
		t.Errorf("%+v", st.Staged)
	}
	r.Verified(chain(two.oldBroker, two.old))
	if err := r.Confirm(); !errors.Is(err, ErrNotSeen) || hint.Of(err) == "" {
		t.Error(err)
	}
	r.Verified(chain(two.freshBroker, two.fresh))
	if st := r.Status().Staged; !st.Seen || !st.Needed || !st.InUse || !st.Confirmable || !st.Expires.IsZero() {
		t.Errorf("%+v", st)
	}
	for _, refused := range []error{r.Discard(), r.Stage(pemOf(two.old))} {
		if !errors.Is(refused, ErrInUse) {
			t.Errorf("what the connection hangs on was dropped: %v", refused)
		}
	}
	r = openRoots(t, w.on(w.disk.Kill())) // a restart between the two
	check(t, r, two, true, true)
	// The broker went back to its old certificate: confirming would lock it out.
	r.Verified(chain(two.oldBroker, two.old))
	if err := r.Confirm(); !errors.Is(err, ErrNotSeen) {
		t.Error(err)
	}
	r.Verified(chain(two.freshBroker, two.fresh))
	if err := r.Confirm(); err != nil {
		t.Fatal(err)
	}
	check(t, r, two, false, true)
	if st := r.Status(); st.Source != "confirmed" || st.Staged != nil || st.Active[0].Subject != "CN=new" {
		t.Errorf("%+v", st)
	}
}

// Which roots a set drops is as much a part of it as those it adds.
func TestRootsASetMayBeSmaller(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	put(w.disk, file, pemOf(two.old, two.fresh))
	r := openRoots(t, w.Options)
	if err := r.Stage(pemOf(two.fresh)); err != nil {
		t.Fatal(err)
	}
	r.Verified(chain(two.freshBroker, two.fresh))
	if st := r.Status().Staged; !st.Seen || st.Needed {
		t.Errorf("%+v", st)
	}
	if err := r.Confirm(); err != nil {
		t.Fatal(err)
	}
	check(t, r, two, false, true)
}

func TestRootsAnOperatorWhoChangesTheFileWins(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	third := (*party)(nil).issue(t, "third", authority)
	put(w.disk, file, pemOf(two.old))
	r := openRoots(t, w.Options)
	_ = r.Stage(pemOf(two.fresh))
	r.Verified(chain(two.freshBroker, two.fresh))
	if err := r.Confirm(); err != nil {
		t.Fatal(err)
	}
	check(t, openRoots(t, w.on(w.disk.Kill())), two, false, true) // the same file: what was confirmed stands
	put(w.disk, file, pemOf(two.old, third))
	if changed, err := r.Reload(); err != nil || !changed {
		t.Fatal(changed, err)
	}
	check(t, r, two, true, false)
	put(w.disk, file, pemOf(two.old)) // and going back to the first does not bring it back
	for _, r := range []*Roots{openRoots(t, w.on(w.disk.Kill())), openRoots(t, w.Options)} {
		check(t, r, two, true, false)
	}
	if !strings.Contains(w.log.String(), "configured roots changed") {
		t.Error("not logged")
	}
}

func TestRootsOfTheSystem(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	r := must[*Roots](t)(OpenRoots(RootsConfig{Name: "broker"}, w.Options))
	if r.Pool() != nil || r.Status().Source != "system" {
		t.Error("not the system's")
	}
	if err := r.Stage(pemOf(two.fresh)); err != nil {
		t.Fatal(err)
	}
	check(t, r, two, false, true)
	r.Verified(chain(two.oldBroker, two.old)) // some authority of the system's
	if st := r.Status().Staged; st.Seen {
		t.Errorf("%+v", st)
	}
	r.Verified(chain(two.freshBroker, two.fresh))
	if err := r.Confirm(); err != nil {
		t.Fatal(err)
	}
	check(t, r, two, false, true)
	if st := r.Status(); st.Source != "confirmed" || len(st.Active) != 1 {
		t.Errorf("%+v", st)
	}
}

func TestRootsWhatIsNotASetOfThem(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	put(w.disk, file, pemOf(two.old))
	r := openRoots(t, w.Options)
	expired := (*party)(nil).issue(t, "expired", authority, validFor(-2*time.Hour, -time.Hour))
	noSign := (*party)(nil).issue(t, "no-sign", authority, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	many := bytes.Buffer{}
	for range maxRoots + 1 {
		many.Write(pemOf((*party)(nil).issue(t, "many", authority)))
	}
	for name, text := range map[string][]byte{
		"nothing":       nil,
		"no PEM":        []byte("hello"),
		"a leaf":        pemOf(two.freshBroker),
		"a leaf behind": pemOf(two.fresh, two.freshBroker),
		"expired":       pemOf(expired),
		"may not sign":  pemOf(noSign),
		"a private key": append(pemOf(two.fresh), keyPEM(t, two.fresh)...),
		"too many":      many.Bytes(),
		"too large":     append(pemOf(two.fresh), bytes.Repeat([]byte("\n"), maxSent)...),
		"damaged":       bytes.Replace(pemOf(two.fresh), []byte("M"), []byte("N"), 3),
		"cut off":       append(pemOf(two.fresh), pemOf(two.old)[:200]...),
	} {
		if err := r.Stage(text); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if st := r.Status(); st.Staged != nil {
		t.Errorf("%+v", st)
	}
	w.clock.set(time.Now().AddDate(10, 0, 0), false) // it may be wrong about what has expired
	if err := r.Stage(pemOf(two.fresh)); err != nil {
		t.Error(err)
	}
}

func TestRootsThatNobodyConfirmsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, test := range map[string]struct {
			prepare func(w *world, r *Roots, two *twoRoots)
			expires bool
		}{
			"by the running time": {func(w *world, r *Roots, _ *twoRoots) {
				w.clock.set(time.Now(), false)
				time.Sleep(7*24*time.Hour + lookEvery)
			}, true},
			"not before it": {func(_ *world, _ *Roots, _ *twoRoots) { time.Sleep(7*24*time.Hour - lookEvery) }, false},
			"by the clock":  {func(w *world, _ *Roots, _ *twoRoots) { w.clock.set(time.Now().Add(8*24*time.Hour), true) }, true},
			"not by a clock that cannot be believed": {func(w *world, _ *Roots, _ *twoRoots) {
				w.clock.set(time.Now().AddDate(10, 0, 0), false)
			}, false},
			"seen, but not needed": {func(_ *world, r *Roots, two *twoRoots) {
				r.Verified(append(chain(two.freshBroker, two.fresh), chain(two.freshBroker, two.old)...))
				time.Sleep(8 * 24 * time.Hour)
			}, true},
			"not once they were needed": {func(_ *world, r *Roots, two *twoRoots) {
				r.Verified(chain(two.freshBroker, two.fresh))
				time.Sleep(30 * 24 * time.Hour)
			}, false},
		} {
			w, two := newWorld(), newTwoRoots(t)
			put(w.disk, file, pemOf(two.old))
			r := openRoots(t, w.Options)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { defer close(ended); _ = r.Run(ctx) }()
			if err := r.Stage(pemOf(two.fresh)); err != nil {
				t.Fatal(err)
			}
			test.prepare(w, r, two)
			synctest.Wait()
			cancel()
			<-ended
			r.Pool() // which looks too
			if got := r.Status().Staged == nil; got != test.expires {
				t.Errorf("%s: expired %v", name, got)
			}
			again := openRoots(t, w.on(w.disk.PowerCut()))
			again.Pool()
			if got := again.Status().Staged == nil; got != test.expires {
				t.Errorf("%s: expired %v after a power cut", name, got)
			}
		}
	})
}

// A device that is switched off each night counts its days all the same.
func TestRootsRunningTimeIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, two := newWorld(), newTwoRoots(t)
		w.clock.set(time.Now(), false)
		put(w.disk, file, pemOf(two.old))
		if err := openRoots(t, w.Options).Stage(pemOf(two.fresh)); err != nil {
			t.Fatal(err)
		}
		days := 0
		for d := w.disk; ; days++ {
			r := openRoots(t, w.on(d))
			if r.Pool(); r.Status().Staged == nil {
				break
			}
			if days > 8 {
				t.Fatal("they never expire")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 25*time.Hour)
			_ = r.Run(ctx)
			cancel()
			d = d.PowerCut()
		}
		if days != 7 {
			t.Errorf("expired after %d days", days)
		}
	})
}

func TestRootsPowerCuts(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	third := (*party)(nil).issue(t, "third", authority)
	n := disktest.Replay(t, func(d *disktest.Disk) {
		put(d, file, pemOf(two.old))
		_ = d.MkdirAll("state", 0o700)
		_ = d.SyncDir(".")
		r := openRoots(t, w.on(d))
		steps := []func() error{
			func() error { return r.Stage(pemOf(third)) },
			r.Discard,
			func() error { return r.Stage(pemOf(two.fresh)) },
			func() error { r.Verified(chain(two.freshBroker, two.fresh)); return nil },
			r.Confirm,
		}
		for i, step := range steps {
			if err := step(); err != nil {
				t.Fatal(i, err)
			}
			d.Mark(i)
		}
	}, func(t testing.TB, state *disktest.Disk) {
		put(state, file, pemOf(two.old))
		r := openRoots(t, w.on(state))
		old, fresh := believes(r, two.oldBroker), believes(r, two.freshBroker)
		done := len(state.Marks())
		switch {
		case !old && !fresh:
			t.Error("none is left")
		case done >= 5 && (old || !fresh):
			t.Error("what was confirmed is gone")
		case done >= 3 && !fresh:
			t.Error("what was staged is gone")
		case done < 4 && !old:
			t.Error("the old ones are gone before they were replaced")
		}
		if strings.Contains(w.log.String(), "not usable") {
			t.Error("a file was damaged")
		}
	})
	t.Log(n, "states")
}

func TestRootsDamageIsSetAside(t *testing.T) {
	two := newTwoRoots(t)
	w := newWorld()
	put(w.disk, file, pemOf(two.old))
	r := openRoots(t, w.Options)
	_ = r.Stage(pemOf(two.fresh))
	good, _ := w.disk.Content(r.path)
	for i := 0; i < len(good); i += 7 {
		w := newWorld()
		put(w.disk, file, pemOf(two.old))
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		put(w.disk, r.path, bad)
		check(t, openRoots(t, w.Options), two, true, false)
		if got, _ := w.disk.Content(r.path + ".bad"); !bytes.Equal(got, bad) || !strings.Contains(w.log.String(), "not usable") {
			t.Fatalf("byte %d: not set aside", i)
		}
	}
}

func TestRootsWithoutTheConfiguredFile(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	if _, err := OpenRoots(RootsConfig{Name: "broker", File: file}, w.Options); err == nil || hint.Of(err) == "" {
		t.Error(err)
	}
	put(w.disk, file, []byte("nothing"))
	if _, err := OpenRoots(RootsConfig{Name: "broker", File: file}, w.Options); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Error(err)
	}
	put(w.disk, file, pemOf(two.old))
	r := openRoots(t, w.Options)
	_ = r.Stage(pemOf(two.fresh))
	r.Verified(chain(two.freshBroker, two.fresh))
	if err := r.Confirm(); err != nil {
		t.Fatal(err)
	}
	// The confirmed ones stand in for a file that cannot be read, and can be replaced then.
	_ = w.disk.Remove(file)
	r = openRoots(t, w.Options)
	check(t, r, two, false, true)
	_ = r.Stage(pemOf(two.old))
	r.Verified(chain(two.oldBroker, two.old))
	if err := r.Confirm(); err != nil {
		t.Fatal(err)
	}
	check(t, r, two, true, false)
	put(w.disk, file, pemOf(two.old))
	if st := openRoots(t, w.Options).Status(); st.Source != "confirmed" {
		t.Errorf("%+v", st)
	}
}

// A disk that does not store is no reason to believe less, or more, than was asked.
func TestRootsOnADiskThatFails(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	put(w.disk, file, pemOf(two.old))
	r := openRoots(t, w.Options)
	full := errors.New("no space left on device")
	fail := func(op disktest.Op) error {
		if op.Kind.Changes() {
			return full
		}
		return nil
	}
	w.disk.Fail(fail)
	if err := r.Stage(pemOf(two.fresh)); !errors.Is(err, full) {
		t.Error(err)
	}
	check(t, r, two, true, false)
	w.disk.Fail(nil)
	_ = r.Stage(pemOf(two.fresh))
	w.disk.Fail(fail)
	r.Verified(chain(two.freshBroker, two.fresh))
	if err := r.Confirm(); !errors.Is(err, full) {
		t.Error(err)
	}
	check(t, r, two, true, true)
}

// While staged roots wait to be seen, no two pools are the same one, so that nobody resumes.
func TestRootsPoolIsTheSameUntilItChanges(t *testing.T) {
	w, two := newWorld(), newTwoRoots(t)
	put(w.disk, file, pemOf(two.old))
	r := openRoots(t, w.Options)
	before := r.Pool()
	if before != r.Pool() {
		t.Error("another pool without a reason")
	}
	_ = r.Stage(pemOf(two.fresh))
	<-w.changes
	if a, b := r.Pool(), r.Pool(); a == b || a == before {
		t.Error("the same pool while roots wait")
	}
	r.Verified(chain(two.freshBroker, two.fresh))
	if a, b := r.Pool(), r.Pool(); a != b {
		t.Error("another pool without a reason")
	}
	_ = r.Confirm()
	<-w.changes
	if len(w.changes) != 0 {
		t.Error("told too often")
	}
}

func FuzzRoots(f *testing.F) {
	root := (*party)(nil).issue(f, "root", authority)
	f.Add(pemOf(root))
	f.Add(append(pemOf(root), "-----BEGIN X-----\n-----END X-----\n"...))
	f.Fuzz(func(t *testing.T, text []byte) {
		roots, err := parseRoots(text)
		if err != nil {
			return
		}
		again, err := parseRoots(encode(roots))
		if err != nil || !same(roots, again) || len(roots) == 0 || len(roots) > maxRoots {
			t.Fatal(len(roots), err)
		}
	})
}

func FuzzSavedRoots(f *testing.F) {
	f.Add([]byte(digest([]byte("{}")) + "\n{}"))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _ = decode(text) })
}
