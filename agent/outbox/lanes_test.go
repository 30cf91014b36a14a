package outbox_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/disk/disktest"
)

// alarms makes every third entry of the tests urgent.
var alarms = outbox.LineConfig{Name: "rs485-0", Urgent: true}

func urgent(k key) bool { return line(k.seq) == alarms.Name }

// take hands out what there is, at most n, and does not acknowledge it.
func take(t tester, o *box, n int) (keys []key, ids []uint64) {
	t.Helper()
	run, err := o.Next(t.Context(), n, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range run {
		k := parse(t, e)
		if k != (key{e.Boot, e.Seq}) {
			t.Fatalf("entry %v says it is %d/%d", k, e.Boot, e.Seq)
		}
		keys, ids = append(keys, k), append(ids, e.ID)
	}
	return keys, ids
}

func seqs(keys []key) (list []uint64) {
	for _, k := range keys {
		list = append(list, k.seq)
	}
	return list
}

// folders lists what is on the disk of the urgent lane.
func urgentFiles(d *disktest.Disk) (names []string) {
	for _, name := range d.Names() {
		if strings.HasPrefix(name, dir+"/urgent/") {
			names = append(names, name)
		}
	}
	return names
}

func TestUrgentEntriesPassABacklog(t *testing.T) {
	for _, where := range []string{"memory", "disk", "former boot"} {
		t.Run(where, func(t *testing.T) {
			d := newDisk(t)
			o := open(t, d, small(), alarms)
			add(t, o, 60)
			if where != "memory" {
				if err := o.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			if where == "former boot" {
				closeBox(t, o)
				o = open(t, d, small(), alarms)
				if s := o.Status(); s.Depth != 60 || len(s.Lanes) != 2 || s.Lanes[0].Name != "urgent" || s.Lanes[0].Depth != 20 || s.Lanes[1].Depth != 40 {
					t.Errorf("status %+v", s)
				}
			}
			got := drain(t, o, 7)
			if len(got) != 60 {
				t.Fatalf("%d entries", len(got))
			}
			for i, k := range got {
				if urgent(k) != (i < 20) || i != 0 && i != 20 && got[i-1].seq >= k.seq {
					t.Fatalf("entry %d is %d: %v", i, k.seq, seqs(got))
				}
			}
			if s := o.Status(); s.Depth != 0 || s.Acked != 60 {
				t.Errorf("status %+v", s)
			}
			closeBox(t, o)
		})
	}
}

// Ids rise in the order of handing out, and an acknowledgement settles what was handed out before it in
// either lane, and nothing of a connection that has ended.
func TestIDsRiseOverBothLanes(t *testing.T) {
	o := open(t, newDisk(t), small(), alarms)
	add(t, o, 2)
	keys, ids := take(t, o, 2)
	add(t, o, 5) // 3 and 6 are urgent
	more, moreIDs := take(t, o, 3)
	keys, ids = append(keys, more...), append(ids, moreIDs...)
	if want := []uint64{1, 2, 3, 6, 4}; !slices.Equal(seqs(keys), want) || !slices.IsSorted(ids) {
		t.Fatalf("handed out %v by the ids %v", seqs(keys), ids)
	}
	o.Ack(ids[1])
	o.Rewind()
	o.Ack(ids[4]) // too late
	if s := o.Status(); s.Depth != 5 || s.Acked != 2 || s.InFlight != 0 {
		t.Errorf("after rewind: %+v", s)
	}
	keys, again := take(t, o, 2)
	if want := []uint64{3, 6}; !slices.Equal(seqs(keys), want) || !slices.Equal(again, ids[2:4]) {
		t.Errorf("handed out %v by the ids %v, were %v", seqs(keys), again, ids)
	}
	o.Rewind()
	add(t, o, 2) // 9 is urgent, and overtakes 4
	keys, again = take(t, o, 10)
	if want := []uint64{3, 6, 9, 4, 5, 7, 8}; !slices.Equal(seqs(keys), want) || !slices.IsSorted(again) {
		t.Errorf("handed out %v by the ids %v", seqs(keys), again)
	}
	o.SetAside(again[2], "no")
	o.Ack(again[3])
	if s := o.Status(); s.Depth != 3 || s.InFlight != 3 || s.SetAside != 1 {
		t.Errorf("status %+v", s)
	}
	closeBox(t, o)
}

// Where no line is urgent there is one folder; what a former configuration left in the other is sent first,
// and then the folder goes.
func TestTheUrgentLaneIsThereOnlyWhereItIsNeeded(t *testing.T) {
	d := newDisk(t)
	o := open(t, d, small())
	add(t, o, 9)
	if s := o.Status(); s.Lanes != nil {
		t.Errorf("status %+v", s)
	}
	drain(t, o, 3)
	closeBox(t, o)
	if _, err := d.ReadDir(dir + "/urgent"); err == nil {
		t.Error("a folder for nothing")
	}

	o = open(t, d, small(), alarms)
	boot := o.Boot()
	add(t, o, 9)
	closeBox(t, o)
	if len(urgentFiles(d)) == 0 {
		t.Fatal("no folder")
	}

	o = open(t, d, small())
	add(t, o, 3)
	got := drain(t, o, 100)
	want := []key{{boot, 3}, {boot, 6}, {boot, 9}, {boot, 1}, {boot, 2}, {boot, 4}, {boot, 5}, {boot, 7}, {boot, 8}, {boot + 1, 1}, {boot + 1, 2}, {boot + 1, 3}}
	if !slices.Equal(got, want) {
		t.Errorf("handed out %v", got)
	}
	closeBox(t, o)
	if _, err := d.ReadDir(dir + "/urgent"); err == nil {
		t.Errorf("still there: %v", urgentFiles(d))
	}

	// Drained, and killed before the folder could go: the next start sees to it.
	o = open(t, d, small(), alarms)
	add(t, o, 3)
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	drain(t, o, 100)
	closeBox(t, o)
	d = d.Kill()
	o = open(t, d, small())
	if _, err := d.ReadDir(dir + "/urgent"); err == nil || o.Status().Lanes != nil {
		t.Errorf("still there: %v, %+v", urgentFiles(d), o.Status())
	}
	closeBox(t, o)
}

// order checks that the entries of each line are handed out as they were taken.
func order(t tester, got []key) {
	t.Helper()
	last := map[string]key{}
	for _, k := range got {
		if was := last[line(k.seq)]; k.boot < was.boot || k.boot == was.boot && k.seq <= was.seq {
			t.Fatalf("%v comes after %v", k, was)
		}
		last[line(k.seq)] = k
	}
}

// A line that becomes urgent stays behind what it left in the normal lane, over any number of starts, and is
// urgent once that is gone.
func TestALineThatBecomesUrgentKeepsItsOrder(t *testing.T) {
	d := newDisk(t)
	o := open(t, d, small())
	add(t, o, 30)
	closeBox(t, o)
	for range 3 {
		o = open(t, d, small(), alarms)
		add(t, o, 6)
		if s := o.Status(); s.Lanes[0].Depth != 0 {
			t.Fatalf("urgent too early: %+v", s)
		}
		if err := o.Sync(); err != nil {
			t.Fatal(err)
		}
		d = d.PowerCut()
	}
	o = open(t, d, small(), alarms)
	var got []key
	for o.Status().Depth > 0 {
		keys, ids := take(t, o, 5)
		got = append(got, keys...)
		if o.Status().Seq < 9 {
			add(t, o, 3) // while it drains
		}
		o.Ack(ids[len(ids)-1])
	}
	order(t, got)
	if len(got) != 30+18+9 {
		t.Fatalf("%d entries", len(got))
	}
	add(t, o, 6)
	if s := o.Status(); s.Lanes[0].Depth != 2 {
		t.Errorf("still not urgent: %+v", s)
	}
	closeBox(t, o)

	// It is known at the next start, so that alarms pass the backlog that came since.
	o = open(t, d, small(), alarms)
	add(t, o, 6)
	if s := o.Status(); s.Lanes[0].Depth != 4 {
		t.Errorf("not urgent after a restart: %+v", s)
	}
	closeBox(t, o)

	// Normal for one configuration, and urgent again.
	o = open(t, d, small())
	add(t, o, 6)
	closeBox(t, o)
	o = open(t, d, small(), alarms)
	add(t, o, 6)
	order(t, drain(t, o, 4))
	closeBox(t, o)
}

// The file that says which lines are urgent may be lost or spoilt: then the next entries wait, and order is kept.
func TestWithoutTheFileOfLinesOrderIsKept(t *testing.T) {
	d := newDisk(t)
	o := open(t, d, small(), alarms)
	add(t, o, 30)
	closeBox(t, o)
	sound, ok := d.Content(dir + "/lines")
	if !ok || !bytes.Contains(sound, []byte(alarms.Name)) {
		t.Fatalf("the file of lines is %q", sound)
	}
	for i := range len(sound) + 1 {
		state := d.Kill()
		data := bytes.Clone(sound)
		if i == len(sound) {
			data = nil
		} else {
			data[i] ^= 1
		}
		state.SetContent(dir+"/lines", data)
		o := open(t, state, small(), alarms)
		add(t, o, 6)
		if s := o.Status(); s.Lanes[0].Depth != 10 {
			t.Fatalf("byte %d spoilt: %+v", i, s)
		}
		order(t, drain(t, o, 64))
		closeBox(t, o)
	}
}

// A disk that cannot take the file of lines takes no entries that it would be wrong about.
func TestTheFileOfLinesComesFirst(t *testing.T) {
	d := newDisk(t)
	o := open(t, d, small(), alarms)
	add(t, o, 30)
	closeBox(t, o)
	o = open(t, d, small())
	d.Fail(func(op disktest.Op) error {
		if strings.HasPrefix(op.Name, dir+"/lines") && op.Kind.Changes() {
			return syscall.EIO
		}
		return nil
	})
	add(t, o, 6)
	if err := o.Sync(); err == nil || o.Status().Problem == "" {
		t.Errorf("synced: %v", err)
	}
	again := open(t, d.PowerCut(), small(), alarms)
	if n := again.Status().Depth; n != 30 {
		t.Errorf("%d entries on disk", n)
	}
	closeBox(t, again)
	d.Fail(nil)
	closeBox(t, o)
	again = open(t, d.PowerCut(), small(), alarms)
	add(t, again, 6)
	if s := again.Status(); s.Depth != 42 || s.Lanes[0].Depth != 10 {
		t.Errorf("status %+v", s)
	}
	order(t, drain(t, again, 64))
	closeBox(t, again)
}

// An appender that waits for room in a full normal lane does not hold up an alarm.
func TestABlockedLineHoldsNoAlarmUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := small()
		c.WhenFull = outbox.Block
		o := open(t, newDisk(t), c, alarms)
		stop := start(t, o)
		ended := make(chan error)
		go func() {
			for {
				if err := o.Append(t.Context(), "rs485-1", encodeSeq); err != nil {
					ended <- err
					return
				}
			}
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		seq := o.Status().Seq
		if err := o.Append(t.Context(), alarms.Name, encodeSeq); err != nil {
			t.Error(err)
		}
		run, err := o.Next(t.Context(), 1, 1<<20)
		if err != nil || run[0].Seq != seq+1 || run[0].Line != alarms.Name {
			t.Errorf("handed out %+v, %v", run, err)
		}
		stop()
		closeBox(t, o)
		if err := <-ended; err != outbox.ErrClosed {
			t.Error(err)
		}
	})
}

// While the urgent lane cannot be read, nothing overtakes what is in it.
func TestNothingOvertakesAnUrgentEntryThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		o := open(t, d, small(), alarms)
		add(t, o, 30)
		closeBox(t, o)
		o = open(t, d, small(), alarms)
		fails := 3
		d.Fail(func(op disktest.Op) error {
			if op.Kind == disktest.Read && strings.Contains(op.Name, "/urgent/") && fails > 0 {
				fails--
				return syscall.EIO
			}
			return nil
		})
		if keys, _ := take(t, o, 100); len(keys) < 10 || slices.ContainsFunc(keys[:10], func(k key) bool { return !urgent(k) }) {
			t.Errorf("handed out %v", seqs(keys))
		}
		closeBox(t, o)
	})
}

func TestAFullDiskGivesRoomToAlarmsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		c := small()
		c.MaxBytes = 256 << 10
		capacity := 128 << 10
		d.Fail(func(op disktest.Op) error {
			used := 0
			for _, name := range d.Names() {
				data, _ := d.Content(name)
				used += len(data)
			}
			if op.Kind == disktest.Write && used+op.Size > capacity {
				return &disktest.ShortWrite{N: max(0, capacity-used), Err: syscall.ENOSPC}
			}
			return nil
		})
		o := open(t, d, c, alarms)
		stop := start(t, o)
		for i := range 2000 {
			name := "rs485-1"
			if i%20 == 19 {
				name = alarms.Name
			}
			if err := o.Append(t.Context(), name, encodeSeq); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		s := o.Status()
		if s.Lanes[0].Depth != 100 || s.Dropped < 500 {
			t.Errorf("status %+v", s)
		}
		d.Fail(nil)
		stop()
		closeBox(t, o)
	})
}

// What is new in the status does not disturb who reads the old.
func TestStatusIsCompatible(t *testing.T) {
	o := open(t, newDisk(t), small())
	text, err := json.Marshal(o.Status())
	if err != nil || bytes.Contains(text, []byte("lanes")) || bytes.Contains(text, []byte("ranges")) {
		t.Errorf("%s, %v", text, err)
	}
	text, err = json.Marshal(outbox.Range{Boot: 1, From: 2, To: 3})
	if err != nil || string(text) != `{"boot":1,"from":2,"to":3}` {
		t.Errorf("%s, %v", text, err)
	}
	closeBox(t, o)
	if _, err := tryOpen(disktest.New(), dir, small(), outbox.LineConfig{Name: "x", MaxAge: -1}); err == nil {
		t.Error("a negative age")
	}
}
