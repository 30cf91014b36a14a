package firmware

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"ferrule/firmware/slot"
	"ferrule/internal/disk/disktest"
	"ferrule/internal/record"
)

// big is as much as the engine ever knows.
func big(n uint64) saved {
	long := clean(strings.Repeat("\x00", 3000))
	id := strings.Repeat("0123456789abcdef", 4)
	s := saved{Schema: schema, State: Trial, Floor: n, Slots: map[slot.Slot]installed{
		slot.A: {Version: id, Release: 1 << 50, Edition: id}, slot.B: {Version: id, Release: 1 << 50, Edition: id}}}
	s.Update = &update{Manifest: id, Edition: id, Version: id, Target: slot.B, From: id, Reason: long, Last: long, BootID: id, Request: Request{Version: long, By: long}}
	for range reportsMax {
		s.Reports = append(s.Reports, Report{ID: id, Manifest: id, Version: id, From: id, Reason: long, By: long})
	}
	for range quarantineMax {
		s.Quarantine = append(s.Quarantine, quarantined{Quarantined{Manifest: id, Version: id, Reason: long}, id})
	}
	return s
}

func TestTheJournalHoldsTheMostThereIs(t *testing.T) {
	d := disktest.New()
	j, s, err := openJournal(d, ".")
	if err != nil || s.State != Idle {
		t.Fatal(s, err)
	}
	s = big(0)
	for n := range uint64(50) {
		s.Floor = n
		if err := j.append(&s); err != nil {
			t.Fatal(err)
		}
		for _, name := range d.Names() {
			if content, _ := d.Content(name); len(content) > journalMax {
				t.Fatalf("%s has %d bytes", name, len(content))
			}
		}
		if _, got, err := openJournal(d, "."); err != nil || got.Floor != n || len(got.Quarantine) != quarantineMax {
			t.Fatalf("entry %d: %d, %v", n, got.Floor, err)
		}
	}
	if names := d.Names(); len(names) != 2 {
		t.Errorf("files: %v", names)
	}
}

// Whenever the power is cut, what was made durable last is there, or what was being written.
func TestTheJournalSurvivesEveryPowerCut(t *testing.T) {
	write := func(d *disktest.Disk, from, to uint64) {
		j, s, err := openJournal(d, ".")
		if err != nil {
			panic(err)
		}
		s.Update = &update{Target: slot.B, Reason: strings.Repeat("x", 9000)} // so that files are full soon
		for n := from; n < to; n++ {
			s.Floor = n
			if err := j.append(&s); err != nil {
				panic(err)
			}
			d.Mark(n)
		}
		j.close()
	}
	second := 0
	check := func(t testing.TB, state *disktest.Disk, want uint64) uint64 {
		_, s, err := openJournal(state, ".")
		for _, m := range state.Marks() {
			want = max(want, m.(uint64))
		}
		if err != nil || s.Floor != want && s.Floor != want+1 {
			t.Fatalf("read %d after %d was durable, %v", s.Floor, want, err)
		}
		return s.Floor
	}
	states := disktest.Replay(t, func(d *disktest.Disk) {
		write(d, 1, 10)
		write(d, 10, 13)
	}, func(t testing.TB, state *disktest.Disk) {
		n := check(t, state, 0)
		write(state, n+1, n+3)
		for _, again := range state.CrashStates() {
			if second++; second%9 == 0 {
				check(t, again, n)
			}
		}
	})
	t.Logf("%d states, %d of a second cut", states, second/9)
}

func TestTheJournalAfterAnError(t *testing.T) {
	for _, kind := range []disktest.Kind{disktest.Write, disktest.Sync, disktest.Create, disktest.SyncDir} {
		d := disktest.New()
		j, s, _ := openJournal(d, ".")
		for n := range uint64(12) {
			s.Floor = n
			fails := n%3 == 1
			d.Fail(func(op disktest.Op) error {
				if fails && op.Kind == kind {
					return syscall.ENOSPC
				}
				return nil
			})
			err := j.append(&s)
			if err != nil && !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			d.Fail(nil)
			if err != nil {
				continue
			}
			if _, got, err := openJournal(d.PowerCut(), "."); err != nil || got.Floor != n {
				t.Fatalf("%v failed: read %d after %d, %v", kind, got.Floor, n, err)
			}
		}
	}
}

func TestAJournalThatCannotBeReadIsNotLost(t *testing.T) {
	d := disktest.New()
	j, s, _ := openJournal(d, ".")
	s.Floor = 7
	if err := j.append(&s); err != nil {
		t.Fatal(err)
	}
	d.Fail(func(op disktest.Op) error {
		if op.Kind == disktest.Read {
			return syscall.EIO
		}
		return nil
	})
	if _, _, err := openJournal(d, "."); !errors.Is(err, errUnread) || !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
}

// entry writes a journal of one entry of the given text.
func entry(number uint64, text string) []byte {
	head := fmt.Appendf(nil, "%s%s", journalMagic, []byte{byte(number), 0, 0, 0, 0, 0, 0, 0})
	return record.NewSeed(number).Append(head, []byte(text))
}

func TestWhatOtherAgentsWrote(t *testing.T) {
	for _, c := range []struct {
		name, text string
		newer      bool
		problem    bool
		state      State
	}{
		{name: "a newer one with more members", text: `{"schema":2,"state":"idle","more":{"a":1},"update":{"target":"b","version":"2","edition":"e","new":[1]}}`, state: Idle},
		{name: "a newer one with other types", text: `{"schema":2,"state":{"name":"idle"}}`, newer: true, problem: true, state: Idle},
		{name: "a newer one with another state", text: `{"schema":3,"state":"dreaming"}`, newer: true, problem: true, state: Idle},
		{name: "rubbish", text: `{]`, problem: true, state: Idle},
		{name: "another slot", text: `{"schema":1,"state":"trial","update":{"target":"c"}}`, problem: true, state: Idle},
		{name: "no update", text: `{"schema":1,"state":"trial"}`, problem: true, state: Idle},
		{name: "negative", text: `{"schema":1,"state":"trial","update":{"target":"a","within":-5}}`, problem: true, state: Idle},
	} {
		d := disktest.New()
		put(t, d, "journal.0", entry(3, c.text))
		_, s, err := openJournal(d, ".")
		if errors.Is(err, errNewer) != c.newer || (err != nil) != c.problem || s.State != c.state {
			t.Errorf("%s: %+v, %v", c.name, s, err)
		}
	}
}

func put(t *testing.T, d *disktest.Disk, name string, content []byte) {
	t.Helper()
	f, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(content)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestReplayStopsAtDamage(t *testing.T) {
	data := entry(3, `{"n":1}`)
	seed := record.NewSeed(3)
	first := len(data)
	data = seed.Append(data, []byte(`{"n":2}`))
	second := len(data)
	data = seed.Append(data, []byte(`{"n":3}`))
	for i := range data {
		broken := bytes.Clone(data)
		broken[i] ^= 1
		want := `{"n":2}`
		switch {
		case i < first:
			want = ""
		case i < second:
			want = `{"n":1}`
		}
		if _, last := replay(broken); string(last) != want {
			t.Fatalf("byte %d: read %q", i, last)
		}
	}
}

// FuzzJournal: no bytes bring the reader down, and what it makes of them can be written and read
// again.
func FuzzJournal(f *testing.F) {
	s := big(3)
	d := disktest.New()
	j, _, _ := openJournal(d, ".")
	_ = j.append(&s)
	content, _ := d.Content("journal.0")
	f.Add(content, []byte(nil))
	f.Add(entry(1, `{"schema":1,"state":"idle"}`), entry(2, `{"schema":9,"state":5}`))
	payload, _ := json.Marshal(s)
	f.Add(payload, []byte(journalMagic))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		d := disktest.New()
		d.SetContent("journal.0", a)
		for name, content := range map[string][]byte{"journal.0": a, "journal.1": b} {
			if file, err := d.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
				_, _ = file.Write(content)
				file.Close()
			}
		}
		j, s, _ := openJournal(d, ".")
		for _, env := range []slot.State{{Running: slot.A, Active: slot.A}, {Running: slot.B, Active: slot.A, Trial: slot.B}, {Running: slot.B, Active: slot.B}, {Active: slot.A}} {
			reconcile(&s, env, false)
		}
		if err := j.append(&s); err != nil {
			return // more than it may hold
		}
		if _, again, err := openJournal(d, "."); err != nil || again.N != s.N || again.State != s.State {
			t.Fatalf("wrote %+v, read %+v, %v", s, again, err)
		}
		// Entries that the fuzzer cannot seal.
		if s, err := decode(a); err == nil {
			reconcile(&s, slot.State{Running: slot.B, Active: slot.A}, true)
		}
	})
}
