package trial

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/hint"
)

const (
	record   = "/state/trial.json"
	file     = "/etc/ferrule.toml"
	oldText  = "old = 1\n"
	newText  = "new = 1\n"
	somebody = "of somebody else\n"
)

func now() time.Time { return time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC) }

func options(d disk.FS, machine string) Options {
	return Options{FS: d, Record: record, File: file, Machine: machine, Now: now, Log: slog.New(slog.DiscardHandler)}
}

// newDisk holds the old configuration.
func newDisk(t testing.TB) *disktest.Disk {
	t.Helper()
	d := disktest.New()
	prepare(t, d)
	return d.Kill() // what was done so far is on the disk
}

func prepare(t testing.TB, d *disktest.Disk) {
	t.Helper()
	if err := disk.MakeFolder(d, "/etc"); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(d, file, []byte(oldText), 0o640); err != nil {
		t.Fatal(err)
	}
}

func begin(k *Keeper) error {
	return k.Begin(Trial{ID: "c1", Began: now(), Deadline: now().Add(time.Minute), Confirm: ConfirmAuto}, []byte(newText))
}

func content(t testing.TB, d *disktest.Disk, name string) string {
	t.Helper()
	text, ok := d.Content(name)
	if !ok {
		return ""
	}
	return string(text)
}

func TestKept(t *testing.T) {
	d := newDisk(t)
	k, changed := Open(options(d, "m1"))
	if changed {
		t.Error("nothing was on trial")
	}
	if err := begin(k); err != nil {
		t.Fatal(err)
	}
	if got := content(t, d, file); got != oldText {
		t.Errorf("on trial, the file holds %q", got)
	}
	if on, _ := k.Status(); on == nil || on.SHA256 != Digest([]byte(newText)) || k.Running() != on.SHA256 {
		t.Errorf("on trial: %+v", on)
	}
	if err := begin(k); !errors.Is(err, ErrBusy) {
		t.Errorf("a second one: %v", err)
	}
	o := k.Keep(Answered, []Line{{"l", "up"}})
	want := Outcome{ID: "c1", Outcome: Kept, Reason: Answered, At: now(), SHA256: Digest([]byte(newText)), Lines: []Line{{"l", "up"}}}
	if !equal(o, want) {
		t.Errorf("%+v; want %+v", o, want)
	}
	if news, is := k.News(); !is || !equal(news, want) {
		t.Errorf("news: %+v", news)
	}
	if _, is := k.News(); is {
		t.Error("news were told twice")
	}
	if got, previous := content(t, d, file), content(t, d, file+Previous); got != newText || previous != oldText {
		t.Errorf("file %q, previous %q", got, previous)
	}
	f, err := d.OpenFile(file, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	again, changed := Open(options(d.Kill(), "m2"))
	if _, last := again.Status(); changed || last == nil || !equal(*last, want) {
		t.Errorf("after a restart: %+v, changed %v", last, changed)
	}
	if _, is := again.News(); is {
		t.Error("what was told is told again after a restart")
	}
	if text := content(t, d, record); strings.Contains(text, "text") {
		t.Errorf("the record still holds the configuration: %s", text)
	}
}

func equal(a, b Outcome) bool {
	return a.ID == b.ID && a.Outcome == b.Outcome && a.Reason == b.Reason && a.At.Equal(b.At) && a.SHA256 == b.SHA256 && slices.Equal(a.Lines, b.Lines)
}

func TestReturned(t *testing.T) {
	d := newDisk(t)
	k, _ := Open(options(d, "m1"))
	k.Return(Stopped, "", nil)
	if _, last := k.Status(); last != nil {
		t.Errorf("without a trial: %+v", last)
	}
	if err := begin(k); err != nil {
		t.Fatal(err)
	}
	k.Return(NoSession, "\x1b[1m\n"+strings.Repeat("ä", maxDetail), nil)
	k.Return(Stopped, "", nil) // comes too late
	on, last := k.Status()
	if on != nil || last == nil || last.Outcome != Returned || last.Reason != NoSession || len(last.Detail) > maxDetail+3 || !strings.HasPrefix(last.Detail, " [1m ä") || !strings.HasSuffix(last.Detail, "ä…") {
		t.Errorf("%+v, %+v", on, last)
	}
	if got := content(t, d, file); got != oldText {
		t.Errorf("the file holds %q", got)
	}
	if err := begin(k); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// Whoever finds a trial at its start has the old file, and says why.
func TestFoundAtTheStart(t *testing.T) {
	for machine, want := range map[string]Reason{"m1": Crash, "m2": PowerCut} {
		d := newDisk(t)
		k, _ := Open(options(d, "m1"))
		if err := begin(k); err != nil {
			t.Fatal(err)
		}
		d = d.Kill()
		k, changed := Open(options(d, machine))
		if _, last := k.Status(); changed || last == nil || last.Outcome != Returned || last.Reason != want || last.ID != "c1" {
			t.Errorf("%s: %+v, changed %v", machine, last, changed)
		}
		if news, is := k.News(); !is || news.Reason != want {
			t.Errorf("news: %+v", news)
		}
	}
}

// begun marks that Begin has returned, kept that Keep has.
type begun struct{}
type kept struct{}

// Whatever a power cut leaves, and another one while that is mended: the old file or the new one, with
// the outcome that belongs to it.
func TestEveryPowerCutLeavesOldOrNew(t *testing.T) {
	for name, decide := range map[string]func(*Keeper, *disktest.Disk){
		"keep":   func(k *Keeper, d *disktest.Disk) { k.Keep(Answered, nil); d.Mark(kept{}) },
		"return": func(k *Keeper, _ *disktest.Disk) { k.Return(NoSession, "", nil) },
	} {
		t.Run(name, func(t *testing.T) {
			results := map[Result]int{}
			states := disktest.Replay(t, func(d *disktest.Disk) {
				prepare(t, d)
				k, _ := Open(options(d, "m1"))
				if err := begin(k); err != nil {
					t.Fatal(err)
				}
				d.Mark(begun{})
				decide(k, d)
			}, func(t testing.TB, state *disktest.Disk) {
				if len(content(t, state, file)) == 0 {
					return // cut before there was any configuration
				}
				results[mended(t, state)]++
				for cut, second := range state.CrashStates() {
					if result := mended(t, second); result == Unknown {
						t.Errorf("a second cut %s: %v", cut, result)
					}
				}
			})
			t.Logf("%d disk states: %v", states, results)
			if states < 20 || results[Returned] == 0 || name == "keep" && results[Kept] == 0 {
				t.Errorf("%d disk states: %v", states, results)
			}
		})
	}
}

// mended opens a disk after a cut, and checks that everything fits.
func mended(t testing.TB, d *disktest.Disk) Result {
	t.Helper()
	marks := d.Marks()
	before := content(t, d, file)
	k, changed := Open(options(d, "m2"))
	on, last := k.Status()
	text := content(t, d, file)
	var result Result
	if last != nil {
		result = last.Outcome
	}
	switch {
	case on != nil:
		t.Errorf("still on trial: %+v", on)
	case text == newText && result == Kept:
		if previous := content(t, d, file+Previous); previous != oldText {
			t.Errorf("previous is %q", previous)
		}
	case text == oldText && result == Returned && last.ID == "c1" && last.Reason != "":
	case text == oldText && last == nil && !slices.Contains(marks, any(begun{})):
	default:
		t.Errorf("the file holds %q, the outcome is %+v", text, last)
	}
	if slices.Contains(marks, any(kept{})) && text != newText {
		t.Errorf("it was kept, and the file holds %q", text)
	}
	if changed != (before != text) && changed != (result == Kept) {
		t.Errorf("changed: %v", changed)
	}
	return result
}

// killed is thrown where a process is killed.
type killed struct{}

// The process is killed at each operation in turn, the next one mends it, and then the power goes: what
// the first had written and not synced is what the second must not believe.
func TestKilledThenPowerCut(t *testing.T) {
	states := 0
	for n := 1; ; n++ {
		d := newDisk(t)
		done := func() (done bool) {
			defer func() { done = recover() == nil }()
			count := 0
			d.Fail(func(disktest.Op) error {
				if count++; count == n {
					panic(killed{})
				}
				return nil
			})
			k, _ := Open(options(d, "m1"))
			_ = begin(k)
			k.Keep(Answered, nil)
			return true
		}()
		d.Fail(nil)
		if done {
			break
		}
		k, _ := Open(options(d, "m1"))
		_, last := k.Status()
		if kept := last != nil && last.Outcome == Kept; kept != (content(t, d, file) == newText) {
			t.Errorf("killed at operation %d: %+v, the file holds %q", n, last, content(t, d, file))
		}
		for cut, state := range d.CrashStates() {
			states++
			k, _ := Open(options(state, "m2"))
			on, last := k.Status()
			if kept := last != nil && last.Outcome == Kept; on != nil || kept != (content(t, state, file) == newText) {
				t.Errorf("killed at operation %d, mended, power cut %s: %+v, the file holds %q", n, cut, last, content(t, state, file))
			}
		}
	}
	t.Logf("%d disk states", states)
}

// A folder that cannot be written is found out before anything begins.
func TestReadOnlyFolder(t *testing.T) {
	for _, cause := range []error{syscall.EROFS, syscall.EACCES, syscall.ENOSPC} {
		d := newDisk(t)
		k, _ := Open(options(d, "m1"))
		d.Fail(func(op disktest.Op) error {
			if strings.HasPrefix(op.Name, "/etc/") && op.Kind.Changes() {
				return cause
			}
			return nil
		})
		err := begin(k)
		if !errors.Is(err, cause) || !strings.Contains(hint.Of(err), "/etc") {
			t.Errorf("%v: %v, hint %q", cause, err, hint.Of(err))
		}
		if on, last := k.Status(); on != nil || last != nil {
			t.Errorf("%v: %+v, %+v", cause, on, last)
		}
		if _, there := d.Content(record); there {
			t.Errorf("%v: there is a record", cause)
		}
	}
}

// Each operation fails in turn, once or from then on: what is told is what is there, and the next
// start agrees with the file.
func TestFailingDisk(t *testing.T) {
	const most = 80
	failed := 0
	for _, forever := range []bool{false, true} {
		for n := range most {
			d := newDisk(t)
			k, _ := Open(options(d, "m1"))
			count := 0
			d.Fail(func(op disktest.Op) error {
				count++
				if op.Kind.Changes() && (count == n || forever && count > n) {
					failed++
					return syscall.EIO
				}
				return nil
			})
			err := begin(k)
			var told Outcome
			if err == nil {
				told = k.Keep(Answered, nil)
			}
			d.Fail(nil)
			text := content(t, d, file)
			switch {
			case err != nil && text == oldText:
			case told.Outcome == Kept && text == newText:
			case told.Outcome == Returned && text == oldText:
			default:
				t.Errorf("operation %d fails (for ever: %v): begin %v, told %+v, the file holds %q", n, forever, err, told, text)
			}
			again, _ := Open(options(d.Kill(), "m1"))
			_, last := again.Status()
			after, _ := again.o.FS.(*disktest.Disk).Content(file)
			if last != nil && (last.Outcome == Kept) != (string(after) == newText) {
				t.Errorf("operation %d fails (for ever: %v): after a restart %+v, the file holds %q", n, forever, last, after)
			}
		}
	}
	if failed < 20 {
		t.Errorf("only %d operations failed", failed)
	}
}

// Somebody who changes the file meanwhile has the last word.
func TestSomebodyChangesTheFile(t *testing.T) {
	d := newDisk(t)
	k, _ := Open(options(d, "m1"))
	if err := begin(k); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(d, file, []byte(somebody), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := k.Keep(Answered, nil); o.Outcome != Returned || o.Reason != FileChanged {
		t.Errorf("%+v", o)
	}
	if got := content(t, d, file); got != somebody {
		t.Errorf("the file holds %q", got)
	}
}

func TestRefused(t *testing.T) {
	k, _ := Open(options(newDisk(t), "m1"))
	if err := k.Begin(Trial{ID: "c1"}, []byte(oldText)); !errors.Is(err, ErrUnchanged) {
		t.Errorf("the same again: %v", err)
	}
	if err := k.Begin(Trial{ID: "c1"}, make([]byte, MaxText+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := k.Confirm("c1"); err == nil {
		t.Error("nothing is on trial, and it was confirmed")
	}
	if err := begin(k); err != nil {
		t.Fatal(err)
	}
	if err := k.Confirm("c2"); err == nil || !strings.Contains(err.Error(), `"c1"`) {
		t.Errorf("confirming another: %v", err)
	}
	if err := k.Confirm("c1"); err != nil {
		t.Error(err)
	}
	if on, _ := k.Status(); !on.Confirmed {
		t.Error("not confirmed")
	}
}

// Damage to the record is said, and never keeps the agent from starting.
func TestDamagedRecord(t *testing.T) {
	d := newDisk(t)
	k, _ := Open(options(d, "m1"))
	if err := begin(k); err != nil {
		t.Fatal(err)
	}
	d.SetContent(record, []byte(`{"trial":`))
	k, changed := Open(options(d, "m1"))
	on, last := k.Status()
	if changed || on != nil || last == nil || last.Outcome != Unknown || last.Reason != Damaged {
		t.Errorf("%+v, %+v, changed %v", on, last, changed)
	}
	if err := begin(k); err != nil {
		t.Errorf("after that: %v", err)
	}
	// A text that is not the one that was decided on does not become the file.
	text, _ := d.Content(record)
	s, err := decode(text)
	if err != nil {
		t.Fatal(err)
	}
	s.Keeping, s.Text = true, []byte(somebody)
	text, err = encode(s)
	if err != nil {
		t.Fatal(err)
	}
	d.SetContent(record, text)
	k, changed = Open(options(d, "m1"))
	if _, last := k.Status(); changed || last.Outcome != Returned || last.Reason != Damaged || content(t, d, file) != oldText {
		t.Errorf("%+v, changed %v, the file holds %q", last, changed, content(t, d, file))
	}
}

// FuzzOpen: whatever the record holds, Open returns, and the file is one of the two.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"trial":{"id":"c1","sha256":"` + Digest([]byte(newText)) + `"},"text":"bmV3ID0gMQo=","replaces":"` + Digest([]byte(oldText)) + `","keeping":true,"reason":"answered"}`))
	f.Add([]byte(`{"last":{"id":"c1","outcome":"kept"}}`))
	f.Add([]byte(`{"trial":{}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		open(t, text)
		open(t, slices.Concat([]byte(Digest(text)), []byte("\n"), text))
	})
}

func open(t *testing.T, text []byte) {
	t.Helper()
	d := newDisk(t)
	if err := disk.MakeFolder(d, "/state"); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(d, record, text, 0o600); err != nil {
		t.Fatal(err)
	}
	k, changed := Open(options(d, "m1"))
	on, last := k.Status()
	if on != nil || (content(t, d, file) != oldText) != changed || changed && (last == nil || last.Outcome != Kept || Digest([]byte(content(t, d, file))) != last.SHA256) {
		t.Errorf("%+v, %+v, changed %v", on, last, changed)
	}
}
