package outbox_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"ferrule/agent/outbox"
	"ferrule/internal/disk"
)

const (
	benchTopic = "ferrule/gw-0001/readings/rs485-1/meter-a"
	benchGroup = 100 // entries per sync and per acknowledgement
	benchTurn  = 2000
)

var benchPayload = bytes.Repeat([]byte("p"), 256)

// store is what is compared: append makes a group durable, drain takes it out again.
type store interface {
	append(n int) error
	drain(n int) error
	close() error
}

// BenchmarkBacklog appends entries of 256 bytes, a sync per 100, and drains them, an acknowledgement per
// 100: to an outbox and to bbolt in turn, 2,000 at a time, so that what else the machine does hits both.
// Bytes written are those of /proc/self/io, which a temporary file system does not count.
func BenchmarkBacklog(b *testing.B) {
	rivals := []*rival{{name: "ferrule", open: newOutboxStore}, {name: "bbolt", open: newBoltStore}}
	for _, r := range rivals {
		var err error
		if r.store, err = r.open(b.TempDir()); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for _, phase := range []func(r *rival, n int){
		func(r *rival, n int) { r.time(b, &r.appending, r.store.append, n) },
		func(r *rival, n int) { r.time(b, &r.draining, r.store.drain, n) },
	} {
		for left := b.N; left > 0; left -= benchTurn {
			for _, r := range rivals {
				phase(r, min(left, benchTurn))
			}
		}
	}
	for _, r := range rivals {
		before := writeBytes(b)
		if err := r.store.close(); err != nil {
			b.Fatal(err)
		}
		r.written += writeBytes(b) - before
		b.ReportMetric(float64(b.N)/r.appending.Seconds(), r.name+"-append/s")
		b.ReportMetric(float64(b.N)/r.draining.Seconds(), r.name+"-drain/s")
		b.ReportMetric(float64(r.written)/float64(b.N*len(benchPayload)), r.name+"-disk-B/payload-B")
	}
}

// rival is one store and what it took.
type rival struct {
	name                string
	open                func(dir string) (store, error)
	store               store
	appending, draining time.Duration
	written             int64
}

func (r *rival) time(b *testing.B, sum *time.Duration, do func(int) error, n int) {
	before, start := writeBytes(b), time.Now()
	for ; n > 0; n -= benchGroup {
		if err := do(min(n, benchGroup)); err != nil {
			b.Fatal(err)
		}
	}
	*sum += time.Since(start)
	r.written += writeBytes(b) - before
}

// BenchmarkHealthy is an entry that is acknowledged at once.
func BenchmarkHealthy(b *testing.B) {
	s, err := newOutboxStore(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	o := s.(*outboxStore).o
	before := writeBytes(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := appendBench(o); err != nil {
			b.Fatal(err)
		}
		run, err := o.Next(b.Context(), 1, 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		o.Ack(run[0].ID)
	}
	b.ReportMetric(float64(writeBytes(b)-before)/float64(b.N*len(benchPayload)), "disk-B/payload-B")
	if err := o.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkAlways is sync = "always", one appender.
func BenchmarkAlways(b *testing.B) {
	c := outbox.Default()
	c.Sync = outbox.Always
	o, err := tryOpen(disk.OS(), filepath.Join(b.TempDir(), "outbox"), c)
	if err != nil {
		b.Fatal(err)
	}
	before := writeBytes(b)
	for b.Loop() {
		if err := appendBench(o); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(writeBytes(b)-before)/float64(b.N*len(benchPayload)), "disk-B/payload-B")
	if err := o.Close(); err != nil {
		b.Fatal(err)
	}
}

func appendBench(o *box) error {
	return o.Append(context.Background(), "rs485-1", func(dst []byte, _ uint64) (string, []byte) {
		return benchTopic, append(dst, benchPayload...)
	})
}

type outboxStore struct{ o *box }

func newOutboxStore(dir string) (store, error) {
	c := outbox.Default()
	c.MaxBytes = 4 << 30
	o, err := tryOpen(disk.OS(), filepath.Join(dir, "outbox"), c)
	return &outboxStore{o}, err
}

func (s *outboxStore) append(n int) error {
	for range n {
		if err := appendBench(s.o); err != nil {
			return err
		}
	}
	return s.o.Sync()
}

func (s *outboxStore) drain(n int) error {
	for n > 0 {
		run, err := s.o.Next(context.Background(), n, 1<<20)
		if err != nil {
			return err
		}
		for _, e := range run {
			if len(e.Payload) != len(benchPayload) || e.Topic != benchTopic {
				return fmt.Errorf("entry %d came back with %d bytes", e.ID, len(e.Payload))
			}
		}
		s.o.Ack(run[len(run)-1].ID)
		n -= len(run)
	}
	return nil
}

func (s *outboxStore) close() error { return s.o.Close() }

// boltStore keeps the same entries in bbolt, a transaction per group.
type boltStore struct {
	db  *bbolt.DB
	seq uint64
}

var boltBucket = []byte("outbox")

func newBoltStore(dir string) (store, error) {
	db, err := bbolt.Open(filepath.Join(dir, "outbox.db"), 0o600, nil)
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket(boltBucket); return err })
	return &boltStore{db: db}, err
}

func (s *boltStore) append(n int) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(boltBucket)
		bucket.FillPercent = 1 // keys rise
		for range n {
			s.seq++
			value := append(append([]byte{byte(len(benchTopic))}, benchTopic...), benchPayload...)
			if err := bucket.Put(binary.BigEndian.AppendUint64(nil, s.seq), value); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *boltStore) drain(n int) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(boltBucket)
		var keys [][]byte
		c := bucket.Cursor()
		for k, v := c.First(); k != nil && len(keys) < n; k, v = c.Next() {
			if len(v) != 1+len(benchTopic)+len(benchPayload) {
				return fmt.Errorf("entry %x came back with %d bytes", k, len(v))
			}
			keys = append(keys, k)
		}
		if len(keys) != n {
			return fmt.Errorf("%d entries of %d", len(keys), n)
		}
		for _, k := range keys {
			if err := bucket.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *boltStore) close() error { return s.db.Close() }

// writeBytes is what this process has had written to disks, in bytes.
func writeBytes(b *testing.B) int64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Fatal(err)
	}
	var n int64
	if _, rest, ok := bytes.Cut(text, []byte("\nwrite_bytes: ")); ok {
		_, err = fmt.Sscan(string(rest), &n)
	}
	if err != nil || n < 0 {
		b.Fatalf("no write_bytes in /proc/self/io: %v", err)
	}
	return n
}
