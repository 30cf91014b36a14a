package outbox_test

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/internal/disk/disktest"
	"ferrule/internal/record"
)

// Whatever a sound record holds, and whatever stands between records: Open, Next and Close bear it, and the
// sound entries before it arrive.
func FuzzSegment(f *testing.F) {
	f.Add([]byte{2, 1, 1, 0, 0, 0}, []byte{})
	f.Add([]byte{1, 1, 1, 1, 1}, []byte("\x00\x00\x00\x00"))
	f.Add([]byte{3, 255, 255, 255, 255}, bytes.Repeat([]byte{7}, 40))
	f.Add([]byte{2, 0xFF, 0xFF}, []byte{4, 0, 0, 0})
	f.Add([]byte{3, 0, 0, 0, 0}, []byte{})
	f.Fuzz(func(t *testing.T, payload, between []byte) {
		if len(payload) == 0 || len(payload) == 5 && payload[0] == 3 && payload[1] > 0 && payload[1] < 3 {
			return // a footer that counts too few: its checksum would be that of a writer that lies
		}
		synctest.Test(t, func(t *testing.T) {
			d := newDisk(t)
			o := open(t, d, small())
			add(t, o, 3)
			if err := o.Sync(); err != nil {
				t.Fatal(err)
			}
			d = d.Kill()
			path := segments(d)[0]
			data, _ := d.Content(path)
			d.SetContent(path, append(nonceOf(t, path).Append(append(data, between...), payload), between...))
			takeAll(t, d)
		})
	})
}

func nonceOf(t *testing.T, path string) record.Seed {
	var nonce uint64
	for _, c := range path[len(path)-20 : len(path)-4] {
		nonce = nonce<<4 | uint64(bytes.IndexRune([]byte("0123456789abcdef"), c))
	}
	return record.NewSeed(nonce)
}

// takeAll hands out all there is on d; the first three entries are sound.
func takeAll(t *testing.T, d *disktest.Disk) {
	o := open(t, d, small())
	for got := 0; o.Status().Depth > 0; {
		run, err := o.Next(t.Context(), 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got++; got <= 3 && parse(t, run[0]).seq != uint64(got) {
			t.Fatalf("entry %d is %q", got, run[0].Payload)
		}
		o.Ack(run[0].ID)
	}
	if s := o.Status(); s.Acked < 3 {
		t.Fatalf("status %+v", s)
	}
	closeBox(t, o)
}

// Whatever a program of before or behind this one wrote into a segment, header and ages included: what has a known
// age is let go or kept, nothing is invented, and the log is gone in the end.
func FuzzHeader(f *testing.F) {
	f.Add([]byte{1, 4, 1, 0, 0}, []byte{2, 4, 1, 0, 0, 0})
	f.Add([]byte{1, 4, 1, 0, 0, 1}, []byte{2, 4, 1, 1, 7, 'r', 's', '4', '8', '5', '-', '1', 1, 't', 'x'})
	f.Add([]byte{1, 4, 1, 0, 0, 1}, []byte{2, 4, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 7, 'r', 's', '4', '8', '5', '-', '1', 0, 'x'})
	f.Add([]byte{1, 4, 1, 0xFF, 0xFF, 0x7F, 0x7F, 2, 3}, []byte{2, 4, 9, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20, 7, 'r', 's', '4', '8', '5', '-', '1', 1, 't'})
	f.Fuzz(func(t *testing.T, header, entry []byte) {
		if len(header) == 0 || len(entry) == 0 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			d := newDisk(t)
			closeBox(t, open(t, d, small()))
			seed := record.NewSeed(77)
			plant(t, d, dir+"/0000000000000001-000000000000004d.log", seed.Append(seed.Append(nil, header), entry))
			o := open(t, d, small(), fleeting, alarms)
			for o.Status().Depth > 0 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				run, err := o.Next(ctx, 1, 1)
				cancel()
				if err != nil {
					break
				}
				if !bytes.HasSuffix(entry, run[0].Payload) && !bytes.HasSuffix(header, run[0].Payload) {
					t.Fatalf("%q is of neither", run[0].Payload)
				}
				o.Ack(run[0].ID)
			}
			if s := o.Status(); s.Depth != 0 || s.Acked+s.Expired > 2 {
				t.Errorf("status %+v", s)
			}
			closeBox(t, o)
			if left := segments(d); len(left) > 0 {
				t.Errorf("left %v", left)
			}
		})
	})
}

// Whatever the file of lines holds, the outbox opens, and no line that is not urgent becomes so.
func FuzzLines(f *testing.F) {
	f.Add([]byte{6, 7, 'r', 's', '4', '8', '5', '-', '0'})
	f.Add([]byte{6, 200, 1, 'x'})
	f.Add([]byte{7})
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) == 0 {
			return
		}
		d := newDisk(t)
		o := open(t, d, small())
		add(t, o, 6)
		closeBox(t, o)
		plant(t, d, dir+"/lines", record.NewSeed(6).Append(nil, payload))
		o = open(t, d, small(), alarms)
		add(t, o, 6)
		if got := drain(t, o, 5); len(got) != 12 {
			t.Errorf("handed out %v", got)
		}
		closeBox(t, o)
	})
}
