package e2e

import (
	"bufio"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ferrule/agent"
	"ferrule/firmware"
	"ferrule/firmware/bundle/bundletest"
)

func TestUpdateOverBadLinks(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	at(t, &all, "broken every 100 KiB", updateBroken)
	at(t, &all, "dripping", updateDripping)
	at(t, &all, "no broker", updateInAnOutage)
	all.Wait()
}

// The connection breaks every 100 KiB, as on a bad mobile link. The update becomes all the same, hardly
// anything is fetched twice, and it costs no memory.
func updateBroken(t *testing.T) {
	u := newUpdating(t, quietLine, "floor = \"file\"")
	u.run(t)
	idle := highWater(u.keeper.pid())
	u.n++
	source := rand.NewChaCha8([32]byte{1})
	image := make([]byte, 8<<20+54321)
	_, _ = source.Read(image)
	m := u.release(t, u.wrapped(image), func(r *bundletest.Release) { r.NoDeltas = true })
	const each = 100 << 10
	cuts := u.server.breaksEvery(each)
	most, done := watchPeak(u.keeper)
	began := time.Now()
	u.apply(t)
	u.tried(t, m)
	close(done)
	all, once := u.server.sent()
	size := m.Parts()[0].Full.Size
	twice := all - once
	t.Logf("an object of %d bytes in %v over %d broken connections: %d bytes sent, %d of them twice (%.2f %%); %d KiB in memory at most, %d before it",
		size, time.Since(began).Round(time.Second), cuts(), all, twice, 100*float64(twice)/float64(size), <-most, idle)
	if n := int64(cuts()); n < size/each-1 {
		t.Errorf("only %d connections were broken", n)
	}
	if once != size || twice*100 >= 2*size {
		t.Errorf("%d of %d bytes were sent, and %d twice; at most 2 %% may be", once, size, twice)
	}
	u.whole(t)
}

// breaksEvery has the server reset each connection after so many bytes of an object.
func (s *countedFiles) breaksEvery(each int64) (cuts func() int) {
	var mu sync.Mutex
	n := 0
	s.wrong(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/targets/") {
			return false
		}
		body := &breakingBody{countedBody: countedBody{ResponseWriter: w}, left: each}
		s.files.ServeHTTP(body, r)
		s.mu.Lock()
		s.spans[r.URL.Path] = append(s.spans[r.URL.Path], bodySpan{body.from, body.from + body.n})
		s.mu.Unlock()
		if body.left == 0 {
			mu.Lock()
			n++
			mu.Unlock()
			reset(w)
		}
		return true
	})
	return func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// breakingBody takes no more than is left.
type breakingBody struct {
	countedBody
	left int64
}

func (b *breakingBody) Write(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.ErrClosedPipe
	}
	n, err := b.countedBody.Write(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// reset ends a connection as a network does that has lost it, when all is sent that was written.
func reset(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush()
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	if under, ok := conn.(*tls.Conn); ok {
		conn = under.NetConn()
	}
	if under, ok := conn.(*cutConn); ok {
		conn = under.Conn
	}
	if under, ok := conn.(*net.TCPConn); ok {
		_ = under.SetLinger(0)
	}
	_ = conn.Close()
}

// highWater is VmHWM of a process in KiB; 0 where it is gone.
func highWater(pid int) (kib int) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	defer f.Close()
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		if fields := strings.Fields(scanner.Text()); len(fields) > 1 && fields[0] == "VmHWM:" {
			kib, _ = strconv.Atoi(fields[1])
		}
	}
	return kib
}

// watchPeak looks at the memory of whatever runs until done is closed: a restart begins anew.
func watchPeak(k *keeper) (most chan int, done chan struct{}) {
	most, done = make(chan int, 1), make(chan struct{})
	go func() {
		highest := 0
		for {
			highest = max(highest, highWater(k.pid()))
			select {
			case <-done:
				most <- highest
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return most, done
}

// A server that sends a byte now and then keeps nothing but itself: readings go on, and the update can
// be given up at once.
func updateDripping(t *testing.T) {
	u := newUpdating(t, siteOptions{sync: "1s", every: 100 * time.Millisecond, points: 1}, "floor = \"file\"")
	u.run(t)
	m := u.release(t, u.next())
	dripping := make(chan struct{}, 1)
	u.server.wrong(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/targets/") {
			return false
		}
		for r.Context().Err() == nil {
			if _, err := w.Write([]byte("x")); err != nil {
				break
			}
			_ = http.NewResponseController(w).Flush()
			select {
			case dripping <- struct{}{}:
			default:
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		return true
	})
	before := u.ferrule[0]
	u.apply(t)
	for range 20 {
		<-dripping
	}
	readings := len(u.arrivals(t))
	waitFor(t, "readings", func() bool { return len(u.arrivals(t)) > readings+20 })
	if s := u.stands(t); s.State != firmware.Fetching {
		t.Errorf("status %+v", s)
	}
	if a := u.command(t, agent.UpdateArgs{}); a.Code != "busy" {
		t.Errorf("another update: %+v", a)
	}
	if a := u.command(t, agent.UpdateArgs{Action: "rollback", Reason: "it takes too long"}); !a.OK {
		t.Errorf("rollback: %+v", a)
	}
	if r := u.report(t, m, firmware.OutcomeFailed); !strings.Contains(r.Reason, "it takes too long") || !strings.Contains(u.said(t), "it takes too long") {
		t.Errorf("report %+v", r)
	}
	u.server.wrong(nil)
	if u.running(t) != u.untouched(t, before) {
		t.Error("something else runs")
	}
	again := u.release(t, u.next())
	u.apply(t)
	u.tried(t, again)
	u.whole(t)
}
