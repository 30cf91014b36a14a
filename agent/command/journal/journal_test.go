package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"ferrule/agent/command/journal"
	"ferrule/internal/disk"
	"ferrule/internal/disk/disktest"
)

const path = "/state/journal"

var quiet = slog.New(slog.DiscardHandler)

func newDisk(t testing.TB) *disktest.Disk {
	t.Helper()
	d := disktest.New()
	if err := errors.Join(d.MkdirAll("/state", 0o700), d.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	return d
}

func open(t testing.TB, fsys disk.FS) *journal.Journal {
	t.Helper()
	j, err := journal.Open(fsys, path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func begin(t testing.TB, j *journal.Journal, id string, acts bool) {
	t.Helper()
	if p, err := j.Begin(id, acts); err != nil || p.State != journal.New {
		t.Fatalf("begin %s: %v, %v", id, p.State, err)
	}
}

func finish(t testing.TB, j *journal.Journal, id string, reply []byte) {
	t.Helper()
	if err := j.Finish(id, reply); err != nil {
		t.Fatalf("finish %s: %v", id, err)
	}
}

func want(t testing.TB, j *journal.Journal, id string, state journal.State, reply string) {
	t.Helper()
	if p := j.Lookup(id); p.State != state || string(p.Reply) != reply {
		t.Errorf("%s is %v with %.40q, want %v with %.40q", id, p.State, p.Reply, state, reply)
	}
}

func TestACommandIsExecutedOnce(t *testing.T) {
	for name, fsys := range map[string]disk.FS{"memory": newDisk(t), "machine": nil} {
		t.Run(name, func(t *testing.T) {
			at := path
			if fsys == nil {
				fsys, at = disk.OS(), filepath.Join(t.TempDir(), "journal")
			}
			open := func() *journal.Journal {
				j, err := journal.Open(fsys, at, quiet)
				if err != nil {
					t.Fatal(err)
				}
				return j
			}
			j := open()
			begin(t, j, "write-1", true)
			if p, err := j.Begin("write-1", true); err != nil || p.State != journal.Running {
				t.Errorf("beside itself: %v, %v", p, err)
			}
			finish(t, j, "write-1", []byte("done"))
			begin(t, j, "write-2", true)
			begin(t, j, "read-1", false)
			finish(t, j, "read-1", []byte(`{"value":1}`))
			begin(t, j, "read-2", false)
			if p, err := j.Begin("write-1", true); err != nil || p.State != journal.Answered || string(p.Reply) != "done" {
				t.Errorf("again: %v, %v", p, err)
			}
			if err := j.Finish("never", nil); !errors.Is(err, journal.ErrUnknown) {
				t.Errorf("finishing what was not begun: %v", err)
			}

			j = open() // as after a kill
			want(t, j, "write-1", journal.Answered, "done")
			want(t, j, "write-2", journal.Interrupted, "")
			want(t, j, "read-1", journal.Answered, `{"value":1}`)
			want(t, j, "read-2", journal.New, "")
			finish(t, j, "write-2", []byte("interrupted"))
			if err := j.Close(); err != nil {
				t.Error(err)
			}
			want(t, open(), "write-2", journal.Answered, "interrupted")
		})
	}
}

func TestIDs(t *testing.T) {
	j := open(t, newDisk(t))
	for _, id := range []string{"", "a b", "ä", "a/b", "+", "x\x00", strings.Repeat("a", 65)} {
		if _, err := j.Begin(id, true); !errors.Is(err, journal.ErrID) {
			t.Errorf("%q: %v", id, err)
		}
	}
	begin(t, j, strings.Repeat("a", 64), true)
	begin(t, j, "AZaz09-_", true)
}

func TestWhatIsKeptIsBounded(t *testing.T) {
	d := newDisk(t)
	j := open(t, d)
	reply := bytes.Repeat([]byte("r"), journal.MaxReply)
	begin(t, j, "running", true)
	for i := range 1600 {
		id := fmt.Sprintf("c%d", i)
		begin(t, j, id, i%2 == 0)
		finish(t, j, id, reply)
	}
	begin(t, j, "long", true)
	finish(t, j, "long", append(reply, 'r'))
	for _, j := range []*journal.Journal{j, open(t, d.Kill())} {
		want(t, j, "c0", journal.New, "")
		want(t, j, "c1599", journal.Answered, string(reply))
		want(t, j, "c800", journal.Answered, "") // its reply is forgotten
		want(t, j, "long", journal.Answered, "")
		if n := j.Status().Commands; n != journal.Keep {
			t.Errorf("%d commands are kept", n)
		}
	}
	want(t, j, "running", journal.Running, "")
	data, _ := d.Content(path)
	if len(data) > 7<<20 {
		t.Errorf("the file has %d bytes", len(data))
	}
}

func TestADiskThatCannotStoreRefusesWhatActs(t *testing.T) {
	for name, refuses := range map[string]func(op disktest.Op) error{
		"full": func(op disktest.Op) error {
			if op.Kind == disktest.Write {
				return &disktest.ShortWrite{N: 7, Err: syscall.ENOSPC}
			}
			return nil
		},
		"broken": func(op disktest.Op) error {
			if op.Kind == disktest.Sync {
				return syscall.EIO
			}
			return nil
		},
		"read only": func(op disktest.Op) error {
			if op.Kind.Changes() {
				return syscall.EROFS
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			j := open(t, d)
			begin(t, j, "w1", true)
			d.Fail(refuses)
			if p, err := j.Begin("w2", true); err == nil {
				t.Errorf("accepted: %v", p)
			}
			want(t, j, "w2", journal.New, "")
			if err := j.Finish("w1", []byte("done")); err == nil {
				t.Error("a reply was called stored")
			}
			want(t, j, "w1", journal.Answered, "done") // as long as the process lives
			begin(t, j, "r1", false)
			_ = j.Finish("r1", []byte("value"))
			want(t, j, "r1", journal.Answered, "value")
			if j.Status().Problem == "" {
				t.Error("no problem is told")
			}
			d.Fail(nil)
			begin(t, j, "w2", true)
			if p := j.Status().Problem; p != "" {
				t.Errorf("still a problem: %s", p)
			}
			again := open(t, d.PowerCut())
			want(t, again, "w1", journal.Answered, "done")
			want(t, again, "w2", journal.Interrupted, "")
		})
	}
}

// A failed sync is not made up for by the next: what is durable must be in another file by then.
func TestAFailedSyncIsNotRepeatedOnTheSameFile(t *testing.T) {
	d := newDisk(t)
	j := open(t, d)
	begin(t, j, "w1", true)
	failed := false
	d.Fail(func(op disktest.Op) error {
		if op.Kind == disktest.Sync && op.Name == path && !failed {
			failed = true
			return syscall.EIO
		}
		return nil
	})
	begin(t, j, "w2", true)
	if !failed {
		t.Fatal("the sync did not fail")
	}
	finish(t, j, "w2", []byte("done"))
	again := open(t, d.PowerCut())
	want(t, again, "w1", journal.Interrupted, "")
	want(t, again, "w2", journal.Answered, "done")
}

func TestDamageCostsOnlyWhatItHits(t *testing.T) {
	d := newDisk(t)
	j := open(t, d)
	const n = 6
	for i := range n {
		id := fmt.Sprintf("w%d", i)
		begin(t, j, id, true)
		finish(t, j, id, []byte("reply "+id))
	}
	sound, _ := d.Content(path)
	check := func(what string, broken []byte, most int) {
		state := d.Kill()
		state.SetContent(path, broken)
		j := open(t, state)
		lost := 0
		for i := range n {
			if p := j.Lookup(fmt.Sprintf("w%d", i)); p.State == journal.New {
				lost++
			} else if p.State == journal.Answered && string(p.Reply) != fmt.Sprintf("reply w%d", i) {
				t.Fatalf("%s: reply %q", what, p.Reply)
			}
		}
		if lost > most {
			t.Errorf("%s: %d commands lost", what, lost)
		}
		if !bytes.Equal(broken, sound) && len(broken) == len(sound) {
			if bad, _ := state.Content(path + ".bad"); !bytes.Equal(bad, broken) || j.Status().Damaged == 0 {
				t.Fatalf("%s: not set aside and counted", what)
			}
		}
		begin(t, j, "next", true)
		finish(t, j, "next", nil)
		want(t, open(t, state.PowerCut()), "next", journal.Answered, "")
	}
	for i := range sound {
		broken := slices.Clone(sound)
		broken[i] ^= 0x10
		check(fmt.Sprintf("bit flip in byte %d", i), broken, 0) // a command is in two records
	}
	for i := range sound {
		check(fmt.Sprintf("cut at %d", i), sound[:i], n)
		check(fmt.Sprintf("zeros from %d", i), append(slices.Clone(sound[:i]), make([]byte, len(sound)-i)...), n)
	}
}

func TestPowerCut(t *testing.T) {
	type finished struct{ id, reply string }
	second := 0
	check := func(t testing.TB, state *disktest.Disk) {
		j := open(t, state)
		answers := map[string]string{}
		for _, m := range state.Marks() {
			switch m := m.(type) {
			case string:
				if p := j.Lookup(m); p.State != journal.Interrupted && p.State != journal.Answered {
					t.Errorf("%s was begun and is %v", m, p.State)
				}
			case finished:
				answers[m.id] = m.reply
			}
		}
		for id, reply := range answers {
			want(t, j, id, journal.Answered, reply)
		}
	}
	use := func(j *journal.Journal, d *disktest.Disk, from, to int) {
		for i := from; i < to; i++ {
			id := fmt.Sprintf("w%d", i)
			begin(t, j, id, true)
			d.Mark(id)
			if i%3 == 0 {
				begin(t, j, "r"+id, false)
				finish(t, j, "r"+id, []byte("value"))
			}
			if i%5 == 4 {
				continue // interrupted
			}
			reply := strings.Repeat(id, 1+i%4*200)
			finish(t, j, id, []byte(reply))
			d.Mark(finished{id, reply})
		}
	}
	n := disktest.Replay(t, func(d *disktest.Disk) {
		if err := errors.Join(d.MkdirAll("/state", 0o700), d.SyncDir("/")); err != nil {
			t.Fatal(err)
		}
		j := open(t, d)
		use(j, d, 0, 60)
		j = open(t, d) // killed
		use(j, d, 60, 80)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}, func(t testing.TB, state *disktest.Disk) {
		if _, err := state.ReadDir("/state"); err != nil {
			return // cut before the folder was durable
		}
		check(t, state)
		if len(state.Marks())%30 != 3 {
			return
		}
		j := open(t, state)
		begin(t, j, "after", true)
		state.Mark("after")
		finish(t, j, "after", []byte("the cut"))
		state.Mark(finished{"after", "the cut"})
		for _, again := range state.CrashStates() {
			second++
			check(t, again)
		}
	})
	t.Logf("%d states, %d more after a second cut", n, second)
}

// The journal against a map, with restarts.
func TestModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		d := newDisk(t)
		j := open(t, d)
		type known struct {
			state journal.State
			reply string
			acts  bool
		}
		model := map[string]known{}
		ids := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		r.Repeat(map[string]func(*rapid.T){
			"begin": func(r *rapid.T) {
				id, acts := ids.Draw(r, "id"), rapid.Bool().Draw(r, "acts")
				p, err := j.Begin(id, acts)
				if was := model[id]; err != nil || p.State != was.state {
					r.Fatalf("begin %s: %v, %v; was %v", id, p.State, err, was.state)
				} else if was.state == journal.New {
					model[id] = known{state: journal.Running, acts: acts}
				}
			},
			"finish": func(r *rapid.T) {
				id, reply := ids.Draw(r, "id"), rapid.String().Draw(r, "reply")
				err := j.Finish(id, []byte(reply))
				was := model[id]
				if begun := was.state == journal.Running || was.state == journal.Interrupted; begun != (err == nil) {
					r.Fatalf("finish %s: %v; was %v", id, err, was.state)
				} else if begun {
					model[id] = known{state: journal.Answered, reply: reply, acts: was.acts}
				}
			},
			"restart": func(*rapid.T) {
				d = d.Kill()
				j = open(t, d)
				for id, was := range model {
					switch {
					case was.state == journal.Running && was.acts:
						model[id] = known{state: journal.Interrupted, acts: true}
					case was.state == journal.Running:
						delete(model, id)
					}
				}
			},
			"": func(r *rapid.T) {
				for _, id := range []string{"a", "b", "c", "d", "e"} {
					if p, was := j.Lookup(id), model[id]; p.State != was.state || string(p.Reply) != was.reply {
						r.Fatalf("%s is %v %q, want %v %q", id, p.State, p.Reply, was.state, was.reply)
					}
				}
			},
		})
	})
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 100))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := newDisk(t)
		j := open(t, d)
		begin(t, j, "w", true)
		sound, _ := d.Content(path)
		d.SetContent(path, append(append(slices.Clone(data), sound...), data...))
		j = open(t, d)
		if p := j.Lookup("w"); p.State != journal.Interrupted {
			t.Fatalf("a sound record among foreign bytes is %v", p.State)
		}
	})
}
