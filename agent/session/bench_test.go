package session

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"ferrule/agent/outbox"
	"ferrule/internal/disk"

	"ferrule/agent/session/cause"
)

// BenchmarkPublish sends b.N entries of 256 B through the outbox to mosquitto over mTLS, and
// counts them at a subscriber in a process of its own: a run in which one is missing fails. The
// CPU is that of this process, so it holds the appending, too.
func BenchmarkPublish(b *testing.B) {
	b.Run("one-per-message", func(b *testing.B) { benchmarkPublish(b) })
	b.Run("joined", func(b *testing.B) { benchmarkPublish(b, joining) })
}

func benchmarkPublish(b *testing.B, change ...func(*Options)) {
	w := newWorld(b)
	config := outbox.Default()
	config.MaxBytes, config.WhenFull = 16<<20, outbox.Block
	w.outbox = must[*outbox.Outbox](b)(outbox.Open(outbox.Options{FS: disk.OS(), Dir: b.TempDir(), Config: config, Log: w.log.logger()}))
	b.Cleanup(func() { _ = w.outbox.Close() })
	m := w.startMosquitto("max_inflight_messages 0", "max_queued_messages 0")
	end := w.subscribe(m, "readings/#", "%p")
	s := w.session(m.address, change...)
	w.run(s)
	until(b, "the session to be up", func() bool { return s.Status().Stage == cause.StageUp })
	b.ReportAllocs()
	before, start := cpu(), time.Now()
	b.ResetTimer()
	w.fill(b.N, 256)
	until(b, "the outbox to drain", w.drained)
	b.StopTimer()
	spent := cpu() - before
	b.ReportMetric(spent.Seconds()/float64(b.N)*1e5, "cpu-s/100k")
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "entries/s")
	until(b, "the subscriber to have everything", func() bool {
		return end.ends(fmt.Sprintf(`{"seq":%d,`, b.N))
	})
	checkSeqs(b, seqs(b, strings.Split(end.output(), "\n")), b.N)
}

// cpu returns the user and system time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
