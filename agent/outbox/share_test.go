package outbox_test

import (
	"fmt"
	"testing"

	"ferrule/agent/outbox"
	"ferrule/internal/disk/disktest"
)

// The bound holds for both lanes together; an urgent entry finds room in a full outbox, and never takes more
// than its share.
func TestLanesShareTheBound(t *testing.T) {
	for _, policy := range []string{outbox.DropOldest, outbox.DropNewest} {
		t.Run(policy, func(t *testing.T) {
			d := newDisk(t)
			c := small()
			c.WhenFull = policy
			o := open(t, d, c, alarms)
			fill(t, d, o, "rs485-1")
			full := o.Status()
			if full.Dropped == 0 {
				t.Fatal("not full")
			}
			if err := o.Append(t.Context(), alarms.Name, encodeSeq); err != nil || o.Status().Lanes[0].Depth != 1 {
				t.Errorf("the first alarm: %v, %+v", err, o.Status())
			}
			fill(t, d, o, alarms.Name)
			s := o.Status()
			if s.Lanes[0].Depth < 20 || s.Lanes[1].Depth < full.Depth/3 {
				t.Errorf("before %+v\nafter %+v", full, s)
			}
			if policy == outbox.DropNewest && s.Lanes[1].Depth != full.Depth {
				t.Errorf("alarms took %d entries away", full.Depth-s.Lanes[1].Depth)
			}
			if n := int(s.Dropped) + s.Depth; n != int(s.Seq) || named(s.DroppedRanges) != s.Dropped {
				t.Errorf("%d of %d numbers accounted for, %d named", n, s.Seq, named(s.DroppedRanges))
			}
			closeBox(t, o)
		})
	}
}

// fill appends a thousand entries of a line and looks at the room that all take.
func fill(t *testing.T, d *disktest.Disk, o *box, name string) {
	t.Helper()
	for range 100 {
		for range 10 {
			if err := o.Append(t.Context(), name, encodeSeq); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.Sync(); err != nil {
			t.Fatal(err)
		}
		used := int64(0)
		for _, name := range d.Names() {
			data, _ := d.Content(name)
			used += int64(len(data)+4095) / 4096 * 4096
		}
		if s := o.Status(); used > 64<<10 || s.Bytes > 64<<10 || s.Lanes[0].Bytes > 32<<10 {
			t.Fatalf("%d bytes on disk, %+v", used, s)
		}
	}
}

// encodeSeq is a small payload.
func encodeSeq(dst []byte, seq uint64) (string, []byte) {
	return "t", fmt.Appendf(dst, `{"seq":%d,"fill":"%0100d"}`, seq, seq)
}

// named counts the numbers that ranges name.
func named(ranges []outbox.Range) (n uint64) {
	for _, r := range ranges {
		if n += r.Count; r.Count == 0 {
			n += r.To - r.From + 1
		}
	}
	return n
}
