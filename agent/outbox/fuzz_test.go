package outbox_test

import (
	"bytes"
	"testing"
	"testing/synctest"

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
	f.Fuzz(func(t *testing.T, payload, between []byte) {
		if len(payload) == 0 {
			return
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
