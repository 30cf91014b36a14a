package outbox_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/outbox"
)

// Where only urgent entries may go, the others wait, and nothing is out of order when they may.
func TestUrgentEntriesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		lanes, err := outbox.Open(outbox.Options{FS: d, Dir: dir, Config: outbox.Default(), Lines: []outbox.LineConfig{alarms}, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		defer lanes.Close()
		add := func(line string) {
			if err := lanes.Append(t.Context(), line, encodeSeq); err != nil {
				t.Fatal(err)
			}
		}
		numbers := func(w outbox.Want) (got []uint64) {
			t.Helper()
			run, err := lanes.Next(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range run {
				got = append(got, e.Seq)
			}
			return got
		}
		only := outbox.Want{Entries: 10, Bytes: 1 << 20, Urgent: true}
		add("meter")
		add(alarms.Name)
		if got := numbers(only); !slices.Equal(got, []uint64{2}) {
			t.Errorf("%v", got)
		}
		waiting, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if run, err := lanes.Next(waiting, only); len(run) > 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, %v", run, err)
		}
		time.AfterFunc(time.Second, func() {
			add("meter")
			add(alarms.Name)
		})
		if got := numbers(only); !slices.Equal(got, []uint64{4}) {
			t.Errorf("%v", got)
		}
		only.Urgent = false
		if got := numbers(only); !slices.Equal(got, []uint64{1, 3}) {
			t.Errorf("%v", got)
		}
	})
}
